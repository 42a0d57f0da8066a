"""What the ranks of `test_distributed.py` do: `python -m tests.ranks CASE RANK FILE`, two that meet in a file.

The cases of `together` run one after the other in one group: a rank whose model raised must leave it usable.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import picard
from picard.distributed import spread
from tests.problems import F64, SCHEDULES, Case, Counted, diffusion, pendulum, pendulum_drift, sde, start, times

RANKS = 2


def say(line: str) -> None:
    """Write for the parent to read, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def same(case: Case, exactly: bool = True, **options: Any) -> None:
    """Solve on both ranks together and on each alone, and compare."""
    problem, grid, method = case
    options = {"window": 7, "save": "all", **options}
    with torch.no_grad():
        alone = picard.solve(problem, grid, method=method, **options)
        both = picard.solve(spread(problem), grid, method=method, **options)
    assert (both.stats.rounds, both.stats.evaluations) == (alone.stats.rounds, alone.stats.evaluations)
    if exactly:
        assert torch.equal(both.ys, alone.ys)
    else:
        torch.testing.assert_close(both.ys, alone.ys, rtol=1e-10, atol=1e-10)


def network(dims: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(dims, 32), nn.Tanh(), nn.Linear(32, dims)).double()


def an_elementwise_drift_is_equal_bit_for_bit() -> None:
    for batch in (1, 2, 3):  # one row in the first round: a rank without rows
        same((pendulum(batch), times(30), "rk4"))
    same((pendulum(3), times(30), "heun"), max_rows=4)
    same((pendulum(3), times(30), "euler"), certify=True, guess="copy")


def half_precision_is_equal_bit_for_bit() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        same((picard.ODE(lambda t, x: -x, start(3, 2, 5, dtype=dtype)), times(20), "heun"))


def an_sde_is_equal_bit_for_bit() -> None:
    for noise_type in ("diagonal", "scalar", "additive", "general"):
        same((sde(noise_type, 3), times(25), "euler"))
        absorbed: Any = sde(noise_type, 3).absorb(times(25))
        same((absorbed, times(25), "euler"))


def a_diffusion_model_is_equal() -> None:
    cond = {"shift": torch.linspace(-0.2, 0.2, 3, dtype=F64)}
    guidance = picard.Guidance(1.5, {"shift": torch.zeros(3, dtype=F64)})
    for method in ("ddpm", "ddim", "dpmsolver++"):
        problem = diffusion(SCHEDULES["linear"], "sample", 3, cond=cond, guidance=guidance)
        same((problem, 40, method), exactly=False)


def a_network_is_equal_to_rounding() -> None:
    net = network(6)
    same((picard.ODE(lambda t, x: net(x) - x, start(3, 6)), times(50), "rk4"), exactly=False)


def the_sequential_solver_is_spread_too() -> None:
    drift = Counted(pendulum_drift)
    problem = picard.ODE(drift, start(4, 2))
    found = picard.sequential(spread(problem), times(10), method="heun").final
    assert drift.rows == [2] * 20
    assert torch.equal(found, picard.sequential(problem, times(10), method="heun").final)


def steps_are_chosen_alike() -> None:
    net = network(2)
    for problem in (pendulum(3), picard.ODE(lambda t, x: net(x), start(2, 2))):
        shared: Any = spread(problem)
        both, alone = (picard.adaptive(one, times(2), save="all") for one in (shared, problem))
        torch.testing.assert_close(both.ys, alone.ys, rtol=1e-9, atol=1e-12)
        assert both.ys.requires_grad == (problem.drift is not pendulum_drift)


def every_row_is_evaluated_once() -> None:
    drift = Counted(pendulum_drift)
    with torch.no_grad():
        stats = picard.solve(spread(picard.ODE(drift, start(3, 2))), times(30), method="heun", window=5).stats
    every: list[Any] = [None] * RANKS
    dist.all_gather_object(every, sum(drift.rows))
    assert sum(every) == stats.evaluations
    assert abs(every[0] - every[1]) <= stats.rounds


def a_mesh_is_a_group() -> None:
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("rows",))
    problem, options = pendulum(), {"method": "euler", "window": 7}
    found = picard.solve(spread(problem, mesh), times(20), **options)  # type: ignore[arg-type]
    assert torch.equal(found.final, picard.solve(problem, times(20), **options).final)  # type: ignore[arg-type]
    flat = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("one", "rows"))
    with pytest.raises(picard.InvalidProblemError, match="one dimension"):
        spread(problem, flat)
    spread(problem, flat["rows"])


def gradients_are_those_of_one_process() -> None:
    def gradients(wrap: Callable[[Any], Any]) -> list[Tensor]:
        net, x0 = network(4), start(3, 4).requires_grad_()
        pull = torch.ones(3, dtype=F64, requires_grad=True)
        problem = picard.ODE(lambda t, x, pull: net(x) - pull[:, None] * x, x0, cond={"pull": pull})
        solution = picard.solve(wrap(problem), times(30), method="rk4", window=20, tolerance=1e-12)
        return list(torch.autograd.grad(solution.final.square().sum(), [x0, pull, *net.parameters()]))

    for both, alone in zip(gradients(spread), gradients(lambda problem: problem), strict=True):
        torch.testing.assert_close(both, alone, rtol=1e-9, atol=1e-12)
    noisy = [sde(batch=3) for _ in range(2)]
    for problem in noisy:
        problem.x0.requires_grad_()
    for solved in (spread(noisy[0]), noisy[1]):
        picard.solve(solved, times(20), method="euler", tolerance=1e-12).final.sum().backward()
    torch.testing.assert_close(noisy[0].x0.grad, noisy[1].x0.grad, rtol=1e-9, atol=1e-12)


def the_sequential_solver_refuses_gradients() -> None:
    net = network(2)
    with pytest.raises(picard.NotSupportedError, match=r"torch\.no_grad"):
        picard.sequential(spread(picard.ODE(lambda t, x: net(x), start(2, 2))), times(3), method="euler")


def ranks_that_disagree_are_told_in_what() -> None:
    rank = dist.get_rank()
    noise = picard.Noise.from_seed(rank)

    def refused(name: str, problem: Any, method: str = "euler", **options: Any) -> None:
        with pytest.raises(picard.DistributedError, match=f"they differ in {name}[:,]"):
            picard.solve(spread(problem), times(10 + options.pop("more", 0)), method=method, **options)

    refused("x0", picard.ODE(pendulum_drift, start(2, 2, seed=rank)))
    gain = torch.full((2,), 1.0 + rank, dtype=F64)
    refused("cond", picard.ODE(pendulum_drift, start(2, 2), cond={"gain": gain}))
    refused("noise", picard.SDE(lambda t, x: -x, lambda t, x: x, start(2, 2), noise=noise))
    refused("the method on the grid", pendulum(), more=rank)
    refused("the method on the grid", pendulum(), method=("heun", "midpoint")[rank])
    refused("tolerance", pendulum(), tolerance=(1e-3, 1e-4)[rank])
    refused("linearization", pendulum(), linearization=("secant", "frozen")[rank])
    refused("guess", pendulum(), guess=("hold", "copy")[rank])
    refused("window", pendulum(), window=5 + rank)
    refused("certify", pendulum(), certify=rank == 0)


def a_model_that_raises_on_one_rank_ends_all() -> None:
    calls = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        calls.append(0)
        if dist.get_rank() == 1 and len(calls) == 4:
            msg = "broken weights"
            raise KeyError(msg)
        return -x

    problem, expected = picard.ODE(drift, start(2, 2)), (picard.DistributedError, KeyError)[dist.get_rank()]
    with torch.no_grad(), pytest.raises(expected, match="broken weights") as caught:
        picard.solve(spread(problem), times(30), method="euler", window=5)
    assert dist.get_rank() == 1 or "rank 1 of 2: KeyError" in str(caught.value)
    same((pendulum(), times(20), "euler"))  # the group is as good as new


def a_model_that_raises_at_its_first_call_ends_all() -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            msg = "broken weights"
            raise KeyError(msg)
        return -x

    for grad in (True, False):  # with gradients, one row is evaluated before, by every rank for itself
        expected = (picard.DistributedError, KeyError)[dist.get_rank()]
        with torch.set_grad_enabled(grad), pytest.raises(expected, match="broken weights"):
            picard.solve(spread(picard.ODE(drift, start(2, 2))), times(30), method="euler", window=5)
        same((pendulum(), times(20), "euler"))


def measured_windows_are_the_same_on_all_ranks() -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        time.sleep(0.001 * (1 + dist.get_rank() * len(x)))  # cheap in a batch on one rank, costly on the other
        return torch.sin(3 * x)

    problem = picard.ODE(drift, start(2, 2))
    for _ in range(2):
        with torch.no_grad():
            solution = picard.solve(spread(problem), times(40), method="euler", window="auto", max_rows="auto")
        every: list[Any] = [None] * RANKS
        dist.all_gather_object(every, (solution.stats.window, solution.stats.reason, solution.final.tolist()))
        assert every[0] == every[1]
        assert solution.stats.reason


def memory_that_is_short_on_one_rank_splits_the_calls_of_all() -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        if dist.get_rank() == 0 and len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.sin(3 * x)

    problem, whole = (picard.ODE(one, start(2, 2)) for one in (drift, lambda t, x: torch.sin(3 * x)))
    with torch.no_grad():
        found = picard.solve(spread(problem), times(40), method="euler", window=10)
    assert torch.equal(found.final, picard.solve(whole, times(40), method="euler", window=10).final)
    assert found.stats.max_rows in (5, 7)


def a_wrong_shape_on_one_rank_ends_all() -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        return x[:, :1] if dist.get_rank() == 1 else x

    expected = (picard.DistributedError, picard.InvalidProblemError)[dist.get_rank()]
    with torch.no_grad(), pytest.raises(expected, match="must return what it is given"):
        picard.solve(spread(picard.ODE(drift, start(2, 2))), times(30), method="euler", window=5)


TOGETHER = (
    an_elementwise_drift_is_equal_bit_for_bit,
    half_precision_is_equal_bit_for_bit,
    an_sde_is_equal_bit_for_bit,
    a_diffusion_model_is_equal,
    a_network_is_equal_to_rounding,
    the_sequential_solver_is_spread_too,
    steps_are_chosen_alike,
    every_row_is_evaluated_once,
    a_mesh_is_a_group,
    gradients_are_those_of_one_process,
    the_sequential_solver_refuses_gradients,
    ranks_that_disagree_are_told_in_what,
    a_model_that_raises_on_one_rank_ends_all,
    a_model_that_raises_at_its_first_call_ends_all,
    a_wrong_shape_on_one_rank_ends_all,
    measured_windows_are_the_same_on_all_ranks,
    memory_that_is_short_on_one_rank_splits_the_calls_of_all,
)


def together() -> None:
    """Run all cases; a line each."""
    for case in TOGETHER:
        try:
            case()
        except BaseException:  # noqa: BLE001  # pytest's failures are no exceptions
            say(f"FAILED {case.__name__}\n{traceback.format_exc()}")
        else:
            say(f"passed {case.__name__}")


def lost(action: Callable[[], None]) -> None:
    """Do something to rank 1 in the middle of a solve, and say what rank 0 hears of it, and when."""
    calls = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        calls.append(time.monotonic())
        if dist.get_rank() == 1 and len(calls) == 4:
            action()
        return torch.sin(3 * x)

    try:
        with torch.no_grad():
            picard.solve(spread(picard.ODE(drift, start(2, 2))), times(100), method="euler", window=5)
    except picard.DistributedError as error:
        say(f"DistributedError after {time.monotonic() - calls[-1]:.1f} s: {error}")
    os._exit(0)  # the group is beyond orderly ends


CASES: dict[str, Callable[[], None]] = {
    "together": together,
    "killed": lambda: lost(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "stuck": lambda: lost(lambda: time.sleep(60)),
}


def main(case: str, rank: str, file: str) -> None:
    """Join the group and run a case."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=3 if case == "stuck" else 60)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=RANKS, timeout=timeout)
    CASES[case]()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
