"""Thinning along expected field values; and which kind of thinning a solve takes, if any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from picard.device import send, take
from picard.entering import Guess
from picard.expected import Along
from picard.hold import Hold
from picard.linearize import Linearization, Secant
from picard.plan import Plan
from picard.shapes import Float
from picard.thin import Thinning
from picard.tolerance import Tolerance

_FARTHEST = 4  # nodes from one evaluation to the next, at most; more saves rows and no rounds
_UNKNOWN = 0.1  # spread before any was measured


class ThinningAlong(Thinning):
    """Leaves out evaluations where the field is expected to move as it did before, with the same noise.

    The noise's part is then in the expected values already. At a node left out the field is that of the evaluated node
    before, plus what the expected values move by; what that misses grows from node to node as chance adds up, which is
    why it is measured by the noise between them all the same.

    Args:
        plan: the plan, of order one.
        budget: as for `Thinning`.
        expected: the values, shape (nodes, batch, dims).
    """

    def __init__(self, plan: Plan, budget: float, expected: Float[Tensor, "nodes batch dims"]) -> None:
        """Start with every sample at its first node."""
        super().__init__(plan, budget, expected.shape[1], _FARTHEST, _UNKNOWN)
        self._expected = expected.transpose(0, 1)
        self._variance = np.concatenate([np.zeros(1), plan.c.square().cumsum(0).numpy()])  # of all noise before a node

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all samples but those in some rows."""
        super().keep(rows)
        self._expected = self._expected[send(rows, self._expected)]

    def predict(
        self,
        z: Float[Tensor, "batch nodes dims"],
        values: Float[Tensor, "batch nodes dims"],
        slope: Float[Tensor, "batch nodes"],
    ) -> tuple[Float[Tensor, "batch nodes dims"], Float[Tensor, "batch nodes"]]:
        """Move along the expected values from the evaluated node before."""
        now = self._chosen
        node = np.minimum(now.first + np.arange(now.asked.shape[1]), self._expected.shape[1] - 1)
        since = torch.from_numpy(self._variance[node] - self._variance[now.first + now.left])
        expected = take(self._expected, send(node, values))
        predicted = expected + take(values - expected, send(now.left, values))
        return predicted, values.shape[2] * send(since.to(values.dtype), values)


def thinning(
    plan: Plan, tolerance: Tolerance, linearization: Linearization, guess: Guess, batch: int
) -> Thinning | None:
    """Return what thins a solve's windows, or `None` where every node must be evaluated.

    The tolerance says how much error it leaves for this. The prediction holds for samplers with noise in every step
    but the last; it needs measured slopes, and new states that hold their noise.
    """
    budget = tolerance.leeway
    stochastic = plan.order == 1 and plan.inputs is None and bool((plan.c[:-1] > 0).all()) and plan.nodes > 1
    fits = isinstance(linearization, Secant) and isinstance(guess, Hold) and plan.yardstick is not None
    if not (budget > 0 and stochastic and fits):
        return None
    if isinstance(guess, Along) and guess.same_noise:
        return ThinningAlong(plan, budget, guess.expected)
    return Thinning(plan, budget, batch)
