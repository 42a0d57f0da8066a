"""The ways to sample a plan that are compared: the policy's own loop, and parallel in time with various options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

import picard
from examples.metaworld.policy import ACTION, ACTION_STEPS, HORIZON, OBSERVATION_STEPS, DiffusionPolicy

_EXECUTED = {"warm_start": "shift", "actions": ACTION_STEPS}
METHODS: Mapping[str, dict[str, Any] | None] = {
    "sequential": None,
    "ParaDiGMS preset": {"window": 20, **picard.presets.PARADIGMS},
    "default": {"window": 20},
    "default, window 40": {"window": 40},
    "warm start": {"window": 20, **_EXECUTED},
    "warm start, window 40": {"window": 40, **_EXECUTED},
    "planned ahead": {"window": 20, "actions": ACTION_STEPS, "ahead": "seen"},
    "planned ahead, foreseen": {"window": 20, "actions": ACTION_STEPS, "ahead": "foreseen"},
    "FixedRounds(2)": {"window": 20, "tolerance": picard.FixedRounds(2)},
    "FixedRounds(2), window 34": {"window": 34, "tolerance": picard.FixedRounds(2)},
    "FixedRounds(3), window 50": {"window": 50, "tolerance": picard.FixedRounds(3)},
}
"""Options of `parallelize` by method; `None` is the policy's own loop. The preset and the default have a tau of 0.1.

With `ahead`, every plan but the first is made once before: from the observation a step earlier as it was seen, or from
the next one foreseen there, see `foreseen`.
"""


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


@dataclass(frozen=True)
class Leading(picard.NoiseRatio):
    """The default rule as `actions` has it: at the leading part of a plan, the same at all levels.

    Attributes:
        leading: how many numbers of the plan it sees.
    """

    tapers: ClassVar[bool] = False
    leading: int = HORIZON * ACTION

    def watched(self, change: Tensor) -> Tensor:
        """Return the leading part of every change."""
        return change[..., : self.leading]


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


def parallel(
    policy: DiffusionPolicy,
    condition: Tensor,
    seeds: Sequence[int],
    options: Mapping[str, Any],
    last: Tensor | None = None,
) -> Plans:
    """Sample the same plans parallel in time.

    Args:
        policy: the policy.
        condition: what it has seen, shape (batch, ...).
        seeds: of the noise, one a plan.
        options: as in METHODS. `parallelize` makes the same of them, for one plan at a time and one generator in all.
        last: the last plans, for a warm start, shape (batch, HORIZON, 4).
    """
    given, sources, counter = dict(options), generators(seeds), Counter(len(condition))
    warm, executed = given.pop("warm_start", None), given.pop("actions", None)
    if executed is not None:
        given["tolerance"] = Leading(leading=(OBSERVATION_STEPS + executed) * ACTION)
    start = randn_tensor((len(condition), HORIZON, ACTION), generator=sources)
    if warm is not None and last is not None:
        ahead = torch.cat([last[:, ACTION_STEPS:], last[:, -1:].expand(-1, ACTION_STEPS, -1)], 1)
        given["guess"] = picard.Expected(ahead.expand(policy.num_inference_steps, *ahead.shape))
    solution = picard.adapters.diffusers.sample(
        policy.model,
        policy.noise_scheduler,
        start,
        num_inference_steps=policy.num_inference_steps,
        generator=sources,
        cond={"global_cond": condition},
        scheduler_options=policy.kwargs,
        callback=counter,
        **given,
    )
    return Plans(solution.final, counter.rounds, counter.evaluations)


def foreseen(condition: Tensor) -> Tensor:
    """Foresee the condition a step later, shape (batch, OBSERVATION_STEPS * 21): everything moves on as it just did."""
    before, now = condition.unflatten(1, (OBSERVATION_STEPS, -1)).unbind(1)
    return torch.cat([now, 2 * now - before], 1)


def parallel_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that `parallelize` takes."""
    return {name: value for name, value in options.items() if name != "ahead"}


def ahead_of(options: Mapping[str, Any], early: Tensor) -> Tensor:
    """Return what a method plans from ahead, given conditions a step earlier, (batch, OBSERVATION_STEPS * 21)."""
    return early if options["ahead"] == "seen" else foreseen(early)


def planned_ahead(policy: DiffusionPolicy, options: Mapping[str, Any]) -> Sampler:
    """Make a sampler that has planned once before from earlier conditions; one plan at a time, as a robot would."""
    twin, unknown = copy(policy), torch.zeros(1, HORIZON, ACTION)
    picard.adapters.parallelize(twin, **parallel_options(options))
    handle: Any = twin.picard

    def plan(condition: Tensor, seed: int) -> Tensor:
        source = Generator().manual_seed(seed)
        condition = condition[None]
        return twin.conditional_sample(
            unknown, unknown.bool(), global_cond=condition, generator=source, **policy.kwargs
        )

    def sample(condition: Tensor, seeds: Sequence[int], _: Sequence[int], early: Tensor | None) -> Plans:
        plans, cost = [], []
        start = None if early is None else ahead_of(options, early)
        for i, seed in enumerate(seeds):
            handle.forget()
            if start is not None:
                with handle.ahead():
                    plan(start[i], seed)
            plans.append(plan(condition[i], seed))
            cost.append((handle.stats.rounds, handle.stats.evaluations))
        return Plans(torch.cat(plans), *torch.tensor(cost).unbind(1))

    return sample


Sampler = Callable[[Tensor, Sequence[int], Sequence[int], Tensor | None], Plans]
"""Called with conditions (batch, ...), one seed a plan, the numbers of the episodes, and conditions a little earlier if
there are any; returns the plans."""


def sampler(policy: DiffusionPolicy, method: str) -> Sampler:
    """Make the sampler of a method for one run in closed loop."""
    options = METHODS[method]
    if options is None:
        return lambda condition, seeds, *_: sequential(policy, condition, seeds)
    if "ahead" in options:
        return planned_ahead(policy, options)
    kept: dict[int, Tensor] = {}

    def sample(condition: Tensor, seeds: Sequence[int], episodes: Sequence[int], _: Tensor | None) -> Plans:
        last = torch.stack([kept[i] for i in episodes]) if kept else None
        plans = parallel(policy, condition, seeds, options, last)
        kept.update(zip(episodes, plans.trajectories, strict=True))
        return plans

    return sample
