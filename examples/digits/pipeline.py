"""A Diffusers pipeline around the digits denoiser, written as pipelines are: nothing in it knows of picard."""

# diffusers carries loose types, from which pyright infers unions:
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from model import ANY_DIGIT, load

__all__ = ["DigitsPipeline", "load"]


class DigitsPipeline(DiffusionPipeline):  # type: ignore[misc]  # Diffusers is Any to type checkers
    """Draws digits, with classifier-free guidance.

    Args:
        unet: the denoiser.
        scheduler: any scheduler for a model that predicts noise.
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        labels: Sequence[int],
        num_inference_steps: int = 100,
        guidance_scale: float = 1.5,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Draw one digit a label; images are arrays (digits, 8, 8) with values in [0, 1]."""
        device = self.unet.device
        both = torch.cat([torch.full((len(labels),), ANY_DIGIT), torch.tensor(labels)]).to(device)
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(len(labels), 1, 8, 8, generator=generator).to(device) * self.scheduler.init_noise_sigma
        takes = inspect.signature(self.scheduler.step).parameters
        more = {"generator": generator} if "generator" in takes else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(torch.cat([x, x]), t)
            without, with_label = self.unet(given, t, class_labels=both).sample.chunk(2)
            noise = without + guidance_scale * (with_label - without)
            x = self.scheduler.step(noise, t, x, **more).prev_sample
        return ImagePipelineOutput(images=(x[:, 0].clamp(-1, 1) / 2 + 0.5).cpu().numpy())
