"""The warm start: the guess that begins from a given trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from picard.device import send
from picard.entering import Entering, Guess
from picard.plan import Plan
from picard.shapes import Float
from picard.tables import Tables

_POINTS = 6  # grid points of the polynomial that gives slopes: their error is then far below that of a stage
_UNEVEN = 1e3  # where steps around a node differ by so much, it would be made of rounding


@dataclass(frozen=True, eq=False)
class Warm:
    """Start from a given trajectory, for example the previous solution of a slightly different problem.

    Attributes:
        states: at every node and at the end, shape (nodes + 1, batch, dims).
        reach: last node of every sample that they are known at; `None` if they are at all.
        beyond: the guess for nodes after that.
    """

    carries_noise: ClassVar[bool] = False
    states: Tensor
    reach: Sequence[int] | None
    beyond: Guess

    @classmethod
    def along(
        cls,
        plan: Plan,
        tables: Tables,
        points: Float[Tensor, "points batch dims"],
        beyond: Guess,
        *,
        smooth: bool,
        converged: Sequence[int] | None = None,
    ) -> Warm:
        """Make the guess from states at grid points.

        Args:
            plan: the plan.
            tables: its coefficients.
            points: states at all grid points.
            beyond: the guess where the trajectory does not reach.
            smooth: whether it is the trajectory of an equation without noise, smooth in time.
            converged: steps of every sample that are known; `None` if all are.
        """
        states, reach = torch.cat([_between(plan, points), points[-1:]]), None
        staged = smooth and plan.nodes > plan.steps
        if staged:
            _fill_stages(plan, tables, points, states)
        if converged is not None:
            lost = _POINTS // 2 if staged else 0  # slopes look that far ahead
            reach = [int(plan.grid_nodes[max(steps - lost, 0)]) for steps in converged]
        return cls(states, reach, beyond)

    @property
    def opens(self) -> bool:
        """Say whether first windows are full: not where the trajectory may end within them."""
        return self.reach is None

    def __call__(self, entering: Entering) -> Float[Tensor, "batch count dims"]:
        """Return the trajectory's states."""
        nodes = entering.new(1).clamp_max(len(self.states) - 1)
        samples, end = entering.places.samples, entering.places.end
        found = self.states[nodes, send(samples, nodes)[:, None]]
        if self.reach is None:
            return found
        reach = [self.reach[sample] for sample in samples]
        if all(last + entering.wanted <= most for last, most in zip(end, reach, strict=True)):
            return found
        return torch.where((nodes <= send(reach, nodes)[:, None])[..., None], found, self.beyond(entering))


def _between(plan: Plan, points: Float[Tensor, "points batch dims"]) -> Float[Tensor, "nodes batch dims"]:
    """Interpolate linearly: nodes inside a step lie between its two grid points."""
    knots = _knots(plan)
    share = (plan.times - knots[plan.step]) / knots.diff()[plan.step]
    share = share.nan_to_num(0.0).clamp(0, 1)  # where a model is given the same time again there is no way to go
    step = send(plan.step, points)
    return torch.lerp(points[step], points[step + 1], send(share.to(points.dtype), points)[:, None, None])


def _fill_stages(plan: Plan, tables: Tables, points: Tensor, states: Tensor) -> None:
    """Replace the states inside steps by those that the plan's own stages have, the field being the slope in time.

    Stages are off the trajectory by the square of the step, which may be far more than the tolerance.
    """
    pace = _knots(plan).diff()
    if not bool((pace > 0).all()) and not bool((pace < 0).all()):
        return
    slopes = _slopes(plan, points)
    stage = torch.arange(plan.nodes, device="cpu") - plan.grid_nodes[plan.step]
    for number in range(1, int(stage.amax()) + 1):
        node = send((stage == number).nonzero()[:, 0] - 1, points)
        a, b = tables.a[node], tables.b[node]
        total = torch.zeros_like(states[node])
        for p in range(plan.order):
            earlier = (node - p).clamp_min(0)
            total += a[:, p, None, None] * states[earlier] + b[:, p, None, None] * slopes[earlier]
        states[node + 1] = total


def _slopes(plan: Plan, points: Float[Tensor, "points batch dims"]) -> Float[Tensor, "nodes batch dims"]:
    """Differentiate the polynomials through the grid points around every node; through two where steps are uneven."""
    knots = _knots(plan)
    count = min(_POINTS, len(knots))
    first = (plan.step - (count // 2 - 1)).clamp(0, len(knots) - count)
    place = first[:, None] + torch.arange(count, device="cpu")
    gaps = knots[place].diff(dim=1).abs()
    even = (gaps.amax(1) < _UNEVEN * gaps.amin(1))[:, None]
    away = torch.where(even, knots[place] - plan.times[:, None], place.to(knots.dtype))
    unit = away.abs().amax(1, keepdim=True)
    powers = (away / unit)[:, None] ** torch.arange(count, device="cpu")[:, None]
    weights = torch.linalg.inv(powers)[:, :, 1] / unit  # the values that make the polynomial t, and no other power
    step = plan.step[:, None]
    chord = ((place == step + 1).to(knots.dtype) - (place == step).to(knots.dtype)) / knots.diff()[step]
    weights = torch.where(even, weights, chord)
    weights, place = send(weights.to(points.dtype), points), send(place, points)
    return sum((weights[:, k, None, None] * points[place[:, k]] for k in range(count)), torch.zeros_like(points[:1]))


def _knots(plan: Plan) -> Tensor:
    """Return the times of the grid points."""
    starts = plan.times[plan.grid_nodes[:-1]]
    last = plan.factor[-1:, 1] if plan.yardstick is None else starts.new_ones(1)
    return torch.cat([starts, starts[-1:] + last])
