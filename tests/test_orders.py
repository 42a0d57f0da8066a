"""The error of every method falls with its order: the slope of log error over log steps, fitted by least squares."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from picard.grid import Levels, Times
from picard.integrators import (
    DDIM,
    DDPM,
    RK4,
    Bosh3,
    Dopri5,
    Dopri8,
    DPMSolver,
    Euler,
    Fehlberg2,
    Heun,
    Heun3,
    Midpoint,
    RungeKutta,
    ThreeEighths,
)
from picard.plan import Integrator
from tests.reference import run_plan

MEAN, VARIANCE = 0.7, 0.3  # of the Gaussian data


def fitted_order(error: Callable[[int], float], steps: list[int]) -> float:
    """Fit the order to the errors at several numbers of steps."""
    errors = [error(n) for n in steps]
    assert min(errors) > 1e-13, "rounding hides the order"
    slope, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    return float(-slope)


ORDERS: list[tuple[RungeKutta, int]] = [(Euler(), 1), (Midpoint(), 2), (Heun(), 2), (Heun3(), 3), (RK4(), 4)]
ORDERS += [(ThreeEighths(), 4), (Fehlberg2(), 2), (Bosh3(), 3), (Dopri5(), 5), (Dopri8(), 8)]


@pytest.mark.parametrize(("method", "order"), ORDERS, ids=repr)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.5), (1.5, 0.0)], ids=["forward", "backward"])
def test_runge_kutta(method: Integrator, order: int, start: float, end: float) -> None:
    if order > 4:  # or rounding hides the error
        start, end = 2 * start, 2 * end

    def error(steps: int) -> float:
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        plan = method.plan(Times(start + (end - start) * (u + 0.1 * u * (1 - u))))  # uneven steps
        x = torch.ones(1, dtype=torch.float64)
        result = run_plan(plan, lambda m, y: torch.cos(plan.times[m]) * y, x)  # y = exp(sin t) y0
        return abs(float(result) - math.exp(math.sin(end) - math.sin(start)))

    assert fitted_order(error, [6, 8, 10, 12] if order > 5 else [16, 32, 64, 128]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("method", [method for method, _ in ORDERS if method.tableau.error is not None], ids=repr)
def test_the_estimated_error_falls_with_its_order(method: RungeKutta) -> None:
    tableau = method.tableau
    assert tableau.error is not None
    assert tableau.order is not None

    def estimate(steps: int) -> float:
        """Estimate the error of one step of so small a size, of y' = 3 cos(3 t) y from t = 0.1."""
        h, y, fields = 1 / steps, 1.0, list[float]()
        for row, c in zip((*tableau.A, tableau.b), (*tableau.c, 1.0), strict=True):
            state = y + h * math.fsum(w * f for w, f in zip(row, fields, strict=True))
            fields.append(3 * math.cos(0.3 + 3 * c * h) * state)
        return abs(h * math.fsum(w * f for w, f in zip(tableau.error or (), fields, strict=False)))

    steps = [8, 10, 12] if tableau.order > 5 else [32, 64, 128]
    assert fitted_order(estimate, steps) == pytest.approx(tableau.order, abs=0.5)


def vp_levels(steps: int) -> Levels:
    """List variance-preserving levels, even in lambda, that end before clean data."""
    lam = torch.linspace(-2, 2, steps + 1, dtype=torch.float64)
    return Levels(-lam[:-1], torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt())


def karras_levels(steps: int) -> Levels:
    sigma = torch.linspace(5 ** (1 / 7), 0.1 ** (1 / 7), steps + 1, dtype=torch.float64) ** 7
    return Levels(sigma[:-1], torch.ones_like(sigma), sigma)


def flow_levels(steps: int) -> Levels:
    sigma = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64)
    return Levels(sigma[:-1], 1 - sigma, sigma, straight=True)


def spread(levels: Levels) -> Tensor:
    """Standard deviation of the noisy data at every level."""
    return (levels.alpha**2 * VARIANCE + levels.sigma**2).sqrt()


def sample(method: Integrator, levels: Levels, x: Tensor, xi: Tensor | None = None) -> Tensor:
    """Sample Gaussian data, whose denoiser is linear in the state."""
    plan = method.plan(levels)
    scales = plan.scales
    assert scales is not None

    def data(m: int, z: Tensor) -> Tensor:
        alpha, sigma = scales[m]
        clean: Tensor = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (z - alpha * MEAN)
        return clean

    return run_plan(plan, data, x, xi)


def ode_error(method: Integrator, levels: Levels) -> float:
    """Compare with the probability-flow ODE, along which the standardised state is constant."""
    x = torch.full((1,), 1.3, dtype=torch.float64)
    s = spread(levels)
    exact = levels.alpha[-1] * MEAN + (x - levels.alpha[0] * MEAN) * s[-1] / s[0]
    return abs(float(sample(method, levels, x) - exact))


ODE_METHODS: list[tuple[Integrator, int]] = [
    (DDIM(), 1),
    (Euler(), 1),
    (Heun(), 2),
    *[
        (DPMSolver(order, algorithm, solver_type=kind, lower_order_final=False), min(order, 2))
        # Multistep order 3 reaches order 2: see the docstring of DPMSolver, and the last test here.
        for order in (1, 2, 3)
        for algorithm in ("dpmsolver", "dpmsolver++")
        for kind in ("midpoint", "heun")
    ],
    *[
        (DPMSolver(order, algorithm, "singlestep", kind, lower_order_final=False), order)
        for order in (2, 3)
        for algorithm in ("dpmsolver", "dpmsolver++")
        for kind in ("midpoint", "heun")
    ],
]


@pytest.mark.parametrize(("method", "order"), ODE_METHODS, ids=repr)
def test_probability_flow(method: Integrator, order: int) -> None:
    steps = [48, 96, 192]  # whole blocks of 2 and 3
    assert fitted_order(lambda n: ode_error(method, vp_levels(n)), steps) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("levels", [karras_levels, flow_levels])
@pytest.mark.parametrize(("method", "order"), [(DDIM(), 1), (Euler(), 1), (Heun(), 2), (DPMSolver(2), 2)], ids=repr)
def test_other_coordinates(method: Integrator, order: int, levels: Callable[[int], Levels]) -> None:
    assert fitted_order(lambda n: ode_error(method, levels(n)), [48, 96, 192]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    ("method", "order"),
    [
        (DDIM(eta=1.0), 1),
        (DDPM(), 1),
        (DDPM("fixed_large"), 1),
        (DPMSolver(1, "sde-dpmsolver++"), 1),
        (DPMSolver(2, "sde-dpmsolver++", lower_order_final=False), 2),
        (DPMSolver(2, "sde-dpmsolver++", solver_type="heun", lower_order_final=False), 2),
    ],
    ids=repr,
)
def test_variance_of_stochastic_samplers(method: Integrator, order: int) -> None:
    def error(steps: int) -> float:
        # The sampler is affine in its start and noise: unit vectors give its exact law, and the last column its mean.
        levels = vp_levels(steps)
        unit = torch.eye(steps + 1, steps + 2, dtype=torch.float64)
        start = levels.alpha[0] * MEAN + unit[0] * spread(levels)[0]
        ends = sample(method, levels, start, unit[1:])
        return abs(float((ends[:-1] - ends[-1]).square().sum() - spread(levels)[-1] ** 2))

    assert fitted_order(error, [48, 96, 192]) == pytest.approx(order, abs=0.25)


def test_third_order_multistep_is_better_than_second() -> None:
    second, third = (ode_error(DPMSolver(k, lower_order_final=False), vp_levels(40)) for k in (2, 3))
    assert third < second / 2
