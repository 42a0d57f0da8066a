"""Warm starts: a known trajectory costs as few rounds as there can be, and a part of one no more than none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import picard
from tests.problems import F64, diffusion, pendulum, pendulum_drift, sde, start, times

each_stage = pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "heun3", "rk4"])


def test_a_warm_start_costs_fewer_rounds() -> None:
    gain = torch.linspace(1, 3, 3, dtype=F64)
    grid = times(200)
    options: dict[str, Any] = {"method": "euler", "window": 50, "save": "all"}
    first = picard.solve(picard.ODE(pendulum_drift, start(3, 2), cond={"gain": gain}), grid, **options)
    nearby = picard.ODE(pendulum_drift, start(3, 2), cond={"gain": 1.001 * gain})
    cold, warm = picard.solve(nearby, grid, **options), picard.solve(nearby, grid, guess=first, **options)
    assert warm.stats.rounds < cold.stats.rounds
    expected = picard.sequential(nearby, grid, method="euler").final
    torch.testing.assert_close(warm.final, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("last", [2.0, -2.0], ids=["forward", "backward"])
@each_stage
def test_the_sequential_solution_costs_as_few_rounds_as_there_can_be(method: str, last: float) -> None:
    """Stages lie off the trajectory by the square of the step, far more than the tolerance."""
    problem, grid = pendulum(), times(400, 0.0, last)
    known = picard.sequential(problem, grid, method=method, save="all")
    for guess in (known, known.ys):
        warm = picard.solve(problem, grid, method=method, tolerance=1e-6, guess=guess)
        assert warm.stats.rounds == -(-warm.stats.sequential_evaluations // 64)
        torch.testing.assert_close(warm.final, known.final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("small", [1e-2, 1e-4, 1e-6, 1e-9])
@each_stage
def test_steps_of_very_different_lengths(method: str, small: float) -> None:
    lengths = torch.ones(20, dtype=F64)
    lengths[5:10] = small
    grid = torch.cat([torch.zeros(1, dtype=F64), lengths.cumsum(0)]) / 15
    known = picard.sequential(pendulum(), grid, method=method, save="all")
    cold, warm = (picard.solve(pendulum(), grid, method=method, tolerance=1e-6, guess=g) for g in (None, known))
    assert warm.stats.rounds <= cold.stats.rounds
    torch.testing.assert_close(warm.final, known.final, rtol=1e-5, atol=1e-5)


@each_stage
def test_an_unfinished_solution_is_used_as_far_as_it_got(method: str) -> None:
    problem, grid = pendulum(), times(400)
    options: dict[str, Any] = {"method": method, "tolerance": 1e-6, "save": "all"}
    cold = picard.solve(problem, grid, **options)
    for rounds in (1, cold.stats.rounds // 2, cold.stats.rounds - 2):
        unfinished = picard.solve(problem, grid, max_rounds=rounds, throw=False, **options)
        assert not unfinished.success
        warm = picard.solve(problem, grid, guess=unfinished, **options)
        assert warm.stats.rounds <= cold.stats.rounds
        torch.testing.assert_close(warm.ys, cold.ys, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_few_steps(steps: int) -> None:
    problem, grid = pendulum(), times(steps, 0.0, 0.4, torch.float32)
    known = picard.sequential(problem, grid, method="rk4", save="all")
    warm = picard.solve(problem, grid, method="rk4", tolerance=1e-9, guess=known.ys.float(), save="all")
    torch.testing.assert_close(warm.ys, known.ys, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("problem", "grid", "method"),
    [(sde("diagonal"), times(100), "euler"), (sde("additive"), times(100), "heun"), (diffusion(), 100, "ddpm")],
    ids=["sde", "additive", "diffusion"],
)
def test_an_unfinished_solution_with_noise(problem: Any, grid: Any, method: str) -> None:
    options: dict[str, Any] = {"method": method, "tolerance": 1e-6, "save": "all", "window": 20}
    cold = picard.solve(problem, grid, **options)
    unfinished = picard.solve(problem, grid, max_rounds=cold.stats.rounds // 2, throw=False, **options)
    warm = picard.solve(problem, grid, guess=unfinished, **options)
    assert warm.stats.rounds < cold.stats.rounds
    torch.testing.assert_close(warm.ys, cold.ys, rtol=1e-4, atol=1e-4)
