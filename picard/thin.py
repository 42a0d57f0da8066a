"""Thinning: which nodes of a window are evaluated, and what the field is taken to be at the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picard.device import send, take
from picard.entering import Guess
from picard.hold import Hold
from picard.linearize import Linearization, Secant
from picard.plan import Plan
from picard.propagate import squared
from picard.shapes import Bool, Float
from picard.tables import after
from picard.tolerance import Tolerance
from picard.window import Window

REACH = 3  # a thinned window holds up to so many times the nodes it evaluates
_FARTHEST = 16  # nodes from one evaluation to the next, at most
_FADING = 0.5  # of the largest spread met, from one evaluated node to the next
_UNKNOWN = 0.5  # spread before any was measured; a direction that the data leaves free has 1
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
        budget: error that all gaps together may add to the states, in multiples of the yardstick; a gap's share is that
            of its nodes, the squares adding up.
        farthest: nodes from one evaluation to the next, at most.
    """

    def __init__(self, plan: Plan, budget: float, farthest: int = _FARTHEST) -> None:
        """Start with every sample at its first node."""
        self._farthest = farthest
        self._a, self._b = plan.a[:, 0].tolist(), plan.b[:, 0].tolist()
        self._variance = plan.c.square().tolist()
        yardstick = plan.c if plan.yardstick is None else plan.yardstick
        self._budget = (budget * after(yardstick) / math.sqrt(plan.nodes)).tolist()
        self._asked: dict[int, list[bool]] = {}
        self._spread: dict[int, list[float]] = {}

    def slots(self, sample: int) -> list[int]:
        """Return the slots of a sample's window that are evaluated, the first one among them."""
        return [slot for slot, asked in enumerate(self._asked.get(sample, [True])) if asked]

    def fill(
        self,
        window: Window,
        values: Float[Tensor, "batch nodes dims"],
        slope: Float[Tensor, "batch nodes"],
        asked: Bool[Tensor, "batch nodes"] | None,
    ) -> tuple[Float[Tensor, "batch nodes dims"], Float[Tensor, "batch nodes"]]:
        """Predict the field at the nodes left out, and measure what the prediction misses at the others.

        Args:
            window: the window.
            values: the field at its evaluated nodes.
            slope: slopes of all nodes.
            asked: which nodes were evaluated; `None` if all were.

        Returns:
            The field at all nodes, and the squared spread at every node, -1 where it is unknown.
        """
        rows = [self._links(sample, begin) for sample, begin in zip(window.samples, window.begin, strict=True)]
        left = torch.zeros(len(rows), window.nodes, dtype=torch.int64)
        numbers = torch.zeros(len(rows), 2, window.nodes, dtype=torch.float64)
        for i, (links, carried, added) in enumerate(rows):
            left[i, : len(links)] = torch.tensor(links)
            numbers[i, :, : len(links)] = torch.tensor([carried, added], dtype=torch.float64)
        z, source = window.state.z[:, : window.nodes], send(left, values)
        carries, adds = send(numbers.to(z.dtype), z)[..., None].unbind(1)
        base = take(values, source)
        moved = z - carries * take(z, source) - adds * base
        predicted = base + slope[..., None] * moved
        missed, distance = squared(values - predicted), squared(moved)
        measured = (distance > 0) & torch.isfinite(missed) & torch.isfinite(distance)
        if asked is not None:
            measured = measured & asked
            values = torch.where(asked[..., None], values, predicted)
        return values, torch.where(measured, missed / torch.where(measured, distance, 1), -1)

    def check(self, sample: int, begin: int, squares: Sequence[float]) -> int:
        """Take in the squared spreads of a round, ask for the nodes that they show to be needed, and return a limit.

        Returns:
            Most nodes that may be accepted: those before the first one that was needed badly.
        """
        asked = self._asked.setdefault(sample, [True])
        before = self._spread.get(sample, [])
        spread, found, limit = before[0] if before else _UNKNOWN, [], len(asked)
        gap, real = _Gap(), _Gap()  # from one node asked for to the next, and from one evaluated in this round
        for slot, square in zip(range(len(asked)), squares, strict=False):
            node, evaluated = begin + slot, asked[slot]
            if square >= 0:
                spread = max(math.sqrt(square), _FADING * spread)
            found.append(spread)
            gap.reach(abs(self._b[node]) * spread)
            real.reach(abs(self._b[node]) * spread)
            if not evaluated:
                late = real.exceeds(_SLACK * self._budget[node])
                limit = min(limit, slot) if late else limit
                asked[slot] = late or gap.exceeds(self._budget[node])
            gap.leave(self._variance[node], evaluated=asked[slot])
            real.leave(self._variance[node], evaluated=evaluated)
        self._spread[sample] = found
        return limit

    def open(self, sample: int, rows: int) -> int:
        """Choose the nodes of a first window of up to `rows` evaluations, nothing known yet, and return its nodes."""
        self._asked[sample], self._spread[sample] = [True], [_UNKNOWN]
        return self.slide(sample, 0, 0, 0, rows)

    def slide(self, sample: int, begin: int, stride: int, end: int, rows: int) -> int:
        """Choose the nodes of the next window, and return how many it holds.

        Args:
            sample: index in the batch.
            begin: first node of the last window.
            stride: nodes accepted.
            end: last node whose state is known.
            rows: most nodes to evaluate.
        """
        kept, spreads = (one[stride : end - begin] for one in (self._asked[sample], self._spread[sample]))
        spread = spreads[0] if spreads else self._spread[sample][-1]
        asked: list[bool] = []
        noted: list[float] = []
        gap, taken = _Gap(), 0
        first = begin + stride
        for node in range(first, min(first + REACH * rows, len(self._a))):
            slot = node - first
            spread = spreads[slot] if slot < len(spreads) else spread
            gap.reach(abs(self._b[node]) * spread)
            new = slot >= len(kept)
            wanted = slot == 0 or bool(
                gap.length > self._farthest or gap.exceeds(self._budget[node]) if new else kept[slot]
            )
            if wanted and taken == rows:
                break
            taken += wanted
            asked.append(wanted)
            noted.append(spread)
            gap.leave(self._variance[node], evaluated=wanted)
        self._asked[sample], self._spread[sample] = asked, noted
        return len(asked)

    def _links(self, sample: int, begin: int) -> tuple[list[int], list[float], list[float]]:
        """For every slot: the evaluated slot before it, and the held recurrence from there, `carried z + added F`."""
        asked = self._asked.get(sample, [True])
        links, carries, adds = [], [], []
        left, carried, added = 0, 1.0, 0.0
        for slot, flag in enumerate(asked):
            links.append(left)
            carries.append(carried)
            adds.append(added)
            if flag:
                left, carried, added = slot, 1.0, 0.0
            node = begin + slot
            carried, added = self._a[node] * carried, self._a[node] * added + self._b[node]
        return links, carries, adds


@dataclass
class _Gap:
    """What is known of the nodes since the last evaluated one.

    Attributes:
        cost: estimated error of the state, root mean square.
        variance: of the noise since then.
        length: nodes, the evaluated one among them.
    """

    cost: float = 0.0
    variance: float = 0.0
    length: int = 0

    def reach(self, weight: float) -> None:
        """Add a node, whose prediction misses `weight` times what the noise has moved the state."""
        self.cost += weight * math.sqrt(self.variance)
        self.length += 1

    def exceeds(self, budget: float) -> bool:
        return self.cost > budget * math.sqrt(self.length)

    def leave(self, variance: float, *, evaluated: bool) -> None:
        """Go on with the node's noise; from an evaluated node, start anew."""
        if evaluated:
            self.cost, self.variance, self.length = 0.0, 0.0, 1
        self.variance += variance


def thinning(plan: Plan, tolerance: Tolerance, linearization: Linearization, guess: Guess) -> Thinning | None:
    """Return what thins a solve's windows, or `None` where every node must be evaluated.

    The tolerance says how much error it leaves for this. The prediction holds for samplers with noise in every step
    but the last; it needs measured slopes, and new states that hold their noise.
    """
    budget = tolerance.leeway
    stochastic = plan.order == 1 and plan.inputs is None and bool((plan.c[:-1] > 0).all()) and plan.nodes > 1
    fits = isinstance(linearization, Secant) and isinstance(guess, Hold) and plan.yardstick is not None
    return Thinning(plan, budget) if budget > 0 and stochastic and fits else None
