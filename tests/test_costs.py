"""What a solve costs: memory, waits of the host, evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from benchmarks.overhead import traffic
from tests.meters import Memory, Syncs
from tests.problems import F64, Counted, diffusion, network, pendulum_drift, sde, start, times

DIMS = 32
WINDOW = 64
STATE = 2 * DIMS * 8  # bytes of one state of a batch of two, in float64


def ode(drift: Callable[..., Tensor]) -> picard.ODE:
    return picard.ODE(drift, start(2, DIMS))


def wave(drift: Callable[..., Tensor]) -> picard.SDE:
    noise = picard.Noise.from_seed(0)
    return picard.SDE(drift, lambda t, x: 0.01 * torch.cos(x), start(2, DIMS), noise=noise)


def peaks(make: Callable[..., Any], steps: int, **options: Any) -> tuple[int, int]:
    """Return the most bytes before the model is called first, and the most bytes on top of what is kept then."""
    meter = Memory()
    first: list[int] = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        if not first:
            first.append(meter.peak)
            meter.peak = meter.live
            first.append(meter.live)
        return torch.sin(x) * torch.cos(t)[:, None]

    problem, grid = make(drift), torch.linspace(0, 1, steps + 1, dtype=F64)
    with torch.no_grad(), meter:
        picard.solve(problem, grid, method="euler", window=WINDOW, **options)
    return first[0], meter.peak - first[1]


@pytest.mark.parametrize("make", [ode, wave])
def test_memory_does_not_grow_with_the_number_of_steps(make: Callable[..., Any]) -> None:
    few, many = peaks(make, 100), peaks(make, 10_000)
    assert many[1] <= 1.25 * few[1], "the buffers are the window's"
    assert few[1] < 30 * (WINDOW + 1) * STATE
    assert many[0] - few[0] < 9_900 * 25 * 8, "set-up holds some numbers a step, no states"


@torch.no_grad()
def test_memory_of_an_ensemble_grows_with_the_window_not_its_square() -> None:
    """A system of equations as large as the window, for every sample, would be 256 windows."""
    batch, window = 1_000, 256
    problem = picard.ODE(lambda t, x: torch.sin(x), start(batch, 1))
    with Memory() as meter:
        picard.solve(problem, torch.linspace(0, 1, 301, dtype=F64), method="euler", window=window)
    assert meter.peak < 100 * (window + 1) * batch * 8


@torch.no_grad()
@pytest.mark.parametrize(("dims", "window"), [(1_000, 16), (1_000, 128), (30_000, 64)])
def test_a_round_moves_a_constant_number_of_windows(dims: int, window: int) -> None:
    """Counted in copies of the window's states, and in windows allocated, with a model that costs nothing."""
    moved, allocated = traffic(dims, window, {"linearization": "secant", "guess": "hold"})
    assert moved.total() / (2 * 4 * dims * window) < 20.5
    assert allocated / (4 * dims * window) < 11


def test_memory_grows_when_everything_is_saved() -> None:
    """The meter sees what it should."""
    few, many = (sum(peaks(ode, steps, save="all")) for steps in (100, 1000))
    assert many - few > 900 * STATE


def measured(steps: int, **options: Any) -> tuple[Syncs, picard.Solution]:
    problem = picard.ODE(pendulum_drift, start(3, 2), cond={"gain": torch.linspace(1, 4, 3, dtype=F64)})
    with torch.no_grad(), Syncs(problem.x0) as meter:
        solution = picard.solve(problem, times(steps), method="heun", window=8, **options)
    return meter, solution


@pytest.mark.parametrize("linearization", ["secant", "frozen", "identity", "newton"])
def test_the_host_waits_once_a_round(linearization: str) -> None:
    meter, solution = measured(60, linearization=linearization)
    assert solution.stats.rounds > 5
    assert meter.reads.total() == solution.stats.rounds
    assert meter.reads["tolist"] == solution.stats.rounds
    assert solution.stats.host_syncs == solution.stats.rounds


def test_the_meter_sees_every_kind_of_wait() -> None:
    x = torch.randn(4)
    with Syncs(x) as meter:
        y = 2 * x
        bool((y > 0).any())
        float(y[0])
        y.tolist()
        y[y > 0]
        torch.nonzero(y)
        torch.arange(3).tolist()
        torch.arange(3).to(y.device)
        torch.arange(3).to(y.device, non_blocking=True)
    assert meter.reads.total() == 5
    assert meter.uploads.total() == 1


@pytest.mark.parametrize(
    "case",
    [(sde("general"), "euler"), (diffusion(), "ddpm"), (diffusion(prediction="epsilon"), "dpmsolver++")],
    ids=["sde", "ddpm", "dpmsolver++"],
)
def test_waits_of_other_problems(case: tuple[Any, str]) -> None:
    problem, method = case
    for steps in (20, 100):
        grid = steps if isinstance(problem, picard.Diffusion) else times(steps)
        with torch.no_grad(), Syncs(problem.x_T if isinstance(grid, int) else problem.x0) as meter:
            solution = picard.solve(problem, grid, method=method, window=8)
        assert meter.reads.total() == solution.stats.rounds


def test_copies_to_the_device_do_not_wait() -> None:
    """Not one copy a round, and as many in set-up whatever the number of steps."""
    (few, one), (many, other) = measured(20), measured(200)
    assert other.stats.rounds > 2 * one.stats.rounds
    assert few.uploads.total() == many.uploads.total()


def test_the_sequential_reference_waits_once() -> None:
    problem = picard.ODE(pendulum_drift, start(3, 2))
    with torch.no_grad(), Syncs(problem.x0) as meter:
        picard.sequential(problem, times(50), method="rk4")
    assert meter.reads.total() <= 3  # the flags, whether there is a bad one, and who


def watched(problem: picard.ODE, steps: int) -> picard.Solution:
    """Solve while PyTorch itself warns whenever an operation synchronizes."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        return picard.solve(problem, times(steps), method="heun", window=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_the_gpu_is_waited_for_once_a_round() -> None:
    problem, found = picard.ODE(pendulum_drift, start(3, 2).cuda()), list[int]()
    for steps in (30, 30, 300):  # PyTorch warns once of the mode itself
        with pytest.warns(UserWarning, match="synchronizing") as caught:
            solution = watched(problem, steps)
        found.append(sum("synchronizing" in str(one.message) for one in caught) - solution.stats.rounds)
    assert found[1] == found[2]


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 9, 100])
def test_evaluations_are_rows_of_the_model(window: int) -> None:
    drift = Counted(pendulum_drift)
    problem = picard.ODE(drift, start(3, 2))
    for grid, method, nodes in ((times(30), "euler", 30), (times(30), "rk4", 120)):
        drift.rows.clear()
        solution = picard.solve(problem, grid, method=method, window=window)
        assert sum(drift.rows) == solution.stats.evaluations
        assert len(drift.rows) == solution.stats.rounds
        assert max(drift.rows) <= 3 * window
        assert solution.stats.sequential_evaluations == nodes
        assert solution.stats.speedup_bound == nodes / solution.stats.rounds
        drift.rows.clear()
        reference = picard.sequential(problem, grid, method=method)
        assert drift.rows == [3] * nodes
        assert (reference.stats.rounds, reference.stats.evaluations) == (nodes, 3 * nodes)
    model = Counted(network(picard.Schedule.linear(), "sample"))
    denoiser = picard.Denoiser(model, picard.Schedule.linear(), prediction="sample")
    solution = picard.solve(picard.Diffusion(denoiser, start(3, 3)), 50, method="ddpm", window=window)
    assert sum(model.rows) == solution.stats.evaluations


def test_evaluations_are_rows_of_the_model_with_gradients_enabled_too() -> None:
    drift = Counted(pendulum_drift)
    solution = picard.solve(picard.ODE(drift, start(3, 2)), times(30), method="euler")
    assert sum(drift.rows) == solution.stats.evaluations
