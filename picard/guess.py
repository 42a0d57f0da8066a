"""Guesses: starting states for the nodes that enter a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from picard.device import send, take
from picard.entering import Entering, Guess
from picard.errors import InvalidProblemError, close_match, describe
from picard.expected import Expected
from picard.extrapolate import Extrapolate
from picard.hold import Hold
from picard.plan import Plan
from picard.shapes import Float
from picard.solution import Solution
from picard.tables import Tables

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


@dataclass(frozen=True, eq=False)
class Warm:
    """Start from a given trajectory, for example the previous solution of a slightly different problem.

    Attributes:
        states: shape (nodes, batch, dims).
    """

    carries_noise: ClassVar[bool] = False
    states: Tensor

    @property
    def opens(self) -> bool:
        """Say that first windows are full."""
        return True

    def __call__(self, entering: Entering) -> Float[Tensor, "batch count dims"]:
        """Return the trajectory's states."""
        nodes = entering.new(1).clamp_max(len(self.states) - 1)
        return self.states[nodes, send(entering.places.samples, nodes)[:, None]]


def resolve_guess(
    given: object, plan: Plan, tables: Tables, x0: Tensor, wide: torch.dtype, *, noisy: bool = False
) -> Guess:
    """Turn a name, a trajectory or an earlier solution into a guess.

    Noise makes the field rough in time, where polynomials mislead: `"extrapolate"` then is `"hold"`. The default for
    diffusion models, whose windows rarely slide far enough to learn a polynomial from, is `"eager"`. That is `"hold"`
    for equations, of whose field zero says nothing, and whose noise may enter through the field.

    Args:
        given: `"extrapolate"`, `"eager"`, `"hold"`, `"copy"`, a tensor of shape (steps + 1, batch, *state), a
            `Solution` with as many points, or `Expected` field values; `None` for the problem's usual guess.
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
        return Extrapolate.on(plan, tables, state) if smooth else Hold(tables, state, eager=eager)
    if isinstance(given, Expected):
        return given.along(plan, tables, x0, wide)
    trajectory = given.ys if isinstance(given, Solution) else given
    shape = (plan.steps + 1, *x0.shape)
    if not isinstance(trajectory, Tensor):
        msg = (
            f"guess must be a name, a trajectory of shape {shape}, a Solution or Expected values; "
            f"given {describe(given)}: {close_match(str(given), GUESSES)}"
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
    states = trajectory.to(x0.device, wide).flatten(2)
    share = send(_share_of_step(plan).to(wide), states)[:, None, None]
    return Warm(torch.lerp(states[plan.step], states[plan.step + 1], share))


def _share_of_step(plan: Plan) -> Tensor:
    """Say how far into its step every node is, from 0 to 1; nodes inside a step start between its two grid points."""
    starts = plan.times[plan.grid_nodes[:-1]]
    length = torch.cat([starts.diff(), plan.factor[-1:, 1] if plan.yardstick is None else starts.new_ones(1)])
    share = (plan.times - starts[plan.step]) / length[plan.step]
    return share.nan_to_num(0.0).clamp(0, 1)  # where a model is given the same time again there is no way to go
