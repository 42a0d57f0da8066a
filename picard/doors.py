"""What the doors of torchdiffeq and torchsde have in common: options of the solver, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from picard.device import send
from picard.errors import NotSupportedError, check_names, close_match
from picard.shapes import Float
from picard.solution import Solution, Status

SOLVER_OPTIONS: tuple[str, ...] = ("window", "max_rows", "max_rounds", "tolerance", "linearization", "guess")
SOLVER_OPTIONS += ("sync_every", "compile", "cuda_graph", "callback", "progress", "throw")


def check_options(given: Mapping[str, Any] | None, known: Sequence[str], name: str) -> dict[str, Any]:
    """Refuse options that do not exist, and copy the others.

    Raises:
        TypeError: with the name that was probably meant.
        InvalidProblemError: if there are no names.
    """
    chosen = check_names(f"options of {name}", {} if given is None else given, 'options={"window": 32}')
    for option in chosen:
        if option not in known:
            msg = f"{name} has no option {option!r}: {close_match(option, known)}"
            raise TypeError(msg)
    return chosen


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


def reached(solution: Solution, points: Tensor) -> Float[Tensor, "points batch *state"]:
    """Return the states at some grid points, NaN where a sample failed before: no status comes with them.

    Args:
        solution: what was saved at the points.
        points: their indices, shape (points,), on the CPU.
    """
    ends = [
        steps if status in (Status.NON_FINITE, Status.MAX_ROUNDS) else math.inf
        for status, steps in zip(solution.status, solution.converged, strict=True)
    ]
    lost = points[:, None] > torch.tensor(ends, device="cpu")
    if not bool(lost.any()):
        return solution.ys
    lost = send(lost, solution.ys).reshape(*lost.shape, *[1] * (solution.ys.ndim - 2))
    return solution.ys.masked_fill(lost, math.nan)
