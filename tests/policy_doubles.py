"""Doubles of robot policies: what the adapter sees of DiffusionPolicy and LeRobot, with small networks of their kinds.

They keep each family's contract: the arguments, the loop over the scheduler's timesteps, where known actions are put
in, how the network is called, what draws random numbers and when. They contain no code of either package.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HORIZON, ACTIONS, STATES, SEEN = 8, 2, 3, 2


class Unet(nn.Module):
    """A one-dimensional network with global and local conditioning, over (batch, horizon, channels)."""

    def __init__(self, channels: int = ACTIONS, global_dim: int = 0, local_dim: int = 0, width: int = 16) -> None:
        super().__init__()
        self.into = nn.Conv1d(channels + local_dim, width, 3, padding=1)
        self.film = nn.Linear(global_dim + 4, 2 * width)
        self.inner = nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Conv1d(width, channels, 3, padding=1)
        self.shapes: set[int] = set()
        self.calls = self.rows = 0

    def forward(
        self, sample: Tensor, timestep: Any, local_cond: Tensor | None = None, global_cond: Tensor | None = None
    ) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(sample)
        self.shapes.add(len(sample))
        t = torch.as_tensor(timestep).to(sample.device, sample.dtype).expand(len(sample))[:, None] / 100
        about = [torch.cat([t, t.square(), torch.sin(6 * t), torch.cos(6 * t)], 1)]
        scale, shift = self.film(torch.cat(about + ([] if global_cond is None else [global_cond]), 1)).chunk(2, 1)
        x = sample if local_cond is None else torch.cat([sample, local_cond], 2)
        h = self.into(x.movedim(1, 2))
        h = F.mish(F.group_norm(h, 4) * (1 + scale[..., None]) + shift[..., None])
        return self.out(F.mish(self.inner(h)) + h).movedim(1, 2)


class Transformer(nn.Module):
    """A transformer over the horizon that attends to the observations."""

    def __init__(self, channels: int = ACTIONS, cond_dim: int = STATES, width: int = 16) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(channels, width), nn.Linear(width, channels)
        self.time, self.seen = nn.Linear(2, width), nn.Linear(cond_dim, width)
        self.place = nn.Parameter(0.1 * torch.randn(HORIZON, width))
        self.layer = nn.TransformerDecoderLayer(width, 2, 32, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, sample: Tensor, timestep: Any, cond: Tensor | None = None, **_: Any) -> Tensor:
        t = torch.as_tensor(timestep).to(sample.device, sample.dtype).expand(len(sample)) / 100
        memory = self.time(torch.stack([torch.sin(6 * t), torch.cos(6 * t)], 1))[:, None]
        if cond is not None:
            memory = torch.cat([memory, self.seen(cond)], 1)
        return self.out(self.layer(self.into(sample) + self.place, memory))


class Learned(nn.Module):
    """A network as training leaves it: what it predicts is bounded data, which a scheduler clips here and there.

    The outputs of a network with random weights instead have nothing to do with the noise in their input. Then a
    rounding error decides between the two ends of the clipping range, in the sequential loop as well.
    """

    def __init__(self, inner: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.inner, self.prediction = inner, scheduler.config.prediction_type
        self.register_buffer("bars", scheduler.alphas_cumprod.clone())

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Tensor:
        data = 1.1 * torch.tanh(2 * self.inner(sample, timestep, *args, **kwargs))
        if self.prediction == "sample":
            return data
        bars: Any = self.bars
        bar = bars[torch.as_tensor(timestep).to(sample.device).expand(len(sample))][:, None, None]
        return (sample - bar.sqrt() * data) / (1 - bar).sqrt()


class DiffusionDouble(nn.Module):
    """Has the contract of DiffusionPolicy's U-Net policies, low-dimensional and image ones.

    Args:
        network: called with `local_cond` and `global_cond`.
        scheduler: a Diffusers scheduler.
        kind: "global", "local" or "inpaint".
        step: passed on to `scheduler.step`.
    """

    def __init__(self, network: nn.Module, scheduler: Any, *, kind: str, steps: int | None = None, **step: Any) -> None:
        super().__init__()
        self.model, self.noise_scheduler, self.kind, self.kwargs = network, scheduler, kind, step
        self.horizon, self.n_action_steps, self.n_obs_steps = HORIZON, 4, SEEN
        self.num_inference_steps = scheduler.config.num_train_timesteps if steps is None else steps
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        given = {"local_cond": local_cond, "global_cond": global_cond}
        return self.denoise(condition_data, condition_mask, generator, kwargs, given)

    def denoise(
        self,
        known: Tensor,
        mask: Tensor,
        generator: torch.Generator | None,
        step: dict[str, Any],
        named: dict[str, Any],
        *listed: Any,
    ) -> Tensor:
        x = torch.randn(known.shape, generator=generator, dtype=known.dtype, device=known.device)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x[mask] = known[mask]
            output = self.model(x, t, *listed, **named)
            x = self.noise_scheduler.step(output, t, x, generator=generator, **step).prev_sample
        x[mask] = known[mask]
        return x

    def predict_action(self, obs_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        obs = obs_dict["obs"]
        known, mask, given = self.arranged(obs)
        sampled = self.conditional_sample(known, mask, **given, **self.kwargs)
        actions = sampled[..., :ACTIONS]
        start = self.n_obs_steps - 1
        return {"action": actions[:, start : start + self.n_action_steps], "action_pred": actions}

    def arranged(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Put observations where this kind of policy has them: known state, mask, conditioning."""
        seen = obs[:, : self.n_obs_steps]
        known = obs.new_zeros(len(obs), self.horizon, ACTIONS + (STATES if self.kind == "inpaint" else 0))
        mask = torch.zeros_like(known, dtype=torch.bool)
        if self.kind == "global":
            return known, mask, {"global_cond": seen.flatten(1)}
        if self.kind == "local":
            local = obs.new_zeros(len(obs), self.horizon, STATES)
            local[:, : self.n_obs_steps] = seen
            return known, mask, {"local_cond": local}
        known[:, : self.n_obs_steps, ACTIONS:] = seen
        mask[:, : self.n_obs_steps, ACTIONS:] = True
        return known, mask, {}


class TransformerDouble(DiffusionDouble):
    """Has the contract of DiffusionPolicy's transformer policies; kind "cond" or "inpaint"."""

    def conditional_sample(  # type: ignore[override]  # the two kinds differ in just this
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        return self.denoise(condition_data, condition_mask, generator, kwargs, {}, cond)

    def arranged(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        if self.kind == "inpaint":
            return super().arranged(obs)
        known = obs.new_zeros(len(obs), self.horizon, ACTIONS)
        return known, torch.zeros_like(known, dtype=torch.bool), {"cond": obs[:, : self.n_obs_steps]}


class LeRobotModel(nn.Module):
    """Has the contract of LeRobot's `DiffusionModel`."""

    def __init__(self, network: nn.Module, scheduler: Any, steps: int | None = None) -> None:
        super().__init__()
        self.unet, self.noise_scheduler = network, scheduler
        self.config = SimpleNamespace(horizon=HORIZON, n_action_steps=4, n_obs_steps=SEEN)
        self.num_inference_steps = scheduler.config.num_train_timesteps if steps is None else steps

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        like = next(iter(self.parameters()))
        shape = (batch_size, self.config.horizon, ACTIONS)
        x = noise
        if x is None:
            x = torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            times = torch.full(x.shape[:1], int(t), dtype=torch.long, device=x.device)
            output = self.unet(x, times, global_cond=global_cond)
            x = self.noise_scheduler.step(output, t, x, generator=generator).prev_sample
        return x


class LeRobotDouble(nn.Module):
    """Has the contract of LeRobot's `DiffusionPolicy`: a queue of observations and one of actions."""

    def __init__(self, network: nn.Module, scheduler: Any, steps: int | None = None) -> None:
        super().__init__()
        self.diffusion = LeRobotModel(network, scheduler, steps)
        self.config = self.diffusion.config
        self.reset()

    def reset(self) -> None:
        self.seen: deque[Tensor] = deque(maxlen=self.config.n_obs_steps)
        self.queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        state = batch["observation.state"]
        while len(self.seen) < SEEN - 1:
            self.seen.append(state)
        self.seen.append(state)
        if not self.queue:
            cond = torch.stack(list(self.seen), 1).flatten(1)
            actions = self.diffusion.conditional_sample(len(state), global_cond=cond, noise=noise)
            self.queue.extend(actions[:, SEEN - 1 : SEEN - 1 + self.config.n_action_steps].transpose(0, 1))
        return self.queue.popleft()
