"""The properties of a parallel solver, one small function each: it returns what it measured, fails, or skips."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from picard.verify.certified import adapted, certified
from picard.verify.counting import counted
from picard.verify.result import lists_points, whole
from picard.verify.signals import Failure, Skip
from picard.verify.trial import Trial

Property = Callable[[Trial], str]

_LOOSE = 0.5  # a tolerance so loose that accepted states differ visibly from the sequential ones
_ASIDE = 1 + 1e-3  # a start moved a little: what differs by a tie of rounding in a decision does not differ there too


def equal_to_sequential(trial: Trial) -> str:
    """With a zero tolerance the result is the sequential one, to rounding."""
    trial.needs("tolerance")
    trial.ends()
    return _close(trial.expect(trial.run(tolerance=0.0), trial.wanted(), trial.rtol, "with tolerance=0"))


def within_tolerance(trial: Trial) -> str:
    """With the options as given the result is near the sequential one."""
    trial.ends()
    trial.expect(trial.run(), trial.wanted(), math.inf, "the result")  # shapes and dtypes
    got, wanted = (each.states.double().reshape(*each.states.shape[:2], -1) for each in (trial.run(), trial.wanted()))
    scale = wanted.square().mean(2).sqrt().amax(0)
    ratio = (got[-1] - wanted[-1]).square().mean(1).sqrt() / scale.clamp_min(torch.finfo(torch.float64).tiny)
    worst = float(torch.nan_to_num(ratio, nan=torch.inf).max())
    if not worst <= trial.within:
        msg = f"relative root mean square difference {worst:.1e} to the sequential result, more than {trial.within:.1e}"
        raise Failure(msg)
    return _close(worst)


def prefix_exact(trial: Trial) -> str:
    """After k rounds the states after the first k nodes are the sequential ones: N rounds always suffice."""
    trial.needs("tolerance", "max_rounds", "save")
    nodes = trial.nodes()
    ends = trial.prepared().plan.grid_nodes.tolist()
    options: dict[str, Any] = {"throw": False} if trial.takes("throw") else {}
    worst = 0.0
    for rounds in sorted({1, 2, nodes // 2, nodes - 1} & set(range(1, nodes + 1))):
        points = [point for point, node in enumerate(ends) if node <= rounds]
        run = whole(trial.run(tolerance=0.0, max_rounds=rounds, **options))
        what = f"after {rounds} round{'s' * (rounds > 1)}"
        worst = max(worst, trial.expect(run, trial.wanted(), trial.rtol, what, points))
    return _close(worst)


def rounds_bounded(trial: Trial) -> str:
    """A solve takes at most one round a node, whatever the tolerance."""
    nodes, most = trial.nodes(), 0
    for options in _variants(trial, 0.0):
        rounds = getattr(getattr(trial.run(**options).solution, "stats", None), "rounds", None)
        if rounds is None:
            msg = "the solution carries no stats.rounds"
            raise Skip(msg)
        if rounds > nodes:
            msg = f"{rounds} rounds for {nodes} nodes" + (" with tolerance=0" if options else "")
            raise Failure(msg)
        most = max(most, rounds)
    return f"{most} rounds for {nodes} nodes"


def causal(trial: Trial) -> str:
    """Noise of later steps does not change an accepted state: what the certificate rests on."""
    trial.needs("save")
    trial.fixed("window")
    if trial.case.batch is None:
        msg = "the problem's noise cannot be replaced"
        raise Skip(msg)

    def measure(trial: Trial) -> float:
        one = trial.case.select([0])  # alone, so that the shapes of the computation stay the same
        noise = one.noise()
        if noise is None:
            msg = "the method uses no noise"
            raise Skip(msg)
        worst = 0.0
        for options in _variants(trial, _LOOSE):
            before = whole(trial.run(one.with_noise(noise), **options))
            for step in sorted({1, len(noise) // 2, len(noise) - 1} - {0}):
                changed = noise.clone()
                changed[step:] = 1 - changed[step:]
                after = trial.run(one.with_noise(changed), **options)
                what = f"changing the noise from step {step} on" + (f" with {options}" if options else "")
                points = list(range(step + 1))
                worst = max(worst, trial.expect(after, before, trial.rtol, what, points))
        return worst

    return _close(_confirmed(trial, measure))


def batch_independent(trial: Trial) -> str:
    """A sample's result does not depend on the batch it is in, nor on its place there."""
    trial.fixed("window")
    batch = trial.case.batch
    if batch is None or batch == 1:
        msg = "there is one sample only" if batch else "the problem's batch cannot be taken apart"
        raise Skip(msg)

    def measure(trial: Trial) -> float:
        together = trial.run(trial.case)
        parts = [[sample] for sample in range(batch)] + [list(range(batch))[::-1]]
        worst = 0.0
        for samples in parts:
            apart = trial.run(trial.case.select(samples))
            what = f"sample {samples[0]} alone" if len(samples) == 1 else "in reverse order"
            worst = max(worst, trial.expect(apart, together.pick(samples), trial.rtol, what))
        return worst

    return _close(_confirmed(trial, measure))


def reproducible(trial: Trial) -> str:
    """The same call gives the same bits, and its noise is the problem's realization."""
    trial.fixed("window", "max_rows")
    first, second = trial.run(), trial.run(trial.case)
    trial.expect(second, first, 0.0, "the same call again")
    noise = trial.case.noise() if trial.case.batch else None
    if noise is None:
        return "the same bits again"
    given = trial.run(trial.case.with_noise(noise))
    return _close(trial.expect(given, first, trial.rtol, "with the same noise as a tensor"))


def window_independent(trial: Trial) -> str:
    """With a zero tolerance the result does not depend on the window."""
    trial.needs("tolerance", "window")
    trial.ends()
    nodes = trial.nodes()
    worst = 0.0
    for window in sorted({1, 2, 7, nodes, nodes + 5}):
        run = trial.run(tolerance=0.0, window=window)
        worst = max(worst, trial.expect(run, trial.wanted(), trial.rtol, f"with window={window}"))
    return _close(worst)


def max_rows_independent(trial: Trial) -> str:
    """Splitting the model call changes memory, never the result."""
    trial.needs("max_rows")
    trial.fixed("window")

    def measure(trial: Trial) -> float:
        whole = trial.run(max_rows=None)
        sizes = (1, 3, 4, 5)  # some of which leave a smaller last call, whatever the batch
        return max(trial.expect(trial.run(max_rows=n), whole, trial.rtol, f"with max_rows={n}") for n in sizes)

    return _close(_confirmed(trial, measure))


def save_independent(trial: Trial) -> str:
    """The option `save` chooses what is returned, and changes none of it."""
    trial.needs("save")
    trial.fixed("window")
    every, given = trial.run(), trial.given()
    save: Any = trial.case.options.get("save")
    what = "with `save` as given" if "save" in trial.case.options else "with `save` left out"
    worst = trial.expect(given, every, trial.rtol, what)
    ys = getattr(given.solution, "ys", None)
    if lists_points(save) and isinstance(ys, torch.Tensor):
        points = replace(whole(every), states=every.states[list(save)])
        worst = max(worst, trial.expect(replace(every, states=ys.detach().cpu()), points, trial.rtol, what))
    return _close(worst)


def evaluations_counted(trial: Trial) -> str:
    """The number of evaluations it tells is the number of rows that the model was given."""
    trial.fixed("window")
    case, counter = counted(trial.case)
    told = getattr(getattr(trial.run(case).solution, "stats", None), "evaluations", None)
    if told is None:
        msg = "the solution carries no stats.evaluations"
        raise Skip(msg)
    if told != counter.rows:
        msg = f"stats.evaluations is {told}, but the model was given {counter.rows} rows"
        raise Failure(msg)
    return f"{told} rows"


PROPERTIES: dict[str, Property] = {
    one.__name__: one
    for one in (
        reproducible,  # first: a solver that draws anew fails everywhere, and this says why
        equal_to_sequential,
        within_tolerance,
        prefix_exact,
        rounds_bounded,
        causal,
        batch_independent,
        window_independent,
        max_rows_independent,
        save_independent,
        evaluations_counted,
        adapted,
        certified,
    )
}


def _variants(trial: Trial, tolerance: float) -> list[dict[str, Any]]:
    """List changes of the options: none, and another tolerance, if the solver has one."""
    return [{}, {"tolerance": tolerance}] if trial.takes("tolerance") else [{}]


def _close(difference: float) -> str:
    return f"largest relative difference {difference:.1e}"


def _confirmed(trial: Trial, measure: Callable[[Trial], float]) -> float:
    """Measure; a difference must show again from a start moved aside, or it was a tie in a decision."""
    try:
        return measure(trial)
    except Failure:
        if trial.case.batch is None:
            raise
        return measure(trial.on(trial.case.scaled(_ASIDE)))
