"""Adapters: wrappers of model libraries, imported only when used."""

from __future__ import annotations

from . import diffusers
from .door import parallelize, restore
from .pipelines import parallelize as parallelize_pipeline
from .policies import parallelize_policy

__all__ = ["diffusers", "parallelize", "parallelize_pipeline", "parallelize_policy", "restore"]
