"""What rules of a user's own return, checked by shape and dtype alone: once a round, without a wait for the device."""

from __future__ import annotations

import math

from torch import Tensor

from picard.errors import InvalidProblemError, describe
from picard.linearize import Evidence, Linearization
from picard.shapes import Float
from picard.tolerance import Candidates, Tolerance


def slopes_of(rule: Linearization, evidence: Evidence) -> Float[Tensor, "batch nodes"]:
    """Ask a linearization for its slopes.

    Raises:
        InvalidProblemError: if they are not one number for every sample and node.
    """
    slopes: object = rule.slopes(evidence)
    return _alike(rule, "slopes(evidence)", slopes, evidence.u, "torch.full_like(evidence.u, slope)")


def check_slope(rule: Linearization, slope: float) -> None:
    """Check a slope where a state has come out not finite.

    Raises:
        InvalidProblemError: if it is the linearization's fault.
    """
    if not math.isfinite(slope):
        msg = (
            f"{type(rule).__name__}.slopes(evidence) must return finite numbers, also where there is no evidence; it "
            f"returned {slope}: write e.g. torch.where(evidence.known, slope, 0)"
        )
        raise InvalidProblemError(msg)


def bound_of(rule: Tolerance, candidates: Candidates) -> Float[Tensor, "batch nodes"]:
    """Ask a tolerance for its bounds.

    Raises:
        InvalidProblemError: if they are not one number for every sample and node.
    """
    bound: object = rule.bound(candidates)
    return _alike(rule, "bound(candidates)", bound, candidates.size, "torch.full_like(candidates.size, bound)")


def watched_by(rule: Tolerance, change: Float[Tensor, "batch nodes dims"]) -> Float[Tensor, "batch nodes watched"]:
    """Ask a tolerance for the part of every change that counts.

    Raises:
        InvalidProblemError: if it is not at least one number for every sample and node.
    """
    part: object = rule.watched(change)
    if part is change:
        return change
    fits = isinstance(part, Tensor) and part.ndim == 3 and part.shape[2] > 0 and part.dtype == change.dtype
    if not isinstance(part, Tensor) or not fits or part.shape[:2] != change.shape[:2]:
        msg = (
            f"{type(rule).__name__}.watched(change) must return numbers of every change, shape (batch, nodes, watched) "
            f"of what it is given, {describe(change)}; it returned {describe(part)}: write e.g. change[..., :1]"
        )
        raise InvalidProblemError(msg)
    return part


def _alike(rule: object, call: str, value: object, like: Tensor, fix: str) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
        msg = (
            f"{type(rule).__name__}.{call} must return one number for every sample and node, {describe(like)}; it "
            f"returned {describe(value)}: write e.g. {fix}"
        )
        raise InvalidProblemError(msg)
    return value
