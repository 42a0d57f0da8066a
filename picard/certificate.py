"""Certificates: how far a parallel solution can be from the sequential one, measured and not assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from picard.device import fetch
from picard.number import not_negative
from picard.plan import Plan
from picard.shapes import Float


@dataclass(frozen=True, eq=False)
class LawCertificate:
    """A bound on the total variation distance between the laws of the parallel and the sequential sampler.

    Let `d[m]` be the difference between the increment a sample was given at node m and the one the sequential sampler
    gives at the same accepted states, and `c[m]` the noise scale there. The chain rule of the Kullback-Leibler
    divergence and Pinsker's inequality give, with no assumption on contraction,

        `KL = E sum_m |d[m]|^2 / (2 c[m]^2)`,        `TV <= sqrt(KL / 2)`.

    Assumptions: the scheme is causal (an accepted state depends on earlier noise only, which holds for every
    linearization and named guess of this library; a warm start must not know the noise of later steps), every step has
    noise except those whose field was evaluated at the accepted state itself (the solver sees to it), and the
    expectation is estimated by the mean over the batch, whose samples must be independent draws. It bounds the law,
    not the single path.

    Attributes:
        kl: sum over the nodes for every sample, shape (batch,); infinite where a window had to be cut short because a
            later state was not finite, which breaks causality.
    """

    kl: Float[Tensor, " batch"]

    @property
    def tv(self) -> float:
        """The bound, at most 1."""
        return min(1.0, self._pinsker)

    @property
    def tv_error(self) -> float:
        """Monte-Carlo standard error of the bound, capped with it, so how far down that error takes the bound.

        Infinite for one sample; 0 where the bound stays at 1.
        """
        if len(self.kl) < 2:
            return math.inf
        bound = self._pinsker
        if bound == 0 or not math.isfinite(bound):
            return 0.0
        error = float(self.kl.std()) / math.sqrt(len(self.kl)) / (4 * bound)
        return self.tv - min(1.0, max(0.0, bound - error))

    @property
    def _pinsker(self) -> float:
        return math.sqrt(float(self.kl.mean()) / 2)


@dataclass(frozen=True, eq=False)
class PathCertificate:
    """A bound on the distance between a deterministic parallel solution and the sequential one, path by path.

    Attributes:
        defect: Euclidean norm of the difference between the increment given at every node and the one the sequential
            solver gives at the same accepted states, shape (nodes, batch).
        lipschitz_estimate: largest ratio of change of field to change of state seen during the solve, a lower bound
            of the field's Lipschitz constant; 0 if none was measured.
        plan: the plan solved.
    """

    defect: Float[Tensor, "nodes batch"] = field(repr=False)
    lipschitz_estimate: float
    plan: Plan = field(repr=False)

    @property
    def residual(self) -> Float[Tensor, " batch"]:
        """Largest defect of every sample, shape (batch,)."""
        return self.defect.amax(0)

    def trajectory_bound(self, lipschitz: float | None = None) -> Float[Tensor, " batch"]:
        """Bound the Euclidean distance of the final states by the discrete Gronwall inequality.

        The bound satisfies the plan's own recurrence, `E[m+1] = sum_p (|a[m,p]| + L |b[m,p]|) E[m-p] + defect[m]`.

        Args:
            lipschitz: Lipschitz constant L of the field in the state, at all times; by default the estimate, with
                which the result is an estimate and no bound.

        Returns:
            The bound, shape (batch,), float64.

        Raises:
            InvalidProblemError: if the constant is negative.
        """
        constant = not_negative("lipschitz", self.lipschitz_estimate if lipschitz is None else lipschitz)
        weights = (self.plan.a.abs() + constant * self.plan.b.abs()).tolist()
        defect = fetch(self.defect)
        errors = [torch.zeros_like(defect[0])]
        for node, row in enumerate(weights):
            errors.append(sum((w * errors[-1 - p] for p, w in enumerate(row[: node + 1])), defect[node]))
        return errors[-1]
