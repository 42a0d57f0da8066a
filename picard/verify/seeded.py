"""What known problems and tests are made from: a seed, sizes and a dtype."""

from __future__ import annotations

from typing import Any

import torch

from picard.errors import InvalidProblemError, describe
from picard.number import MANY, check_count


def seeded(seed: Any, further: int = 0) -> torch.Generator:
    """Make a generator on the CPU from a seed, or from one further on.

    Raises:
        InvalidProblemError: if that is no seed.
    """
    return torch.Generator().manual_seed(check_count("seed", seed, least=0) + further)


def check_size(name: str, size: Any) -> int:
    """Check how many numbers, samples or dimensions are to be made.

    Raises:
        InvalidProblemError: if that is no whole number of at least 1, or an absurd one.
    """
    return check_count(name, size, most=MANY)


def check_dtype(dtype: Any) -> None:
    """Check that a dtype is one of states.

    Raises:
        InvalidProblemError: if it is not.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        msg = f"dtype must be a floating one of PyTorch; given {describe(dtype)}: write e.g. torch.float64"
        raise InvalidProblemError(msg)
