"""The guess that continues the field as a polynomial: exact where the field is one, harmless where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard.entering import Entering, Linearized, Places
from picard.extrapolate import Extrapolate, lagrange
from picard.plan import Plan
from picard.prepare import prepare
from tests.problems import F64, diffusion, pendulum, sde, start, times

METHODS = ["euler", "midpoint", "heun3", "rk4"]
each_method = pytest.mark.parametrize("method", METHODS)


def polynomial(degree: int) -> Callable[[Tensor], Tensor]:
    """Build a polynomial of time alone with two different components: (rows,) to (rows, 2)."""
    powers = torch.arange(degree + 1)
    weights = torch.tensor([[1.0, -2.0, 0.5, 3.0, -1.0], [0.3, 1.0, -4.0, 0.7, 2.0]], dtype=F64)[:, : degree + 1]
    return lambda t: (t[:, None] ** powers) @ weights.T.to(t)


def ahead(values: Callable[[Plan], Tensor], method: str, count: int, grid: Tensor, known: int = 40) -> Any:
    """Extrapolate from the first `known` nodes, their values (batch, nodes, dims) given by the plan.

    Returns the continuation, the values there, and the plan.
    """
    x0 = torch.zeros(2, 2, dtype=F64)
    prepared = prepare(picard.ODE(lambda t, x: x, x0), grid, method)
    plan, given = prepared.plan, values(prepared.plan)
    history = plan.order - 1
    past = torch.cat([torch.zeros(2, history, 2, dtype=F64), given[:, :known]], 1)
    end = torch.full((2, 1), known)
    entering = Entering(
        wanted=count,
        history=history,
        begin=torch.zeros_like(end),
        final=end + min(count, plan.nodes - known) - 1,
        end=end,
        slot=end + history - 1,
        known=torch.zeros_like(past),
        field=Linearized(past, torch.zeros(2, known, dtype=F64), None),
        noise=None,
        diffusion=None,
        kick=None,
        places=Places([known] * 2, [0, 1]),
    )
    guess = Extrapolate(prepared.tables, (2,), plan.stages)
    held = past[:, -1:]
    return guess.ahead(entering, held), given[:, known : known + count], held.expand(-1, count, -1)


@each_method
@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("backward", [False, True])
def test_a_polynomial_of_time_is_continued_exactly(degree: int, backward: bool, method: str) -> None:
    f, grid = polynomial(degree), times(40)  # an uneven grid
    grid = -grid if backward else grid
    found, expected, _ = ahead(lambda plan: f(plan.times).expand(2, -1, -1), method, 12, grid)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=1e-9, atol=1e-9)


@each_method
def test_every_sample_has_its_own_degree(method: str) -> None:
    """One sample follows a polynomial and is continued exactly; the other is noise, and stays in range."""

    def values(plan: Plan) -> Tensor:
        rough = torch.randn(plan.nodes, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
        return torch.stack([polynomial(3)(plan.times), rough])

    found, expected, _ = ahead(values, method, 12, times(60))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
    assert float(found[1].abs().max()) <= 4, "a polynomial of degree 4 through noise would be off by hundreds"


def test_what_is_not_finite_is_held() -> None:
    def values(plan: Plan) -> Tensor:
        smooth = polynomial(2)(plan.times).repeat(2, 1, 1)
        smooth[1, 37] = torch.inf
        return smooth

    found, expected, held = ahead(values, "euler", 8, times(60))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
    assert torch.equal(found[1], held[1])


@pytest.mark.parametrize("known", [1, 2, 3, 4, 7])
@each_method
def test_little_history_is_enough(known: int, method: str) -> None:
    found, expected, held = ahead(lambda plan: polynomial(0)(plan.times).expand(2, -1, -1), method, 8, times(60), known)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.shape == held.shape


def test_weights_are_those_of_lagrange() -> None:
    points, at = torch.tensor([3.0, 2.5, 1.0, 0.0], dtype=F64), torch.tensor(4.0, dtype=F64)
    weights = lagrange(points, at, torch.arange(4))
    for degree in range(4):
        for power in range(degree + 1):
            torch.testing.assert_close(weights[degree] @ points**power, at**power)
        assert bool((weights[degree, degree + 1 :] == 0).all())


@each_method
@torch.no_grad()
def test_a_polynomial_field_takes_one_round_a_window(method: str) -> None:
    """From the second window on the states are guessed exactly, so each window is accepted in its first round."""
    f, grid = polynomial(4), times(200)
    problem = picard.ODE(lambda t, x: f(t), start(1, 2))
    solve = {
        guess: picard.solve(problem, grid, method=method, window=40, tolerance=1e-8, guess=guess)
        for guess in ("extrapolate", "hold")
    }
    expected = picard.sequential(problem, grid, method=method)
    torch.testing.assert_close(solve["extrapolate"].final, expected.final, rtol=1e-8, atol=1e-8)
    windows = -(-expected.stats.rounds // 40)
    assert solve["extrapolate"].stats.rounds <= windows + 4
    assert solve["hold"].stats.rounds >= 1.5 * windows


def test_it_is_the_default_of_an_ode_and_of_nothing_else() -> None:
    problems: list[tuple[Any, Any, str]] = [
        (pendulum(), times(60), "rk4"),
        (sde(), times(60), "euler"),
        (diffusion(), 40, "ddpm"),
        (diffusion(), 40, "ddim"),
    ]
    found = []
    for problem, grid, method in problems:
        default, extrapolated, held = (
            picard.solve(problem, grid, method=method, window=9, guess=guess) for guess in (None, "extrapolate", "hold")
        )
        equal = (torch.equal(default.final, extrapolated.final), torch.equal(default.final, held.final))
        found.append(equal)
    # an ODE; an SDE, where it falls back to hold; samplers of diffusion models, whose default is eager
    assert found == [(True, False), (True, True), (False, False), (False, False)]


@torch.no_grad()
def test_it_costs_fewer_rounds_on_a_smooth_equation() -> None:
    rounds = {
        guess: picard.solve(pendulum(), times(400), method="rk4", tolerance=1e-8, guess=guess).stats.rounds
        for guess in ("extrapolate", "hold", "copy")
    }
    assert rounds["extrapolate"] <= 0.7 * rounds["hold"] <= 0.7 * rounds["copy"]


@each_method
def test_samples_at_different_places_are_continued_as_they_are_alone(method: str) -> None:
    drift = lambda t, x: torch.cos(3 * t)[:, None] * x  # noqa: E731
    x0 = torch.tensor([[1.0], [2.0], [40.0]], dtype=F64)
    options: Any = {"method": method, "window": 12, "tolerance": picard.RelAbs(0.0, 1e-7)}
    together = picard.solve(picard.ODE(drift, x0), times(60), **options)
    alone = [picard.solve(picard.ODE(drift, x0[i : i + 1]), times(60), **options) for i in range(len(x0))]
    assert together.stats.rounds == max(one.stats.rounds for one in alone)
    rows = [one.stats.evaluations - 1 for one in (together, *alone)]  # less the check of the drift
    assert rows[0] == sum(rows[1:])


@torch.no_grad()
@each_method
def test_times_far_from_zero_are_told_apart_in_single_precision(method: str) -> None:
    """Single precision holds 10,000 to a thousandth, a fifth of a step."""
    problem = picard.ODE(lambda t, x: torch.sin(3 * x), start(2, 3).float())
    near, far = (
        picard.solve(problem, times(400, shift, shift + 2), method=method, tolerance=1e-4) for shift in (0.0, 1e4)
    )
    torch.testing.assert_close(far.final, near.final, rtol=1e-4, atol=1e-4)
    assert far.stats.rounds <= near.stats.rounds + 2
