"""Gaps: the nodes left out between evaluated ones, and what the plan says of the error they add. On the host."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from picard.plan import Plan
from picard.tables import after

_TINY = 1e-100  # stands for zero where there must be none


class Chosen(NamedTuple):
    """Which nodes of the windows are evaluated, and what follows; every array leads with the samples.

    Attributes:
        first: first node, shape (batch, 1).
        asked: whether the node in a slot is evaluated, shape (batch, nodes).
        inside: whether there is one.
        spread: last known there.
        left: the evaluated slot before.
        carried, added: the recurrence from there on with the field held, `carried z + added F`.
        load: see `Gaps`; 0 where the node is evaluated.
    """

    first: NDArray[np.int64]
    asked: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    spread: NDArray[np.float64]
    left: NDArray[np.int64]
    carried: NDArray[np.float64]
    added: NDArray[np.float64]
    load: NDArray[np.float64]


class Gaps:
    """What depends on the plan alone, for every node and number of nodes passed since, up to `farthest`.

    The recurrence from the node on with its field held is `carried z + added F`. The load of a gap is the estimated
    error of the state after the node reached, root mean square, as a multiple of the gap's share of the budget and per
    unit of spread: every node of the gap is missed by its coefficient times how far the noise has moved the state since
    the evaluated one.

    Args:
        plan: the plan, of order one.
        budget: error that all gaps together may add to the states, in multiples of the yardstick; a gap's share is that
            of its nodes, the squares adding up.
        farthest: nodes from one evaluation to the next, at most.
    """

    def __init__(self, plan: Plan, budget: float, farthest: int) -> None:
        """Tabulate."""
        self.nodes, self._farthest = plan.nodes, farthest
        yardstick = after(plan.c if plan.yardstick is None else plan.yardstick).numpy()
        a, b, c = plan.a[:, 0].numpy(), plan.b[:, 0].numpy(), plan.c.numpy()
        padded = np.zeros((5, plan.nodes + farthest))
        padded[:, : plan.nodes] = a, b, c * c, np.abs(b), budget / math.sqrt(plan.nodes) * yardstick
        factor, term, variance, weight, share = np.lib.stride_tricks.sliding_window_view(padded, plan.nodes, 1)
        table = np.zeros((3, farthest + 1, plan.nodes))
        carried, added, load = table
        carried[0] = 1
        for passed in range(farthest):
            np.multiply(factor[passed], table[:2, passed], out=table[:2, passed + 1])
            added[passed + 1] += term[passed]
        moved = np.sqrt(np.add.accumulate(variance[:-1], 0))
        length = np.arange(2, farthest + 2)[:, None]
        load[1:] = np.add.accumulate(weight[1:] * moved, 0) / np.maximum(share[1:] * np.sqrt(length), _TINY)
        self._table = table

    def link(
        self,
        first: NDArray[np.int64],
        asked: NDArray[np.bool_],
        inside: NDArray[np.bool_],
        spread: NDArray[np.float64],
    ) -> Chosen:
        """Look up what follows from the nodes that are asked for."""
        slot = np.arange(asked.shape[1])
        left = np.zeros(asked.shape, dtype=np.int64)
        np.maximum.accumulate(np.where(asked, slot, 0)[:, :-1], 1, out=left[:, 1:])
        carried, added, load = self._table[
            :, np.minimum(slot - left, self._farthest), np.minimum(first + left, self.nodes - 1)
        ]
        load = np.where(inside & ~asked, load, 0)
        return Chosen(first, asked, inside, spread, left, carried, added, load)

    def ask(
        self,
        asked: NDArray[np.bool_],
        spread: NDArray[np.float64],
        first: NDArray[np.int64],
        old: NDArray[np.int64],
    ) -> None:
        """Ask for every node after the `old` ones of its sample whose gap would be too wide otherwise."""
        slots = asked.shape[1]
        last = slots - 1 - asked[:, ::-1].argmax(1)
        low = last.min()
        slot, far = np.arange(low, slots), np.arange(self._farthest + 1)
        load = spread[:, low:, None] * self._table[2].T[np.minimum(first + slot, self.nodes - 1)]
        over = (load > 1) & (slot[:, None] + far >= old[..., None])
        over[..., -1] = True
        for row, at, jumps in zip(asked, last.tolist(), over.argmax(2).tolist(), strict=True):
            while (at := at + jumps[at - low]) < slots:
                row[at] = True
