"""Presets: options of `solve` that reproduce published samplers."""

from __future__ import annotations

from typing import Any

from picard.tolerance import NoiseRatio

PARADIGMS: dict[str, Any] = {"linearization": "identity", "guess": "copy", "tolerance": NoiseRatio(0.1)}
"""ParaDiGMS (Shih et al., 2023): Picard iteration, new nodes copied from the last one, tolerance 0.1."""
