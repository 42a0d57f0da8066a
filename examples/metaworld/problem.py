"""The policies as problems for `picard.solve`: a trained denoiser and observations recorded in closed loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

import picard
from examples.metaworld.policy import (
    ACTION,
    HORIZON,
    OBSERVATION_STEPS,
    TRAIN_STEPS,
    WEIGHTS,
    DiffusionPolicy,
    load,
)

RECORDED = "observations.safetensors"


def recorded(task: str) -> tuple[Tensor, Tensor]:
    """Load observations from which a task's policy planned in closed loop, in order, episode after episode.

    Returns:
        The observations, shape (64, OBSERVATION_STEPS, 21), and the number of each one's episode, shape (64,).
    """
    held = load_file(WEIGHTS / RECORDED)
    return held[task], held[f"{task}/episode"]


def recorded_early(task: str) -> tuple[Tensor, Tensor, Tensor]:
    """Load observations like those of `recorded`, in a recording of their own, and those a control step before them.

    Returns:
        The earlier observations and the observations, shape (64, OBSERVATION_STEPS, 21), and each one's episode.
    """
    held = load_file(WEIGHTS / RECORDED)
    recent = held[f"{task}/recent"]
    return recent[:, :OBSERVATION_STEPS], recent[:, -OBSERVATION_STEPS:], held[f"{task}/episode"]


def denoiser(policy: DiffusionPolicy) -> picard.Denoiser:
    """Make a policy's network a denoiser; its conditioning is `global_cond`, see `DiffusionPolicy.condition`."""
    return picard.Denoiser(policy.model, picard.Schedule.cosine(TRAIN_STEPS), clip=1.0)


def problem(task: str, seeds: Sequence[int] = (0,)) -> picard.Diffusion:
    """Build the problem of planning from recorded observations: solve it by `ddpm` or `ddim` in up to 100 steps.

    Args:
        task: Meta-World's name of the task, one of `TASKS`.
        seeds: one a plan: of the start and the noise; they also choose the observation.
    """
    policy, (observations, _) = load(task), recorded(task)
    condition = policy.condition(observations[torch.tensor(seeds) % len(observations)])
    noise = picard.Noise.from_seed(list(seeds))
    start = noise.draw(range(len(seeds)), [2**32] * len(seeds), (HORIZON, ACTION))
    return picard.Diffusion(denoiser(policy), start, noise=noise, cond={"global_cond": condition})
