"""The choice of a window: the one whose predicted seconds are fewest, or the sequential solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from picard import latency
from picard.engine import Setup
from picard.forecast import Forecast, evaluated_share
from picard.latency import Latency, known_latency, measure_round, measure_step
from picard.prepare import Prepared
from picard.problem import Problem
from picard.solution import Solution

LARGEST = 256
_GAIN = 0.9  # predictions err by some 15 %, so this much less than the sequential time must be promised
_KNOWN_GAIN = 0.97  # of what solves took, that is enough


@dataclass(frozen=True, eq=False)
class Choice:
    """A window, and why.

    Attributes:
        window: nodes in flight; 1 is the sequential solver.
        max_rows: rows a model call may hold.
        reason: what was predicted.
        forecast: what it is based on.
        trials: model calls made to measure.
        rows: their rows.
        made: when, in seconds of the clock that measures.
    """

    window: int
    max_rows: int | None
    reason: str
    forecast: Forecast
    trials: int = 0
    rows: int = 0
    made: float = 0.0

    def account(self, solution: Solution, seconds: float, problem: Problem) -> Solution:
        """Put the measurements into the account of a solve, and remember what it took for the next one like it.

        Args:
            solution: the solution.
            seconds: of the whole solve, the measurements among them.
            problem: the problem, whose ranks must all remember the same.
        """
        stats = solution.stats
        if solution.success:
            self.forecast.learn(self.window, stats, problem.share(latency.clock() - self.made)[0])
        evaluations = stats.evaluations + self.rows
        stats = replace(stats, evaluations=evaluations, seconds=seconds, reason=self.reason, trials=self.trials)
        return replace(solution, stats=stats)


def choose(setup: Setup, prepared: Prepared, *, window: bool, rows: bool) -> Choice:
    """Choose by what is known of the model; until solves tell something new, as the last time.

    Args:
        setup: the solve; its window is the one to use where it is not to be chosen.
        prepared: the problem on its grid.
        window: whether to choose the window.
        rows: whether to choose the rows of a call.
    """
    leeway = setup.tolerance.leeway if setup.thinning else 0.0
    gap = round(1 / evaluated_share(leeway))
    known = known_latency(setup, gap)
    what = (
        setup.plan.nodes,
        repr(setup.tolerance),
        repr(setup.linearization),
        type(setup.guess).__name__,
        setup.certifier is None,
        setup.sync_every,
    )
    if what not in known.forecasts:
        known.forecasts[what] = Forecast.of(setup.plan, leeway, known, newton=setup.newton)
    forecast: Forecast = known.forecasts[what]
    asked, trials, spent = (window, rows, setup.window), known.calls, known.rows
    if asked not in forecast.choices:
        forecast.choices[asked] = _choose(setup, prepared, forecast, gap, window=window, rows=rows)
    choice: Choice = forecast.choices[asked]
    return replace(choice, trials=known.calls - trials, rows=known.rows - spent, made=latency.clock())


def _choose(setup: Setup, prepared: Prepared, forecast: Forecast, gap: int, *, window: bool, rows: bool) -> Choice:
    """Measure rounds of doubling windows, for as long as larger ones may win, and choose.

    Windows from 4 on are measured, each in a few calls; what is known of the model from earlier solves is not measured
    again.
    """
    known, nodes = forecast.latency, forecast.nodes
    if not known.step:
        measure_step(setup, prepared, known)
    alone = forecast.alone()

    ahead = 6 if forecast.newton else 3  # his rounds fall with the window for longer, and small models measure fast

    def hopeless(size: int) -> bool:
        """Say whether no larger window can win, if rounds go on to take longer as they did up to this one."""
        best = min(alone, *(forecast.seconds(each) for each in known.rounds))
        larger = [size << doublings for doublings in range(1, ahead + 1) if size << doublings <= largest]
        return all(forecast.at_best(each) >= best for each in larger)

    largest = min(LARGEST if window else setup.window, nodes)
    measured = [each for each in known.rounds if each <= largest]
    while not (window and measured and hopeless(measured[-1])):
        size = 2 * measured[-1] if measured else 4
        if size > largest or not measure_round(setup, prepared, known, size, gap):
            break
        measured.append(size)
    chosen, reason = setup.window, ""
    if window:
        sizes = sorted({part for each in measured for part in (each * 3 // 4, each) if part > 3})
        gain = {size: _KNOWN_GAIN if size in forecast.taken else _GAIN for size in sizes}
        faster = [size for size in sizes if forecast.hoped(size) <= gain[size] * alone]
        chosen = min(faster, key=forecast.tempting, default=1)
        sequentially = f"{_text(alone)} for {nodes} calls one after the other"
        if chosen == 1:
            best = min(sizes, key=forecast.hoped, default=1)
            but = f"; window {best} is predicted to take {_text(forecast.seconds(best))}" if best > 1 else ""
            reason = f"sequential: {sequentially}{but}"
        elif forecast.unsure(chosen):
            chosen, reason = 1, f"sequential, to time it: {sequentially} are not far from those of window {chosen}"
        else:
            seconds = forecast.seconds(chosen)
            rounds = f"{forecast.rounds(chosen):.0f} rounds of {_text(seconds / forecast.rounds(chosen))}"
            reason = f"window {chosen}: predicted {rounds}, {_text(seconds)}, instead of {sequentially}"
    most = setup.max_rows
    if rows:
        most = _split(known, chosen, measured, len(setup.problem.x0))
        reason = "; ".join(filter(None, [reason, "" if most is None else f"calls of {most} rows are faster each"]))
    return Choice(chosen, most, reason, forecast)


def _split(known: Latency, window: int, measured: list[int], batch: int) -> int | None:
    """Return the rows of calls in which a window is faster than in one, or `None`."""
    smaller = [size for size in measured if size < window]
    cost = {size: math.ceil(window / size) * known.seconds(float(size)) for size in smaller}
    best = min(smaller, key=cost.__getitem__, default=window)
    return best * batch if best < window and cost[best] < _GAIN * known.seconds(float(window)) else None


def _text(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
