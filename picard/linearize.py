"""Linearizations: the slope g in `F(z) ~ F_k + g (z - z_k)`, one number for every node and sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError, close_match, describe
from picard.number import check_count, keep_numbers
from picard.problem import Problem
from picard.shapes import Bool, Float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a window knows about its slopes; every tensor has shape (batch, nodes).

    Attributes:
        u: step factor at slope 0, from `Plan.factor`.
        w: change of the step factor per unit of slope.
        inverse: `1 / w`, and 0 where w is.
        ratio: the secant of the last two rounds, <dz, dF> / <dz, dz>; it means nothing where not `measured`.
        measured: whether the node was evaluated in the round before and has moved since, by a finite ratio.
        slope: the slopes of the round before.
        known: whether those are measured, now or earlier.
    """

    u: Float[Tensor, "batch nodes"]
    w: Float[Tensor, "batch nodes"]
    inverse: Float[Tensor, "batch nodes"]
    ratio: Float[Tensor, "batch nodes"]
    measured: Bool[Tensor, "batch nodes"]
    slope: Float[Tensor, "batch nodes"]
    known: Bool[Tensor, "batch nodes"]


@runtime_checkable
class Linearization(Protocol):
    """A choice of slopes. It must use every node's own and earlier nodes' evidence only, so that the scheme is causal.

    Attributes:
        measures: whether it needs `ratio`; nothing is measured otherwise.
        share: share of the tolerance that a change may take up, so that the same tolerance means about the same error.
        taper: power of `min(1, sigma / alpha)` by which the plan's yardstick is shrunk, for plans over noise levels:
            later steps contract an error made at much noise, and one made at little noise stays.
    """

    measures: ClassVar[bool]
    share: ClassVar[float]
    taper: ClassVar[float]

    def slopes(self, evidence: Evidence) -> Float[Tensor, "batch nodes"]:
        """Choose the slope of every node."""
        ...


@dataclass(frozen=True)
class Identity:
    """Take the derivative of every step as the identity: classical Picard iteration, as in ParaDiGMS."""

    measures: ClassVar[bool] = False
    share: ClassVar[float] = 1.0
    taper: ClassVar[float] = 0.0

    def slopes(self, evidence: Evidence) -> Float[Tensor, "batch nodes"]:
        """Return the slope that makes the step factor one."""
        return _slope_of(torch.ones_like(evidence.u), evidence)


@dataclass(frozen=True)
class Frozen:
    """Take the field as constant: the linear part of the recurrence is exact, the field's own slope is zero."""

    measures: ClassVar[bool] = False
    share: ClassVar[float] = 1.0
    taper: ClassVar[float] = 0.0

    def slopes(self, evidence: Evidence) -> Float[Tensor, "batch nodes"]:
        """Return zeros."""
        return torch.zeros_like(evidence.u)


@dataclass(frozen=True)
class Secant:
    """Measure the slope from the last two rounds: <dz, dF> / <dz, dz>, at no extra evaluation.

    Nodes without two evaluations inherit the step factor of the nearest earlier node that has them.

    Attributes:
        lower: smallest step factor; smaller ones are raised to it.
        upper: largest step factor; larger ones are lowered to it.
    """

    measures: ClassVar[bool] = True
    # measured: on exact scores the final error is then about that of classical Picard at the same tolerance
    share: ClassVar[float] = 0.7
    taper: ClassVar[float] = 0.25
    lower: float = 0.0
    upper: float = 1.2

    def slopes(self, evidence: Evidence) -> Float[Tensor, "batch nodes"]:
        """Return the measured slopes, bounded and inherited."""
        slope = torch.where(evidence.measured, evidence.ratio, evidence.slope)
        factor = torch.addcmul(evidence.u, evidence.w, slope).clamp(self.lower, self.upper)
        nodes = torch.arange(factor.shape[1], device=factor.device).expand_as(factor)
        nearest = torch.where(evidence.known, nodes, -1).cummax(1).values
        inherited = torch.where(nearest >= 0, factor.gather(1, nearest.clamp_min(0)), evidence.u)
        return _slope_of(inherited, evidence)


@dataclass(frozen=True)
class Newton(Frozen):
    """Take the field's whole derivative at every node in place of a slope: Newton's method.

    For states of few numbers: every node is evaluated in a row for each of them, with a derivative, which makes a row
    about two to three times as dear, and its matrix is held.

    Attributes:
        most: most numbers a state may hold; a safeguard against running out of memory.
    """

    most: int = 1024

    def __post_init__(self) -> None:
        """Check the number."""
        keep_numbers(self, "most", of=check_count)


def _slope_of(factor: Tensor, evidence: Evidence) -> Tensor:
    return (factor - evidence.u) * evidence.inverse


LINEARIZATIONS: dict[str, Linearization] = {
    "secant": Secant(),
    "frozen": Frozen(),
    "identity": Identity(),
    "newton": Newton(),
}


def resolve_linearization(given: str | Linearization) -> Linearization:
    """Turn a name into a linearization; an object is returned as it is.

    Raises:
        InvalidProblemError: if the name is unknown or the object lacks something.
    """
    if isinstance(given, str) and given in LINEARIZATIONS:
        return LINEARIZATIONS[given]
    if isinstance(given, (str, type)) or not isinstance(given, Linearization):
        msg = (
            "linearization must be a name or an object with slopes(evidence), measures, share and taper; "
            f"given {describe(given)}: {close_match(given, LINEARIZATIONS)}"
        )
        raise InvalidProblemError(msg)
    return given


def check_size(linearization: Linearization, problem: Problem) -> None:
    """Check that Newton's method has states of few enough numbers, evaluated in one process.

    Raises:
        NotSupportedError: if it has not.
    """
    if not isinstance(linearization, Newton):
        return
    x0, most = problem.x0, linearization.most
    numbers = x0[0].numel()
    if numbers > most:
        msg = (
            f"linearization='newton' holds a matrix at every node of the window, and takes states of at most {most} "
            f"numbers; given {describe(x0)}, {numbers} a state: write linearization='secant', or, if there is memory "
            f"for window * {numbers}**2 numbers, linearization=picard.linearize.Newton(most={numbers})"
        )
        raise NotSupportedError(msg)
    if problem.alone is not problem:
        msg = (
            "linearization='newton' differentiates the model in one process; given a problem spread over several: "
            "write linearization='secant', or leave picard.distributed.spread out"
        )
        raise NotSupportedError(msg)
