"""The pipelines the tests run, from tiny random components, and how they are called."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny_diffusers as tiny

library = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

STEPS = 10
Case = tuple[Callable[[], Any], dict[str, Any]]


def picture(seed: int) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8))


def mask() -> Any:
    from PIL import Image

    return Image.fromarray(np.kron(np.eye(2), np.ones((8, 8))).astype(np.uint8) * 255)


def ddim(**config: Any) -> Any:
    return library.DDIMScheduler(**{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **config})


TEXT = {"prompt": ["a cat", "big dog house"], "negative_prompt": ["ugly", "bad thing"]}
SIZE = {"height": 16, "width": 16}
SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"

CASES: dict[str, Case] = {
    "sd-ddim": (lambda: tiny.stable_diffusion(SD, ddim()), {**TEXT, **SIZE}),
    "sd-ddim-eta": (lambda: tiny.stable_diffusion(SD, ddim()), {**TEXT, **SIZE, "eta": 0.7, "guidance_rescale": 0.5}),
    "sd-ddim-trailing": (lambda: tiny.stable_diffusion(SD, ddim(timestep_spacing="trailing")), {**TEXT, **SIZE}),
    "sd-ddim-linspace": (lambda: tiny.stable_diffusion(SD, ddim(timestep_spacing="linspace")), {**TEXT, **SIZE}),
    "sd-ddpm-fixed-large": (
        lambda: tiny.stable_diffusion(
            SD, library.DDPMScheduler(clip_sample=False, variance_type="fixed_large", timestep_spacing="trailing")
        ),
        {**TEXT, **SIZE},
    ),
    "sd-pndm": (lambda: tiny.stable_diffusion(SD, library.PNDMScheduler(steps_offset=1)), {**TEXT, **SIZE}),
    "sd-unipc": (lambda: tiny.stable_diffusion(SD, library.UniPCMultistepScheduler()), {**TEXT, **SIZE}),
    "sd-heun": (lambda: tiny.stable_diffusion(SD, library.HeunDiscreteScheduler()), {**TEXT, **SIZE}),
    "sd-euler-ancestral": (
        lambda: tiny.stable_diffusion(SD, library.EulerAncestralDiscreteScheduler()),
        {**TEXT, **SIZE},
    ),
    "sd-sde-dpm": (
        lambda: tiny.stable_diffusion(SD, library.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")),
        {**TEXT, **SIZE},
    ),
    "sd-no-guidance": (
        lambda: tiny.stable_diffusion(SD, ddim()),
        {"prompt": TEXT["prompt"], **SIZE, "guidance_scale": 1.0},
    ),
    "sd-img2img": (
        lambda: tiny.stable_diffusion("StableDiffusionImg2ImgPipeline", library.DDPMScheduler(clip_sample=False)),
        {**TEXT, "image": [picture(0), picture(1)], "strength": 0.7},
    ),
    "sd-inpaint": (
        lambda: tiny.stable_diffusion("StableDiffusionInpaintPipeline", ddim()),
        {**TEXT, **SIZE, "image": [picture(0), picture(1)], "mask_image": [mask(), mask()], "strength": 0.8},
    ),
    "sd-inpaint-mask-channels": (
        lambda: tiny.stable_diffusion("StableDiffusionInpaintPipeline", ddim(), 9),
        {**TEXT, **SIZE, "image": [picture(0), picture(1)], "mask_image": [mask(), mask()]},
    ),
    "sd-controlnet": (
        lambda: tiny.stable_diffusion("StableDiffusionControlNetPipeline", ddim(), controlnet=tiny.controlnet()),
        {**TEXT, **SIZE, "image": [picture(0), picture(1)]},
    ),
    "sd-pix2pix": (
        lambda: tiny.stable_diffusion(
            "StableDiffusionInstructPix2PixPipeline", library.EulerDiscreteScheduler(), 8, image_encoder=None
        ),
        {**TEXT, "image": [picture(0), picture(1)], "image_guidance_scale": 2.0},
    ),
    "sdxl": (lambda: tiny.stable_diffusion_xl(SDXL, library.EulerDiscreteScheduler()), {**TEXT, **SIZE}),
    "sd3": (
        lambda: tiny.stable_diffusion_3("StableDiffusion3Pipeline", library.FlowMatchEulerDiscreteScheduler(shift=3.0)),
        {**TEXT, **SIZE},
    ),
    "flux": (
        lambda: tiny.flux("FluxPipeline", library.FlowMatchEulerDiscreteScheduler()),
        {"prompt": TEXT["prompt"], **SIZE, "max_sequence_length": 8},
    ),
    "flux-true-cfg": (
        lambda: tiny.flux("FluxPipeline", library.FlowMatchEulerDiscreteScheduler()),
        {**TEXT, **SIZE, "max_sequence_length": 8, "true_cfg_scale": 2.0},
    ),
    "dit": (lambda: tiny.dit(ddim()), {"class_labels": [1, 7]}),
    "pixart": (
        lambda: tiny.pixart(library.DPMSolverMultistepScheduler()),
        {**TEXT, **SIZE, "max_sequence_length": 8, "use_resolution_binning": False},
    ),
    "ddpm": (lambda: library.DDPMPipeline(tiny.unconditional_unet(), library.DDPMScheduler()), {"batch_size": 2}),
    "ddim": (
        lambda: library.DDIMPipeline(tiny.unconditional_unet(), library.DDIMScheduler()),
        {"batch_size": 2, "eta": 0.5},
    ),
    "animatediff": (
        lambda: tiny.animatediff(ddim(beta_schedule="linear")),
        {**TEXT, **SIZE, "num_frames": 3},
    ),
    "wan-video": (
        lambda: tiny.wan(library.FlowMatchEulerDiscreteScheduler(shift=3.0)),
        {**TEXT, **SIZE, "num_frames": 5, "max_sequence_length": 8},
    ),
}

# Cases that do what no plan can say, with a part of the reason that is given.
REPLAYED = {
    "sd-pndm": "no banded recurrence",
    "sd-inpaint": "changes the state between two steps",
    "sd-controlnet": "down_block_additional_residuals",
}


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (4, 5)]


def call(pipe: Any, given: dict[str, Any], **more: Any) -> tuple[np.ndarray[Any, Any], list[Tensor]]:
    """Run a pipeline; return its images, and where its generators stand afterwards."""
    own = generators()
    torch.manual_seed(6)
    images = pipe(**{"generator": own, "num_inference_steps": STEPS, "output_type": "np", **given, **more})[0]
    return np.asarray(images), [generator.get_state() for generator in own]


def pair(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    make, given = CASES[name]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return pipe, given
