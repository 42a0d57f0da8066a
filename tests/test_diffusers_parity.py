"""Every diffusion integrator reproduces the Diffusers scheduler of the same name, run through its own `step`."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard.grid import Levels
from picard.integrators import DDIM, DDPM, DPMSolver, Euler, Heun
from picard.plan import Integrator
from picard.schedule import Schedule, TrainedSchedule
from tests.reference import run_plan

diffusers = pytest.importorskip("diffusers")
# dpmsolver is deprecated there in favour of dpmsolver++; we offer both. The others are diffusers' own business.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SCHEDULES: dict[str, TrainedSchedule] = {
    "linear": Schedule.linear(),
    "scaled_linear": Schedule.scaled_linear(),
    "squaredcos_cap_v2": Schedule.cosine(),
}
BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}
STEPS = [10, 14, 15, 20, 50]
SHAPE = (2, 6)


class _Double:
    """A module whose `float32` is its `float64`."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a scheduler that computes in float64, and draws its noise from a given list.

    The schedulers keep sigmas and alphas in float32, and some cast the sample to it. That rounding (1e-7) would hide
    errors in the coefficients, so their modules see a torch and a numpy whose float32 means float64. The formulas stay.
    """

    def make(name: str, schedule: str | None = None, noise: Tensor | None = None, **config: Any) -> Any:
        scheduler_class = getattr(diffusers, name)
        module = sys.modules[scheduler_class.__module__]
        for library in ("torch", "np"):
            if hasattr(module, library):
                monkeypatch.setattr(module, library, _Double(getattr(module, library)))
        if noise is not None:
            draws = iter(noise)
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
        if schedule is not None:
            start, end = BETAS[schedule]
            config |= {"beta_schedule": schedule, "beta_start": start, "beta_end": end}
        return scheduler_class(**config)

    return make


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """Evaluate a smooth nonlinear function of the state and the time."""
    weights = torch.randn(SHAPE[1], SHAPE[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.tanh(x @ weights / 2 + math.sin(float(t) / 200))


def draw(steps: int) -> tuple[Tensor, Tensor]:
    """Draw a start and the noise of every step."""
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.randn(steps, *SHAPE, generator=generator, dtype=torch.float64)


def ours(integrator: Integrator, levels: Levels, x: Tensor, xi: Tensor | None = None, *, flow: bool = False) -> Tensor:
    """Run a plan with the network as a prediction of the noise, or of the velocity of flow matching."""
    plan = integrator.plan(levels)
    scales = plan.scales
    assert scales is not None

    def data(m: int, z: Tensor) -> Tensor:
        alpha, sigma = scales[m]
        clean: Tensor = (z - sigma * network(z, plan.times[m])) / (1 if flow else alpha)
        return clean

    return run_plan(plan, data, x, xi)


def theirs(scheduler: Any, x: Tensor, **options: Any) -> Tensor:
    """Run a scheduler's own loop."""
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x, return_dict=False, **options)[0]
    return x


def assert_same(mine: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    assert mine.dtype == other.dtype == torch.float64
    assert bool(torch.isfinite(mine).all())
    difference = float((mine - other).abs().max() / other.abs().max())
    assert difference < tolerance, difference


def levels_of(scheduler: Any, schedule: str) -> Levels:
    """List the levels of our schedule at a scheduler's own timesteps, or of its Karras spacing."""
    times = scheduler.timesteps
    if scheduler.order == 2:  # Heun lists every time but the first twice, once for each end of a step
        times = torch.cat([times[:1], times[1::2]])
    clean = scheduler.config.get("final_sigmas_type", "zero") == "zero" and scheduler.config.get(
        "set_alpha_to_one", True
    )
    trained = replace(SCHEDULES[schedule], final="data" if clean else "first")
    if not scheduler.config.get("use_karras_sigmas"):
        return trained.levels(times)
    levels = replace(trained, spacing="karras").levels(len(times))
    assert float((levels.timesteps - times).abs().max()) <= 1  # Diffusers rounds, truncates or keeps them
    return replace(levels, timesteps=times.double())


every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_steps = pytest.mark.parametrize("steps", STEPS)


@every_schedule
@every_steps
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"set_alpha_to_one": False, "steps_offset": 1}])
def test_ddim(build: Any, schedule: str, steps: int, eta: float, options: dict[str, Any]) -> None:
    x, xi = draw(steps)
    scheduler = build("DDIMScheduler", schedule, noise=xi, clip_sample=False, **options)
    scheduler.set_timesteps(steps)
    assert_same(ours(DDIM(eta), levels_of(scheduler, schedule), x, xi), theirs(scheduler, x, eta=eta))


def test_ddim_takes_the_noise_that_remains_beside_clipped_data(build: Any) -> None:
    x, xi = draw(20)
    scheduler = build("DDIMScheduler", "linear", noise=xi, clip_sample=True, clip_sample_range=0.8)
    scheduler.set_timesteps(20)
    denoiser = picard.Denoiser(lambda x, t: network(x, t[0]), SCHEDULES["linear"], clip=0.8)
    mine = picard.sequential(picard.Diffusion(denoiser, x), 20, method="ddim").final
    assert_same(mine, theirs(scheduler, x, use_clipped_model_output=True))


@every_schedule
@every_steps
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_ddpm(build: Any, schedule: str, steps: int, variance: Any, spacing: str) -> None:
    x, xi = draw(steps)
    scheduler = build(
        "DDPMScheduler", schedule, noise=xi, clip_sample=False, variance_type=variance, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    assert_same(ours(DDPM(variance), levels_of(scheduler, schedule), x, xi), theirs(scheduler, x))


@every_schedule
@every_steps
@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "heun")])
@pytest.mark.parametrize("karras", [False, True], ids=["plain", "karras"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
def test_dpm_multistep(
    build: Any, schedule: str, steps: int, order: int, solver_type: Any, karras: bool, algorithm: Any
) -> None:
    x, xi = draw(steps)
    final = "sigma_min" if algorithm == "dpmsolver" else "zero"  # Diffusers refuses dpmsolver with zero
    scheduler = build(
        "DPMSolverMultistepScheduler",
        schedule,
        noise=xi,
        solver_order=order,
        algorithm_type=algorithm,
        solver_type=solver_type,
        use_karras_sigmas=karras,
        final_sigmas_type=final,
    )
    scheduler.set_timesteps(steps)
    integrator = DPMSolver(order, algorithm, solver_type=solver_type)
    assert_same(ours(integrator, levels_of(scheduler, schedule), x, xi), theirs(scheduler, x))


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("euler_at_final", [False, True])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_multistep_last_steps(
    build: Any, order: int, steps: int, final: str, euler_at_final: bool, lower_order_final: bool
) -> None:
    x, _ = draw(steps)
    options: dict[str, Any] = {"lower_order_final": lower_order_final, "euler_at_final": euler_at_final}
    scheduler = build("DPMSolverMultistepScheduler", "linear", solver_order=order, final_sigmas_type=final, **options)
    scheduler.set_timesteps(steps)
    assert_same(ours(DPMSolver(order, **options), levels_of(scheduler, "linear"), x), theirs(scheduler, x))


@every_schedule
@every_steps
@pytest.mark.parametrize(
    ("order", "solver_type"), [(1, "heun"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")]
)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
@pytest.mark.parametrize("lower_order_final", [False, True])
def test_dpm_singlestep(
    build: Any, schedule: str, steps: int, order: int, solver_type: Any, algorithm: Any, lower_order_final: bool
) -> None:
    x, xi = draw(steps)
    final = "sigma_min" if algorithm == "dpmsolver" else "zero"
    options = {"lower_order_final": lower_order_final, "solver_type": solver_type}
    scheduler = build(
        "DPMSolverSinglestepScheduler",
        schedule,
        noise=xi,
        solver_order=order,
        algorithm_type=algorithm,
        final_sigmas_type=final,
        **options,
    )
    scheduler.set_timesteps(steps)
    integrator = DPMSolver(order, algorithm, "singlestep", **options)
    assert_same(ours(integrator, levels_of(scheduler, schedule), x, xi), theirs(scheduler, x))


@every_steps
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variant", ["Multistep", "Singlestep"])
def test_dpm_flow(build: Any, steps: int, order: int, variant: Any) -> None:
    x, _ = draw(steps)
    scheduler = build(
        f"DPMSolver{variant}Scheduler",
        solver_order=order,
        use_flow_sigmas=True,
        flow_shift=3.0,
        prediction_type="flow_prediction",
    )
    scheduler.set_timesteps(steps)
    levels = Schedule.flow().levels(scheduler.sigmas[:-1])
    levels = replace(levels, timesteps=scheduler.timesteps.double())  # truncated to integers by Diffusers
    integrator = DPMSolver(order, variant=variant.lower(), lower_order_final=variant == "Multistep")
    assert_same(ours(integrator, levels, x, flow=True), theirs(scheduler, x))


@every_schedule
@every_steps
@pytest.mark.parametrize("karras", [False, True], ids=["plain", "karras"])
@pytest.mark.parametrize(("name", "integrator"), [("Euler", Euler()), ("Heun", Heun())], ids=["euler", "heun"])
def test_euler_and_heun(build: Any, schedule: str, steps: int, karras: bool, name: str, integrator: Integrator) -> None:
    x, _ = draw(steps)
    spacing = "linspace" if karras else "trailing"  # linspace has fractional timesteps; Karras needs its full range
    scheduler = build(f"{name}DiscreteScheduler", schedule, use_karras_sigmas=karras, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    levels = levels_of(scheduler, schedule)
    assert_same(ours(integrator, levels, x), theirs(scheduler, x / levels.alpha[0]))  # their state is x / alpha


@every_steps
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(build: Any, steps: int, shift: float) -> None:
    x, _ = draw(steps)
    scheduler = build("FlowMatchEulerDiscreteScheduler", shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    levels = Schedule.flow(shift=shift, time_scale=1000.0).levels(steps)
    assert_same(ours(Euler(), levels, x, flow=True), theirs(scheduler, x))


@every_steps
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_heun(build: Any, steps: int, shift: float) -> None:
    x, _ = draw(steps)
    scheduler = build("FlowMatchHeunDiscreteScheduler", shift=shift)
    scheduler.set_timesteps(steps)
    visited = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2]])
    levels = Schedule.flow(time_scale=1000.0).levels(visited)
    assert_same(ours(Heun(), levels, x, flow=True), theirs(scheduler, x))
