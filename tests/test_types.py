"""Dtypes, devices, and everything a user sees besides numbers: progress, logs, representations, own methods."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import picard
from picard import integrators
from picard.grid import Levels, Times
from picard.plan import Plan
from picard.progress import RoundInfo
from picard.schedule import Schedule
from tests.problems import F64, diffusion, network, pendulum, pendulum_drift, rms, sde, start, times

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def strict(state: torch.dtype, time: torch.dtype) -> Any:
    """Build a drift that refuses any other dtype than it was promised."""

    def drift(t: Tensor, x: Tensor) -> Tensor:
        assert (x.dtype, t.dtype) == (state, time)
        assert t.shape == x.shape[:1]
        return (torch.cos(t).to(state)[:, None] * x).contiguous()

    return drift


@pytest.mark.parametrize("time", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("state", FLOATS)
def test_dtypes_are_kept(state: torch.dtype, time: torch.dtype) -> None:
    grid = torch.linspace(0, 1, 17, dtype=time)
    for problem in (
        picard.ODE(strict(state, time), start(2, 3, dtype=state)),
        picard.SDE(
            strict(state, time),
            lambda t, x: 0.1 * torch.ones_like(x),
            start(2, 3, dtype=state),
            noise=picard.Noise.from_seed(0),
        ),
    ):
        expected = picard.sequential(problem, grid, method="euler", save="all")
        found = picard.solve(problem, grid, method="euler", save="all", tolerance=0.0, window=6)
        for solution in (expected, found):
            assert (solution.ys.dtype, solution.final.dtype, solution.ts.dtype) == (state, state, time)
            assert solution.ys.device == problem.x0.device
            assert torch.equal(solution.ts, grid)
        eps = torch.finfo(state).eps
        torch.testing.assert_close(found.ys, expected.ys, rtol=32 * eps, atol=32 * eps)


@pytest.mark.parametrize("state", FLOATS)
def test_dtypes_of_diffusion_models(state: torch.dtype) -> None:
    schedules: list[tuple[Schedule, torch.dtype]] = [(Schedule.linear(), torch.int64), (Schedule.karras(), state)]
    for schedule, time in schedules:
        exact = network(schedule, "sample")

        def model(x: Tensor, t: Tensor, time: torch.dtype = time, exact: Any = exact) -> Tensor:
            assert (x.dtype, t.dtype, t.ndim) == (state, time, 1)
            return exact(x, t)

        denoiser = picard.Denoiser(model, schedule, prediction="sample")
        problem = picard.Diffusion(denoiser, start(2, 3, dtype=state), noise=picard.Noise.from_seed(0))
        for method in ("ddim", "ddpm", "dpmsolver++"):
            expected = picard.sequential(problem, 20, method=method).final
            found = picard.solve(problem, 20, method=method, tolerance=0.0, window=7).final
            assert found.dtype == state
            eps = torch.finfo(state).eps
            torch.testing.assert_close(found, expected, rtol=200 * eps, atol=200 * eps)


@pytest.mark.parametrize("state", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(state: torch.dtype) -> None:
    """A thousand steps, each too small to be seen by the state's own dtype."""
    ode = picard.ODE(lambda t, x: torch.ones_like(x), torch.full((1, 2), 4.0, dtype=state))
    grid = torch.linspace(0, 1, 1001)
    for solver in (picard.solve, picard.sequential):
        assert torch.equal(solver(ode, grid, method="euler").final, torch.full((1, 2), 5.0, dtype=state))


@pytest.mark.parametrize("guess", ["extrapolate", "hold", "copy"])
def test_autocast_is_for_the_model_alone(guess: str) -> None:
    """States and corrections are not rounded to half precision beside it."""
    ode = picard.ODE(lambda t, x: torch.sin(3 * x) - x, start(2, 100, dtype=torch.float32))
    denoiser = picard.Denoiser(lambda x, t: torch.tanh(x), Schedule.linear(), prediction="sample")
    sample = picard.Diffusion(denoiser, ode.x0, noise=picard.Noise.from_seed(0))
    cases: list[tuple[Any, Any, str]] = [(ode, torch.linspace(0, 2, 33), "rk4"), (sample, 40, "dpmsolver++")]
    for problem, grid, method in cases:
        options: dict[str, Any] = {"method": method, "window": 12, "guess": guess}
        expected = picard.solve(problem, grid, **options)
        with torch.autocast("cpu", torch.bfloat16):
            found = picard.solve(problem, grid, **options)
        assert torch.equal(found.final, expected.final)
        assert found.stats.evaluations == expected.stats.evaluations


def test_states_of_any_shape() -> None:
    for shape in ((1,), (2, 3), (3, 4, 5)):
        x0 = start(2, *shape)
        found = picard.solve(picard.ODE(lambda t, x: -x, x0), times(20), method="heun", save=[0, 20])
        assert found.ys.shape == (2, 2, *shape)
        torch.testing.assert_close(found.final, x0 * math.exp(-2), rtol=1e-2, atol=0)


def test_inputs_are_left_alone() -> None:
    x0, grid = start(2, 2), times(20)
    before, solution = x0.clone(), picard.solve(picard.ODE(lambda t, x: -x, x0), grid, method="euler")
    assert torch.equal(x0, before)
    assert solution.final.data_ptr() != x0.data_ptr()


@pytest.mark.parametrize("solver", [picard.solve, picard.sequential])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_drift_that_works_in_place_is_refused(solver: Any, mode: Any) -> None:
    """Its results would be wrong, since the states are still needed."""
    x0, grid = start(2, 2), times(20)
    before = x0.clone()
    with mode(), pytest.raises(picard.InvalidProblemError, match="changed in place the states"):
        solver(picard.ODE(lambda t, x: x.neg_(), x0), grid, method="euler")
    assert torch.equal(x0, before)


@pytest.mark.parametrize("solver", [picard.solve, picard.sequential])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_a_drift_that_changes_its_conditioning_is_refused(solver: Any, grad: bool, batch: int) -> None:
    def drift(t: Tensor, x: Tensor, deep: dict[str, list[Tensor]]) -> Tensor:
        return x * deep["rates"][0].mul_(2)[:, None]

    problem = picard.ODE(drift, start(batch, 2), cond={"deep": {"rates": [torch.ones(batch, dtype=F64)]}})
    with torch.set_grad_enabled(grad), pytest.raises(picard.InvalidProblemError, match="changed in place the cond"):
        solver(problem, times(20), method="euler")


@pytest.mark.parametrize("solver", [picard.solve, picard.sequential])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_drift_may_work_on_its_time_in_place(solver: Any, batch: int) -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        t *= 2
        return torch.cos(t)[:, None] * x

    plain = picard.ODE(lambda t, x: torch.cos(2 * t)[:, None] * x, start(batch, 2))
    own = picard.ODE(drift, start(batch, 2))
    assert torch.equal(solver(own, times(20), method="euler").final, solver(plain, times(20), method="euler").final)


@pytest.mark.parametrize("max_rows", [None, 3])
@torch.no_grad()
def test_a_drift_may_return_the_same_memory_again(max_rows: int | None) -> None:
    """As a captured CUDA graph does, and a function that writes into a buffer."""
    memory = torch.zeros(200, 2, dtype=F64)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return memory[: len(x)].copy_(pendulum_drift(t, x))

    plain, own = (picard.ODE(function, start(2, 2)) for function in (pendulum_drift, drift))
    options: dict[str, Any] = {"method": "rk4", "window": 12}
    expected = picard.solve(plain, times(20), max_rows=max_rows, **options)
    assert torch.equal(picard.solve(own, times(20), max_rows=max_rows, **options).final, expected.final)
    given, wanted = (picard.sequential(problem, times(20), method="rk4") for problem in (own, plain))
    assert torch.equal(given.final, wanted.final)


def test_representations_show_no_values() -> None:
    problem = picard.ODE(lambda t, x: 0 * x, torch.full((2, 2), 123.456, dtype=F64))
    solution = picard.solve(problem, times(20), method="euler")
    text = repr(solution)
    assert "123.4" not in text
    assert "(1, 2, 2)" in text
    assert "torch.float64" in text
    assert f"rounds={solution.stats.rounds}" in text
    assert "success=True" in text


def test_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="picard"):
        solution = picard.solve(pendulum(), times(20), method="euler")
    rounds = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert len(rounds) == solution.stats.rounds
    assert repr(solution) in caplog.text
    caplog.clear()
    picard.solve(pendulum(), times(20), method="euler")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("solver", [picard.solve, picard.sequential])
def test_the_bar_counts_steps(solver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tqdm = pytest.importorskip("tqdm.auto")
    shown: list[int] = []

    class Bar:
        def __init__(self, total: int, unit: str) -> None:
            assert (total, unit) == (40, "step")
            self.n = 0

        def update(self, more: int) -> None:
            assert more >= 0
            self.n += more
            shown.append(self.n)

        def close(self) -> None:
            shown.append(-1)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    problem = picard.SDE(lambda t, x: -x, lambda t, x: 0.1 * x, start(2, 3), noise=picard.Noise.from_seed(0))
    solution = solver(problem, times(20), method="euler", progress=True)
    assert shown[-2:] == [40, -1]
    assert len(shown) == solution.stats.rounds + 1


def test_the_real_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm.auto")
    picard.solve(pendulum(), times(20), method="heun", progress=True)
    assert "40/40" in capsys.readouterr().err


def test_what_a_callback_is_told() -> None:
    infos: list[RoundInfo] = []
    states: list[Tensor] = []

    def keep(info: RoundInfo) -> None:
        infos.append(info)
        states.append(info.states.clone())
        assert info.change.shape == (len(info.samples), max(info.width))
        assert info.states.shape == (len(info.samples), max(info.width), 2)

    solution = picard.solve(pendulum(3), times(20), method="heun", window=8, save="all", callback=keep)
    begin = [0, 0, 0]
    for number, info in enumerate(infos, 1):
        assert (info.round, info.steps) == (number, 20)
        assert info.rows == sum(info.width)
        for i, sample in enumerate(info.samples):
            assert info.begin[i] == begin[sample]
            assert 1 <= info.stride[i] <= info.width[i] <= 8
            begin[sample] += info.stride[i]
            if info.begin[i] % 2 == 0 and info.stride[i] >= 2:  # two nodes are a step of Heun's method
                assert torch.equal(states[number - 1][i, 1], solution.ys[info.begin[i] // 2 + 1, sample])
        assert info.converged == tuple(node // 2 for node in begin)
    assert begin == [40, 40, 40]
    assert len(infos) == solution.stats.rounds


@dataclass(frozen=True)
class AdamsBashforth2:
    """Two values of the drift a step, one of them known already; the first step is Euler's."""

    def plan(self, points: Times | Levels) -> Plan:
        if isinstance(points, Levels):
            raise picard.NotSupportedError("Adams-Bashforth steps over times")
        h = points.values.diff()
        half = torch.zeros_like(h)
        half[1:] = h[1:] ** 2 / h[:-1] / 2
        one = torch.ones_like(h)
        return Plan(
            times=points.values[:-1],
            a=torch.stack([one, 0 * one], 1),
            b=torch.stack([h + half, -half], 1),
            step=torch.arange(len(h)),
        )


def test_an_own_method_in_thirty_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picard.registry._METHODS", {"euler": integrators.Euler})
    integrators.register("ab2", AdamsBashforth2)
    assert integrators.methods() == ["ab2", "euler"]
    problem = picard.ODE(lambda t, x: torch.sin(t)[:, None] - x, torch.ones(2, 1, dtype=F64))
    errors, steps = [], [20, 40, 60]
    for n in steps:
        grid = times(n)
        expected = picard.sequential(problem, grid, method="ab2", save="all")
        for window in (1, 7, 200)[: n // 20]:
            found = picard.solve(problem, grid, method="ab2", window=window, tolerance=0.0, save="all")
            torch.testing.assert_close(found.ys, expected.ys, rtol=1e-10, atol=1e-10)
        errors.append(rms(expected.final - (1.5 * math.exp(-2) + (math.sin(2) - math.cos(2)) / 2)))
    order, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    assert -order == pytest.approx(2, abs=0.25)
    with pytest.raises(picard.UnknownMethodError, match="did you mean 'ab2'"):
        picard.solve(problem, times(5), method="abb2")
    with pytest.raises(picard.NotSupportedError, match="steps over times"):
        picard.solve(diffusion(), 5, method=AdamsBashforth2())


def test_one_problem_many_solves() -> None:
    """Problems are immutable: solving leaves no trace."""
    for problem, grid in ((pendulum(), times(20)), (sde("general"), times(20)), (diffusion(), 20)):
        method = "ddpm" if isinstance(grid, int) else "euler"
        first, second = (picard.solve(problem, grid, method=method) for _ in range(2))
        assert torch.equal(first.final, second.final)
        assert first.stats.evaluations == second.stats.evaluations
