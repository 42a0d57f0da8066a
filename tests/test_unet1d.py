"""The U-Net of the robot example is the published one: its size, its checkpoints, its outputs."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from examples.metaworld.policy import network
from examples.metaworld.unet1d import ConditionalUnet1D

SHAPES: dict[str, dict[str, Any]] = {
    "published lowdim": {"global_cond_dim": 42, "kernel_size": 5, "cond_predict_scale": True},
    "shift only": {"global_cond_dim": 7, "down_dims": (32, 64), "diffusion_step_embed_dim": 16},
    "four levels": {"down_dims": (16, 32, 48, 64), "diffusion_step_embed_dim": 32, "cond_predict_scale": True},
    "local condition": {
        "local_cond_dim": 5,
        "down_dims": (32, 64, 128),
        "diffusion_step_embed_dim": 32,
        "n_groups": 4,
    },
}


def build(kind: Any, options: dict[str, Any]) -> Any:
    return kind(4, **{**options, "down_dims": list(options.get("down_dims", (256, 512, 1024)))}).eval()


def inputs(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    rows, generator = 3, torch.Generator().manual_seed(0)
    given = {
        "sample": torch.randn(rows, 16, 4, generator=generator),
        "timestep": torch.tensor([0, 40, 99]),
    }
    if "global_cond_dim" in options:
        given["global_cond"] = torch.randn(rows, options["global_cond_dim"], generator=generator)
    if "local_cond_dim" in options:
        given["local_cond"] = torch.randn(rows, 16, options["local_cond_dim"], generator=generator)
    return given


def test_sizes() -> None:
    def count(net: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    with torch.device("meta"):  # sizes need no values
        assert count(network(published_size=True)) == 65_815_556
    assert count(network()) == 1_184_036


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "published lowdim"])
@torch.no_grad()
def test_rows_and_ways_to_give_the_step(name: str) -> None:
    net, given = build(ConditionalUnet1D, SHAPES[name]), inputs(SHAPES[name])
    together = net(**given)
    assert together.shape == given["sample"].shape
    for row, t in enumerate(given["timestep"].tolist()):
        alone = {key: value[row : row + 1] for key, value in given.items()}
        for step in (alone["timestep"], torch.tensor(t), t):
            torch.testing.assert_close(net(**{**alone, "timestep": step})[0], together[row], rtol=1e-4, atol=1e-5)
    for key in given:  # every input counts
        changed = {**given, key: given[key] + 1}
        assert not torch.allclose(net(**changed), together, atol=1e-4)


@pytest.mark.diffusion_policy
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_equals_the_original(name: str) -> None:
    try:
        original: Any = importlib.import_module("diffusion_policy.model.diffusion.conditional_unet1d")
    except ImportError as error:
        pytest.skip(f"real-stanford/diffusion_policy and einops must be on PYTHONPATH: {error}")
    theirs, ours = (build(kind, SHAPES[name]) for kind in (original.ConditionalUnet1D, ConditionalUnet1D))
    ours.load_state_dict(theirs.state_dict())
    given = inputs(SHAPES[name])
    torch.testing.assert_close(ours(**given), theirs(**given), rtol=1e-5, atol=1e-6)
