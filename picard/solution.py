"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from torch import Tensor

from picard.certificate import LawCertificate, PathCertificate
from picard.errors import NotConvergedError
from picard.interpolate import interpolate

if TYPE_CHECKING:
    from picard.noise import Noise
    from picard.problem import Problem


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    MAX_ROUNDS = 1
    STOPPED = 2
    NON_FINITE = 3

    @property
    def message(self) -> str:
        """Say in one sentence what happened."""
        return {
            Status.CONVERGED: "every step agrees with the sequential solver within the tolerance",
            Status.MAX_ROUNDS: "max_rounds was reached before every step converged: raise it, or loosen the tolerance",
            Status.STOPPED: "the callback stopped the solve",
            Status.NON_FINITE: "the model returned a non-finite value at an exact state",
        }[self]


@dataclass(frozen=True)
class Stats:
    """What a solve cost.

    Attributes:
        rounds: batched model calls one after the other (a call split by `max_rows` counts once).
        evaluations: rows evaluated, summed over rounds and samples.
        sequential_evaluations: model calls the sequential solver makes one after the other.
        batch: number of samples.
        window: nodes a window may hold.
        host_syncs: times the host waited for the device.
        seconds: wall-clock time.
        max_rows: rows one model call could hold at the end, `None` for any number.
        reason: why the window is what it is, if it was chosen by measurement.
        trials: model calls made to measure that, not among the rounds; their rows are among the evaluations.
    """

    rounds: int
    evaluations: int
    sequential_evaluations: int
    batch: int
    window: int
    host_syncs: int
    seconds: float
    max_rows: int | None = None
    reason: str = ""
    trials: int = 0

    @property
    def speedup_bound(self) -> float:
        """Sequential model calls per round, which is the speed-up if a batched call costs no more than a single one."""
        return self.sequential_evaluations / max(self.rounds, 1)


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a solve.

    Attributes:
        ts: times of `ys`, shape (points,), with the grid's dtype and device; for a diffusion model the model times,
            and 0 for the data.
        ys: states at the points to be saved, shape (points, batch, *state); what was not reached repeats the last
            converged state.
        final: state at the last grid point, shape (batch, *state).
        status: how each sample ended.
        converged: number of grid steps converged, per sample.
        residual: largest change, root mean square over the state, with which a state passed the tolerance, shape
            (batch,).
        stats: what it cost.
        noise: the realization used, if any; pass it to another problem to have the same path.
        certificate: bound on the distance to the sequential solver, if it was asked for.
    """

    ts: Tensor
    ys: Tensor
    final: Tensor
    status: tuple[Status, ...]
    converged: tuple[int, ...]
    residual: Tensor
    stats: Stats
    noise: Noise | None
    certificate: LawCertificate | PathCertificate | None = None

    @property
    def success(self) -> bool:
        """Whether every sample converged."""
        return all(status is Status.CONVERGED for status in self.status)

    def interpolate(self, t: Tensor, problem: Problem) -> Tensor:
        """Evaluate the trajectory of an ODE between its points, by cubic Hermite polynomials.

        The drift is evaluated once more, in one call, at the points around the wanted times. The error is of order
        four in the distance of the points: solve with `save="all"`.

        Args:
            t: times within `ts`, of any shape (*times).
            problem: the ODE that was solved.

        Returns:
            The states at t, shape (*times, batch, *state).

        Raises:
            InvalidGridError: if a time lies outside `ts`, or `ts` is a single point.
            NotSupportedError: if the problem is no ODE: a path with noise is not smooth between grid points.
        """
        return interpolate(self.ts, self.ys, t, problem)

    def raise_for_status(self) -> None:
        """Raise if a sample did not converge.

        Raises:
            NotConvergedError: it carries this solution.
        """
        for sample, status in enumerate(self.status):
            if status is not Status.CONVERGED:
                message = f"sample {sample} has {self.converged[sample]} steps converged: {status.message}"
                raise NotConvergedError(message, self)

    def __repr__(self) -> str:
        """Show shapes and counts, never values."""
        return (
            f"Solution(ys={tuple(self.ys.shape)} {self.ys.dtype}, success={self.success}, rounds={self.stats.rounds}, "
            f"evaluations={self.stats.evaluations}, speedup_bound={self.stats.speedup_bound:.1f})"
        )
