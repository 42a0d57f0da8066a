"""The coefficients of every integrator: identities between methods, exact cases, and the errors they raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError, UnknownMethodError
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
    Tableau,
    methods,
)
from picard.plan import Integrator, Plan
from picard.registry import resolve
from picard.schedule import Schedule
from tests.reference import run_plan

SCHEDULES: dict[str, Schedule] = {
    "linear": Schedule.linear(),
    "scaled_linear": Schedule.scaled_linear(spacing="trailing"),
    "cosine": Schedule.cosine(),
    "karras_spaced": Schedule.scaled_linear(spacing="karras"),
    "ends_at_first": replace(Schedule.linear(), final="first"),  # its last two levels coincide
    "karras": Schedule.karras(),
    "flow": Schedule.flow(shift=3.0),  # starts at pure noise, alpha = 0
}
RUNGE_KUTTA: list[RungeKutta] = [Euler(), Midpoint(), Heun(), Heun3(), RK4()]
ODE_METHODS: list[Integrator] = [
    Euler(),
    Heun(),
    DDIM(),
    *[
        DPMSolver(order, algorithm, variant, kind)
        for order in (1, 2, 3)
        for algorithm in ("dpmsolver", "dpmsolver++")
        for variant in ("multistep", "singlestep")
        for kind in ("midpoint", "heun")
    ],
]
SDE_METHODS: list[Integrator] = [
    DDIM(eta=0.5),
    DDIM(eta=1.0),
    DDPM(),
    DDPM("fixed_large"),
    *[DPMSolver(order, "sde-dpmsolver++", variant) for order in (1, 2, 3) for variant in ("multistep", "singlestep")],
]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
STEPS = [1, 2, 10, 50]
every_steps = pytest.mark.parametrize("steps", STEPS)


def assert_same_plan(plan: Plan, other: Plan) -> None:
    for name in ("times", "a", "b", "step", "c", "factor", "yardstick", "scales"):
        assert torch.allclose(getattr(plan, name), getattr(other, name), rtol=1e-9, atol=1e-12), name


# Points and shapes


@every_schedule
@pytest.mark.parametrize("method", [*ODE_METHODS, *SDE_METHODS], ids=repr)
def test_diffusion_plans_are_complete(method: Integrator, schedule: Schedule) -> None:
    for steps in STEPS:
        levels = schedule.levels(steps)
        plan = method.plan(levels)
        nodes = 2 * steps - 1 if isinstance(method, Heun) else steps
        assert (plan.nodes, plan.steps) == (nodes, steps)
        assert plan.yardstick is not None
        assert plan.scales is not None
        assert bool(torch.isfinite(torch.cat([plan.a, plan.b, plan.c[:, None], plan.scales], 1)).all())
        assert bool((plan.yardstick > 0).all())
        start = plan.grid_nodes[:-1]
        assert torch.equal(plan.times[start], levels.timesteps)
        assert torch.equal(plan.scales[start], torch.stack([levels.alpha, levels.sigma], 1)[:-1])
        noisy = method in SDE_METHODS and bool((levels.posterior_std() > 0).any())
        assert bool((plan.c > 0).any()) == noisy


@pytest.mark.parametrize("method", [*ODE_METHODS, *SDE_METHODS], ids=repr)
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [(Schedule.linear(), torch.tensor([999, 700, 300, 299, 5])), (Schedule.karras(), torch.tensor([80.0, 5.0, 0.1]))],
    ids=["timesteps", "sigmas"],
)
def test_explicit_timesteps(method: Integrator, schedule: Schedule, grid: Tensor) -> None:
    plan = method.plan(schedule.levels(grid))
    assert torch.equal(plan.times[plan.grid_nodes[:-1]], grid.double())


@pytest.mark.parametrize("method", RUNGE_KUTTA, ids=repr)
@pytest.mark.parametrize("values", [[0.0, 0.3, 0.9, 1.0], [1.0, 0.7, 0.1, 0.0]], ids=["forward", "backward"])
def test_runge_kutta_plans_are_complete(method: RungeKutta, values: list[float]) -> None:
    points = Times(torch.tensor(values, dtype=torch.float64))
    plan = method.plan(points)
    stages = method.tableau.stages
    h = points.values.diff().repeat_interleave(stages)
    assert (plan.nodes, plan.steps, plan.order) == (3 * stages, 3, stages)
    assert torch.equal(plan.times[plan.grid_nodes[:-1]], points.values[:-1])
    assert torch.equal(plan.factor, torch.stack([torch.ones_like(h), h], 1))
    assert plan.yardstick is None
    assert not bool(plan.c.any())
    for step, times in enumerate(plan.times.reshape(3, stages)):  # no stage leaves its step, not even by rounding
        low, high = sorted(values[step : step + 2])
        assert bool(((times >= low) & (times <= high)).all())


# Identities


@every_schedule
@every_steps
def test_euler_is_ddim(schedule: Schedule, steps: int) -> None:
    levels = schedule.levels(steps)
    assert_same_plan(Euler().plan(levels), DDIM(eta=0.0).plan(levels))


@every_schedule
@every_steps
def test_heun_predicts_with_euler_and_ends_with_it(schedule: Schedule, steps: int) -> None:
    levels = schedule.levels(steps)
    heun, euler = Heun().plan(levels), Euler().plan(levels)
    assert torch.equal(heun.factor, euler.factor[heun.step])  # both nodes belong to the whole step
    predictors = heun.grid_nodes[:-1]
    assert torch.equal(heun.a[predictors], torch.cat([euler.a, 0 * euler.a], 1))
    assert torch.equal(heun.b[predictors], torch.cat([euler.b, 0 * euler.b], 1))


@pytest.mark.parametrize("schedule", [Schedule.karras(), Schedule.linear()], ids=["karras", "linear"])
def test_euler_is_the_ode_step_in_scaled_coordinates(schedule: Schedule) -> None:
    levels = schedule.levels(10)
    x, data = torch.tensor(1.3, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    y, s = x / levels.alpha, levels.sigma / levels.alpha
    slope = (y[:-1] - data) / s[:-1]
    expected = levels.alpha[1:] * (y[:-1] + s.diff() * slope)
    plan = Euler().plan(levels)
    assert torch.allclose(plan.a[:, 0] * x + plan.b[:, 0] * data, expected, rtol=1e-12)


def test_euler_on_flow_matching_follows_the_velocity() -> None:
    levels = Schedule.flow(shift=3.0).levels(10)
    x, data = torch.tensor(1.3, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    velocity = (x - data) / levels.sigma[:-1]
    plan = Euler().plan(levels)
    assert torch.allclose(plan.a[:, 0] * x + plan.b[:, 0] * data, x + levels.sigma.diff() * velocity, rtol=1e-12)


@every_schedule
@every_steps
def test_full_noise_ddim_is_ddpm_is_first_order_sde_solver(schedule: Schedule, steps: int) -> None:
    levels = schedule.levels(steps)
    plan = DDPM().plan(levels)
    assert torch.allclose(plan.c, levels.posterior_std(), rtol=1e-9, atol=1e-12)
    assert_same_plan(plan, DDIM(eta=1.0).plan(levels))
    assert_same_plan(plan, DPMSolver(1, "sde-dpmsolver++").plan(levels))
    assert_same_plan(plan, DPMSolver(1, "sde-dpmsolver++", "singlestep").plan(levels))


@every_schedule
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("variant", ["multistep", "singlestep"])
def test_first_order_dpm_solver_is_ddim(schedule: Schedule, algorithm: Any, variant: Any) -> None:
    levels = schedule.levels(10)
    assert_same_plan(DPMSolver(1, algorithm, variant).plan(levels), DDIM().plan(levels))


def test_ddpm_is_the_posterior_of_the_paper() -> None:
    levels = Schedule.linear().levels(10)
    bar, bar_next = levels.alpha[:-1] ** 2, levels.alpha[1:] ** 2
    beta = 1 - bar / bar_next
    plan = DDPM("fixed_large").plan(levels)
    assert torch.allclose(plan.a[:, 0], (1 - beta).sqrt() * (1 - bar_next) / (1 - bar))
    assert torch.allclose(plan.b[:, 0], bar_next.sqrt() * beta / (1 - bar))
    assert torch.allclose(plan.c[:-1], beta[:-1].sqrt())
    assert plan.c[-1] == 0


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("variant", ["multistep", "singlestep"])
def test_higher_orders_add_differences_to_the_first_order_step(
    schedule: Schedule, order: int, algorithm: Any, variant: Any
) -> None:
    plan = DPMSolver(order, algorithm, variant).plan(schedule.levels(20))
    assert torch.allclose(torch.stack([plan.a.sum(1), plan.b.sum(1)], 1), plan.factor, rtol=1e-9, atol=1e-9)


# Exact cases


@every_schedule
@pytest.mark.parametrize("method", ODE_METHODS, ids=repr)
def test_constant_data_prediction_is_solved_exactly(method: Integrator, schedule: Schedule) -> None:
    data = torch.tensor([0.2, 0.5], dtype=torch.float64)
    for steps in STEPS:
        levels = schedule.levels(steps)
        x = torch.tensor([1.3, -0.4], dtype=torch.float64) * levels.sigma[0]
        noise = (x - levels.alpha[0] * data) / levels.sigma[0]  # constant along the exact solution
        result = run_plan(method.plan(levels), lambda m, z: data, x)
        assert torch.allclose(result, levels.alpha[-1] * data + levels.sigma[-1] * noise, rtol=1e-8, atol=1e-8)


def law(method: Integrator, levels: Levels, data: Callable[[int, Tensor], Tensor], start: float) -> tuple[float, float]:
    """Return the mean and standard deviation of the end of a sampler that is affine in its state.

    The sampler starts from N(start, sigma^2). Unit vectors for the start and the noise of every step give the whole
    law; the last column, which is zero, gives the mean.
    """
    unit = torch.eye(levels.steps + 1, levels.steps + 2, dtype=torch.float64)
    ends = run_plan(method.plan(levels), data, start + levels.sigma[0] * unit[0], unit[1:])
    return float(ends[-1]), float((ends[:-1] - ends[-1]).norm())


def first_steps(levels: Levels, steps: int) -> Levels:
    """Stop before clean data, where every law is a point."""
    return replace(
        levels,
        timesteps=levels.timesteps[:steps],
        alpha=levels.alpha[: steps + 1],
        sigma=levels.sigma[: steps + 1],
    )


@every_schedule
@pytest.mark.parametrize("method", [m for m in SDE_METHODS if m != DDPM("fixed_large")], ids=repr)
def test_stochastic_samplers_keep_the_law_of_data_at_a_point(method: Integrator, schedule: Schedule) -> None:
    levels = first_steps(schedule.levels(20), 12)
    alpha, sigma = levels.alpha.tolist(), levels.sigma.tolist()
    point = torch.full((14,), 0.4, dtype=torch.float64)
    assert law(method, levels, lambda m, z: point, 0.4 * alpha[0]) == pytest.approx(
        (0.4 * alpha[-1], sigma[-1]), rel=1e-9
    )


def test_large_variance_keeps_the_law_of_standard_normal_data() -> None:
    levels = first_steps(Schedule.linear().levels(20), 12)
    plan = DDPM("fixed_large").plan(levels)
    variance = torch.ones(())
    for m in range(plan.nodes):  # the data prediction is alpha x
        variance = (plan.a[m, 0] + plan.b[m, 0] * levels.alpha[m]) ** 2 * variance + plan.c[m] ** 2
        assert float(variance) == pytest.approx(1.0, rel=1e-9)


def test_a_repeated_last_level_changes_nothing() -> None:
    levels = SCHEDULES["ends_at_first"].levels(10)
    assert levels.alpha[-1] == levels.alpha[-2]
    for method in [*ODE_METHODS, *SDE_METHODS]:
        plan = method.plan(levels)
        assert plan.c[-1] == 0
        assert torch.allclose(plan.factor[-1], torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-12) or (
            isinstance(method, DPMSolver) and method.variant == "singlestep"  # there it belongs to a longer block
        )


# Noise of plans over times


@pytest.mark.parametrize("method", RUNGE_KUTTA, ids=repr)
@pytest.mark.parametrize("values", [[0.0, 0.3, 0.9, 1.0], [1.0, 0.7, 0.1, 0.0]], ids=["forward", "backward"])
def test_additive_noise_enters_as_a_brownian_increment(method: Integrator, values: list[float]) -> None:
    points = Times(torch.tensor(values, dtype=torch.float64), noise="additive")
    plan = method.plan(points)
    xi = torch.randn(3, dtype=torch.float64)
    result = run_plan(plan, lambda m, x: plan.kick[m] * xi[plan.step[m]], torch.zeros((), dtype=torch.float64))
    assert torch.allclose(result, (points.values.diff().abs().sqrt() * xi).sum())


@pytest.mark.parametrize("method", RUNGE_KUTTA, ids=repr)
def test_only_euler_takes_multiplicative_noise(method: RungeKutta) -> None:
    points = Times(torch.linspace(0, 1, 4, dtype=torch.float64), noise="multiplicative")
    if isinstance(method, Euler):
        assert method.plan(points).nodes == 3
    else:
        with pytest.raises(NotSupportedError, match=r"only euler converges to the Ito solution.*method='euler'"):
            method.plan(points)


@pytest.mark.parametrize(
    ("method", "name"), [(Euler(), "euler"), (Midpoint(), "midpoint"), (Heun(), "heun2"), (Heun3(), "heun3")]
)
@pytest.mark.parametrize("values", [[0.0, 0.3, 0.9, 1.0], [1.0, 0.7, 0.1, 0.0]], ids=["forward", "backward"])
def test_runge_kutta_agrees_with_torchdiffeq(method: Integrator, name: str, values: list[float]) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    points = Times(torch.tensor(values, dtype=torch.float64))
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    plan = method.plan(points)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(3 * y) + t * y.flip(0)

    result = run_plan(plan, lambda m, y: drift(plan.times[m], y), x)
    assert torch.allclose(result, torchdiffeq.odeint(drift, x, points.values, method=name)[-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "module", "table"),
    [
        (Dopri5(), "dopri5", "_DORMAND_PRINCE_SHAMPINE_TABLEAU"),
        (Dopri8(), "dopri8", "_DOPRI8_TABLEAU"),
        (Bosh3(), "bosh3", "_BOGACKI_SHAMPINE_TABLEAU"),
        (Fehlberg2(), "fehlberg2", "_FEHLBERG2_TABLEAU"),
        (Heun(), "adaptive_heun", "_ADAPTIVE_HEUN_TABLEAU"),
    ],
    ids=repr,
)
def test_pairs_have_the_coefficients_of_torchdiffeq(method: RungeKutta, module: str, table: str) -> None:
    torchdiffeq, tableau = pytest.importorskip("torchdiffeq"), method.tableau
    theirs = getattr(getattr(torchdiffeq._impl, module), table)
    stages = tableau.stages
    ends = theirs.beta if len(theirs.beta) == stages else [*theirs.beta, theirs.c_sol]  # the last stage may be the step
    for mine, own in zip((*tableau.A[1:], tableau.b), ends, strict=True):
        assert torch.equal(torch.tensor(mine, dtype=torch.float64), own)
    for mine, own in ((tableau.c[1:], theirs.alpha), (tableau.b, theirs.c_sol)):
        shared = min(len(mine), len(own))
        assert torch.equal(torch.tensor(mine[:shared], dtype=torch.float64), own[:shared])
        assert bool((own[shared:] == (1 if own is theirs.alpha else 0)).all())
    assert tableau.error is not None
    sign = -1 if module == "adaptive_heun" else 1
    padded = [*tableau.error, *[0.0] * (len(theirs.c_error) - len(tableau.error))]
    assert torch.equal(sign * torch.tensor(padded, dtype=torch.float64), theirs.c_error)


# Names and errors


def test_names() -> None:
    expected = {
        "euler": Euler(),
        "midpoint": Midpoint(),
        "heun": Heun(),
        "heun2": Heun(),
        "heun3": Heun3(),
        "rk4": RK4(),
        "ddim": DDIM(),
        "ddpm": DDPM(),
        "dpmsolver": DPMSolver(2, "dpmsolver"),
        "dpmsolver++": DPMSolver(2, "dpmsolver++"),
        "sde-dpmsolver++": DPMSolver(2, "sde-dpmsolver++"),
    }
    assert set(expected) <= set(methods())
    assert {name: resolve(name) for name in expected} == expected
    with pytest.raises(UnknownMethodError, match="did you mean 'dpmsolver\\+\\+'"):
        resolve("dpmsolver+")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(eta=-0.1), "eta must be finite and not negative; given -0.1"),
        (lambda: DDIM(eta=float("nan")), "eta must be finite"),
        (lambda: DDIM(eta=2.0).plan(Schedule.linear().levels(10)), "must not exceed .*eta=2: write eta=1.0"),
        (lambda: DDPM("fixed_smal"), "unknown variance 'fixed_smal': did you mean 'fixed_small'"),  # type: ignore[arg-type]
        (lambda: DPMSolver(4), "order must be 1, 2 or 3; given 4"),
        (lambda: DPMSolver(algorithm="dpmsolver+"), "unknown algorithm 'dpmsolver\\+': did you mean"),  # type: ignore[arg-type]
        (lambda: DPMSolver(variant="multi"), "unknown variant 'multi': did you mean 'multistep'"),  # type: ignore[arg-type]
        (lambda: DPMSolver(solver_type="huen"), "unknown solver_type 'huen': did you mean 'heun'"),  # type: ignore[arg-type]
        (lambda: Tableau(A=((), (0.5,)), b=(1.0,), c=(0.0,)), "one row of A, one b and one c a stage"),
        (lambda: Tableau(A=((), (0.5, 0.5)), b=(0.5, 0.5), c=(0.0, 1.0)), "the row of stage j .from 0. j entries"),
        (lambda: Tableau(A=((), (0.4,)), b=(0.0, 1.0), c=(0.0, 0.5)), "must sum to its c"),
        (lambda: Tableau(A=((), (0.5,)), b=(0.5, 1.0), c=(0.0, 0.5)), "and b to 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_invalid_options(make: Any, message: str) -> None:
    with pytest.raises(InvalidProblemError, match=message):
        make()


@pytest.mark.parametrize("method", [Midpoint(), Heun3(), RK4(), RungeKutta(Tableau(((),), (1.0,), (0.0,)))], ids=repr)
def test_runge_kutta_without_a_diffusion_form(method: RungeKutta) -> None:
    with pytest.raises(NotSupportedError, match=f"{type(method).__name__} has no form for .*method='heun'"):
        method.plan(Schedule.linear().levels(10))


@pytest.mark.parametrize("method", [DDIM(), DDPM(), DPMSolver()], ids=repr)
def test_diffusion_methods_need_levels(method: Integrator) -> None:
    with pytest.raises(NotSupportedError, match=r"steps over the noise levels of a diffusion model.*method='euler'"):
        method.plan(Times(torch.linspace(0, 1, 4, dtype=torch.float64)))


def test_a_new_method_is_a_tableau() -> None:
    ralston = RungeKutta(Tableau(A=((), (2 / 3,)), b=(1 / 4, 3 / 4), c=(0.0, 2 / 3)))
    plan = ralston.plan(Times(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)))
    result = run_plan(plan, lambda m, y: plan.times[m], torch.zeros((), dtype=torch.float64))
    assert result == pytest.approx(0.5)
