"""Betas: how much noise every training step of a diffusion model adds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from picard.errors import InvalidProblemError
from picard.number import MANY, check_count, number


def linear_betas(train_steps: int, first: float, last: float, power: float) -> Tensor:
    """Space betas evenly in their root of a power.

    Args:
        train_steps: number of training steps.
        first: beta of the first one.
        last: beta of the last one.
        power: the power.

    Returns:
        The betas, shape (train_steps,), float64.

    Raises:
        InvalidProblemError: if a beta is outside [0, 1), or the number of steps is none.
    """
    count = check_count("train_steps", train_steps, most=MANY)
    start, end = _check_beta("beta_start", first) ** (1 / power), _check_beta("beta_end", last) ** (1 / power)
    return torch.linspace(start, end, count, dtype=torch.float64, device="cpu") ** power


def cosine_betas(train_steps: int, most: float) -> Tensor:
    """Take the betas of the squared cosine (Nichol and Dhariwal, 2021), cut at the largest allowed.

    Args:
        train_steps: number of training steps.
        most: largest beta.

    Returns:
        The betas, shape (train_steps,), float64.

    Raises:
        InvalidProblemError: if the largest is outside [0, 1), or the number of steps is none.
    """
    count = check_count("train_steps", train_steps, most=MANY)
    u = torch.linspace(0, 1, count + 1, dtype=torch.float64, device="cpu")
    bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp_max(_check_beta("max_beta", most))


def _check_beta(name: str, value: float) -> float:
    """Return a beta, which must be within [0, 1).

    Raises:
        InvalidProblemError: if it is not.
    """
    beta = number(name, value)
    if not 0 <= beta < 1:
        msg = f"{name} must be within [0, 1), so that alphas_cumprod decreases within (0, 1]; given {beta:g}"
        raise InvalidProblemError(msg)
    return beta
