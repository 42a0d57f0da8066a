"""Adapters: wrappers of model libraries, imported only when used."""

from __future__ import annotations

from . import diffusers
from .parallelize import parallelize, restore

__all__ = ["diffusers", "parallelize", "restore"]
