"""Robot policies whose loop asks the network otherwise than a plan does: found out, replayed, and the same actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from picard import NotSupportedError
from picard.adapters import parallelize
from tests import policy_doubles as double

library = pytest.importorskip("diffusers")
SEEN = double.SEEN * double.STATES


class Odd(double.DiffusionDouble):
    """A policy with a loop of its own, in which `ask` calls the network."""

    amount: float | None = None

    def conditional_sample(  # type: ignore[override]  # as policies with options of their own have it
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        amount: float | None = None,
    ) -> Tensor:
        self.amount, cond = amount, torch.empty(0) if global_cond is None else global_cond
        x = torch.randn(condition_data.shape, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        self.data = torch.zeros_like(x)
        for t in self.noise_scheduler.timesteps:
            x[condition_mask] = condition_data[condition_mask]
            step = self.noise_scheduler.step(self.ask(x, t, cond), t, x, generator=generator)
            x, self.data = step.prev_sample, step.pred_original_sample
        x[condition_mask] = condition_data[condition_mask]
        return x

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        raise NotImplementedError


class Conditioned(Odd):
    """The last data prediction goes into the network."""

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.model(x, t, global_cond=cond + self.data.flatten(1)[:, :SEEN])


class Annealed(Odd):
    """Conditioning changes from step to step."""

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.model(x, t, global_cond=cond * (t / 100))


class Timed(Odd):
    """Time is given in another unit."""

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.model(x, t // 2, global_cond=cond)


class Guided(Odd):
    """Guidance on a doubled batch."""

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        free, tied = self.model(x.repeat(2, 1, 1), t, global_cond=torch.cat([0 * cond, cond])).chunk(2)
        return free + 3 * (tied - free)


class Joined(Odd):
    """The observation is put beside the state."""

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        beside = cond[:, None, :1].expand(-1, x.shape[1], -1)
        return self.model(torch.cat([x, beside], -1), t, global_cond=cond)[..., :-1]


class Optional(Odd):
    """Guidance by two calls, where it is asked for."""

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        tied = self.model(x, t, global_cond=cond)
        return tied if self.amount is None else tied + self.amount * (tied - self.model(x, t, global_cond=0 * cond))


class Mixed(Odd):
    """The network alone runs under autocast."""

    def ask(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(x, t, global_cond=cond).float()


ODD = {
    Conditioned: "other arguments from step to step",
    Annealed: "other arguments from step to step",
    Timed: "another time than its scheduler's",
    Guided: "something else than the noisy actions",
    Joined: "something else than the noisy actions",
    Mixed: "under autocast inside its loop only",
}


def build(kind: Any, levels: str = "ddim", wrap: Callable[[Any], Any] = lambda network: network) -> Any:
    scheduler = {"ddim": library.DDIMScheduler, "ddpm": library.DDPMScheduler}[levels](
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"
    )
    channels = double.ACTIONS + (kind is Joined)
    network = wrap(double.Learned(double.Unet(channels, global_dim=SEEN), scheduler))
    return kind(network, scheduler, kind="global", steps=12).eval()


def plans(policy: Any, batch: int, **options: Any) -> Tensor:
    torch.manual_seed(5)
    fixed = torch.Generator().manual_seed(1)
    known, mask, given = policy.arranged(torch.randn(batch, double.SEEN, double.STATES, generator=fixed))
    with torch.no_grad():
        return policy.conditional_sample(known, mask, **given, **options)


@pytest.mark.parametrize(("levels", "batch"), [("ddim", 1), ("ddpm", 2)])
@pytest.mark.parametrize("kind", ODD)
def test_a_network_that_is_asked_otherwise_than_in_a_plan_is_replayed(kind: Any, levels: str, batch: int) -> None:
    policy = build(kind, levels)
    right = plans(policy, batch)
    parallelize(policy, window=8, tolerance=1e-6)
    found = plans(policy, batch)
    assert policy.picard.stats.mode == "replay"
    assert ODD[kind] in policy.picard.why
    assert found.shape == right.shape
    assert torch.allclose(found, right, rtol=0, atol=0.1 if kind is Mixed else 1e-4)  # half precision in other batches
    with pytest.raises(NotSupportedError, match=ODD[kind]):
        plans(parallelize(policy, mode="plan"), batch)


def test_a_call_with_other_options_is_looked_at_again() -> None:
    policy = build(Optional)
    right = plans(policy, 2), plans(policy, 2, amount=2.0)
    assert float((right[0] - right[1]).abs().max()) > 0.1
    parallelize(policy, window=8, tolerance=1e-6)
    for i, mode in ((0, "plan"), (1, "replay"), (0, "plan")):
        found = plans(policy, 2) if i == 0 else plans(policy, 2, amount=2.0)
        assert policy.picard.stats.mode == mode
        assert (policy.picard.why is None) == (i == 0)
        assert torch.allclose(found, right[i], rtol=0, atol=1e-4)


def test_a_scheduler_of_the_same_configuration_is_another_one() -> None:
    policy = build(double.DiffusionDouble)
    parallelize(policy, window=8, tolerance=0.0, mode="plan")
    before = plans(policy, 1)
    other = build(double.DiffusionDouble).noise_scheduler
    other.alphas_cumprod = other.alphas_cumprod**2
    policy.noise_scheduler = other
    assert float((plans(policy, 1) - before).abs().max()) > 0.01


class Batched(nn.Module):
    """A network that looks at its whole batch."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.norm = network, nn.BatchNorm1d(double.ACTIONS)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.network(self.norm(x.transpose(1, 2)).transpose(1, 2), *args, **kwargs)


class Read(double.DiffusionDouble):
    """Words for all samples, as many as there are samples."""

    def denoise(self, *args: Any, **kwargs: Any) -> Tensor:
        args[-1]["words"] = torch.linspace(-1, 1, 6).view(2, 3)
        return super().denoise(*args, **kwargs)


class Reading(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, words: Tensor, **kwargs: Any) -> Tensor:
        return self.network(x, t, **kwargs) + words[0].sum() + (len(words) > 2)


def test_a_network_whose_rows_depend_on_each_other_is_refused() -> None:
    policy = build(double.DiffusionDouble, wrap=Batched)
    parallelize(policy, window=8)
    plans(policy, 2)  # in evaluation mode it does not
    policy.train()
    for mode in ("plan", "auto"):
        with pytest.raises(NotSupportedError, match=r"rows of a batch independently.*training mode"):
            plans(parallelize(policy, window=8, mode=mode), 2)
    policy = parallelize(build(Read, wrap=Reading), window=8, mode="plan")
    with pytest.raises(NotSupportedError, match="without a batch dimension"):
        plans(policy, 2)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_a_loop_that_runs_without_gradients_is_solved_without(quiet: Any) -> None:
    seen = []

    class Quiet(double.DiffusionDouble):
        def denoise(self, *args: Any, **kwargs: Any) -> Tensor:
            with quiet():
                return super().denoise(*args, **kwargs)

    policy = parallelize(build(Quiet), window=8, mode="plan")
    policy.model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    torch.manual_seed(5)
    known, mask, given = policy.arranged(torch.ones(1, double.SEEN, double.STATES))
    found = policy.conditional_sample(known, mask, **given)
    assert not found.requires_grad
    assert found.is_inference() == (quiet is torch.inference_mode)
    assert seen
    assert not any(seen)


def test_a_network_in_another_mode_inside_of_the_loop_is_no_plan() -> None:
    class Modal(double.DiffusionDouble):
        def denoise(self, *args: Any, **kwargs: Any) -> Tensor:
            self.model.eval()
            try:
                return super().denoise(*args, **kwargs)
            finally:
                self.model.train()

    policy = parallelize(build(Modal).train(), window=8, mode="plan")
    with pytest.raises(NotSupportedError, match=r"another mode \(train or eval\)"):
        plans(policy, 1)
