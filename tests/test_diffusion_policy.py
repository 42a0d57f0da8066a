"""The real policies of DiffusionPolicy, where the package can be imported; docs/robots.md says how to run this."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.real_policies import STEPS, compare, scheduler, train

pytest.importorskip("diffusers")
pytest.importorskip("diffusion_policy.policy.base_lowdim_policy", reason="DiffusionPolicy is not installed")
pytestmark = [pytest.mark.diffusion_policy, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

HORIZON, OBSERVED, ACTIONS, SEEN = 16, 5, 4, 2
NET = {"diffusion_step_embed_dim": 32, "down_dims": (32, 64)}
META = {
    "obs": {"image": {"shape": (3, 48, 48), "type": "rgb"}, "place": {"shape": (OBSERVED,), "type": "low_dim"}},
    "action": {"shape": (ACTIONS,)},
}
TASK = {"horizon": HORIZON, "n_action_steps": 8, "n_obs_steps": SEEN}
LOW = {"obs_dim": OBSERVED, "action_dim": ACTIONS, **TASK}
CASES = (
    "DiffusionUnetLowdimPolicy global",
    "DiffusionUnetLowdimPolicy global, action steps only",
    "DiffusionUnetLowdimPolicy local",
    "DiffusionUnetLowdimPolicy inpainting",
    "DiffusionTransformerLowdimPolicy cond",
    "DiffusionTransformerLowdimPolicy inpainting",
    "DiffusionUnetImagePolicy global",
    "DiffusionUnetImagePolicy inpainting",
    "DiffusionUnetHybridImagePolicy global",
    "DiffusionTransformerHybridImagePolicy cond",
)


def its(module: str) -> Any:
    return import_module(f"diffusion_policy.{module}")


def unet_lowdim(kind: str, levels: Any, steps: int) -> Any:
    ConditionalUnet1D = its("model.diffusion.conditional_unet1d").ConditionalUnet1D
    DiffusionUnetLowdimPolicy = its("policy.diffusion_unet_lowdim_policy").DiffusionUnetLowdimPolicy

    known = kind == "inpainting"
    network = ConditionalUnet1D(
        input_dim=ACTIONS + (OBSERVED if known else 0),
        local_cond_dim=OBSERVED if kind == "local" else None,
        global_cond_dim=SEEN * OBSERVED if kind.startswith("global") else None,
        **NET,
    )
    return DiffusionUnetLowdimPolicy(
        network,
        levels,
        num_inference_steps=steps,
        obs_as_local_cond=kind == "local",
        obs_as_global_cond=kind.startswith("global"),
        pred_action_steps_only=kind.endswith("only"),
        **LOW,
    )


def transformer_lowdim(kind: str, levels: Any, steps: int) -> Any:
    TransformerForDiffusion = its("model.diffusion.transformer_for_diffusion").TransformerForDiffusion
    module = its("policy.diffusion_transformer_lowdim_policy")

    channels, seen = ACTIONS + (0 if kind == "cond" else OBSERVED), OBSERVED if kind == "cond" else 0
    network = TransformerForDiffusion(
        channels, channels, HORIZON, SEEN, cond_dim=seen, n_layer=2, n_head=2, n_emb=32, causal_attn=True
    )
    return module.DiffusionTransformerLowdimPolicy(
        network, levels, num_inference_steps=steps, obs_as_cond=kind == "cond", **LOW
    )


def unet_image(kind: str, levels: Any, steps: int) -> Any:
    torchvision = pytest.importorskip("torchvision", reason="DiffusionPolicy's image policies need torchvision")
    MultiImageObsEncoder = its("model.vision.multi_image_obs_encoder").MultiImageObsEncoder
    DiffusionUnetImagePolicy = its("policy.diffusion_unet_image_policy").DiffusionUnetImagePolicy

    sight = torchvision.models.resnet18(weights=None)
    sight.fc = torch.nn.Linear(512, 8)
    encoder = MultiImageObsEncoder(META, sight, crop_shape=(40, 40), use_group_norm=True, imagenet_norm=True)
    return DiffusionUnetImagePolicy(
        META, levels, encoder, num_inference_steps=steps, obs_as_global_cond=kind == "global", **TASK, **NET
    )


def hybrid(kind: str, levels: Any, steps: int) -> Any:
    pytest.importorskip("robomimic", reason="DiffusionPolicy's hybrid policies need robomimic")
    pytest.importorskip("torchvision", reason="DiffusionPolicy's hybrid policies need torchvision")
    options = {"num_inference_steps": steps, "crop_shape": (40, 40), "obs_encoder_group_norm": True, **TASK}
    if kind == "global":
        DiffusionUnetHybridImagePolicy = its("policy.diffusion_unet_hybrid_image_policy").DiffusionUnetHybridImagePolicy

        return DiffusionUnetHybridImagePolicy(META, levels, **options, **NET)
    module = its("policy.diffusion_transformer_hybrid_image_policy")

    return module.DiffusionTransformerHybridImagePolicy(META, levels, n_layer=2, n_head=2, n_emb=32, **options)


BUILDERS = {
    "DiffusionUnetLowdimPolicy": unet_lowdim,
    "DiffusionTransformerLowdimPolicy": transformer_lowdim,
    "DiffusionUnetImagePolicy": unet_image,
    "DiffusionUnetHybridImagePolicy": hybrid,
    "DiffusionTransformerHybridImagePolicy": hybrid,
}


@pytest.mark.parametrize(("levels", "prediction"), [("ddpm", "epsilon"), ("ddim", "epsilon"), ("ddpm", "sample")])
@pytest.mark.parametrize("case", CASES)
def test_the_real_policies_plan_the_same_actions(case: str, levels: str, prediction: str) -> None:
    field = its("model.common.normalizer")

    torch.manual_seed(0)
    name, kind = case.split(" ", 1)
    steps = scheduler(levels, prediction)
    policy = BUILDERS[name](kind, steps, STEPS[levels])
    assert type(policy).__name__ == name
    normalizer = field.LinearNormalizer()
    for key in ("obs", "image", "place", "action"):
        normalizer[key] = field.SingleFieldLinearNormalizer.create_identity()
    policy.set_normalizer(normalizer)
    policy.eval()

    def observed(batch: int) -> dict[str, Tensor]:
        place = torch.rand(batch, SEEN, OBSERVED) * 2 - 1
        return {"obs": place} if "Lowdim" in name else {"image": torch.rand(batch, SEEN, 3, 48, 48), "place": place}

    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    own = policy.conditional_sample

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        caught.append((args, kwargs))
        return own(*args, **kwargs)

    policy.conditional_sample = spy
    with torch.no_grad():
        policy.predict_action(observed(1))
    del policy.conditional_sample
    (known, _), cond = caught[0]

    def call(x: Tensor, t: Tensor) -> Tensor:
        given = {key: None if one is None else torch.randn(32, *one.shape[1:]) for key, one in cond.items()}
        return policy.model(x, t, **given)

    train(policy.model, steps, tuple(known.shape[1:]), call)
    for batch in (1, 8):
        seen = observed(batch)
        compare(f"{case} {levels} {prediction}", policy, functools.partial(act, policy, seen), None)
    given = {key: None if one is None else torch.randn_like(one) for key, one in cond.items()}
    generator = torch.Generator()
    mask = torch.rand_like(known) < 0.2

    def sample() -> Tensor:
        return policy.conditional_sample(known, mask, **given, generator=generator)

    compare(f"{case} {levels} {prediction}", policy, sample, generator)


def act(policy: Any, seen: dict[str, Tensor]) -> Tensor:
    return policy.predict_action(seen)["action"]
