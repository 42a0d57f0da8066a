"""A diffusion policy (Chi et al., 2023): the network, its sampler and what the arm is told.

The class keeps the contract of the published `DiffusionUnetLowdimPolicy` with observations as global condition:
`conditional_sample` and `predict_action` take and return the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.metaworld.unet1d import ConditionalUnet1D

OBSERVATION, ACTION = 21, 4  # numbers seen and commanded every step
OBSERVATION_STEPS, HORIZON, ACTION_STEPS = 2, 16, 8  # seen, planned, executed
TRAIN_STEPS = 100
WEIGHTS = Path(__file__).with_name("weights")


class Normalizer(nn.Module):
    """A linear map of every feature to [-1, 1]; one that never changes becomes 0.

    Args:
        features: how many there are.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("offset", torch.zeros(features))

    def fit(self, values: Tensor) -> None:
        """Take the limits of values, shape (..., features)."""
        flat = values.flatten(0, -2)
        low, high = flat.amin(0), flat.amax(0)
        self.scale = torch.where(high - low > 1e-4, 2 / (high - low), 1.0)
        self.offset = -self.scale * (high + low) / 2

    def normalize(self, values: Tensor) -> Tensor:
        """Map to [-1, 1]."""
        return values * self.scale + self.offset

    def unnormalize(self, values: Tensor) -> Tensor:
        """Map back."""
        return (values - self.offset) / self.scale


class DiffusionPolicy(nn.Module):
    """Plans HORIZON actions from the last OBSERVATION_STEPS observations by denoising.

    Args:
        model: the denoiser, called as `model(trajectory, t, local_cond=, global_cond=)`.
        noise_scheduler: a scheduler of Diffusers.
        num_inference_steps: denoising steps; as many as it was trained with if not given.
        kwargs: handed to every `noise_scheduler.step`, such as `eta`.
    """

    def __init__(
        self,
        model: nn.Module,
        noise_scheduler: Any,
        num_inference_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.model, self.noise_scheduler, self.kwargs = model, noise_scheduler, kwargs
        self.normalizer = nn.ModuleDict({"obs": Normalizer(OBSERVATION), "action": Normalizer(ACTION)})
        self.horizon, self.n_obs_steps, self.n_action_steps = HORIZON, OBSERVATION_STEPS, ACTION_STEPS
        self.num_inference_steps = num_inference_steps or noise_scheduler.config.num_train_timesteps

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Denoise a batch of trajectories.

        Args:
            condition_data: what is known of the trajectories, shape (batch, steps, features).
            condition_mask: where it is known, likewise.
            local_cond: condition of every step, for the model.
            global_cond: condition of the whole, for the model.
            generator: of the start and the noise, one or one a trajectory; torch's global one if not given.
            kwargs: handed to every `noise_scheduler.step`.

        Returns:
            The trajectories, shape (batch, steps, features).
        """
        trajectory: Tensor = randn_tensor(
            condition_data.shape, generator=generator, dtype=condition_data.dtype, device=condition_data.device
        )
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            trajectory = torch.where(condition_mask, condition_data, trajectory)
            output = self.model(trajectory, t, local_cond=local_cond, global_cond=global_cond)
            step = self.noise_scheduler.step(output, t, trajectory, generator=generator, **kwargs)
            trajectory = step.prev_sample
        return torch.where(condition_mask, condition_data, trajectory)

    def predict_action(self, obs_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan.

        Args:
            obs_dict: `obs`, the last observations, shape (batch, OBSERVATION_STEPS, 21).

        Returns:
            `action`, the actions to execute, shape (batch, ACTION_STEPS, 4), and `action_pred`, the whole plan, shape
            (batch, HORIZON, 4), whose first action belongs to the first observation.
        """
        condition = self.condition(obs_dict["obs"])
        unknown = condition.new_zeros(len(condition), self.horizon, ACTION)
        plan = self.conditional_sample(
            unknown, torch.zeros_like(unknown, dtype=torch.bool), global_cond=condition, **self.kwargs
        )
        return {"action": self.actions(plan), "action_pred": self.unnormalized(plan)}

    def actions(self, plan: Tensor) -> Tensor:
        """Take the actions to execute, shape (batch, ACTION_STEPS, 4), out of a sampled plan."""
        start = self.n_obs_steps - 1
        return self.unnormalized(plan[:, start : start + self.n_action_steps])

    def unnormalized(self, plan: Tensor) -> Tensor:
        """Turn sampled values into actions, shape (..., 4)."""
        normalizer: Any = self.normalizer["action"]
        return normalizer.unnormalize(plan)

    def condition(self, observations: Tensor) -> Tensor:
        """Make the global condition, shape (batch, OBSERVATION_STEPS * 21), of observations (batch, steps, 21)."""
        normalizer: Any = self.normalizer["obs"]
        return normalizer.normalize(observations)[:, : self.n_obs_steps].flatten(1)


def scheduler() -> Any:
    """Make the published sampler: DDPM, 100 steps, cosine schedule, clipped data, noise prediction."""
    kind: Any = DDPMScheduler
    return kind(num_train_timesteps=TRAIN_STEPS, beta_schedule="squaredcos_cap_v2", clip_sample=True)


def network(*, published_size: bool = False) -> ConditionalUnet1D:
    """Build the untrained network, of the published configuration: 1.2 million parameters, or the published 65.8."""
    down_dims, embed = ((256, 512, 1024), 256) if published_size else ((32, 64, 128), 64)
    return ConditionalUnet1D(
        ACTION,
        global_cond_dim=OBSERVATION * OBSERVATION_STEPS,
        diffusion_step_embed_dim=embed,
        down_dims=down_dims,
        kernel_size=5,
        cond_predict_scale=True,
    )


def load(task: str, num_inference_steps: int | None = None) -> DiffusionPolicy:
    """Load the trained policy of a task, in evaluation mode and without gradients."""
    policy = DiffusionPolicy(network(), scheduler(), num_inference_steps)
    weights = load_file(WEIGHTS / f"{task}.safetensors")
    policy.load_state_dict({name: value.float() for name, value in weights.items()})
    return policy.eval().requires_grad_(False)
