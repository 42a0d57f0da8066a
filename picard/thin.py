"""Thinning: which nodes of a window are evaluated, and what the field is taken to be at the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.device import send, take
from picard.gaps import Chosen, Gaps
from picard.plan import Plan
from picard.propagate import squared
from picard.shapes import Bool, Float

REACH = 3  # a thinned window holds up to so many times the nodes it evaluates
_FARTHEST = 16  # nodes from one evaluation to the next, at most
_UNKNOWN = 0.5  # spread before any was measured; a direction that the data leaves free has 1
_LEAST = 1e-100  # a square spread no smaller than this
_SLACK = 2.0  # a node is asked for where its gap's estimated error exceeds its share, but only so much stops a window


class Thinning:
    """Leaves out evaluations that would hardly change the states, for stochastic samplers of diffusion models.

    Under such a sampler the data prediction is a martingale up to the sampler's own error: between two nodes it moves
    by the noise alone. So at a node left out it is that of the nearest evaluated node before, plus the node's slope
    times how far the noise has carried the state since, `F[l] + g (z - hold(z[l], F[l]))`. What that misses is measured
    where nodes are evaluated: the spread, the root of `|F - predicted|^2 / |z - held|^2`. By it and the plan's
    coefficients the error of the states from a gap is estimated before, and a node is evaluated where that exceeds the
    gap's share of the budget. A gap that turns out too wide is passed all the same up to twice its share: it stops the
    window only past that. Nothing here looks at later nodes, so the scheme stays causal.

    Args:
        plan: the plan, of order one.
        budget: error that all gaps together may add to the states, see `Gaps`.
        batch: number of samples.
        farthest: nodes from one evaluation to the next, at most.
        unknown: spread before any was measured.
    """

    def __init__(
        self, plan: Plan, budget: float, batch: int, farthest: int = _FARTHEST, unknown: float = _UNKNOWN
    ) -> None:
        """Start with every sample at its first node."""
        self._gaps = Gaps(plan, budget, farthest)
        first, one = np.zeros((batch, 1), dtype=np.int64), np.ones((batch, 1), dtype=np.bool_)
        self._chosen = self._gaps.link(first, one, one, np.full((batch, 1), unknown))

    @property
    def asked(self) -> NDArray[np.bool_]:
        """Which slots of every sample are evaluated, the first one among them; shape (batch, nodes)."""
        return self._chosen.asked

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all samples but those in some rows."""
        self._chosen = Chosen._make(one[rows] for one in self._chosen)

    def fill(
        self,
        z: Float[Tensor, "batch nodes dims"],
        values: Float[Tensor, "batch nodes dims"],
        slope: Float[Tensor, "batch nodes"],
        asked: Bool[Tensor, "batch nodes"] | None,
    ) -> tuple[Float[Tensor, "batch nodes dims"], Float[Tensor, "batch nodes"]]:
        """Predict the field at the nodes left out, and measure what the prediction misses at the others.

        Args:
            z: states of all nodes.
            values: the field at the evaluated ones.
            slope: slopes of all nodes.
            asked: which nodes were evaluated; `None` if all were.

        Returns:
            The field at all nodes, and the squared spread at every node, -1 where it is unknown.
        """
        predicted, distance = self.predict(z, values, slope)
        missed = squared(values - predicted)
        measured = (distance > 0) & torch.isfinite(missed) & torch.isfinite(distance)
        if asked is not None:
            measured = measured & asked
            values = torch.where(asked[..., None], values, predicted)
        square = missed / torch.where(measured, distance, 1)
        return values, torch.where(measured, square.clamp_max(torch.finfo(square.dtype).max), -1)

    def predict(
        self,
        z: Float[Tensor, "batch nodes dims"],
        values: Float[Tensor, "batch nodes dims"],
        slope: Float[Tensor, "batch nodes"],
    ) -> tuple[Float[Tensor, "batch nodes dims"], Float[Tensor, "batch nodes"]]:
        """Predict the field at every node from the evaluated one before it; see `fill`.

        Returns:
            The predictions, and the squared distance that the noise has moved the state since.
        """
        now = self._chosen
        held = torch.from_numpy(np.stack([now.carried, now.added]))
        source, (carried, added) = send(now.left, z), send(held.to(z.dtype), z)
        base = take(values, source)
        moved = z - carried[..., None] * take(z, source) - added[..., None] * base
        return base + slope[..., None] * moved, squared(moved)

    def check(self, squares: NDArray[np.float64]) -> NDArray[np.int64]:
        """Take in the squared spreads of a round, and ask for the nodes that they show to be needed.

        Args:
            squares: squared spreads, shape (batch, nodes), -1 where unknown.

        Returns:
            Most nodes of every sample that may be accepted: those before the first one that was needed badly.
        """
        now = self._chosen
        spread = _faded(now.spread[:, 0], squares)
        load = spread * now.load
        over, late = load > 1, load > _SLACK
        now = now._replace(spread=spread)
        while over.any():
            count = over.cumsum(1)  # the first one of every gap is asked for, and ends it
            opens = over & (count - np.take_along_axis(count, now.left, 1) == 1)
            now = self._gaps.link(now.first, now.asked | late | opens, now.inside, spread)
            over = spread * now.load > 1
        self._chosen = now
        return np.where(late.any(1), late.argmax(1), late.shape[1])

    def slide(self, stride: Sequence[int], end: Sequence[int], rows: Sequence[int]) -> list[int]:
        """Choose the nodes of the next windows, and return how many each holds.

        Args:
            stride: nodes accepted, of every sample.
            end: last node whose state is known.
            rows: most nodes to evaluate.
        """
        now, each = self._chosen, np.arange(len(stride))[:, None]
        passed, last, most = (np.array(one)[:, None] for one in (stride, end, rows))
        first = now.first + passed
        old = last - first  # nodes of the last window that stay
        room = np.minimum(REACH * most, self._gaps.nodes - first)
        slot = np.arange(max(1, room.max()))
        source = np.maximum(np.minimum(slot, old - 1) + passed, 0)
        spread, asked = now.spread[each, source], now.asked[each, source] & (slot < old)
        asked[:, 0] = True
        self._gaps.ask(asked, spread, first, old)
        inside = (slot < room) & (asked.cumsum(1) <= most)
        width = inside.sum(1)
        slots = slice(max(1, width.max()))
        self._chosen = self._gaps.link(first, (asked & inside)[:, slots], inside[:, slots], spread[:, slots])
        return list(width.tolist())


def _faded(before: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the spread at every slot: the largest measured up to there, halved with every measurement after it.

    Args:
        before: spread at the first slot, so far, shape (batch,).
        squares: squared spreads measured, shape (batch, nodes), -1 where none was.
    """
    times = (squares >= 0).cumsum(1)
    level = np.log2(np.maximum(squares, _LEAST)) / 2 + times
    level[:, 0] = np.maximum(level[:, 0], np.log2(before))
    return np.exp2(np.maximum.accumulate(level, 1) - times)
