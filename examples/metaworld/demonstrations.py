"""Demonstrations: episodes of Meta-World's scripted experts, cut into the windows that a policy learns from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from examples.metaworld.policy import ACTION_STEPS, HORIZON, OBSERVATION_STEPS
from examples.metaworld.tasks import STEPS, Task, observation

AFTER = 10  # steps recorded after success, so that a policy learns to stay there
FIRST_SEED = 1_000_000  # far from the seeds of the evaluation


@dataclass(frozen=True)
class Episode:
    """What an expert saw and did.

    Attributes:
        observations: shape (steps, 21).
        actions: shape (steps, 4), in [-1, 1].
    """

    observations: np.ndarray
    actions: np.ndarray


def record(name: str, count: int) -> Iterator[Episode]:
    """Yield `count` successful episodes of a task's expert, of consecutive seeds."""
    from metaworld.policies import ENV_POLICY_MAP  # pyright: ignore[reportMissingImports]

    warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high", UserWarning)  # the actions are clipped
    task, expert = Task(name), ENV_POLICY_MAP[name]()
    seed, found = FIRST_SEED, 0
    while found < count:
        full, left = task.reset(seed), STEPS
        seed += 1
        observations: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        success = False
        while left > 0:
            action = np.clip(expert.get_action(full), -1, 1)
            observations.append(observation(full))
            actions.append(action)
            full, done = task.step(action)
            left = AFTER if done and not success else left - 1
            success |= done
        if success:
            found += 1
            yield Episode(np.stack(observations), np.stack(actions))


def windows(episodes: list[Episode]) -> tuple[Tensor, Tensor]:
    """Cut episodes into windows of HORIZON steps, one starting at every step; the ends repeat.

    Returns:
        observations, shape (windows, OBSERVATION_STEPS, 21), and actions, shape (windows, HORIZON, 4), float32.
    """
    seen: list[Tensor] = []
    done: list[Tensor] = []
    for episode in episodes:
        last = len(episode.actions) - 1
        starts = torch.arange(1 - OBSERVATION_STEPS, last + ACTION_STEPS - HORIZON + 1)
        index = (starts[:, None] + torch.arange(HORIZON)).clamp(0, last)
        seen.append(torch.from_numpy(episode.observations).float()[index[:, :OBSERVATION_STEPS]])
        done.append(torch.from_numpy(episode.actions).float()[index])
    return torch.cat(seen), torch.cat(done)
