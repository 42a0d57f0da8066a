"""Guesses: starting states for the nodes that enter a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from picard.device import send
from picard.errors import InvalidProblemError, close_match, describe
from picard.plan import Plan
from picard.propagate import hold
from picard.rows import kicked
from picard.shapes import Float
from picard.solution import Solution
from picard.window import Guess, Tables, Window, take

GUESSES = ("hold", "copy")


class Copy:
    """Repeat the last known state, as ParaDiGMS does."""

    carries_noise: ClassVar[bool] = False

    def __call__(
        self,
        window: Window,
        known: Float[Tensor, "batch slots dims"],
        values: Float[Tensor, "batch evaluated dims"],
        old_begin: Sequence[int],
        end: Sequence[int],
        count: int,
    ) -> Float[Tensor, "batch count dims"]:
        """Return copies of the state at `end`."""
        last = torch.tensor(end)[:, None] - torch.tensor(old_begin)[:, None] + window.history
        return take(known, send(last, known)).expand(-1, count, -1)


@dataclass(frozen=True, eq=False)
class Hold:
    """Run the recurrence on with the last field value held, and with the right noise.

    For diffusion models the field is the data prediction: the x0-frozen start of ParaSolver (Lu et al., 2025).

    Attributes:
        tables: the plan's coefficients.
        state: shape of one state.
    """

    carries_noise: ClassVar[bool] = True
    tables: Tables
    state: tuple[int, ...]

    def __call__(
        self,
        window: Window,
        known: Float[Tensor, "batch slots dims"],
        values: Float[Tensor, "batch evaluated dims"],
        old_begin: Sequence[int],
        end: Sequence[int],
        count: int,
    ) -> Float[Tensor, "batch count dims"]:
        """Return the held continuation."""
        tables, history = self.tables, window.history
        last = (torch.tensor(end) - torch.tensor(old_begin))[:, None] + history
        nodes = send((torch.tensor(end)[:, None] + torch.arange(count)).clamp_max(len(tables.a) - 1), known)
        z = take(known, send(last + torch.arange(-history, 1), known))
        past = take(values, send((last - 1 + torch.arange(-history, 1)).clamp_min(0), known))
        held = past[:, -1:].expand(-1, count, -1)
        forcing = None
        if window.noise is not None:
            slots = torch.tensor(end)[:, None] - torch.tensor(window.begin)[:, None] + torch.arange(count)
            noise = take(window.noise, send(slots.clamp_max(window.noise.shape[1] - 1), known))
            if window.diffusion is None:
                forcing = tables.c[nodes][..., None] * noise.flatten(2)
            else:
                held = self._kicked(window, held, send(last - 1 - history, known), nodes, noise)
        return hold(tables.a[nodes], tables.b[nodes], z, past[:, 1:], held, forcing)

    def _kicked(self, window: Window, held: Tensor, source: Tensor, nodes: Tensor, noise: Tensor) -> Tensor:
        """Replace the source node's own increment in the held value by that of every new node's step."""
        if window.diffusion is None or window.kick is None:
            return held
        drift = (held - take(window.kick, source)).unflatten(2, self.state)
        diffusion = take(window.diffusion, source)
        kick = self.tables.kick[nodes].reshape(*nodes.shape, *[1] * (noise.ndim - 2))
        return kicked(drift, diffusion.expand(-1, nodes.shape[1], *diffusion.shape[2:]), kick * noise).flatten(2)


@dataclass(frozen=True, eq=False)
class Warm:
    """Start from a given trajectory, for example the previous solution of a slightly different problem.

    Attributes:
        states: shape (nodes, batch, dims).
    """

    carries_noise: ClassVar[bool] = False
    states: Tensor

    def __call__(
        self,
        window: Window,
        known: Float[Tensor, "batch slots dims"],
        values: Float[Tensor, "batch evaluated dims"],
        old_begin: Sequence[int],
        end: Sequence[int],
        count: int,
    ) -> Float[Tensor, "batch count dims"]:
        """Return the trajectory's states."""
        nodes = (torch.tensor(end)[:, None] + torch.arange(1, count + 1)).clamp_max(len(self.states) - 1)
        samples = torch.tensor(window.samples)[:, None].expand_as(nodes)
        return self.states[send(nodes, self.states), send(samples, self.states)]


def resolve_guess(given: object, plan: Plan, tables: Tables, x0: Tensor, wide: torch.dtype) -> Guess:
    """Turn a name, a trajectory or an earlier solution into a guess.

    Args:
        given: `"hold"`, `"copy"`, a tensor of shape (steps + 1, batch, *state), or a `Solution` with as many points.
        plan: the plan.
        tables: its coefficients.
        x0: initial states.
        wide: dtype of the computation.

    Raises:
        InvalidProblemError: if it is anything else.
    """
    if isinstance(given, str) and given in GUESSES:
        return Hold(tables, tuple(x0.shape[1:])) if given == "hold" else Copy()
    trajectory = given.ys if isinstance(given, Solution) else given
    shape = (plan.steps + 1, *x0.shape)
    if not isinstance(trajectory, Tensor):
        msg = (
            f"guess must be a name, a trajectory of shape {shape} or a Solution; given {describe(given)}: "
            f"{close_match(str(given), GUESSES)}"
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
    return ((plan.times - starts[plan.step]) / length[plan.step]).clamp(0, 1)
