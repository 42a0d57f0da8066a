"""The choice of a window: the one whose predicted seconds are fewest, or the sequential solver."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace

from picard.engine import Setup
from picard.latency import Latency, known_latency, measure_round, measure_step
from picard.prepare import Prepared
from picard.solution import Stats

_LARGEST = 256
_GAIN = 0.9  # predictions err by some 15 %, so this much less than the sequential time must be promised


@dataclass(frozen=True, eq=False)
class Choice:
    """A window, and why.

    Attributes:
        window: nodes in flight; 1 is the sequential solver.
        max_rows: rows a model call may hold.
        reason: what was predicted.
        latency: what was measured.
        what: names the solve among others of the same model.
        trials: model calls made to measure.
        rows: their rows.
    """

    window: int
    max_rows: int | None
    reason: str
    latency: Latency
    what: Hashable
    trials: int
    rows: int

    def account(self, stats: Stats, seconds: float) -> Stats:
        """Put the measurements into the account of a solve, and remember its rounds for the next one like it."""
        if self.window > 1:
            self.latency.pace[self.what] = stats.rounds / predicted_rounds(stats.sequential_evaluations, self.window)
        evaluations = stats.evaluations + self.rows
        return replace(stats, evaluations=evaluations, seconds=seconds, reason=self.reason, trials=self.trials)


def predicted_rounds(nodes: int, window: int) -> float:
    """Predict the rounds of a solve: `nodes / window + 1 + log2(window)`.

    Fitted on the benchmark problems with the default options: exact scores with DDPM, DDIM and DPM-Solver++, a trained
    U-Net, a pendulum and an SDE, 50 to 1,000 nodes, windows 2 to 256. The logarithm's mean error is 0.13, the largest
    0.6: fewer rounds are predicted than an SDE takes whose noise depends on the state. See `benchmarks.auto_window`.
    """
    return nodes / window + 1 + math.log2(window)


def choose(setup: Setup, prepared: Prepared, *, window: bool, rows: bool) -> Choice:
    """Measure rounds of doubling windows, for as long as larger ones may win, and choose.

    Windows from 4 on are measured, each in a few calls; what is known of the model from earlier solves is not measured
    again. Seconds are predicted as `rounds(W) * seconds(W)`, the rounds corrected by what the last such solve took.

    Args:
        setup: the solve; its window is the one to use where it is not to be chosen.
        prepared: the problem on its grid.
        window: whether to choose the window.
        rows: whether to choose the rows of a call.
    """
    nodes = setup.plan.nodes
    latency = known_latency(setup)
    trials, spent = latency.calls, latency.rows
    what = (nodes, repr(setup.tolerance), repr(setup.linearization))
    pace = setup.problem.share(latency.pace.get(what, 1.0))[0]
    if not latency.step:
        measure_step(setup, prepared, latency)
    alone = nodes * latency.step

    def predict(size: int) -> float:
        return pace * predicted_rounds(nodes, size) * latency.seconds(size)

    def hopeless(size: int) -> bool:
        """Say whether no larger window can win, if rounds go on to take longer as they did up to this one."""
        best = min(alone, *(predict(each) for each in latency.rounds))
        larger = [size * factor for factor in (2, 4, 8) if size * factor <= largest]
        return all(pace * predicted_rounds(nodes, each) * latency.at_best(each) >= best for each in larger)

    largest = min(_LARGEST if window else setup.window, nodes)
    size = 4
    while size <= largest and (size in latency.rounds or measure_round(setup, prepared, latency, size)):
        if window and hopeless(size):
            break
        size *= 2
    measured = [each for each in latency.rounds if each <= largest]
    sizes = sorted({part for each in measured for part in (each * 3 // 4, each) if part > 3})
    chosen, reason = setup.window, ""
    if window:
        chosen = min(sizes, key=predict, default=1)
        sequentially = f"{_text(alone)} for {nodes} calls one after the other"
        if chosen == 1 or predict(chosen) > _GAIN * alone:
            but = f"; window {chosen} is predicted to take {_text(predict(chosen))}" if chosen > 1 else ""
            chosen, reason = 1, f"sequential: {sequentially}{but}"
        else:
            rounds = f"{pace * predicted_rounds(nodes, chosen):.0f} rounds of {_text(latency.seconds(chosen))}"
            reason = f"window {chosen}: predicted {rounds}, {_text(predict(chosen))}, instead of {sequentially}"
    most = setup.max_rows
    if rows:
        most = _split(latency, chosen, measured, len(setup.problem.x0))
        reason = "; ".join(filter(None, [reason, "" if most is None else f"calls of {most} rows are faster each"]))
    return Choice(chosen, most, reason, latency, what, latency.calls - trials, latency.rows - spent)


def _split(latency: Latency, window: int, measured: list[int], batch: int) -> int | None:
    """Return the rows of calls in which a window is faster than in one, or `None`."""
    smaller = [size for size in measured if size < window]
    cost = {size: math.ceil(window / size) * latency.seconds(size) for size in smaller}
    best = min(smaller, key=cost.__getitem__, default=window)
    return best * batch if best < window and cost[best] < _GAIN * latency.seconds(window) else None


def _text(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
