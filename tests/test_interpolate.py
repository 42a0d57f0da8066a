"""Trajectories between grid points: cubic, of order four, exact at the points."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint as reference

import picard
from picard.errors import InvalidGridError, NotSupportedError
from picard.interpolate import Readout, hermite, interpolate
from tests.problems import diffusion, pendulum, pendulum_drift, sde, start, times

F64 = torch.float64
EITHER_WAY = pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["increasing", "decreasing"])


def rotation(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[..., 1], -x[..., 0]], -1)


def solved(steps: int, ends: tuple[float, float] = (0.0, 2.0)) -> tuple[picard.ODE, picard.Solution]:
    problem = picard.ODE(rotation, torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=F64))
    return problem, picard.solve(problem, times(steps, *ends), method="rk4", tolerance=1e-13, save="all")


@EITHER_WAY
def test_order_four(ends: tuple[float, float]) -> None:
    t, errors = torch.linspace(0, 2, 57, dtype=F64), []
    for steps in (20, 40, 80):
        problem, solution = solved(steps, ends)
        angle = t - ends[0]
        expected = torch.stack([torch.cos(angle), -torch.sin(angle)], -1)
        errors.append(float((solution.interpolate(t, problem)[:, 0] - expected).abs().max()))
    assert errors[0] < 1e-4
    assert all(3.6 < math.log2(one / other) < 4.4 for one, other in pairwise(errors))


@EITHER_WAY
def test_exact_at_grid_points(ends: tuple[float, float]) -> None:
    problem, solution = solved(9, ends)
    assert torch.equal(solution.interpolate(solution.ts, problem), solution.ys)
    assert torch.equal(solution.interpolate(solution.ts[4], problem), solution.ys[4])


def test_shapes_and_conditioning() -> None:
    problem = pendulum(3)
    solution = picard.solve(problem, times(50), method="rk4", save="all", tolerance=1e-12)
    t = torch.tensor([[0.1, 1.9], [0.7, 0.7]], dtype=F64)
    found = solution.interpolate(t, problem)
    assert found.shape == (2, 2, 3, 2)
    for sample in range(3):
        alone = picard.ODE(pendulum_drift, problem.x0[sample, None], cond={"gain": problem.cond["gain"][sample, None]})
        one = picard.solve(alone, times(50), method="rk4", save="all", tolerance=1e-12)
        torch.testing.assert_close(one.interpolate(t, alone)[:, :, 0], found[:, :, sample])


def test_agrees_with_torchdiffeq() -> None:
    t = torch.tensor([0.0, 0.11, 0.73, 1.234, 2.0], dtype=F64)
    grid = torch.cat([torch.arange(0, 20, dtype=F64) * 0.1, torch.tensor([2.0], dtype=F64)])
    expected = reference(rotation, start(1, 2), t, method="midpoint", options={"step_size": 0.1, "interp": "cubic"})
    problem = picard.ODE(rotation, start(1, 2))
    solution = picard.solve(problem, grid, method="midpoint", tolerance=0.0, save="all")
    torch.testing.assert_close(solution.interpolate(t, problem), expected, rtol=1e-12, atol=1e-12)


def test_saved_points_are_enough() -> None:
    problem = pendulum()
    solution = picard.solve(problem, times(60), method="rk4", tolerance=1e-12, save=[0, 20, 40, 60])
    t = torch.tensor([0.3], dtype=F64)
    whole = picard.solve(problem, times(60), method="rk4", tolerance=1e-12, save="all")
    torch.testing.assert_close(solution.interpolate(t, problem), whole.interpolate(t, problem), rtol=0, atol=2e-2)


def test_gradients_pass_through() -> None:
    x0 = start(2, 2).requires_grad_()
    problem = picard.ODE(pendulum_drift, x0)
    t = torch.tensor([0.33, 1.5], dtype=F64)

    def value(x: Tensor) -> Tensor:
        problem = picard.ODE(pendulum_drift, x)
        return picard.sequential(problem, times(20), method="rk4", save="all").interpolate(t, problem).sum()

    solution = picard.solve(problem, times(20), method="rk4", save="all", tolerance=1e-12)
    (grad,) = torch.autograd.grad(solution.interpolate(t, problem).sum(), x0)
    step = torch.zeros_like(x0)
    step[0, 1] = 1e-5
    with torch.no_grad():
        slope = (value(x0 + step) - value(x0 - step)) / 2e-5
    torch.testing.assert_close(grad[0, 1], slope, rtol=1e-6, atol=1e-8)


def test_refusals() -> None:
    problem, solution = solved(5)
    for t in (torch.tensor([-0.1], dtype=F64), torch.tensor([2.1], dtype=F64), torch.tensor([1])):
        with pytest.raises(InvalidGridError, match="within the saved points, 0 to 2"):
            solution.interpolate(t, problem)
    last = picard.solve(problem, times(5), method="rk4")
    with pytest.raises(InvalidGridError, match="save='all'"):
        last.interpolate(torch.tensor([1.0], dtype=F64), problem)
    with pytest.raises(NotSupportedError, match="smooth"):
        interpolate(solution.ts, solution.ys, torch.tensor([1.0], dtype=F64), sde())
    with pytest.raises(NotSupportedError, match="smooth"):
        solution.interpolate(torch.tensor([1.0], dtype=F64), diffusion())


@pytest.mark.parametrize("t", [0.5, [0.5, 1.0]])
def test_times_that_are_no_tensor_are_refused(t: Any, unchecked: None) -> None:
    problem, solution = solved(5)
    with pytest.raises(InvalidGridError, match=r"floating tensor of times .*0\.5"):
        solution.interpolate(t, problem)


def test_hermite_is_exact_for_cubics() -> None:
    def cubic(t: Tensor) -> Tensor:
        return 2 * t**3 - t**2 + 3 * t - 1

    def slope(t: Tensor) -> Tensor:
        return 6 * t**2 - 2 * t + 3

    first, last = torch.tensor(0.7, dtype=F64), torch.tensor(-0.4, dtype=F64)
    share = torch.linspace(0, 1, 7, dtype=F64)
    h = last - first
    found = hermite(share, h, cubic(first), slope(first), cubic(last), slope(last))
    torch.testing.assert_close(found, cubic(first + share * h))


def test_readout_asks_for_the_points_around_only() -> None:
    grid = torch.linspace(0, 1, 11, dtype=F64)
    assert Readout(grid, torch.tensor([0.0, 0.25, 1.0], dtype=F64)).points.tolist() == [0, 2, 3, 10]
    assert Readout(grid.flip(0), torch.tensor([1.0, 0.05, 0.0], dtype=F64)).points.tolist() == [0, 9, 10]
    assert Readout(grid, grid[[3, 7]]).points.tolist() == [3, 7]
