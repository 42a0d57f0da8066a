"""What the doors of torchdiffeq and torchsde have in common: options of the solver, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from picard.errors import NotSupportedError, close_match

SOLVER_OPTIONS = ("window", "max_rows", "max_rounds", "tolerance", "linearization", "guess", "callback", "progress")


def check_options(given: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    """Refuse options that do not exist.

    Raises:
        TypeError: with the name that was probably meant.
    """
    for option in given:
        if option not in known:
            msg = f"{name} has no option {option!r}: {close_match(str(option), known)}"
            raise TypeError(msg)


def check_constant(name: str, t: Tensor) -> None:
    """Refuse times that ask for a gradient, which they would not get.

    Raises:
        NotSupportedError: with a way to get it.
    """
    if t.requires_grad and torch.is_grad_enabled():
        msg = (
            f"{name} is a constant here, and gets no gradient: write {name}.detach(); for the gradient by a length T, "
            "solve over times from 0 to 1 what runs T times as fast, T * func(T * t, y)"
        )
        raise NotSupportedError(msg)
