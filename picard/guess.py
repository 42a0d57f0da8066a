"""Guesses: starting states for the nodes that enter a window."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from picard.device import take
from picard.entering import Entering, Guess
from picard.errors import InvalidProblemError, close_match, describe
from picard.expected import Expected
from picard.extrapolate import Extrapolate
from picard.hold import Hold
from picard.plan import Plan
from picard.shapes import Float
from picard.solution import Solution
from picard.tables import Tables
from picard.warm import Warm

GUESSES = ("extrapolate", "eager", "hold", "copy")


class Copy:
    """Repeat the last known state, as ParaDiGMS does."""

    carries_noise: ClassVar[bool] = False

    @property
    def opens(self) -> bool:
        """Say that first windows are full."""
        return True

    def __call__(self, entering: Entering) -> Float[Tensor, "batch count dims"]:
        """Return copies of the state at `end`."""
        return take(entering.known, entering.slot).expand(-1, entering.wanted, -1)


def resolve_guess(
    given: object, plan: Plan, tables: Tables, x0: Tensor, wide: torch.dtype, *, noisy: bool = False
) -> Guess:
    """Turn a name, a trajectory or an earlier solution into a guess.

    Noise makes the field rough in time, where polynomials mislead: `"extrapolate"` then is `"hold"`. The default for
    diffusion models, whose windows rarely slide far enough to learn a polynomial from, is `"eager"`. That is `"hold"`
    for equations, of whose field zero says nothing, and whose noise may enter through the field.

    Args:
        given: `"extrapolate"`, `"eager"`, `"hold"`, `"copy"`, a tensor of shape (steps + 1, batch, *state), a
            `Solution` with as many points, used as far as it converged, or `Expected` field values; `None` for the
            problem's usual guess.
        plan: the plan.
        tables: its coefficients.
        x0: initial states.
        wide: dtype of the computation.
        noisy: whether the problem has noise.

    Raises:
        InvalidProblemError: if it is anything else.
    """
    state = tuple(x0.shape[1:])
    if given is None:
        given = "extrapolate" if plan.yardstick is None else "eager"
    if isinstance(given, str) and given == "copy":
        return Copy()
    if isinstance(given, str) and given in GUESSES:
        smooth = given == "extrapolate" and not noisy
        eager = given == "eager" and plan.yardstick is not None
        return Extrapolate(tables, state, plan.stages) if smooth else Hold(tables, state, eager=eager)
    if isinstance(given, Expected):
        return given.along(plan, tables, x0, wide)
    trajectory = given.ys if isinstance(given, Solution) else given
    shape = (plan.steps + 1, *x0.shape)
    if not isinstance(trajectory, Tensor):
        msg = (
            f"guess must be a name, a trajectory of shape {shape}, a Solution or Expected values; "
            f"given {describe(given)}: {close_match(given, GUESSES)}"
        )
        raise InvalidProblemError(msg)
    if tuple(trajectory.shape) != shape:
        msg = (
            f"a warm start must have shape {shape}, one state a grid point; given {describe(trajectory)}: "
            "solve with save='all'"
        )
        raise InvalidProblemError(msg)
    if not bool(torch.isfinite(trajectory).all()):
        msg = "a warm start must be finite; given a trajectory with non-finite values"
        raise InvalidProblemError(msg)
    usual = resolve_guess(None, plan, tables, x0, wide, noisy=noisy)
    converged = given.converged if isinstance(given, Solution) and min(given.converged) < plan.steps else None
    points, smooth = trajectory.to(x0.device, wide).flatten(2), plan.yardstick is None and not noisy
    return Warm.along(plan, tables, points, usual, smooth=smooth, converged=converged)
