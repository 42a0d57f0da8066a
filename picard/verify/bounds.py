"""Bounds: how far Picard iteration can be from the sequential solution after a number of rounds, before it is run."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import torch
from torch import Tensor

from picard.device import fetch
from picard.errors import InvalidProblemError, describe
from picard.number import check_count, number, share
from picard.progress import RoundInfo
from picard.shapes import Float


def elementary_symmetric(values: Float[Tensor, " n"], degree: int) -> Float[Tensor, " points"]:
    """Compute the elementary symmetric polynomial of every prefix: the sum of all products of `degree` of its numbers.

    Args:
        values: the variables, not negative.
        degree: number of factors of every product, at least 0.

    Returns:
        One number a prefix, the empty one first, shape (n + 1,), float64.

    Raises:
        InvalidProblemError: if the degree is negative.
    """
    return _symmetric(_check_gains("values", values), check_count("degree", degree, least=0))


def _symmetric(values: Tensor, degree: int) -> Tensor:
    current = torch.ones(len(values) + 1, dtype=torch.float64, device="cpu")
    # e_k of the first n is the sum over the largest index m of values[m] e_(k-1) of those before
    for _ in range(min(degree, len(current))):  # by then, all are zero
        current = torch.cat([current.new_zeros(1), (values * current[:-1]).cumsum(0)])
    return current


def picard_bound(gains: Float[Tensor, " steps"], rounds: int) -> Float[Tensor, " points"]:
    """Bound the error of full-window Picard iteration at every grid point, in units of the largest initial error.

    Picard iteration replaces `z[n+1] = z[n] + G_n(z[n])` by `z'[n+1] = z'[n] + G_n(z[n])`. If `G_n` has the Lipschitz
    constant `gains[n]` (for Euler's method `L |h_n|`), the errors obey `e'[n] <= sum over m < n of gains[m] e[m]`, with
    `e[0] = 0`. Unrolled over k rounds this is a sum over k indices `1 <= m_1 < ... < m_k < n`, so

        e_k[n] <= max e_0 * E_k(gains[1], ..., gains[n-1]),

    E_k being the elementary symmetric polynomial of degree k: `binomial(n-1, k) (L h)^k` on a uniform grid, at most
    `(L T)^k / k!` on any, and zero for k >= n, which is finite termination.

    Args:
        gains: Lipschitz constant of every step's increment, shape (steps,).
        rounds: number of rounds k, all nodes being in the window from the first.

    Returns:
        The factor at every grid point, shape (steps + 1,), float64.

    Raises:
        InvalidProblemError: if a gain or the number of rounds is negative.
    """
    rounds = check_count("rounds", rounds, least=0)
    gains = _check_gains("gains", gains)
    if rounds == 0:
        return torch.cat([gains.new_zeros(1), torch.ones_like(gains)])
    return torch.cat([gains.new_zeros(1), _symmetric(gains[1:], rounds)])


def factorial_bound(lipschitz: float, length: float, rounds: int) -> float:
    """Bound the factor of `picard_bound` on every grid of a length by `(L T)^k / k!` (Maclaurin's inequality).

    Args:
        lipschitz: Lipschitz constant L of the drift.
        length: length T of the time interval.
        rounds: number of rounds k.

    Returns:
        The factor; infinite where it exceeds the largest float.

    Raises:
        InvalidProblemError: if `L T` is not finite or the number of rounds is negative.
    """
    rounds = check_count("rounds", rounds, least=0)
    size = abs(number("lipschitz", lipschitz) * number("length", length))
    if not size < math.inf:
        msg = f"lipschitz * length must be finite; given {lipschitz} and {length}"
        raise InvalidProblemError(msg)
    if size == 0 or rounds == 0:
        return float(rounds == 0)
    log = rounds * math.log(size) - math.lgamma(rounds + 1)
    return math.exp(log) if log < math.log(sys.float_info.max) else math.inf


def rounds_needed(gains: Float[Tensor, " steps"], factor: float) -> int:
    """Find the number of full-window rounds after which the error is at most `factor` times the initial one.

    Args:
        gains: as for `picard_bound`.
        factor: the reduction wanted, at least 0.

    Returns:
        The number of rounds, at most the number of steps, which gives a zero error.

    Raises:
        InvalidProblemError: if there are no gains, or one of them or the factor is negative or not a number.
    """
    gains = _check_gains("gains", gains)
    if len(gains) == 0 or not number("factor", factor) >= 0:
        msg = f"gains and factor must be given and not negative; given {describe(gains)} and {factor}"
        raise InvalidProblemError(msg)
    current, rounds = torch.ones_like(gains), 0
    while float(current.max()) > factor:
        current = torch.cat([current.new_zeros(1), (gains[1:] * current[:-1]).cumsum(0)])
        rounds += 1
    return rounds


def _check_gains(name: str, gains: Any) -> Tensor:
    """Check numbers that must not be negative, and take them to the host in float64."""
    found = fetch(gains) if isinstance(gains, Tensor) and gains.ndim == 1 and not gains.is_complex() else None
    if found is None or not bool((found >= 0).all()):
        msg = (
            f"{name} must be a one-dimensional tensor of numbers, and must not be negative; given {describe(gains)}: "
            "write e.g. (lipschitz * grid.diff()).abs()"
        )
        raise InvalidProblemError(msg)
    return found


class History:
    """A callback that keeps how far every state moved in every round: `solve(..., callback=History())`.

    Attributes:
        changes: root mean square change by (sample, node after which the state stands), one entry a round.
    """

    def __init__(self) -> None:
        self.changes: dict[tuple[int, int], list[float]] = {}

    def __call__(self, info: RoundInfo) -> bool:
        """Keep the changes of a round, and let the solve go on."""
        change = info.change.tolist()
        for row, sample in enumerate(info.samples):
            for slot in range(info.width[row]):
                self.changes.setdefault((sample, info.begin[row] + slot), []).append(change[row][slot])
        return False

    def contraction(self, quantile: float = 0.5) -> float:
        """Estimate by how much a round shrinks the change of a state.

        Args:
            quantile: which of the ratios of successive changes of the same state to take.

        Returns:
            The ratio; not a number if no state was seen to move in two rounds. Below one half, a change bounds what is
            left of the error, as the tolerance of ParaDiGMS assumes.

        Raises:
            InvalidProblemError: if the quantile is not between 0 and 1.
        """
        quantile = share("quantile", quantile)
        ratios = [
            after / before
            for series in self.changes.values()
            for before, after in itertools.pairwise(series)
            if 0 < before < math.inf and after < math.inf
        ]
        return float(torch.tensor(ratios, dtype=torch.float64, device="cpu").quantile(quantile)) if ratios else math.nan
