"""Robot policies: parallel in time, every family's actions are those of its own loop, and so are the random numbers."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from picard import FixedRounds, InvalidProblemError, NotSupportedError
from picard.adapters import parallelize, restore
from tests import policy_doubles as double
from tests.tiny_diffusers import unconditional_unet

library = pytest.importorskip("diffusers")

SCHEDULERS = {"ddpm": library.DDPMScheduler, "ddim": library.DDIMScheduler}
FAMILIES = ("unet-global", "unet-local", "unet-inpaint", "transformer-cond", "transformer-inpaint", "lerobot")
STEPS, WINDOW = 20, 8

Sample = Callable[[int, torch.Generator | None], Tensor]


def scheduler(name: str = "ddpm", **config: Any) -> Any:
    return SCHEDULERS[name](num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", **config)


def build(
    family: str, levels: Any, steps: int = STEPS, *, put: Callable[[Tensor], Tensor] = Tensor.contiguous, **step: Any
) -> tuple[Any, Sample]:
    """Build a policy, and what samples a batch of plans from it, for observations where `put` puts them."""
    name, _, kind = family.partition("-")
    seen, both = double.SEEN * double.STATES, double.ACTIONS + double.STATES
    channels = both if kind == "inpaint" else double.ACTIONS
    conditioned = {"lerobot": {"global_dim": seen}, "unet-global": {"global_dim": seen}}
    conditioned["unet-local"] = {"local_dim": double.STATES}
    if name == "transformer":
        network: Any = double.Learned(double.Transformer(channels), levels)
    else:
        network = double.Learned(double.Unet(channels, **conditioned.get(family, {})), levels)
    observed = put(torch.randn(8, double.SEEN, double.STATES))
    if name == "lerobot":
        policy: Any = double.LeRobotDouble(network, levels, steps).eval()

        def sample(batch: int, generator: torch.Generator | None) -> Tensor:
            cond = observed[:batch].flatten(1)
            return policy.diffusion.conditional_sample(batch, global_cond=cond, generator=generator)

        return policy, sample
    shape = double.TransformerDouble if name == "transformer" else double.DiffusionDouble
    policy = shape(network, levels, kind=kind, steps=steps, **step).eval()

    def plan(batch: int, generator: torch.Generator | None) -> Tensor:
        known, mask, cond = policy.arranged(observed[:batch])
        return policy.conditional_sample(known, mask, **cond, generator=generator, **policy.kwargs)

    return policy, plan


def drawn(sample: Sample, batch: int, *, own: bool) -> tuple[Tensor, Tensor]:
    """Sample with a seed; return the plans and the next random numbers."""
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(6) if own else None
    with torch.no_grad():
        plans = sample(batch, generator)
    return plans, torch.cat([torch.rand(3), torch.rand(3, generator=generator)])


@pytest.mark.parametrize(
    ("levels", "prediction"),
    [
        ("ddpm", "epsilon"),
        ("ddim", "sample"),
        pytest.param("ddpm", "sample", marks=pytest.mark.slow),
        pytest.param("ddim", "epsilon", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_actions_and_random_numbers_are_those_of_the_policys_own_loop(
    family: str, levels: str, prediction: str
) -> None:
    policy, sample = build(family, scheduler(levels, prediction_type=prediction))
    batches = ((1, False), (8, True))
    expected = [drawn(sample, batch, own=own) for batch, own in batches]
    parallelize(policy, window=WINDOW, tolerance=0.0, mode="plan")
    for (batch, own), (right, after) in zip(batches, expected, strict=True):
        assert float(right.abs().max()) <= 4
        plans, then = drawn(sample, batch, own=own)
        assert torch.equal(then, after)
        assert torch.allclose(plans, right, rtol=0, atol=1e-5)
        assert policy.picard.stats.rounds < STEPS
    parallelize(policy, window=WINDOW)
    right, after = expected[-1]
    plans, then = drawn(sample, 8, own=True)
    assert torch.equal(then, after)
    difference = float((plans - right).abs().max())
    assert 1e-6 < difference < (0.1 if levels == "ddpm" else 0.02)
    assert policy.picard.stats.mode == "plan"
    assert policy.picard.stats.sequential_evaluations == STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_gives_the_same_actions(family: str) -> None:
    policy, sample = build(family, scheduler())
    right, after = drawn(sample, 2, own=False)
    parallelize(policy, window=WINDOW, tolerance=1e-6, mode="replay")
    plans, then = drawn(sample, 2, own=False)
    assert policy.picard.stats.mode == "replay"
    assert policy.picard.stats.rounds < STEPS
    assert torch.equal(then, after)
    assert torch.allclose(plans, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "config", "step"),
    [
        ("ddim", {}, {"eta": 0.6}),
        ("ddim", {"clip_sample_range": 0.5}, {"use_clipped_model_output": True}),
        ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}, {}),
        ("ddpm", {"variance_type": "fixed_large"}, {}),
        ("ddpm", {"variance_type": "fixed_small_log", "clip_sample": False}, {}),
        ("ddpm", {"thresholding": True, "clip_sample": False}, {}),
        ("ddpm", {"prediction_type": "v_prediction"}, {}),
    ],
)
def test_what_schedulers_and_step_arguments_add_is_kept(
    levels: str, config: dict[str, Any], step: dict[str, Any]
) -> None:
    policy, sample = build("unet-inpaint", scheduler(levels, **config), **step)
    right, after = drawn(sample, 2, own=False)
    parallelize(policy, window=WINDOW, tolerance=0.0, mode="plan")
    plans, then = drawn(sample, 2, own=False)
    assert torch.equal(then, after)
    assert torch.allclose(plans, right, rtol=0, atol=1e-5)


def test_a_queue_of_actions_is_filled_as_before() -> None:
    policy, _ = build("lerobot", scheduler("ddim"))

    def roll_out() -> Tensor:
        policy.reset()
        torch.manual_seed(1)
        states = torch.randn(9, 1, double.STATES)
        noise = torch.randn(1, double.HORIZON, double.ACTIONS)
        return torch.stack([policy.select_action({"observation.state": state}, noise=noise) for state in states])

    right = roll_out()
    parallelize(policy, window=WINDOW, tolerance=0.0)
    assert torch.allclose(roll_out(), right, rtol=0, atol=1e-5)
    assert policy.picard is policy.diffusion.picard


def test_one_generator_a_sample_works_where_the_policy_takes_noise() -> None:
    policy, _ = build("lerobot", scheduler())
    noise, cond = torch.randn(2, double.HORIZON, double.ACTIONS), torch.randn(2, double.SEEN * double.STATES)

    def sample() -> Tensor:
        generators: Any = [torch.Generator().manual_seed(i) for i in range(2)]
        with torch.no_grad():
            return policy.diffusion.conditional_sample(2, cond, generators, noise)

    right = sample()
    parallelize(policy, window=WINDOW, tolerance=0.0, mode="plan")
    assert torch.allclose(sample(), right, rtol=0, atol=1e-5)


class Guided(double.DiffusionDouble):
    """A policy that does something of its own in its loop."""

    def denoise(self, known: Tensor, mask: Tensor, *rest: Any, **named: Any) -> Tensor:
        return super().denoise(known, mask, *rest, **named) + 0.01


class Distracted(double.DiffusionDouble):
    """A policy that draws a random number nobody needs."""

    def denoise(self, known: Tensor, mask: Tensor, *rest: Any, **named: Any) -> Tensor:
        plans = super().denoise(known, mask, *rest, **named)
        torch.rand(1)
        return plans


class Wrapped(double.DiffusionDouble):
    """A policy whose network returns an object with the tensor in it."""

    def denoise(self, known: Tensor, mask: Tensor, *rest: Any, **named: Any) -> Any:
        own, self.model = self.model, Unwrapping(self.model)
        try:
            return super().denoise(known, mask, *rest, **named)
        finally:
            self.model = own


class Unwrapping(torch.nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs).sample


class Telling(double.DiffusionDouble):
    """A policy that tells more than its plans."""

    def denoise(self, known: Tensor, mask: Tensor, *rest: Any, **named: Any) -> Any:
        return super().denoise(known, mask, *rest, **named), "done"


@pytest.mark.parametrize(("kind", "why"), [(Wrapped, "fails on a made-up network"), (Telling, "returns a tuple")])
def test_a_loop_that_a_made_up_network_does_not_fit_is_replayed(kind: Any, why: str) -> None:
    policy, sample = build("unet-inpaint", scheduler())
    policy.__class__ = kind
    if kind is Wrapped:
        output: Any = importlib.import_module("diffusers.models.unets.unet_1d").UNet1DOutput
        policy.model.register_forward_hook(lambda module, args, found: output(sample=found))

    def plans() -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            found: Any = sample(2, None)
        return found if isinstance(found, Tensor) else found[0]

    right = plans()
    parallelize(policy, window=WINDOW, tolerance=1e-6)
    assert torch.allclose(plans(), right, rtol=0, atol=1e-5)
    assert policy.picard.stats.mode == "replay"
    assert why in policy.picard.why


def test_a_wrong_call_is_no_reason_to_replay() -> None:
    policy, sample = build("lerobot", scheduler())
    parallelize(policy, window=WINDOW)
    with pytest.raises(TypeError):
        policy.diffusion.conditional_sample("one")
    drawn(sample, 1, own=False)
    assert policy.picard.stats.mode == "plan"


@pytest.mark.parametrize(("kind", "why"), [(Guided, "result differs"), (Distracted, "other random numbers")])
def test_a_loop_that_does_more_is_found_out_and_replayed(kind: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    policy, sample = build("unet-inpaint", scheduler())
    policy.__class__ = kind
    right, after = drawn(sample, 2, own=False)
    parallelize(policy, window=WINDOW, tolerance=1e-6)
    plans, then = drawn(sample, 2, own=False)
    assert policy.picard.stats.mode == "replay"
    assert why in policy.picard.why
    assert policy.picard.stats.reason == policy.picard.why
    assert "replay" in caplog.text
    assert torch.equal(then, after)
    assert torch.allclose(plans, right, rtol=0, atol=1e-5)
    for options in ({"mode": "plan"}, {"warm_start": 2}, {"certify": True}):
        parallelize(policy, window=WINDOW, **options)
        with pytest.raises(NotSupportedError, match=why):
            drawn(sample, 2, own=False)


def test_another_scheduler_or_number_of_steps_is_noticed() -> None:
    policy, sample = build("unet-global", scheduler())
    parallelize(policy, window=WINDOW, tolerance=0.0, mode="plan")
    for name, steps in (("ddpm", STEPS), ("ddim", STEPS), ("ddim", 12)):
        policy.noise_scheduler, policy.num_inference_steps = scheduler(name), steps
        plans, _ = drawn(sample, 1, own=False)
        assert policy.picard.stats.sequential_evaluations == steps
        handle, kind = vars(policy).pop("picard"), type(policy)
        policy.__class__ = double.DiffusionDouble
        right, _ = drawn(sample, 1, own=False)
        policy.__class__, policy.picard = kind, handle
        assert torch.allclose(plans, right, rtol=0, atol=1e-5)


def test_a_copy_of_a_parallel_policy_is_one_of_its_own() -> None:
    policy, sample = build("unet-global", scheduler())
    parallelize(policy, window=WINDOW)
    drawn(sample, 1, own=False)
    twin = copy.deepcopy(policy)
    assert twin.picard is not policy.picard
    restore(twin)
    assert not hasattr(twin, "picard")
    assert policy.picard.stats is not None


@pytest.mark.parametrize("family", ["unet-global", "lerobot"])
def test_a_parallel_policy_is_pickled_as_one(family: str) -> None:
    policy, sample = build(family, scheduler(thresholding=True, clip_sample=False))
    parallelize(policy, window=WINDOW)
    drawn(sample, 1, own=False)
    twin = pickle.loads(pickle.dumps(policy))
    assert repr(twin.picard) == repr(policy.picard)
    assert twin.picard.stats == policy.picard.stats
    assert type(twin) is type(policy)
    assert type(restore(twin)) is type(restore(policy))


def test_a_policy_that_was_asked_for_gradients_can_be_copied() -> None:
    policy, sample = build("unet-global", scheduler("ddim"))
    parallelize(policy, window=WINDOW)
    assert sample(1, None).requires_grad
    assert not policy.picard.solution.ys.requires_grad  # it would keep the graph
    copy.deepcopy(policy)


def test_what_samples_in_a_policy_may_have_been_parallelized_alone() -> None:
    policy, sample = build("lerobot", scheduler())
    kinds = type(policy), type(policy.diffusion)
    right, _ = drawn(sample, 1, own=False)
    parallelize(policy.diffusion, window=WINDOW)
    parallelize(policy, window=WINDOW, tolerance=0.0)
    assert torch.allclose(drawn(sample, 1, own=False)[0], right, rtol=0, atol=1e-5)
    restore(policy)
    assert (type(policy), type(policy.diffusion)) == kinds
    parallelize(policy.diffusion)
    restore(policy)
    assert (type(policy), type(policy.diffusion)) == kinds


@pytest.mark.parametrize("levels", ["ddpm", "ddim"])
@pytest.mark.parametrize("family", ["unet-global", "lerobot"])
def test_half_precision_runs_on_the_plan(family: str, levels: str) -> None:
    policy, sample = build(family, scheduler(levels), put=Tensor.half)
    policy.half()
    right, after = drawn(sample, 2, own=False)
    parallelize(policy, window=WINDOW, mode="plan")
    plans, then = drawn(sample, 2, own=False)
    assert plans.dtype == torch.float16
    assert torch.equal(then, after)
    assert float((plans - right).abs().max()) <= 0.1


def test_the_policy_is_itself_again_after_restore_and_after_a_block() -> None:
    policy, sample = build("lerobot", scheduler())
    kinds, names = (type(policy), type(policy.diffusion)), list(policy.state_dict())
    right, _ = drawn(sample, 1, own=False)
    with parallelize(policy, window=WINDOW) as same:
        assert same is policy
        assert isinstance(policy, double.LeRobotDouble)
        assert type(policy).__name__ == "LeRobotDouble"
        assert list(policy.state_dict()) == names
        drawn(sample, 1, own=False)
        assert policy.diffusion.unet is policy.diffusion._modules["unet"]
        assert list(policy.state_dict()) == names
    assert (type(policy), type(policy.diffusion)) == kinds
    assert not hasattr(policy, "picard")
    assert not hasattr(policy.diffusion, "picard")
    assert torch.equal(drawn(sample, 1, own=False)[0], right)
    assert restore(policy) is policy


def test_gradients_are_those_through_the_policys_own_loop() -> None:
    policy, _ = build("unet-global", scheduler("ddim"), steps=12)
    policy.double()
    known, mask, _ = policy.arranged(torch.zeros(2, double.SEEN, double.STATES))
    cond = torch.randn(2, double.SEEN * double.STATES, dtype=torch.float64, requires_grad=True)

    def gradient() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        plans = policy.conditional_sample(known.double(), mask, global_cond=cond, generator=generator)
        (found,) = torch.autograd.grad(plans.square().sum(), cond)
        return found

    right = gradient()
    parallelize(policy, window=WINDOW, tolerance=1e-9, mode="plan")
    assert torch.allclose(gradient(), right, rtol=1e-5, atol=1e-7)


def test_the_certificate_is_at_hand() -> None:
    policy, sample = build("unet-global", scheduler())
    parallelize(policy, window=WINDOW, certify=True)
    drawn(sample, 8, own=False)
    assert 0 < policy.picard.solution.certificate.tv < 1


@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_network_is_compiled_for_two_numbers_of_rows_only(warm: bool) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        actions = (double.HORIZON, double.ACTIONS)
        compiled.extend(len(one) for one in inputs if isinstance(one, Tensor) and tuple(one.shape[1:]) == actions)
        return graph.forward

    class Clean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv1d(double.ACTIONS, double.ACTIONS, 3, padding=1)
            self.cond = torch.nn.Linear(double.SEEN * double.STATES, 1)

        def forward(self, x: Tensor, t: Tensor, global_cond: Tensor) -> Tensor:
            return x + 0.1 * torch.tanh(self.conv(x.movedim(1, 2)).movedim(1, 2)) + self.cond(global_cond)[..., None]

    torch._dynamo.reset()
    network: Any = torch.compile(Clean(), backend=backend, dynamic=False)
    policy = double.LeRobotDouble(network, scheduler(), STEPS).eval()
    cond = torch.randn(1, double.SEEN * double.STATES)
    parallelize(policy, window=WINDOW, warm_start=2 if warm else None)
    with torch.no_grad():
        for _ in range(3):
            policy.diffusion.conditional_sample(1, cond)
        restore(policy)
        policy.diffusion.conditional_sample(1, cond)
    assert sorted(compiled) == [1, WINDOW]
    torch._dynamo.reset()


def test_the_network_stays_a_submodule_while_something_answers_for_it() -> None:
    policy, sample = build("lerobot", scheduler())
    found: list[int] = []
    own = policy.diffusion.unet.inner.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        found.append(len(list(policy.diffusion.parameters())))
        return own(*args, **kwargs)

    policy.diffusion.unet.inner.forward = forward
    everything = len(list(policy.diffusion.parameters()))
    parallelize(policy, window=WINDOW, mode="replay")
    drawn(sample, 1, own=False)  # LeRobot's loop asks the parameters for device and dtype at every start
    assert set(found) == {everything}


def test_bad_options_are_refused_with_a_word_on_what_to_write(unchecked: None) -> None:
    policy, sample = build("unet-global", scheduler())
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"window": 0}, InvalidProblemError, "window must be an integer of at least 1"),
        ({"actions": 1.5}, InvalidProblemError, "actions must be an integer"),
        ({"max_rows": 2**63}, InvalidProblemError, "max_rows must be an integer of at least 1 and at most"),
        ({"warm_start": "shft"}, InvalidProblemError, "shift"),
        ({"warm_start": np.arange(2)}, InvalidProblemError, "warm_start must be an integer"),
        ({"mode": "plann"}, InvalidProblemError, "did you mean 'plan'"),
        ({"mode": np.arange(2)}, InvalidProblemError, "unknown mode"),
        ({"guess": "held"}, InvalidProblemError, "hold"),
        ({"certify": "no"}, InvalidProblemError, "certify must be True or False"),
        ({"fresh_noise": torch.ones(2)}, InvalidProblemError, "fresh_noise must be True or False"),
        ({"tolerance": -1}, InvalidProblemError, "tolerance must be finite and not negative"),
        ({"tolerance": True}, InvalidProblemError, "tolerance must be a number, or a rule"),
        ({"tolerance": "tight"}, InvalidProblemError, "NoiseRatio"),
        ({"linearization": "secnt"}, InvalidProblemError, "secant"),
        ({"fresh_noise": False}, InvalidProblemError, "warm_start='shift'"),
        ({"fresh_noise": 1}, InvalidProblemError, "fresh_noise must be True or False"),
        ({"certify": "yes"}, InvalidProblemError, "certify must be True or False"),
        ({"actions": 2, "tolerance": FixedRounds(2)}, InvalidProblemError, "leave one of them out"),
        ({"warm_start": 2, "fresh_noise": False, "certify": True}, InvalidProblemError, "fresh_noise=True"),
        ({"mode": "replay", "warm_start": 2}, NotSupportedError, "mode='plan'"),
        ({"mode": "replay", "tolerance": FixedRounds(2)}, NotSupportedError, "no tolerance rules: give a number"),
        ({"windows": 3}, TypeError, "windows"),
    ]
    for options, kind, match in refused:
        with pytest.raises(kind, match=match):
            parallelize(policy, **options)
    for horizon in (double.HORIZON, np.int64(double.HORIZON)):
        parallelize(policy, warm_start=horizon)
        with pytest.raises(InvalidProblemError, match="from 1 to 7"):
            drawn(sample, 1, own=False)
    del policy.n_action_steps
    parallelize(policy, warm_start="shift")
    with pytest.raises(InvalidProblemError, match="no `n_action_steps`"):
        drawn(sample, 1, own=False)
    with pytest.raises(NotSupportedError, match="scheduler, or a robot policy"):
        parallelize(torch.nn.Linear(1, 1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", [np.float32(1e-6), torch.tensor(1e-6)], ids=["numpy", "tensor"])
def test_a_number_may_be_numpys_or_in_a_tensor(given: Any) -> None:
    policy, _ = build("unet-global", scheduler())
    assert parallelize(policy, tolerance=given, window=np.int64(4)).picard.options.tolerance == pytest.approx(1e-6)
    assert type(policy.picard.options.window) is int
    pipe = library.DDPMPipeline(unconditional_unet(), library.DDPMScheduler())
    assert parallelize(pipe, tolerance=given, window=np.int64(4)).picard.options.tolerance == pytest.approx(1e-6)
    assert type(pipe.picard.options.window) is int
    del policy.noise_scheduler
    with pytest.raises(NotSupportedError, match=r"needs a policy with `conditional_sample`, `noise_scheduler`"):
        parallelize(restore(policy))
