"""Windows chosen by measurement: a fake clock, which only the model advances, makes every measurement exact."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from benchmarks.problems import benchmarks
from picard import choice, latency
from picard.functions import functions_of
from tests.meters import Clocked
from tests.problems import F64, pendulum, pendulum_drift, rms, start, times

WINDOWS = (4, 8, 16, 32, 64)


def ode(model: Clocked, batch: int = 1) -> picard.ODE:
    return picard.ODE(model, start(batch, 2))


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 1.0])
@pytest.mark.parametrize("name", ["act32", "img256"])
def test_auto_is_near_the_best_window_and_never_behind_sequential(
    name: str, share: float, clocked: Callable[..., Clocked]
) -> None:
    """A row costs `share` of a call. The first solve measures, the next two learn, the fourth knows."""
    benchmark = benchmarks()[name]
    model = clocked(benchmark.model, lambda rows: 1 + share * rows)
    whole = benchmark.problem(3)
    denoiser = picard.Denoiser(model, benchmark.schedule, prediction="sample")
    problem = picard.Diffusion(denoiser, whole.x_T, noise=whole.noise)

    def solve(window: Any) -> picard.Solution:
        return picard.solve(problem, 100, method="ddpm", window=window)

    alone, reference = model.taken(lambda: picard.sequential(problem, 100, method="ddpm"))
    fixed = min(model.taken(lambda window=window: solve(window))[0] for window in WINDOWS)  # type: ignore[misc]
    first, solution = model.taken(lambda: solve("auto"))
    again = [model.taken(lambda: solve("auto"))[0] for _ in range(3)][-1]
    assert again <= 1.05 * alone
    assert again <= 1.15 * min(alone, fixed)
    assert first <= again + 0.25 * alone
    assert rms(solution.final - reference.final) < 0.1
    assert solution.stats.trials > 0


@torch.no_grad()
def test_where_nothing_wins_it_is_the_sequential_solver(clocked: Callable[..., Clocked]) -> None:
    model = clocked(pendulum_drift, lambda rows: 0.1 * rows)
    problem, grid = ode(model, 3), times(50)
    alone, reference = model.taken(lambda: picard.sequential(problem, grid, method="heun", save="all"))
    picard.solve(problem, grid, method="heun", window="auto")
    taken, solution = model.taken(lambda: picard.solve(problem, grid, method="heun", window="auto", save="all"))
    assert taken == pytest.approx(alone)
    assert torch.equal(solution.ys, reference.ys)
    stats = solution.stats
    assert (stats.rounds, stats.evaluations, stats.window, stats.trials) == (100, 300, 1, 0)
    assert stats.reason.startswith("sequential: ")


@torch.no_grad()
def test_a_free_batch_gets_a_large_window_and_says_why(clocked: Callable[..., Clocked]) -> None:
    model = clocked(pendulum_drift, lambda rows: 0.1)
    first = picard.solve(ode(model), times(400), method="euler", window="auto").stats
    assert first.window >= 64
    assert first.reason.startswith(f"window {first.window}: predicted")
    assert "40 s for 400 calls one after the other" in first.reason
    again = picard.solve(ode(model), times(400), method="euler", window="auto").stats
    assert (again.trials, again.rounds) == (0, first.rounds)
    assert again.evaluations < first.evaluations


@torch.no_grad()
def test_hardware_that_takes_sixteen_rows_at_a_time_gets_sixteen(clocked: Callable[..., Clocked]) -> None:
    model = clocked(pendulum_drift, lambda rows: float(math.ceil(rows / 16)))
    assert picard.solve(ode(model), times(200), method="rk4", window="auto").stats.window == 16
    model = clocked(pendulum_drift, lambda rows: float(math.ceil(rows / 16)))
    assert picard.solve(ode(model, 2), times(200), method="rk4", window="auto").stats.window == 8


@torch.no_grad()
def test_a_solve_that_took_more_rounds_than_predicted_is_not_repeated(clocked: Callable[..., Clocked]) -> None:
    """A chaotic system: the rounds of the first solve correct the prediction for the second."""

    def lorenz(t: Tensor, x: Tensor) -> Tensor:
        a, b, c = x.unbind(1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)

    model = clocked(lorenz, lambda rows: 1 + 0.4 * rows)
    problem = picard.ODE(model, torch.tensor([[1.0, 1.0, 20.0]], dtype=F64))
    grid = torch.linspace(0, 4, 401, dtype=F64)
    alone, _ = model.taken(lambda: picard.sequential(problem, grid, method="euler"))
    taken = [
        model.taken(lambda: picard.solve(problem, grid, method="euler", window="auto", tolerance=1e-9))[0]
        for _ in range(3)
    ]
    assert taken[0] > 1.05 * alone
    assert taken[2] == pytest.approx(alone)


@torch.no_grad()
def test_calls_are_split_where_smaller_ones_are_faster(clocked: Callable[..., Clocked]) -> None:
    model = clocked(pendulum_drift, lambda rows: 1 + 0.01 * rows + (10 if rows > 32 else 0))
    problem, grid = ode(model, 2), times(300)
    whole = picard.solve(problem, grid, method="euler", window=64)
    solution = picard.solve(problem, grid, method="euler", window=64, max_rows="auto")
    assert (solution.stats.window, solution.stats.max_rows) == (64, 32)
    assert "calls of 32 rows" in solution.stats.reason
    assert torch.equal(solution.final, whole.final)
    both = picard.solve(problem, grid, method="euler", window="auto", max_rows="auto").stats
    assert both.window == 16 or both.max_rows == 32
    even = clocked(pendulum_drift, lambda rows: 1 + 0.1 * rows)
    assert picard.solve(ode(even), grid, method="euler", window=64, max_rows="auto").stats.max_rows is None


@torch.no_grad()
def test_options_that_need_rounds_get_them(clocked: Callable[..., Clocked]) -> None:
    model = clocked(pendulum_drift, float)
    problem = ode(model)
    seen: list[picard.RoundInfo] = []
    options: dict[str, Any] = {"method": "euler", "window": "auto"}
    picard.solve(problem, times(20), callback=seen.append, **options)
    assert len(seen) == 20
    assert picard.solve(problem, times(20), certify=True, **options).certificate is not None
    with pytest.raises(picard.NotConvergedError):
        picard.solve(problem, times(20), max_rounds=5, **options)


@torch.no_grad()
def test_a_model_that_fails_says_so_as_ever(clocked: Callable[..., Clocked]) -> None:
    model = clocked(lambda t, x: torch.where((t > 1)[:, None], math.nan, -x), float)
    with pytest.raises(picard.NonFiniteError):
        picard.solve(ode(model), times(40), method="euler", window="auto")
    solution = picard.solve(ode(model), times(40), method="euler", window="auto", throw=False)
    assert solution.status == (picard.Status.NON_FINITE,)


@pytest.mark.parametrize("cost", [lambda rows: 1.0, float], ids=["parallel", "sequential"])
def test_gradients_pass_through_either_choice(cost: Callable[[int], float], clocked: Callable[..., Clocked]) -> None:
    def gradient(window: Any) -> Tensor:
        x0 = start(2, 2).requires_grad_()
        model = clocked(pendulum_drift, cost)
        solution = picard.solve(picard.ODE(model, x0), times(30), method="rk4", window=window, tolerance=1e-12)
        assert model.rows == solution.stats.evaluations
        return torch.autograd.grad(solution.final.square().sum(), x0)[0]

    torch.testing.assert_close(gradient("auto"), gradient(40), rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_noise_is_not_asked_for_while_measuring() -> None:
    """A Brownian path may remember what it was asked."""
    asked: list[float] = []

    def path(a: float, b: float) -> Tensor:
        asked.append(a)
        return torch.full((1, 2), math.sqrt(b - a) * math.sin(99 * a), dtype=F64)

    problem = picard.SDE(lambda t, x: -x, lambda t, x: x, start(1, 2), noise=picard.Noise.from_brownian(path))
    found = picard.solve(problem, times(50), method="euler", window="auto", tolerance=1e-10)
    asked = asked[asked.index(0.0, 1) :]  # the check of its shape comes first
    assert asked == sorted(asked)
    assert found.stats.trials > 0
    assert rms(found.final - picard.sequential(problem, times(50), method="euler").final) < 1e-8


@torch.no_grad()
def test_what_is_known_of_a_model_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "clock", map(float, itertools.count()).__next__)
    gc.collect()  # models of earlier tests
    before = len(latency._KNOWN._of)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return -x

    options: dict[str, Any] = {"method": "euler", "window": "auto"}
    for x0 in (start(1, 2), start(1, 3), start(2, 2), start(1, 2).float()):
        assert picard.solve(picard.ODE(drift, x0), times(20), **options).stats.trials > 0
        assert picard.solve(picard.ODE(drift, x0), times(20), **options).stats.trials == 0
    assert len(latency._KNOWN._of) == before + 1
    del drift
    gc.collect()
    assert len(latency._KNOWN._of) == before


@torch.no_grad()
def test_compiled_rounds_are_measured_apart(clocked: Callable[..., Clocked], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = latency.measure_step

    def note(setup: Any, *others: Any) -> None:
        seen.append(setup)
        original(setup, *others)

    monkeypatch.setattr(choice, "measure_step", note)
    picard.solve(ode(clocked(pendulum_drift, lambda rows: 1.0)), times(20), method="euler", window="auto")
    (plain,) = seen
    other = replace(plain, functions=functions_of(plain.form, True))
    assert latency.known_latency(plain, 1) is latency.known_latency(plain, 1)
    assert latency.known_latency(plain, 1) is not latency.known_latency(other, 1)


@torch.no_grad()
def test_models_that_cannot_be_remembered_are_measured_each_time(clocked: Callable[..., Clocked]) -> None:
    class Slotted:
        __slots__ = ()

        def __call__(self, t: Tensor, x: Tensor) -> Tensor:
            return -x

        def drift(self, t: Tensor, x: Tensor) -> Tensor:
            return -x

    clocked(pendulum_drift, lambda rows: 1.0)
    slotted = Slotted()
    for _ in range(2):
        for drift in (slotted, slotted.drift):
            assert picard.solve(picard.ODE(drift, start(1, 2)), times(9), method="euler", window="auto").stats.trials


@pytest.mark.parametrize("option", ["window", "max_rows", "max_rounds"])
def test_other_words_are_refused(option: str, unchecked: None) -> None:
    with pytest.raises(picard.InvalidProblemError, match=f"{option} must be an integer of at least 1"):
        picard.solve(pendulum(), times(5), method="euler", **{option: "fast"})  # type: ignore[arg-type]
    if option == "max_rounds":
        with pytest.raises(picard.InvalidProblemError, match="or None"):
            picard.solve(pendulum(), times(5), method="euler", max_rounds="auto")  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [2, 3, "auto"])
def test_windows_too_small_to_be_measured_can_be_split(window: Any, clocked: Callable[..., Clocked]) -> None:
    model = clocked(pendulum_drift, float)
    for steps in (3, 20):
        solution = picard.solve(ode(model), times(steps), method="euler", window=window, max_rows="auto")
        torch.testing.assert_close(
            solution.final, picard.sequential(ode(model), times(steps), method="euler").final, rtol=1e-3, atol=1e-3
        )


@torch.no_grad()
@pytest.mark.parametrize("option", ["window", "max_rows"])
def test_a_model_that_fails_at_once_says_so_too(option: str, clocked: Callable[..., Clocked]) -> None:
    model = clocked(lambda t, x: x * math.nan, float)
    options: dict[str, Any] = {"method": "euler", option: "auto"}
    with pytest.raises(picard.NonFiniteError):
        picard.solve(ode(model), times(40), **options)
    assert picard.solve(ode(model), times(40), throw=False, **options).status == (picard.Status.NON_FINITE,)
