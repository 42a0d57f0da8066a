"""A Diffusers pipeline, parallel in time: one line. Here it is tiny and random, so that nothing is downloaded."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import diffusers
import numpy as np
import torch

import picard


def tiny_pipeline() -> diffusers.DDIMPipeline:
    """Build an unconditional pipeline; yours comes from `DiffusionPipeline.from_pretrained(...)`."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    return diffusers.DDIMPipeline(unet.eval(), diffusers.DDIMScheduler(clip_sample=False))


def main() -> None:
    """Sample twice from the same seed, and compare."""
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def sample() -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        return pipe(batch_size=2, num_inference_steps=50, generator=generator, output_type="np").images

    sequential = sample()
    pipe = picard.adapters.parallelize(pipe, window=16)
    parallel = sample()
    stats = pipe.picard.stats
    difference = float(np.abs(parallel - sequential).max())
    print(f"{stats.sequential_evaluations} model calls became {stats.rounds}; largest difference {difference:.1e}")
    assert difference <= 1 / 255
    picard.adapters.restore(pipe)


if __name__ == "__main__":
    main()
