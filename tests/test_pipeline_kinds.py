"""Pipelines of an unusual form: states written in place, bars and schedulers of their own, pipelines inside."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from picard import NotSupportedError
from picard.adapters import parallelize
from tests import tiny_diffusers as tiny
from tests.pipeline_cases import call, ddim, pair, picture

library = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")


class InPlace(library.DiffusionPipeline):  # type: ignore[misc, name-defined]  # Diffusers is Any
    """A pipeline that writes every step's result into the latents it was given, as Kandinsky 5 does."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        self.scheduler.set_timesteps(8)
        for t in self.scheduler.timesteps:
            latents[:] = self.scheduler.step(self.unet(latents, t).sample, t, latents[:])[0]
        return latents


@pytest.mark.parametrize("mode", ["plan", "replay"])
def test_a_state_that_is_written_in_place(mode: Any) -> None:
    pipe = InPlace(tiny.unconditional_unet(), library.DDIMScheduler(clip_sample=False))
    start = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, found = start.clone(), start.clone()
    pipe(expected)
    parallelize(pipe, mode=mode)(found)
    assert pipe.picard.stats.mode == mode
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_callback_that_changes_the_state_in_place_is_replayed() -> None:
    pipe, given = pair("sd-ddim")

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            values["latents"].mul_(0.9)
        return values

    expected, _ = call(pipe, given, callback_on_step_end=callback)
    found, _ = call(parallelize(pipe), given, callback_on_step_end=callback)
    assert "callback" in pipe.picard.stats.reason
    assert float(np.abs(found - expected).max()) <= 1e-4


def test_a_pipeline_with_a_progress_bar_of_its_own() -> None:
    pipe = library.MarigoldDepthPipeline(
        unet=tiny.unet(8),
        vae=tiny.vae(),
        scheduler=ddim(prediction_type="v_prediction"),
        text_encoder=tiny.clip(),
        tokenizer=tiny.Words(),
        prediction_type="depth",
        scale_invariant=True,
        shift_invariant=True,
        default_denoising_steps=4,
        default_processing_resolution=16,
    )
    pipe.set_progress_bar_config(disable=True)
    given = {"image": picture(0), "processing_resolution": 0}
    expected = pipe(**given, generator=torch.Generator().manual_seed(0))[0]
    found = parallelize(pipe)(**given, generator=torch.Generator().manual_seed(0))[0]
    assert pipe.picard.stats.sequential_evaluations == 4
    assert float(np.abs(found - expected).max()) <= 1e-3


class Combined(library.DiffusionPipeline):  # type: ignore[misc, name-defined]
    """A pipeline that hands its call to others inside it."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.decoder_pipe = InPlace(unet, scheduler)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.decoder_pipe(latents)


@pytest.mark.parametrize("mode", ["auto", "plan", "replay"])
def test_a_pipeline_whose_denoiser_others_call_is_refused(mode: Any) -> None:
    pipe = Combined(tiny.unconditional_unet(), library.DDIMScheduler(clip_sample=False))
    passes: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    parallelize(pipe, mode=mode)
    with pytest.raises(NotSupportedError, match=r"one by one, pipe\.decoder_pipe"):
        pipe(torch.randn(1, 3, 8, 8))
    assert len(passes) == 8  # found out after one run


def test_a_scheduler_without_a_step_is_refused() -> None:
    pipe = library.ScoreSdeVePipeline(tiny.unconditional_unet(), library.ScoreSdeVeScheduler())
    with pytest.raises(NotSupportedError, match=r"ScoreSdeVeScheduler has not.*picard\.solve"):
        parallelize(pipe)(num_inference_steps=2)
