"""What a call of a parallel pipeline cost."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger("picard")
Mode = Literal["auto", "plan", "replay"]
"""How a loop may be run: see `parallelize`."""


@dataclass
class Stats:
    """What the last call of a parallel pipeline cost.

    Attributes:
        mode: how it ran, `"plan"` or `"replay"`.
        rounds: batched evaluations of the denoiser one after the other.
        evaluations: rows evaluated; guidance counts two rows a sample.
        sequential_evaluations: denoiser calls the sequential pipeline makes one after the other.
        rows: rows of one of these calls.
        window: calls in flight.
        passes: how often the pipeline's Python ran; 0 for the plan of a policy, whose loop is left at its first call.
        stalled: whether the tolerance was below the rounding noise of the model, so that refining stopped there.
        residual: largest relative error of an output that was accepted; 0 for the plan of a policy, for which
            `policy.picard.solution.residual` says how far its states still moved.
        seconds: wall-clock time.
        reason: why not on a plan, and what else went otherwise; empty if it ran on one, or was not to.
    """

    mode: str = "replay"
    rounds: int = 0
    evaluations: int = 0
    sequential_evaluations: int = 0
    rows: int = 0
    window: int = 0
    passes: int = 0
    stalled: bool = False
    residual: float = 0.0
    seconds: float = 0.0
    reason: str = ""

    @property
    def speedup_bound(self) -> float:
        """Sequential calls per round, which is the speed-up if a batched call costs no more than a single one."""
        return self.sequential_evaluations / max(self.rounds, 1)

    def stall(self, tolerance: float, error: float, *, asked: bool) -> None:
        """Note that refining stopped at the rounding noise of the model, and warn of it once if more was asked for."""
        if not self.stalled:
            logger.log(
                logging.WARNING if asked else logging.INFO,
                "the tolerance %g is below the rounding noise of the model (about %.1e): refining stops there",
                tolerance,
                error,
            )
        self.stalled = True
