"""Whole pipelines of Diffusers, from tiny random components: in parallel they give the sequential images."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from picard import InvalidProblemError, NotSupportedError
from picard.adapters import parallelize, restore
from tests import tiny_diffusers as tiny

library = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of Diffusers and transformers about each other

STEPS = 14
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
    "wan-video": (
        lambda: tiny.wan(library.FlowMatchEulerDiscreteScheduler(shift=3.0)),
        {**TEXT, **SIZE, "num_frames": 5, "max_sequence_length": 8},
    ),
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


@pytest.mark.parametrize("name", CASES)
def test_images_are_the_sequential_ones(name: str) -> None:
    pipe, given = pair(name)
    expected, states = call(pipe, given)
    assert expected.std() > 0.05
    found, after = call(parallelize(pipe, window=8), given)
    assert float(np.abs(found - expected).max()) <= 1 / 255
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))
    stats = pipe.picard.stats
    assert stats.rounds <= stats.sequential_evaluations
    assert stats.evaluations >= stats.sequential_evaluations * stats.rows


@pytest.mark.parametrize("name", [name for name in CASES if name not in {"ddpm", "ddim"}])
def test_latents_agree_to_rounding_at_zero_tolerance(name: str) -> None:
    pipe, given = pair(name)
    expected, _ = call(pipe, given, output_type="latent")
    found, _ = call(parallelize(pipe, window=6, tolerance=0.0), given, output_type="latent")
    assert float(np.abs(found - expected).max()) <= 2e-5 * float(np.abs(expected).max())


def test_restore_and_context() -> None:
    pipe, given = pair("sd-ddim")
    kind, unet, scheduler = type(pipe), pipe.unet, pipe.scheduler
    with parallelize(pipe, window=8) as inside:
        assert inside is pipe
        assert isinstance(pipe, kind)
        assert type(pipe).__name__ == kind.__name__
        call(pipe, given)
        assert pipe.picard.stats.passes > 1
        assert "window=8" in repr(pipe.picard)
    assert type(pipe) is kind
    assert not hasattr(pipe, "picard")
    assert pipe.unet is unet
    assert pipe.scheduler is scheduler
    assert restore(pipe) is pipe
    assert type(restore(parallelize(parallelize(pipe)))) is kind


def test_every_window_and_max_rows_give_the_same() -> None:
    pipe, given = pair("sd-euler-ancestral")
    expected, _ = call(pipe, given)
    for window, max_rows in ((1, None), (3, None), (64, None), (64, 6)):
        found, _ = call(parallelize(pipe, tolerance=0.0, window=window, max_rows=max_rows), given)
        assert float(np.abs(found - expected).max()) <= 1e-4
    call(parallelize(pipe, window=1), given)
    assert pipe.picard.stats.rounds == pipe.picard.stats.sequential_evaluations


@pytest.mark.parametrize("name", ["sd-ddim", "sd-pndm"])
def test_latents_argument_and_one_generator(name: str) -> None:
    pipe, given = pair(name)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    before = latents.clone()
    more = {"latents": latents, "generator": None}
    expected, _ = call(pipe, given, **more)
    found, _ = call(parallelize(pipe), given, **more)
    assert float(np.abs(found - expected).max()) <= 1 / 255
    assert torch.equal(latents, before)


def test_callbacks_see_every_step_in_the_last_pass_and_may_change_the_state() -> None:
    pipe, given = pair("sd-ddim")
    seen: list[tuple[int, float]] = []

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if not hasattr(pipeline, "picard") or pipeline.picard.final:
            seen.append((step, float(values["latents"].double().abs().sum())))
        if step == 5:
            pipeline._guidance_scale = 2.0  # the way Diffusers documents to change guidance on the way
        return {"latents": values["latents"] * 0.9} if step == 7 else values

    expected, _ = call(pipe, given, callback_on_step_end=callback)
    sequential = seen.copy()
    seen.clear()
    found, _ = call(parallelize(pipe, tolerance=0.0), given, callback_on_step_end=callback)
    assert float(np.abs(found - expected).max()) <= 1e-4
    assert [step for step, _ in seen] == [step for step, _ in sequential] == list(range(STEPS))
    np.testing.assert_allclose([size for _, size in seen], [size for _, size in sequential], rtol=1e-4)


def test_the_progress_bar_is_one_and_only_moves_forward() -> None:
    pipe, given = pair("sd-ddim")
    opened: list[Any] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.total, self.closed = total, False
            self.updates: list[int] = []
            opened.append(self)

        def update(self, count: int) -> None:
            self.updates.append(count)

        def close(self) -> None:
            self.closed = True

    parallelize(pipe)
    pipe.picard.original.progress_bar = lambda self, iterable=None, total=None: Bar(total)
    try:
        call(pipe, given)
    finally:
        del pipe.picard.original.progress_bar
    assert len(opened) == 1
    assert opened[0].total == sum(opened[0].updates) == STEPS
    assert min(opened[0].updates) > 0
    assert opened[0].closed


def test_a_tolerance_below_rounding_does_not_crawl(caplog: pytest.LogCaptureFixture) -> None:
    pipe, given = pair("ddpm")
    with caplog.at_level(logging.WARNING, logger="picard"):
        call(parallelize(pipe, tolerance=0.0), given, num_inference_steps=30)
    assert pipe.picard.stats.rounds < 20
    if pipe.picard.stats.stalled:
        assert "rounding noise" in caplog.text


def test_encoders_run_once_and_the_decoder_once() -> None:
    pipe, given = pair("sd-img2img")
    counts = {"text": 0, "decode": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    pipe.text_encoder.register_forward_hook(count("text"))
    pipe.vae.decoder.register_forward_hook(count("decode"))
    call(pipe, given)
    sequential = dict(counts)
    call(parallelize(pipe), given)
    assert pipe.picard.stats.passes > 3
    assert counts == {name: 2 * number for name, number in sequential.items()}


def test_errors_leave_the_pipeline_as_it_was() -> None:
    pipe, given = pair("sd-ddim")
    unet = pipe.unet
    parallelize(pipe)
    with pytest.raises(ValueError, match="height"):
        call(pipe, given, height=15)
    assert pipe.unet is unet
    call(pipe, given)


def test_a_denoiser_that_remembers_earlier_calls_is_refused() -> None:
    pipe, given = pair("flux")
    pipe.transformer.enable_cache(library.FirstBlockCacheConfig(threshold=0.1))
    parallelize(pipe)
    with pytest.raises(NotSupportedError, match="disable_cache"):
        call(pipe, given)
    pipe.transformer.disable_cache()
    call(pipe, given)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused() -> None:
    pipe: Any = pair("sd-ddim")[0]
    untyped: Any = parallelize
    with pytest.raises(InvalidProblemError, match="replay"):
        untyped(pipe, mode="repaly")
    with pytest.raises(InvalidProblemError, match="window"):
        parallelize(pipe, window=0)
    with pytest.raises(InvalidProblemError, match="tolerance"):
        parallelize(pipe, tolerance=-1.0)
    with pytest.raises(InvalidProblemError, match="unet"):
        parallelize(pipe, denoiser="uent")
    with pytest.raises(NotSupportedError, match="scheduler"):
        parallelize(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="widow"):
        untyped(pipe, widow=3)
