"""The latency of a model: seconds that a round of every size takes, measured on the problem at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from picard.engine import Setup
from picard.hold import Hold
from picard.memory import out_of_memory
from picard.permodel import PerModel
from picard.plan import Plan
from picard.prepare import Prepared
from picard.progress import Progress, RoundInfo
from picard.run import Run
from picard.sequential import follow
from picard.tables import Tables
from picard.thin import Thinning
from picard.tolerance import RelAbs
from picard.trajectory import Trajectory

clock: Callable[[], float] = time.perf_counter
_KNOWN: PerModel[Latency] = PerModel()
_REPEATS, _BRIEF = 4, 0.02  # what takes fewer seconds than the second is timed as often as the first says
_OVERHEAD = 0.01  # seconds that a round may spend outside the model


@dataclass(eq=False)
class Latency:
    """Measured seconds.

    Attributes:
        step: seconds of one node of the sequential solver.
        rounds: seconds of a round, the solver's own work included, by window.
        forecasts: what is forecast by it, by what is solved.
        calls: model calls made.
        rows: their rows.
    """

    step: float = 0.0
    rounds: dict[int, float] = field(default_factory=dict)
    forecasts: dict[Hashable, Any] = field(default_factory=dict)
    calls: int = 0
    rows: int = 0

    def seconds(self, width: float) -> float:
        """Return the seconds of a round that evaluates so many nodes: linear between those measured, and beyond.

        Where rounds of several widths were measured, the sequential step is left out: it knows no work of the solver.
        """
        known = sorted(self.rounds.items())
        known = known if len(known) > 1 else [(1, self.step), *known]
        if len(known) == 1:
            return self.step
        above = next((i for i, (measured, _) in enumerate(known) if measured >= width), len(known) - 1)
        (w0, s0), (w1, s1) = known[max(above, 1) - 1], known[max(above, 1)]
        slope = (s1 - s0) / (w1 - w0)
        return s0 + (slope if w0 <= width <= w1 else max(slope, 0.0)) * (width - w0)

    def at_best(self, width: float) -> float:
        """Bound the seconds of a round that evaluates so many nodes from below; those measured may be disturbed.

        Beyond them they grow on as between the last two, or as from the first one on, a step of the sequential solver
        and the work of a round outside the model; whichever is slower.
        """
        known = [(1, self.step + _OVERHEAD), *sorted(self.rounds.items())]
        last, seconds = known[-1]
        if width <= last:
            return self.seconds(width)
        slope = min((seconds - before) / (last - size) for size, before in (known[0], known[-2]))
        return seconds + max(slope, 0.0) * (width - last)


def known_latency(setup: Setup, gap: int) -> Latency:
    """Find what was measured for a model and a state's shape, dtype and device, or start anew; see `measure_round`."""
    problem, x0 = setup.problem, setup.problem.x0
    what = (type(problem).__name__, setup.plan.order, type(setup.linearization), setup.max_rows, gap)
    where = (tuple(x0.shape), x0.dtype, x0.device, torch.get_num_threads(), setup.functions is not None)
    key = (what, where)
    known = _KNOWN.of(problem.callee)
    found = known.get(key)
    if found is None or not all(problem.share(bool(found.rounds))):
        found = known[key] = Latency()
    return found


def measure_step(setup: Setup, prepared: Prepared, latency: Latency) -> None:
    """Time the sequential solver: a node to warm up, then two; if these are brief, others without what comes once."""

    def run(nodes: int) -> float:
        trial = _trial(setup, prepared, nodes, 1, 1)[1]
        started = clock()
        with torch.no_grad(), Progress(0, enabled=False) as bar:
            follow(trial, trial.problem.x0, Trajectory(trial.plan, trial.problem.x0, "last"), bar, setup.max_rows)
        latency.calls, latency.rows = latency.calls + nodes, latency.rows + nodes * len(trial.problem.x0)
        return clock() - started

    first = setup.problem.share(run(1))[0]
    if first >= _BRIEF:
        found = run(2) / 2
    else:
        once, more = (min(run(nodes) for _ in range(_REPEATS)) for nodes in (1, 1 + _REPEATS))
        found = max(more - once, more / 2) / _REPEATS  # the latter if what came once was disturbed
    latency.step = setup.problem.share(found)[0]


def measure_round(setup: Setup, prepared: Prepared, latency: Latency, window: int, gap: int) -> bool:
    """Time rounds of a window, on states that stay where they are; say whether it could be done.

    Args:
        setup: the solve.
        prepared: the problem on its grid.
        latency: is filled.
        window: nodes that a round evaluates.
        gap: how many times as many it holds.

    Memory may not suffice, or the model return what is not finite, which the solve will say.
    """
    repeats = 1 + (_REPEATS if latency.step * window < _BRIEF else 1)  # the first warms up
    trial, on = _trial(setup, prepared, 1 + repeats * window * gap, window, gap)
    taken: list[tuple[int, float]] = []

    def note(info: RoundInfo) -> None:
        taken.append((max(info.width), clock()))
        latency.calls, latency.rows = latency.calls + 1, latency.rows + info.rows

    x0 = on.problem.x0
    try:
        for _ in range(1 if setup.functions is None else 2):  # the first time it may be compiled
            taken.clear()
            with torch.no_grad(), Progress(0, enabled=False) as bar:
                Run(trial, on, x0, Trajectory(on.plan, x0, "last"), None, note).finish(bar, throw=False)
    except Exception as error:
        if out_of_memory(error):
            return False
        raise
    largest = max(width for width, _ in taken)
    seconds = [after - before for (_, before), (width, after) in pairwise(taken) if width == largest]
    if not seconds:
        return False
    latency.rounds[window] = setup.problem.share(min(seconds))[0]
    return True


def _trial(setup: Setup, prepared: Prepared, nodes: int, window: int, gap: int) -> tuple[Setup, Prepared]:
    """Make a solve that calls the model as the real one does, but whose states never move: so every round slides on.

    It needs no noise, whose realization may remember what it was asked.
    """
    plan = setup.plan
    index = torch.arange(nodes, device="cpu") % plan.nodes
    a = torch.zeros(nodes, plan.order, dtype=torch.float64, device="cpu")
    a[:, 0] = 1
    flat = Plan(
        times=plan.times[index],
        a=a,
        b=torch.zeros_like(a),
        step=torch.zeros(nodes, dtype=torch.int64, device="cpu"),
        yardstick=None if plan.yardstick is None else plan.yardstick[index],
        scales=None if plan.scales is None else plan.scales[index],
    )
    tables = Tables.of(flat, setup.tables.a, setup.tables.times.dtype)
    state = tuple(setup.problem.x0.shape[1:])
    thinning = Thinning(flat, 1.0, len(setup.problem.x0), farthest=gap) if gap > 1 else None
    plain = replace(setup, tolerance=RelAbs(), guess=Hold(tables, state), certifier=None, thinning=thinning)
    trial = replace(plain, plan=flat, tables=tables, window=window, sync_every=1)
    return trial, replace(prepared, plan=flat, tables=tables, draw=None, steps_at=[0] * (nodes + 1))
