"""Tracing a scheduler: the plan is the scheduler's loop, our integrators' too, and the scheduler is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard import NotSupportedError
from picard.adapters import diffusers as adapter
from picard.grid import Levels
from picard.integrators import DDIM, DDPM, DPMSolver, Euler, Heun
from tests.reference import run_plan

library = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

STEPS = 12


def network(x: Tensor, t: Tensor) -> Tensor:
    """Evaluate a smooth nonlinear function of the state and the time."""
    late = (t.to(x) / 200).sin().reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x.roll(1, -1) / 2 + late)


def orders() -> list[tuple[str, dict[str, Any], int]]:
    """How many states and predictions each scheduler needs."""
    return [
        ("DDIMScheduler", {}, 1),
        ("EulerDiscreteScheduler", {}, 1),
        ("FlowMatchEulerDiscreteScheduler", {}, 1),
        ("DPMSolverMultistepScheduler", {}, 2),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, 3),
        ("DPMSolverSinglestepScheduler", {}, 2),
        ("DEISMultistepScheduler", {}, 2),
        ("HeunDiscreteScheduler", {}, 2),
        ("KDPM2DiscreteScheduler", {}, 2),
        ("UniPCMultistepScheduler", {}, 3),
        ("LMSDiscreteScheduler", {}, 4),
        ("IPNDMScheduler", {}, 4),
        ("PNDMScheduler", {"skip_prk_steps": True}, 4),
    ]


@pytest.mark.parametrize(("name", "config", "order"), orders())
def test_the_band_is_as_narrow_as_the_method(name: str, config: dict[str, Any], order: int) -> None:
    plan = adapter.trace(getattr(library, name)(**config), STEPS)
    assert plan.order == order
    assert plan.scales is not None
    assert plan.yardstick is not None


def levels_of(plan: picard.Plan, *, straight: bool = False) -> Levels:
    """The noise levels a traced plan steps over, with clean data at the end."""
    assert plan.scales is not None
    visited = torch.cat([torch.ones(1, dtype=torch.bool), plan.scales[:, 1].diff() != 0])
    alpha, sigma = plan.scales[visited].unbind(1)
    end = torch.ones(1, dtype=torch.float64)
    return Levels(plan.times[visited], torch.cat([alpha, end]), torch.cat([sigma, 0 * end]), straight=straight)


@pytest.mark.parametrize(
    ("name", "config", "options", "integrator", "straight"),
    [
        ("DDIMScheduler", {"clip_sample": False}, {}, DDIM(), False),
        ("DDIMScheduler", {"clip_sample": False}, {"eta": 0.5}, DDIM(0.5), False),
        ("DDPMScheduler", {"clip_sample": False}, {}, DDPM(), False),
        ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, {}, DDPM("fixed_large"), False),
        ("DPMSolverMultistepScheduler", {}, {}, DPMSolver(), False),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}, DPMSolver(3), False),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++"},
            {},
            DPMSolver(algorithm="sde-dpmsolver++"),
            False,
        ),
        (
            "DPMSolverSinglestepScheduler",
            {"lower_order_final": True},
            {},
            DPMSolver(variant="singlestep"),
            False,
        ),
        ("EulerDiscreteScheduler", {}, {}, Euler(), False),
        ("HeunDiscreteScheduler", {}, {}, Heun(), False),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}, Euler(), True),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {}, Heun(), True),
    ],
)
def test_tracing_and_integrator_agree(
    name: str, config: dict[str, Any], options: dict[str, Any], integrator: Any, straight: bool
) -> None:
    traced = adapter.trace(getattr(library, name)(**config), STEPS, scheduler_options=options)
    levels = levels_of(traced, straight=straight)
    ours = integrator.plan(levels)
    assert ours.nodes == traced.nodes
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(traced.nodes, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def data(m: int, z: Tensor) -> Tensor:
        return network(z, traced.times[m].expand(len(z)))

    # In the same coordinates: the traced state is the model's input, scaled to unit variance where the scheduler does.
    found, expected = run_plan(traced, data, x, noise), run_plan(ours, data, x, noise[: ours.steps])
    assert float((found - expected).abs().max()) < 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(traced.c, ours.c, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "config", "order"), orders())
def test_the_default_device_does_not_matter(name: str, config: dict[str, Any], order: int) -> None:
    scheduler, start, steps = getattr(library, name)(**config), torch.ones(1, 2, 4, 4), order + 2

    def found() -> tuple[Tensor, Tensor]:
        plan = adapter.trace(scheduler, steps)
        generator = torch.Generator().manual_seed(0)
        return plan.b, adapter.sample(network, scheduler, start, num_inference_steps=steps, generator=generator).final

    expected = found()
    with torch.device("meta"):  # where nothing can be computed
        for one, other in zip(found(), expected, strict=True):
            assert torch.equal(one, other)


def test_a_traced_plan_runs_in_the_core() -> None:
    scheduler = library.DDIMScheduler(clip_sample=False)
    plan = adapter.trace(scheduler, STEPS)

    class Traced:
        def plan(self, points: Any) -> picard.Plan:
            return plan

    problem = picard.Diffusion(picard.Denoiser(network, picard.Schedule.linear()), torch.randn(2, 6))
    parallel = picard.solve(problem, STEPS, method=Traced(), tolerance=0.0)
    own = picard.solve(problem, STEPS, method=DDIM(), tolerance=0.0)
    torch.testing.assert_close(parallel.final, own.final, atol=1e-5, rtol=1e-5)


def test_saved_states_are_the_schedulers() -> None:
    scheduler = library.EulerDiscreteScheduler(timestep_spacing="trailing")
    latents = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = adapter.sample(network, scheduler, latents, num_inference_steps=STEPS, tolerance=0.0, save="all")
    scheduler.set_timesteps(STEPS)
    x = latents * scheduler.init_noise_sigma
    states = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t.expand(2)), t, x)[0]
        states.append(x)
    expected = torch.stack(states)
    assert found.ys.shape == expected.shape
    torch.testing.assert_close(found.ys, expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(found.ts[:-1], scheduler.timesteps)
    assert float(found.ts[-1]) == 0


def test_generators_are_used_and_advanced_as_by_the_scheduler() -> None:
    scheduler = library.DDPMScheduler(clip_sample=True)
    latents = torch.randn(2, 3, 4, 4)
    own = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = adapter.sample(network, scheduler, latents, num_inference_steps=STEPS, generator=own, tolerance=0.0)
    theirs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    scheduler.set_timesteps(STEPS)
    x = latents
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(2)), t, x, generator=theirs)[0]
    torch.testing.assert_close(found.final, x, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(own, theirs, strict=True))


def test_half_precision_latents() -> None:
    scheduler = library.DPMSolverMultistepScheduler()
    latents = torch.randn(2, 3, 4, 4)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return network(x.float(), t).to(x.dtype)

    half = adapter.sample(model, scheduler, latents.bfloat16(), num_inference_steps=STEPS)
    full = adapter.sample(model, scheduler, latents, num_inference_steps=STEPS)
    assert half.final.dtype == torch.bfloat16
    torch.testing.assert_close(half.final.float(), full.final, atol=0.1, rtol=0.1)


def test_a_loop_is_traced_once_for_samples_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until anything about it changes, tables that a user has written into the scheduler among it."""
    seen: list[Any] = []
    traced: Callable[[Any], Any] = vars(adapter)["traced"]

    def counted(course: Any) -> Any:
        seen.append(course)
        return traced(course)

    scheduler, latents = library.DDPMScheduler(clip_sample=False), torch.randn(2, 3)

    def sampled(scheduler: Any, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return adapter.sample(network, scheduler, latents, num_inference_steps=steps, generator=generator).final

    changes: list[tuple[int, int, Callable[[], Any]]] = [
        (STEPS, 1, lambda: None),
        (STEPS, 1, lambda: None),
        (STEPS + 1, 2, lambda: None),
        (STEPS, 3, lambda: None),
        (STEPS, 4, lambda: scheduler.alphas_cumprod.mul_(0.9)),
        (STEPS, 5, lambda: scheduler.register_to_config(prediction_type="sample")),
    ]
    for steps, count, change in changes:
        change()
        fresh = sampled(copy.deepcopy(scheduler), steps)
        with monkeypatch.context() as patch:
            patch.setattr(adapter, "traced", counted)
            assert torch.equal(sampled(scheduler, steps), fresh)
        assert len(seen) == count


def test_the_models_of_diffusers_and_conditioning() -> None:
    def model(x: Tensor, t: Tensor, *, label: Tensor) -> tuple[Tensor]:
        return (network(x, t) * label[:, None],)

    scheduler = library.DDIMScheduler(clip_sample=False)
    latents, label = torch.randn(3, 6), torch.tensor([1.0, 0.5, 0.2])
    given: dict[str, Any] = {"num_inference_steps": STEPS, "cond": {"label": label}}
    parallel = adapter.sample(model, scheduler, latents, **given, tolerance=0.0, window=4)
    one_by_one = adapter.sample(model, scheduler, latents, **given, parallel=False)
    torch.testing.assert_close(parallel.final, one_by_one.final, atol=1e-5, rtol=1e-5)


def test_options_are_checked() -> None:
    with pytest.raises(TypeError, match="did you mean 'eta'"):
        adapter.trace(library.DDIMScheduler(), STEPS, scheduler_options={"etta": 0.5})
    scheduler = library.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    plan = adapter.trace(scheduler, STEPS, scheduler_options={"mu": 0.8})
    scheduler.set_timesteps(STEPS, mu=0.8)
    torch.testing.assert_close(plan.times, scheduler.timesteps.double())
    with pytest.raises(NotSupportedError, match="mask"):
        adapter.trace(library.RePaintScheduler(), STEPS)


LIMITS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp_": lambda x: x.clamp_(-0.8, 0.8),
    "minimum": lambda x: torch.minimum(x, torch.tensor(0.8)),
    "where": lambda x: torch.where(x > 0.8, 0.8, x),
    "tanh": torch.tanh,
    "neighbours": lambda x: x + 0.1 * x.roll(1, -1),
    "batch": lambda x: x - 0.1 * x.mean(0, keepdim=True),
    "norm": lambda x: x / (1 + x.norm()),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_step_that_only_looks_affine_on_probes_is_refused(limit: str) -> None:
    ddim: Any = library.DDIMScheduler

    class Limited(ddim):  # type: ignore[misc]
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
            found = super().step(model_output, timestep, sample, **options)
            found.prev_sample = LIMITS[limit](found.prev_sample)
            return found

    torch.manual_seed(0)
    before = torch.get_rng_state()
    for run in (
        lambda: adapter.trace(Limited(), STEPS),
        lambda: adapter.sample(network, Limited(), torch.ones(1, 2), num_inference_steps=STEPS),
    ):
        with pytest.raises(NotSupportedError, match=r"cannot be written as a plan here|no banded recurrence"):
            run()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [5, 7])
def test_single_precision_at_a_signal_of_nearly_zero_is_no_difference(steps: int) -> None:
    levels = library.DPMSolverMultistepScheduler(
        solver_order=3,
        algorithm_type="dpmsolver",
        solver_type="heun",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        timestep_spacing="leading",
        rescale_betas_zero_snr=True,
        euler_at_final=True,
        final_sigmas_type="sigma_min",
    )
    assert adapter.trace(levels, steps).nodes == steps


def test_the_parameters_of_a_step_are_known_by_name() -> None:
    ddim: Any = library.DDIMScheduler

    class Renamed(ddim):  # type: ignore[misc]
        def step(self, out: Tensor, t: Any, x: Tensor, **options: Any) -> Any:
            return super().step(out, t, x, **options)

    with pytest.raises(NotSupportedError, match=r"model_output, timestep and sample.*rename its parameters"):
        adapter.trace(Renamed(), STEPS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": SimpleNamespace(scheduler=None, components={})}, r"given a pipeline, .*: write .* pipe\.unet"),
        ({"num_inference_steps": 0.5}, "num_inference_steps must be an integer"),
        ({"num_inference_steps": True}, "num_inference_steps must be an integer"),
        ({"num_inference_steps": 10**30}, "num_inference_steps must be an integer of at least 1 and at most"),
        ({"generator": 0}, "generator must be a torch.Generator"),
        ({"latents": torch.ones(1, 2).to_sparse()}, r"latents must be dense; .*to_dense\(\)"),
        ({"model": lambda x, t: None}, r"a tensor, a tuple with the tensor first, .*; it returned None"),
        ({"model": lambda x, t: "ab"}, r"a tensor, a tuple with the tensor first, .*; it returned 'ab'"),
        ({"model": lambda x, t: {"eps": x}}, r"returned a dict of tensors"),
        ({"model": lambda x, t: x.long()}, r"floating tensor .*int64"),
        ({"model": lambda x, t: x.to_sparse()}, r"what the model returns must be dense"),
        ({"scheduler_options": [0.5]}, "scheduler_options must map"),
        ({"cond": [1]}, "cond must map"),
        ({"parallel": "no"}, "parallel must be True or False"),
    ],
)
def test_what_a_sample_is_given_is_checked(changes: dict[str, Any], says: str) -> None:
    given = {"model": lambda x, t: x, "latents": torch.ones(1, 2), "num_inference_steps": 3, **changes}
    with pytest.raises(picard.InvalidProblemError, match=says):
        adapter.sample(scheduler=library.DDIMScheduler(), **given)


@pytest.mark.usefixtures("unchecked")
def test_options_of_a_trace_must_have_names() -> None:
    with pytest.raises(picard.InvalidProblemError, match="scheduler_options must map"):
        adapter.trace(library.DDIMScheduler(), 3, scheduler_options=[0.5])  # type: ignore[arg-type]
    with pytest.raises(picard.InvalidProblemError, match="steps must be an integer"):
        adapter.trace(library.DDIMScheduler(), 2.5)  # type: ignore[arg-type]


def test_the_steps_of_a_trace_are_a_count_or_listed() -> None:
    with pytest.raises(picard.InvalidProblemError, match="steps must be an integer of at least 1"):
        adapter.trace(library.DDIMScheduler(), 0)
    listed = adapter.trace(
        library.DPMSolverMultistepScheduler(), None, scheduler_options={"timesteps": [900, 500, 100]}
    )
    assert listed.times.tolist() == [900.0, 500.0, 100.0]
