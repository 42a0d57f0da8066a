"""The part of a trajectory that a solve keeps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.device import send
from picard.errors import InvalidProblemError, close_match, describe
from picard.number import wholes
from picard.plan import Plan
from picard.shapes import Float


class Trajectory:
    """States at the grid points to be saved, filled as nodes are accepted.

    The last grid point is always kept, whether it is asked for or not.

    Attributes:
        points: indices of the grid points asked for, ascending.
        states: states at these, the last and what else is kept, shape (kept, batch, *state).
        slots: where in `states` the points asked for are.
    """

    def __init__(
        self,
        plan: Plan,
        x0: Float[Tensor, "batch *state"],
        save: str | Sequence[int] | Tensor | NDArray[Any],
        *,
        keep: Literal["points", "grid", "nodes"] = "points",
    ) -> None:
        """Make room for what is to be saved, all holding the initial state.

        Args:
            plan: the plan.
            x0: initial states.
            save: the points asked for, see `check_save`.
            keep: what else to keep: nothing, all grid points, or all nodes.
        """
        self.points = check_save(save, plan.steps)
        nodes = plan.grid_nodes
        wanted = nodes[self.points].tolist()
        more = {"points": [], "grid": nodes.tolist(), "nodes": range(plan.nodes)}[keep]
        kept = sorted({*wanted, *more, plan.nodes})
        self.states = x0.expand(len(kept), *x0.shape).clone()
        self._kept = np.array(kept, dtype=np.int64)
        self.slots = np.searchsorted(self._kept, wanted).tolist()

    @property
    def ys(self) -> Float[Tensor, "points batch *state"]:
        """States at the points asked for."""
        if len(self.slots) == self.slots[-1] + 1:
            return self.states[: len(self.slots)]
        return self.states[self.slots]

    @property
    def final(self) -> Float[Tensor, "batch *state"]:
        """State at the last grid point."""
        return self.states[-1]

    def store(self, samples: Sequence[int], begin: Sequence[int], stride: Sequence[int], states: Tensor) -> None:
        """Keep the accepted states, `states[i, j]` being the state of sample i at node `begin[i] + 1 + j`."""
        if len(samples) == 1:  # the same, in a third of the time
            first, stop = self._first(begin[0] + 1), self._first(begin[0] + 1 + stride[0])
            if first < stop:
                places = send(self._kept[first:stop] - begin[0] - 1, states)
                accepted = states[0].index_select(0, places).to(self.states.dtype)
                self.states[first:stop, samples[0]] = accepted.unflatten(1, self.states.shape[2:])
            return
        after = np.array(begin, dtype=np.int64) + 1  # first node accepted
        first, stop = np.searchsorted(self._kept, [after, after + stride])  # slots to fill
        count = stop - first
        if not count.any():
            return
        rows = np.repeat(np.arange(len(count)), count)
        slots = np.arange(len(rows)) + np.repeat(stop - count.cumsum(), count)
        found = np.stack([slots, np.array(samples, dtype=np.int64)[rows], rows, self._kept[slots] - after[rows]])
        slot, sample, row, place = send(found, states)
        self.states[slot, sample] = states[row, place].to(self.states.dtype).unflatten(1, self.states.shape[2:])

    def keep(self, node: int, states: Float[Tensor, "batch *state"]) -> None:
        """Keep the states of all samples at a node, if they are asked for."""
        slot = self._slot_of.get(node)
        if slot is not None:
            self.states[slot] = states.to(self.states.dtype)

    @cached_property
    def _slot_of(self) -> dict[int, int]:
        """The slot of every node that is kept."""
        return {node: slot for slot, node in enumerate(self._kept.tolist())}

    def _first(self, node: int) -> int:
        """Return the slot of the first node kept that is not before a node."""
        return bisect_left(self._kept, node)

    def repeat(self, sample: int, node: int, state: Float[Tensor, " dims"]) -> None:
        """Fill a sample's points past `node` with the state there, the last one that converged."""
        self.states[self._first(node + 1) :, sample] = state.to(self.states.dtype).reshape(self.states.shape[2:])

    def cut(self, sample: int, node: int) -> None:
        """Fill a sample's points past `node` with the last one kept before, if there is one."""
        before = self._first(node + 1) - 1
        if before >= 0:
            self.repeat(sample, node, self.states[before, sample])


def check_save(save: str | Sequence[int] | Tensor | NDArray[Any], steps: int) -> list[int]:
    """Turn `"last"`, `"all"` or indices of grid points into ascending indices.

    Raises:
        InvalidProblemError: if it is anything else, or an index is outside the grid.
    """
    if isinstance(save, str):
        if save not in ("last", "all"):
            msg = f"unknown save {save!r}: {close_match(save, ('last', 'all'))}, or indices of grid points"
            raise InvalidProblemError(msg)
        return [steps] if save == "last" else list(range(steps + 1))
    found = wholes(save)
    points = [point for point in found if point is not None and -steps - 1 <= point <= steps]
    if not points or len(points) < len(found):
        mask = isinstance(save, Tensor) and save.dtype == torch.bool
        fix = ": write torch.arange(len(mask))[mask] for a mask" if mask else ""
        msg = f"save must be 'last', 'all' or indices within the {steps + 1} grid points; given {describe(save)}{fix}"
        raise InvalidProblemError(msg)
    points = [point % (steps + 1) for point in points]
    if points != sorted(set(points)):
        msg = f"indices to save must ascend without repeats; given {describe(save)}"
        raise InvalidProblemError(msg)
    return points
