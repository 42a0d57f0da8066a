"""The certifier: measures, while a solve runs, how far every accepted increment is from the sequential one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picard.certificate import LawCertificate, PathCertificate
from picard.device import send
from picard.errors import NotSupportedError
from picard.plan import Plan
from picard.problem import Problem
from picard.shapes import Bool, Float, Int
from picard.tables import Tables


@dataclass(frozen=True, eq=False)
class Claim:
    """States accepted with a field value that was not evaluated there; the next model call checks it.

    Attributes:
        samples: index in the batch, shape (claims,).
        nodes: node, shape (claims,).
        states: accepted states, shape (claims, dims).
        values: field values they were accepted with, shape (claims, dims).
        place: row of the sample among those of the round and position after its window's first node, shape (2, claims).
        longest: most nodes a sample accepted.
        begin: first node of every sample's window, shape (batch,).
        span: nodes accepted, of every sample of the round.
        of: index in the batch of these samples.
    """

    samples: Int[Tensor, " claims"]
    nodes: Int[Tensor, " claims"]
    states: Float[Tensor, "claims dims"]
    values: Float[Tensor, "claims dims"]
    place: Int[Tensor, "2 claims"]
    longest: int
    begin: Int[Tensor, " batch"]
    span: Int[Tensor, " batch"]
    of: Int[Tensor, " batch"]


class Certifier:
    """Collects the defects of accepted increments, one round after they were accepted.

    Attributes:
        law: whether the plan has noise, so that the defects bound a law; otherwise they bound a path.
        claim: states still to be checked.
        kl: sum of squared defects over twice the squared noise scale, shape (batch,).
    """

    def __init__(self, problem: Problem, plan: Plan, tables: Tables) -> None:
        """Start with nothing accepted.

        Raises:
            NotSupportedError: if the noise enters through the field, where its scale may depend on the state, or at
                more than one node of a step, where it is not independent of the states before it.
        """
        if problem.noise_in_field:
            msg = (
                "a certificate needs noise of a known scale in every step; an SDE's enters through its diffusion: "
                "certify the ODE or the diffusion model, or compare laws with picard.verify"
            )
            raise NotSupportedError(msg)
        if len(noisy := plan.step[plan.c != 0]) > len(noisy.unique()):
            msg = (
                "a certificate needs noise that enters at one node of a step, independent of all before; this method's "
                "enters at more: set Plan.c to zero at the others, or compare laws with picard.verify"
            )
            raise NotSupportedError(msg)
        x0, wide = problem.x0, tables.a.dtype
        batch, dims = len(x0), x0[0].numel()
        self.plan, self.tables = plan, tables
        self.law = bool((plan.c != 0).any())
        self.claim: Claim | None = None
        self.kl = torch.zeros(batch, dtype=wide, device=x0.device)
        self.lipschitz = torch.zeros((), dtype=wide, device=x0.device)
        self._errors = torch.zeros(batch, plan.order - 1, dims, dtype=wide, device=x0.device)
        self._defect = torch.zeros(0 if self.law else plan.nodes + 1, batch, dtype=wide, device=x0.device)

    @property
    def claims(self) -> int:
        """Number of states still to be checked."""
        return 0 if self.claim is None else len(self.claim.samples)

    def exact_only(self, nodes: Int[Tensor, "batch nodes"]) -> Bool[Tensor, "batch nodes"]:
        """Say which nodes are passed only with their field evaluated at the accepted state: those without noise."""
        return (self.tables.c[nodes] == 0) if self.law else torch.zeros_like(nodes, dtype=torch.bool)

    def accept(
        self,
        samples: Sequence[int],
        begin: Sequence[int],
        stride: Sequence[int],
        states: Float[Tensor, "batch nodes dims"],
        values: Float[Tensor, "batch inner dims"],
    ) -> None:
        """Note what a round accepted; the field at every window's first node is exact.

        Args:
            samples: indices in the batch.
            begin: first node of every window.
            stride: nodes accepted.
            states: state after every node.
            values: field values assumed there, one node less.
        """
        found = [(i, j) for i, step in enumerate(stride) for j in range(step - 1)]
        place = torch.tensor(found, dtype=torch.int64, device="cpu").reshape(-1, 2).T
        of, first, span = (torch.tensor(numbers, device="cpu") for numbers in (samples, begin, stride))
        rows = send(place, states)
        self.claim = Claim(
            send(of[place[0]], states),
            send(first[place[0]] + 1 + place[1], states),
            states[rows[0], rows[1]],
            values[rows[0], rows[1]],
            rows,
            max(stride),
            send(first, states),
            send(span, states),
            send(of, states),
        )

    def check(self, evaluated: Float[Tensor, "claims dims"]) -> None:
        """Compare the claimed field values with those evaluated at the accepted states."""
        claim, order = self.claim, self.plan.order
        if claim is None:
            return
        self.claim = None
        longest = claim.longest
        errors = evaluated.new_zeros(len(claim.of), order - 1 + longest, evaluated.shape[1])
        errors[:, : order - 1] = self._errors[claim.of]
        errors[claim.place[0], order + claim.place[1]] = claim.values - evaluated
        nodes = (claim.begin[:, None] + torch.arange(longest, device=evaluated.device)).clamp_max(self.plan.nodes - 1)
        b = self.tables.b[nodes]
        inside = torch.arange(longest, device=evaluated.device) < claim.span[:, None]
        terms = (b[:, :, p, None] * errors[:, order - 1 - p : order - 1 - p + longest] for p in range(order))
        self.add(claim.of, nodes, inside, torch.stack(list(terms)).sum(0).square().sum(2))
        last = claim.span[:, None] + torch.arange(order - 1, device=evaluated.device)
        self._errors[claim.of] = errors[torch.arange(len(errors), device=evaluated.device)[:, None], last]

    def add(
        self,
        samples: Int[Tensor, " batch"],
        nodes: Int[Tensor, "batch nodes"],
        inside: Bool[Tensor, "batch nodes"],
        square: Float[Tensor, "batch nodes"],
    ) -> None:
        """Add squared defects of accepted nodes."""
        if self.law:
            self.kl[samples] += torch.where(inside, self.divergence(nodes, square), 0).sum(1)
        else:
            spare = torch.where(inside, nodes, self.plan.nodes)
            self._defect[spare, samples[:, None]] = square.sqrt()

    def divergence(
        self, nodes: Int[Tensor, "batch nodes"], square: Float[Tensor, "batch nodes"]
    ) -> Float[Tensor, "batch nodes"]:
        """Divide squared defects by twice the noise's variance; infinite without noise, or for a field that is NaN."""
        divided = torch.where(square == 0, 0, square / (2 * self.tables.c[nodes].square()))
        return divided.nan_to_num(torch.inf, torch.inf)

    def measure(self, ratio: Float[Tensor, "batch nodes"]) -> None:
        """Note squared ratios of change of field to change of state."""
        self.lipschitz = torch.maximum(self.lipschitz, ratio.max().sqrt())

    def void(self, samples: Sequence[int]) -> None:
        """Give up on samples whose windows were cut short by states that depend on later noise."""
        if samples:
            self.kl[send(samples, self.kl)] = torch.inf

    def give_up(self, samples: Sequence[int]) -> None:
        """Bound nothing for samples that have not come to an end."""
        if self.law:
            self.void(samples)
        elif samples:
            self._defect[-2, send(samples, self._defect)] = torch.inf  # that of the last node

    def certificate(self) -> LawCertificate | PathCertificate:
        """Return the certificate of what was accepted and checked."""
        if self.law:
            return LawCertificate(self.kl)
        return PathCertificate(self._defect[:-1], float(self.lipschitz), self.plan)
