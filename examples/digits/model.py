"""The digits denoiser: a real Diffusers `UNet2DModel` and the schedule it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

WEIGHTS = Path(__file__).with_name("digits.safetensors")
TRAIN_STEPS = 1000
ANY_DIGIT = 10  # the class index that stands for "no label", as classifier-free guidance needs


def build() -> UNet2DModel:
    """Build the untrained network: 8x8 grey images, class-conditional, about 0.7 million parameters."""
    network: Any = UNet2DModel
    return network(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        num_class_embeds=ANY_DIGIT + 1,
    )


def load() -> UNet2DModel:
    """Load the trained network, in evaluation mode and without gradients."""
    unet = build()
    unet.load_state_dict(load_file(WEIGHTS))
    return unet.eval().requires_grad_(False)


def epsilon(unet: UNet2DModel, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Predict the noise in `x` (rows, 1, 8, 8) at training steps `t` (rows,) for classes `label` (rows,)."""
    return unet(x, t, class_labels=label, return_dict=False)[0]
