"""Closed loop: many arms at once plan, move, look again and plan, until the task is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from examples.metaworld.methods import Sampler
from examples.metaworld.policy import ACTION_STEPS, OBSERVATION_STEPS, DiffusionPolicy
from examples.metaworld.tasks import STEPS, Task, observation

CALLS = STEPS // ACTION_STEPS  # plans an episode at most
EARLY = 1  # steps between an observation to plan ahead from and the one to plan from


@dataclass
class Episode:
    """What became of one arm.

    Attributes:
        seed: where object and goal lie, and the noise of the plans.
        seen: observations, one a step and the last one, each of shape (21,).
        done: actions, one a step, each of shape (4,).
        success: whether the task was done.
    """

    seed: int
    seen: list[np.ndarray] = field(default_factory=list)
    done: list[np.ndarray] = field(default_factory=list)
    success: bool = False

    def recent(self, step: int) -> np.ndarray:
        """Return what a plan is made from at a step, shape (OBSERVATION_STEPS, 21); the first one repeats."""
        return np.stack([self.seen[max(i, 0)] for i in range(step - OBSERVATION_STEPS + 1, step + 1)])


@torch.no_grad()
def run(policy: DiffusionPolicy, tasks: Sequence[Task], seeds: Sequence[int], sampler: Sampler) -> list[Episode]:
    """Run one episode a seed, all in lockstep: every round plans for all arms that are not done yet.

    Args:
        policy: normalizes observations and actions.
        tasks: one environment an episode.
        seeds: one an episode; plan k of an episode has the seed `seed * CALLS + k` in every method.
        sampler: makes the plans.
    """
    episodes = [Episode(seed) for seed in seeds]
    for task, episode in zip(tasks, episodes, strict=True):
        episode.seen.append(observation(task.reset(episode.seed)))
    for call in range(CALLS):
        active = [i for i, episode in enumerate(episodes) if not episode.success]
        if not active:
            break

        def condition(step: int, active: list[int] = active) -> torch.Tensor:
            seen = np.stack([episodes[i].recent(step) for i in active])
            return policy.condition(torch.from_numpy(seen).float())

        step = call * ACTION_STEPS
        early = condition(step - EARLY) if call else None
        plans = sampler(condition(step), [seeds[i] * CALLS + call for i in active], active, early)
        actions = policy.actions(plans.trajectories).double().numpy()
        for i, planned in zip(active, actions, strict=True):
            for action in planned:
                full, episodes[i].success = tasks[i].step(action)
                episodes[i].done.append(action)
                episodes[i].seen.append(observation(full))
                if episodes[i].success:
                    break
    return episodes
