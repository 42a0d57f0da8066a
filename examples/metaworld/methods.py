"""The ways to sample a plan that are compared: the policy's own loop, and parallel in time with various options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

import picard
from examples.metaworld.policy import ACTION, HORIZON, DiffusionPolicy

METHODS: Mapping[str, dict[str, Any] | None] = {
    "sequential": None,
    "ParaDiGMS preset": {"window": 20, **picard.presets.PARADIGMS},
    "default": {"window": 20},
    "default, window 40": {"window": 40},
    "FixedRounds(2), window 34": {"window": 34, "tolerance": picard.FixedRounds(2)},
}


@dataclass(frozen=True, eq=False)
class Plans:
    """Plans of a batch and what each of them cost.

    Attributes:
        trajectories: normalized actions, shape (batch, HORIZON, 4).
        rounds: model calls one after the other, shape (batch,).
        evaluations: rows evaluated, shape (batch,).
    """

    trajectories: Tensor
    rounds: Tensor
    evaluations: Tensor


class Counter:
    """A callback that counts for every sample of the batch what it would cost alone."""

    def __init__(self, batch: int) -> None:
        self.rounds = torch.zeros(batch, dtype=torch.int64)
        self.evaluations = torch.zeros(batch, dtype=torch.int64)

    def __call__(self, info: picard.RoundInfo) -> None:
        """Add one round."""
        samples = list(info.samples)
        self.rounds[samples] += 1
        self.evaluations[samples] += torch.tensor(info.width)


def generators(seeds: Sequence[int]) -> list[Generator]:
    """Make one generator a plan, so that its noise does not depend on the batch it is in."""
    return [Generator().manual_seed(seed) for seed in seeds]


def sequential(policy: DiffusionPolicy, condition: Tensor, seeds: Sequence[int]) -> Plans:
    """Run the policy's own loop."""
    unknown = condition.new_zeros(len(condition), HORIZON, ACTION)
    trajectories = policy.conditional_sample(
        unknown, unknown.bool(), global_cond=condition, generator=generators(seeds), **policy.kwargs
    )
    count = torch.full((len(condition),), policy.num_inference_steps)
    return Plans(trajectories, count, count)


def parallel(policy: DiffusionPolicy, condition: Tensor, seeds: Sequence[int], options: Mapping[str, Any]) -> Plans:
    """Sample the same plans parallel in time, with options of `picard.solve`."""
    sources, counter = generators(seeds), Counter(len(condition))
    solution = picard.adapters.diffusers.sample(
        policy.model,
        policy.noise_scheduler,
        randn_tensor((len(condition), HORIZON, ACTION), generator=sources),
        num_inference_steps=policy.num_inference_steps,
        generator=sources,
        cond={"global_cond": condition},
        scheduler_options=policy.kwargs,
        callback=counter,
        **options,
    )
    return Plans(solution.final, counter.rounds, counter.evaluations)


Sampler = Callable[[Tensor, Sequence[int], Sequence[int]], Plans]
"""Called with conditions (batch, ...), one seed a plan and the numbers of the episodes; returns the plans."""


def sampler(policy: DiffusionPolicy, method: str) -> Sampler:
    """Make the sampler of a method for one run in closed loop."""
    options = METHODS[method]
    if options is None:
        return lambda condition, seeds, _: sequential(policy, condition, seeds)
    return lambda condition, seeds, _: parallel(policy, condition, seeds, options)
