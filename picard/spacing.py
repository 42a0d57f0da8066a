"""Spacings: which of a schedule's noise levels a number of steps visits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from picard.errors import InvalidGridError, describe
from picard.number import MANY, whole

Spacing = Literal["leading", "trailing", "linspace", "karras"]
SPACINGS = ("leading", "trailing", "linspace", "karras")


def training_steps(steps: int, train: int, spacing: Spacing, offset: int) -> Tensor:
    """Choose training steps, noisiest first, as Diffusers does.

    Args:
        steps: how many.
        train: number of training steps.
        spacing: `leading`, `trailing` or `linspace`.
        offset: added to those of `leading`.

    Returns:
        The training steps, shape (steps,), int64.
    """
    if spacing == "leading":
        return torch.arange(steps, device="cpu").flip(0) * (train // steps) + offset
    if spacing == "trailing":
        every = torch.arange(steps, dtype=torch.float64, device="cpu")
        return (train - every * (train / steps)).round().long() - 1
    return torch.linspace(0, train - 1, steps, dtype=torch.float64, device="cpu").round().long().flip(0)


def nearest_training_steps(visited: Tensor, sigma: Tensor) -> Tensor:
    """Find the training steps nearest to levels, on the scale of the logarithm; a network knows whole ones only.

    Args:
        visited: the levels, shape (steps,).
        sigma: those of the training steps, ascending, shape (train,).

    Returns:
        The training steps, shape (steps,), float64.
    """
    log_sigma, log = sigma.log(), visited.log()
    above = torch.searchsorted(log_sigma, log).clamp(1, len(sigma) - 1)
    share = (log - log_sigma[above - 1]) / (log_sigma[above] - log_sigma[above - 1])
    return (above - 1 + share.clamp(0, 1)).round()


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Space noise levels by Karras et al. (2022), eq. 5, from `sigma_max` down to `sigma_min`; shape (steps,)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def check_steps(grid: object, most: int | None) -> int | None:
    """Return a grid that is a number of steps, from 1 to `most` training steps, if there are any; else `None`.

    Raises:
        InvalidGridError: if it is not.
    """
    steps = whole(grid)
    if isinstance(grid, bool) or (steps is not None and not 1 <= steps <= (most or MANY)):
        bound = f"at least 1 and at most {MANY}" if most is None else f"between 1 and the {most} training steps"
        msg = f"the number of steps must be {bound}; given {describe(grid)}: write e.g. 50"
        raise InvalidGridError(msg)
    return steps
