"""Adapters: wrappers of model libraries, imported only when used."""

from __future__ import annotations

__all__: list[str] = []
