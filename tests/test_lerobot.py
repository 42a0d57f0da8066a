"""The real DiffusionPolicy of LeRobot, where the package can be imported; docs/robots.md says how to run this."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.real_policies import STEPS, compare, train

pytest.importorskip("diffusers")
lerobot = pytest.importorskip("lerobot.policies.diffusion.modeling_diffusion", reason="LeRobot is not installed")
pytestmark = [pytest.mark.lerobot, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

HORIZON, STATES, ACTIONS = 16, 3, 4
STATE, PLACE, IMAGE = "observation.state", "observation.environment_state", "observation.image"


def build(levels: str, prediction: str, *, images: bool, **more: Any) -> Any:
    types: Any = import_module("lerobot.configs.types")
    configuration: Any = import_module("lerobot.policies.diffusion.configuration_diffusion")

    torch.manual_seed(0)
    seen = {STATE: types.PolicyFeature(types.FeatureType.STATE, (STATES,))}
    if images:
        seen[IMAGE] = types.PolicyFeature(types.FeatureType.VISUAL, (3, 48, 48))
    else:
        seen[PLACE] = types.PolicyFeature(types.FeatureType.ENV, (2,))
    config = configuration.DiffusionConfig(
        input_features=seen,
        output_features={"action": types.PolicyFeature(types.FeatureType.ACTION, (ACTIONS,))},
        noise_scheduler_type=levels.upper(),
        prediction_type=prediction,
        num_inference_steps=STEPS[levels],
        down_dims=(32, 64),
        diffusion_step_embed_dim=32,
        crop_shape=(40, 40),
        horizon=HORIZON,
        n_action_steps=8,
        device="cpu",
        **more,
    )
    policy = lerobot.DiffusionPolicy(config).eval()
    model = policy.diffusion
    cond = torch.randn(32, conditioned(policy, 1).shape[1])
    train(model.unet, model.noise_scheduler, (HORIZON, ACTIONS), lambda x, t: model.unet(x, t, global_cond=cond))
    return policy


def observed(policy: Any, batch: int) -> dict[str, Tensor]:
    seen = {STATE: torch.rand(batch, STATES) * 2 - 1}
    if policy.config.image_features:
        return seen | {IMAGE: torch.rand(batch, 3, 48, 48)}
    return seen | {PLACE: torch.rand(batch, 2)}


def conditioned(policy: Any, batch: int) -> Tensor:
    """What LeRobot's own code makes of observations."""
    seen = {name: value[:, None].expand(-1, 2, *value.shape[1:]) for name, value in observed(policy, batch).items()}
    if policy.config.image_features:
        seen["observation.images"] = seen.pop(IMAGE)[:, :, None]
    with torch.no_grad():
        return policy.diffusion._prepare_global_conditioning(seen)


@pytest.mark.parametrize(("levels", "prediction"), [("ddpm", "epsilon"), ("ddim", "epsilon"), ("ddpm", "sample")])
@pytest.mark.parametrize("images", [False, True], ids=["state", "image"])
def test_the_real_policy_selects_the_same_actions(levels: str, prediction: str, images: bool) -> None:
    policy = build(levels, prediction, images=images)
    name = f"LeRobot DiffusionPolicy {'image' if images else 'state'} {levels} {prediction}"
    for batch in (1, 8):
        seen = [observed(policy, batch) for _ in range(10)]

        def roll_out(seen: list[dict[str, Tensor]] = seen) -> Tensor:
            policy.reset()
            return torch.stack([policy.select_action(dict(one)) for one in seen], 1)  # two plans of eight actions

        compare(f"{name} select_action", policy, roll_out, None)
        cond, generator = conditioned(policy, batch), torch.Generator()
        noise = torch.randn(batch, HORIZON, ACTIONS)
        with_noise = functools.partial(plan, policy, cond, noise=noise)
        compare(f"{name} conditional_sample", policy, functools.partial(plan, policy, cond, generator), generator)
        compare(f"{name} conditional_sample(noise=)", policy, with_noise, None)


def plan(policy: Any, cond: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
    return policy.diffusion.conditional_sample(len(cond), global_cond=cond, generator=generator, noise=noise)
