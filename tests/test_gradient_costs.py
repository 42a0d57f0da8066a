"""The backward pass keeps the states of the grid points and one window of everything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import picard
from picard.integrators import DPMSolver
from picard.prepare import prepare
from picard.recall import recallable
from picard.sequential import sequential
from tests.meters import Memory
from tests.problems import F64, diffusion, pendulum, sde, times
from tests.test_gradient import Net, agree, normal


def peak(solve: Any, method: str, steps: int, dims: int = 16, hidden: int = 32, batch: int = 16) -> tuple[int, int]:
    """Return the most bytes during a forward and a backward pass, and the bytes in between."""
    net, x0 = Net(dims, hidden), normal(batch, dims).requires_grad_()
    problem, grid = picard.ODE(net, x0), torch.linspace(0, 2, steps + 1, dtype=F64)
    with Memory() as meter:
        final = solve(problem, grid, method=method).final
        kept = meter.live
        final.square().sum().backward()
    assert x0.grad is not None
    return meter.peak, kept


@pytest.mark.usefixtures("unchecked")
def test_memory_is_a_third_of_automatic_differentiation_through_the_loop() -> None:
    """The tanh net of the hard problems, 1,000 steps of their method, the default window."""
    ours, kept = peak(picard.solve, "rk4", 1000)
    few, many = (peak(sequential, "rk4", steps)[0] for steps in (50, 100))
    theirs = few + (1000 - 50) / 50 * (many - few)  # it keeps as much for every step
    assert ours <= theirs / 3
    states = 1001 * 16 * 16 * 8
    assert kept < 1.3 * states, "states at grid points only: stages are recomputed"


@pytest.mark.usefixtures("unchecked")
def test_memory_grows_by_the_states_alone() -> None:
    few, many = (peak(picard.solve, "rk4", steps)[0] for steps in (200, 600))
    assert many - few < 1.7 * 400 * 16 * 16 * 8, "a state a step, and some numbers a node for both plans"


@pytest.mark.parametrize("method", ["midpoint", "heun3", "rk4"])
def test_samples_far_apart_and_small_windows(method: str) -> None:
    """One sample is at rest and through long before the other; segments of three steps come and go."""
    net, gain = Net(), torch.tensor([[0.0], [6.0]], dtype=F64).requires_grad_()
    x0 = torch.stack([torch.zeros(4, dtype=F64), 3 * normal(4)]).requires_grad_()
    agree(lambda: picard.ODE(net, x0, cond={"c": gain}), times(20), method, [x0, gain, *net.parameters()], window=3)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_gradients_of_additive_noise(method: str) -> None:
    x0, weight = normal(3, 4).requires_grad_(), normal(4, 4).requires_grad_()
    scale = normal(4).requires_grad_()

    def problem() -> picard.SDE:
        return picard.SDE(
            lambda t, x: torch.tanh(x @ weight),
            lambda t, x: torch.diag_embed(scale.expand_as(x)) * (1 + t[:, None, None]),
            x0,
            noise=picard.Noise.from_seed(0),
            noise_type="additive",
        )

    agree(problem, times(20), method, [x0, weight, scale], window=5)


@pytest.mark.parametrize("method", ["heun", "ddim", DPMSolver(order=3, variant="singlestep")], ids=str)
def test_gradients_of_samplers_with_and_without_stages(method: Any) -> None:
    weight, x = normal(4, 4).requires_grad_(), normal(3, 4).requires_grad_()
    denoiser = picard.Denoiser(lambda x, t: torch.tanh(x @ weight) * 0.3 + 0.1 * x, picard.Schedule.linear())
    agree(lambda: picard.Diffusion(denoiser, x), 20, method, [x, weight])


def test_which_states_can_be_recalled() -> None:
    cases: list[tuple[Any, Any, Any, bool]] = [
        (pendulum(), times(9), "euler", True),
        (pendulum(), times(9), "rk4", True),
        (sde("additive"), times(9), "heun", True),
        (diffusion(), 9, "ddpm", True),
        (diffusion(), 9, DPMSolver(order=3), True),  # one node a step: there is nothing inside
        (diffusion(), 9, "heun", True),
    ]
    for problem, grid, method, expected in cases:
        assert recallable(prepare(problem, grid, method).plan) is expected, method
