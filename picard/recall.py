"""Recall: the states of a solved trajectory at every node, of which only those at grid points are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from picard.adjoint import FieldAtNodes
from picard.plan import Plan
from picard.shapes import Float, Int


def recallable(plan: Plan) -> bool:
    """Say whether every state inside a step follows from the state at the step's start alone, without noise.

    So it is for Runge-Kutta methods, and for methods of one node a step, which have no states inside.
    """
    place = _places(plan)
    end = torch.zeros(1, dtype=torch.bool, device="cpu")
    inner = torch.cat([place[1:] > 0, end])  # nodes whose next state is inside their step
    far = torch.arange(plan.order, device="cpu") > place[:, None]
    return not bool((((plan.a != 0) | (plan.b != 0)) & far)[inner].any() or (plan.c[inner] != 0).any())


class Recall:
    """The states at the nodes of a part of a trajectory; the part moves backward in time with the window.

    States inside a step are recomputed from the step's start, as many steps at a time as the window has nodes, so that
    one call of the model has no more rows than those of the solve.
    """

    def __init__(self, field_at: FieldAtNodes, kept: Float[Tensor, "points batch *state"]) -> None:
        """Start with no part.

        Args:
            field_at: the field along the trajectory.
            kept: states at all grid points, or at all nodes if the plan is not `recallable`.
        """
        plan = field_at.setup.plan
        self._field_at, self._kept, self._place = field_at, kept, _places(plan)
        self._starts, self._steps = plan.grid_nodes.tolist(), field_at.setup.window
        self._whole = len(kept) == plan.nodes + 1
        self._part, self._first = kept[:-1] if self._whole else kept[:0], 0
        self._segments = range(0)

    def cover(self, first: int, last: int) -> None:
        """Make the states at nodes `first` to `last` available, and forget those at later ones."""
        if self._whole or first > last:
            return
        step = self._field_at.setup.plan.step
        low, high = int(step[first]) // self._steps, int(step[last]) // self._steps
        had = self._segments
        low = min(low, had.start) if had else low  # when the foremost sample is through, the others lie behind
        if (low, high + 1) == (had.start, had.stop):
            return
        parts = [self._inner(segment) for segment in range(low, min(had.start, high + 1) if had else high + 1)]
        if had and had.start <= high:
            parts.append(self._part[: self._node(high + 1) - self._node(had.start)])
        self._part, self._first, self._segments = torch.cat(parts), self._node(low), range(low, high + 1)

    def __call__(self, node: Int[Tensor, " rows"], sample: Int[Tensor, " rows"]) -> Float[Tensor, "rows *state"]:
        """Return the states at some nodes of some samples."""
        return self._part[node - self._first, sample]

    def _node(self, segment: int) -> int:
        return self._starts[min(segment * self._steps, len(self._starts) - 1)]

    @torch.no_grad()
    def _inner(self, segment: int) -> Float[Tensor, "nodes batch *state"]:
        """Recompute the states at the nodes of a segment of steps, one stage of all steps after the other."""
        plan, tables = self._field_at.setup.plan, self._field_at.setup.tables
        first, stop = self._node(segment), self._node(segment + 1)
        place, device = self._place[first:stop], self._kept.device
        starts = self._kept[segment * self._steps : (segment + 1) * self._steps][: int((place == 0).sum())]
        z = starts.new_zeros(stop - first, *starts.shape[1:], dtype=tables.a.dtype)
        z[(place == 0).nonzero()[:, 0].to(device)] = starts.to(z.dtype)
        values = torch.zeros_like(z)
        batch = torch.arange(z.shape[1], device=device)
        for stage in range(1, int(place.max()) + 1):
            after = (place == stage).nonzero()[:, 0].to(device)
            rows, samples = (after - 1).repeat_interleave(len(batch)), batch.repeat(len(after))
            found = self._field_at(rows + first, samples, z[rows, samples].to(self._kept.dtype))
            values[after - 1] = found.to(z.dtype).unflatten(0, (len(after), len(batch)))
            shape = (-1, *[1] * (z.ndim - 1))
            z[after] = sum(
                tables.a[after - 1 + first, p].reshape(shape) * z[after - 1 - p]
                + tables.b[after - 1 + first, p].reshape(shape) * values[after - 1 - p]
                for p in range(min(stage, plan.order))
            )
        return z.to(self._kept.dtype)


def _places(plan: Plan) -> Int[Tensor, " nodes"]:
    """Say how many nodes of its step come before every node."""
    return torch.arange(plan.nodes, device="cpu") - plan.grid_nodes[plan.step]
