"""Train the digits denoiser on scikit-learn's 8x8 digits, half an hour on 2 cores: `python examples/digits/train.py`.

Denoising diffusion (Ho et al., 2020): linear schedule of 1000 steps, noise prediction, an exponential moving
average of the weights, labels dropped one time in ten so that the network also samples without a label.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from typing import Any, cast

import torch
from diffusers import DDPMScheduler
from model import ANY_DIGIT, TRAIN_STEPS, WEIGHTS, build, epsilon
from safetensors.torch import save_file
from sklearn.datasets import load_digits


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load the 1,797 images scaled to [-1, 1], shape (1797, 1, 8, 8), and their labels."""
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(data.target)


def train(minutes: float, batch: int = 64, peak_rate: float = 2e-3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Train for a time budget and return the averaged weights; the learning rate follows a cosine to zero."""
    torch.manual_seed(seed)
    images, labels = digits()
    unet = build()
    average = copy.deepcopy(unet).requires_grad_(False)
    scheduler = DDPMScheduler(num_train_timesteps=TRAIN_STEPS, beta_schedule="linear")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=peak_rate, weight_decay=1e-4)
    start, step, running = time.monotonic(), 0, 1.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        pick = torch.randint(len(images), (batch,))
        t = torch.randint(TRAIN_STEPS, (batch,))
        label = torch.where(torch.rand(batch) < 0.1, ANY_DIGIT, labels[pick])
        noise = torch.randn(batch, 1, 8, 8)
        noisy = scheduler.add_noise(images[pick], noise, cast("Any", t))
        loss = torch.nn.functional.mse_loss(epsilon(unet, noisy, t, label), noise)
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        for mean, current in zip(average.parameters(), unet.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)
        running += 0.01 * (float(loss.detach()) - running)
        step += 1
        if step % 250 == 0:
            print(f"step {step}  {100 * progress:.0f}%  loss {running:.4f}", flush=True)
    return average.state_dict()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    weights = train(parser.parse_args().minutes)
    save_file({name: value.contiguous() for name, value in weights.items()}, WEIGHTS)
    print(f"wrote {WEIGHTS} ({WEIGHTS.stat().st_size / 1e6:.2f} MB)")
