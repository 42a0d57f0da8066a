"""Tolerances: how far a state may still move in a round for its window to slide past it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.number import check_count, keep_numbers, not_negative, one_number
from picard.plan import Plan
from picard.shapes import Float, Int


@dataclass(frozen=True, eq=False)
class Candidates:
    """States a round proposes to accept; every tensor has shape (batch, nodes).

    Attributes:
        size: root mean square of the new state.
        rounds: rounds the node before the state has been in the window, this one included.
        yardstick: the plan's yardstick at the node, or `None`.
    """

    size: Float[Tensor, "batch nodes"]
    rounds: Int[Tensor, "batch nodes"]
    yardstick: Float[Tensor, "batch nodes"] | None

    @property
    def age(self) -> Int[Tensor, "batch nodes"]:
        """Rounds the state has been in the window, this one included; 0 for the last, whose node is not in it."""
        return torch.cat([self.rounds[:, 1:], torch.zeros_like(self.rounds[:, :1])], 1)


class Tolerance(ABC):
    """A rule for the largest change (root mean square over the state) at which a state is accepted.

    Attributes:
        leeway: error that evaluations left out may add in all, in multiples of the yardstick; 0 evaluates every node.
        tapers: whether a linearization may taper the yardstick, see `Linearization`.
    """

    leeway: float = 0.0
    tapers: ClassVar[bool] = False

    @abstractmethod
    def bound(self, candidates: Candidates) -> Float[Tensor, "batch nodes"]:
        """Return the largest acceptable change of every candidate.

        Args:
            candidates: the states a round proposes to accept.

        Returns:
            The bounds, shape (batch, nodes), typed as `candidates.size`; minus infinity keeps even still states.
        """

    def watched(self, change: Float[Tensor, "batch nodes dims"]) -> Float[Tensor, "batch nodes watched"]:
        """Return the part of every change that counts: all of it, unless a rule says otherwise.

        Args:
            change: how far every candidate moved in the round, shape (batch, nodes, dims).

        Returns:
            That part, shape (batch, nodes, watched), whose root mean square is compared with the bound.
        """
        return change

    def check(self, plan: Plan) -> None:
        """Check that the rule means something for a plan.

        Raises:
            NotSupportedError: if it does not.
        """


@dataclass(frozen=True)
class RelAbs(Tolerance):
    """Accept changes up to `atol + rtol * RMS(state)`; the default for ODEs and SDEs.

    It looks at the distance to the sequential solution on the same grid, not to the exact solution of the equation, and
    at every state for itself: an equation that spreads errors spreads what is accepted here too.

    Attributes:
        rtol: relative part.
        atol: absolute part, in units of the state.
    """

    rtol: float = 1e-4
    atol: float = 1e-6

    def __post_init__(self) -> None:
        """Check the signs."""
        keep_numbers(self, "rtol", "atol", of=not_negative)

    def bound(self, candidates: Candidates) -> Float[Tensor, "batch nodes"]:
        """Return `atol + rtol * RMS(state)`."""
        return self.atol + self.rtol * candidates.size


@dataclass(frozen=True)
class NoiseRatio(Tolerance):
    """Accept changes up to `tau` times the standard deviation of the step's noise; the default for diffusion models.

    The rule of ParaDiGMS (Shih et al., 2023, sec. 3.2). Deterministic samplers are measured by the posterior noise
    DDPM would add.

    Attributes:
        tau: the ratio.
    """

    tau: float = 0.1
    tapers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the sign."""
        keep_numbers(self, "tau", of=not_negative)

    @property
    def leeway(self) -> float:  # type: ignore[override]  # read-only here
        """Return half of `tau`, at which a sample is about as far off as changes within the tolerance leave it.

        Below 1/4 it falls with the power 3/2, since the error that changes leave falls faster than `tau`. Up to 0.1 it
        is zero: windows that evaluate every node cost less beside the model, and can be compiled.
        """
        return self.tau * min(0.5, self.tau**0.5) if self.tau > 0.1 else 0.0

    def check(self, plan: Plan) -> None:
        """Refuse plans without a noise scale."""
        if plan.yardstick is None:
            msg = "NoiseRatio needs a diffusion model's noise scale, which this problem has not: use RelAbs(rtol, atol)"
            raise NotSupportedError(msg)

    def bound(self, candidates: Candidates) -> Float[Tensor, "batch nodes"]:
        """Return `tau` times the yardstick."""
        if candidates.yardstick is None:
            return torch.zeros_like(candidates.size)
        return self.tau * candidates.yardstick


@dataclass(frozen=True)
class FixedRounds(Tolerance):
    """Accept every state after a fixed number of rounds in the window, whatever its change: bounded latency.

    Neither sooner nor later: no decision depends on a value, so that under `identity` and `frozen` the result is affine
    in the start and the noise wherever the field is affine in the state.

    Attributes:
        rounds: the number of rounds, at least 1.
    """

    rounds: int

    def __post_init__(self) -> None:
        """Check the number."""
        keep_numbers(self, "rounds", of=check_count)

    def bound(self, candidates: Candidates) -> Float[Tensor, "batch nodes"]:
        """Return infinity for states old enough, minus infinity for others."""
        never = torch.full_like(candidates.size, -math.inf)  # made there: numbers of the host would have to be copied
        return never.masked_fill(candidates.age >= self.rounds, math.inf)


@dataclass(frozen=True)
class TotalVariation(Tolerance):
    """Accept states as long as the certified total variation distance to the sequential law stays within `eps`.

    The budget of the certificate, KL <= 2 eps^2 for every sample, is spent evenly over the nodes; what a node leaves
    is there for later ones. States are accepted by their residual, as they stand, which makes every defect known
    before it is accepted: the certificate comes out at most `eps` and costs no further evaluation. For stochastic
    samplers of diffusion models; see `LawCertificate`.

    Attributes:
        eps: the bound, in (0, 1).
    """

    eps: float

    def __post_init__(self) -> None:
        """Check the range."""
        keep_numbers(self, "eps")
        if not 0 < self.eps < 1:
            msg = f"TotalVariation needs a bound within (0, 1); given {self.eps}: write e.g. TotalVariation(0.05)"
            raise InvalidProblemError(msg)

    def check(self, plan: Plan) -> None:
        """Refuse plans without noise, whose laws are at distance 0 or 1."""
        if not bool((plan.c != 0).any()):
            msg = "TotalVariation needs a stochastic sampler such as ddpm; otherwise use NoiseRatio or RelAbs"
            raise NotSupportedError(msg)

    @property
    def budget(self) -> float:
        """Largest divergence KL at which TV <= sqrt(KL / 2) is at most `eps`."""
        return 2 * self.eps**2

    def bound(self, candidates: Candidates) -> Float[Tensor, "batch nodes"]:
        """Return zero: a change says nothing of the residual."""
        return torch.zeros_like(candidates.size)


def check_tolerance(given: Any) -> float | Tolerance | None:
    """Check a number, a rule or `None`, and return a number as Python's own.

    Raises:
        InvalidProblemError: if it is none of these, or negative.
    """
    if given is None or isinstance(given, Tolerance):
        return given
    if not one_number(given):
        msg = f"tolerance must be a number, or a rule such as NoiseRatio(0.1); given {describe(given)}"
        raise InvalidProblemError(msg)
    return not_negative("tolerance", given)


def resolve_tolerance(given: float | Tolerance | None, plan: Plan) -> Tolerance:
    """Turn a number into the problem's usual rule at that value, `None` into its default.

    Raises:
        InvalidProblemError: if it is neither, or negative.
        NotSupportedError: if the rule means nothing for the plan.
    """
    found = check_tolerance(given)
    if isinstance(found, Tolerance):
        found.check(plan)
        return found
    if found is None:
        return RelAbs() if plan.yardstick is None else NoiseRatio()
    return RelAbs(found, found) if plan.yardstick is None else NoiseRatio(found)
