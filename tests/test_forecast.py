"""What solves took corrects the forecast of the next: a clock that only the model advances makes it exact."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import picard
from benchmarks.problems import benchmarks
from picard import choice, latency
from tests.meters import Clocked
from tests.problems import pendulum_drift, start, times

WINDOWS = (4, 8, 16, 32, 64)


def ode(model: Clocked, batch: int = 1) -> picard.ODE:
    return picard.ODE(model, start(batch, 2))


@torch.no_grad()
def test_an_equation_that_converges_at_once_gets_larger_windows_from_solve_to_solve(
    clocked: Callable[..., Clocked],
) -> None:
    """An equation is not trusted to: the first window is a cautious one."""
    model = clocked(lambda t, x: -x, lambda rows: 1 + 0.02 * rows)
    stats = [picard.solve(ode(model), times(800), method="euler", window="auto").stats for _ in range(5)]
    assert stats[0].window < stats[-1].window
    fixed = [picard.solve(ode(model), times(800), method="euler", window=each).stats for each in (*WINDOWS, 128, 256)]
    cost = [each.rounds + 0.02 * each.evaluations for each in (stats[-1], *fixed)]
    assert cost[0] <= 1.1 * min(cost)


@torch.no_grad()
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_thinned_solves_are_forecast_as_such(tau: float, clocked: Callable[..., Clocked]) -> None:
    """They evaluate a third to a half of the nodes, and take as many fewer rounds."""
    benchmark = benchmarks()["gmm2"]
    model = clocked(benchmark.model, lambda rows: 1 + 0.01 * rows)
    whole = benchmark.problem(0, 4)
    denoiser = picard.Denoiser(model, benchmark.schedule, prediction="sample")
    problem = picard.Diffusion(denoiser, whole.x_T, noise=whole.noise)

    def solve(window: Any) -> tuple[float, picard.Solution]:
        return model.taken(
            lambda: picard.solve(problem, 400, method="ddpm", window=window, tolerance=picard.NoiseRatio(tau))
        )

    found = [solve("auto")[1] for _ in range(3)][-1]
    again, after = solve("auto")
    best = min(solve(window)[0] for window in WINDOWS)
    assert again <= 1.15 * best
    same = solve(found.stats.window)[1]  # measuring left the thinning of the solve as it was
    assert torch.equal(found.final, same.final)
    assert found.stats.evaluations < 4 * 400
    said = re.search(r"predicted (\d+) rounds", after.stats.reason)
    assert said is not None
    assert int(said[1]) == pytest.approx(after.stats.rounds, abs=3)


@torch.no_grad()
def test_what_was_chosen_is_not_worked_out_again(
    clocked: Callable[..., Clocked], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clocked(pendulum_drift, lambda rows: 1 + 0.05 * rows)
    worked: list[object] = []
    original = choice._choose

    def work(*args: Any, **options: Any) -> choice.Choice:
        worked.append(args)
        return original(*args, **options)

    monkeypatch.setattr(choice, "_choose", work)

    def count(**options: Any) -> int:
        before = len(worked)
        picard.solve(ode(model), times(60), **{"method": "rk4", "window": "auto", **options})
        return len(worked) - before

    assert count() == 1
    for _ in range(24):  # until nothing is news
        count()
    assert [count() for _ in range(3)] == [0, 0, 0]
    assert count(tolerance=1e-8) == 1
    assert count(method="heun") == 1
    assert count() == 0
    assert count(max_rows="auto") == 1


@torch.no_grad()
def test_brief_solves_are_timed_sequentially_before_a_window_is_trusted(
    clocked: Callable[..., Clocked], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clocked(pendulum_drift, lambda rows: 1e-4 * rows)
    original = latency.measure_step

    def disturbed(setup: Any, prepared: Any, known: latency.Latency) -> None:
        original(setup, prepared, known)
        known.step *= 2

    monkeypatch.setattr(choice, "measure_step", disturbed)
    stats = [picard.solve(ode(model), times(50), method="euler", window="auto").stats for _ in range(6)]
    assert any(each.reason.startswith("sequential, to time it") for each in stats)
    assert stats[0].window > 1
    assert stats[-1].window == 1


@torch.no_grad()
def test_a_larger_window_is_tried_where_nodes_are_left_out(clocked: Callable[..., Clocked]) -> None:
    """Here the largest takes half of the rounds that are predicted, and calls cost little more for their rows."""
    benchmark = benchmarks()["gmm2"]
    model = clocked(benchmark.model, lambda rows: 1 + 0.004 * rows)
    whole = benchmark.problem(0)
    problem = picard.Diffusion(
        picard.Denoiser(model, benchmark.schedule, prediction="sample"), whole.x_T, noise=whole.noise
    )

    def solve(window: Any) -> float:
        return model.taken(lambda: picard.solve(problem, 1000, method="ddpm", window=window, tolerance=1.0))[0]

    taken = [solve("auto") for _ in range(8)][-1]
    assert taken <= 1.05 * min(solve(window) for window in (64, 128, 256))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(2))
def test_the_best_window_is_found_on_a_machine_that_is_disturbed(seed: int, clocked: Callable[..., Clocked]) -> None:
    """Every third solve, measurements among them, takes up to three times as long: what was tried is tried again."""
    benchmark, busy, source = benchmarks()["gmm2"], [1.0], random.Random(seed)
    model = clocked(benchmark.model, lambda rows: busy[0] * (1 + 0.004 * rows))
    whole = benchmark.problem(0)
    problem = picard.Diffusion(
        picard.Denoiser(model, benchmark.schedule, prediction="sample"), whole.x_T, noise=whole.noise
    )

    def solve(window: Any) -> picard.Solution:
        return picard.solve(problem, 1000, method="ddpm", window=window)

    chosen = []
    for _ in range(12):
        busy[0] = source.uniform(1, 3) if source.random() < 1 / 3 else 1.0
        chosen.append(solve("auto").stats.window)
    busy[0] = 1.0
    best = min(model.taken(lambda window=window: solve(window))[0] for window in (64, 128, 256))  # type: ignore[misc]
    last = max(set(chosen[-6:]), key=chosen[-6:].count)
    assert model.taken(lambda: solve(last))[0] <= 1.1 * best, chosen
