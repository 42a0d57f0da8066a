"""The tasks: Meta-World's simulated arm, reset by seed, without a picture and so without a screen."""

from __future__ import annotations

from typing import Any

import numpy as np

TASKS = ("pick-place-v3", "peg-insert-side-v3")
STEPS = 200  # an episode ends here without success; the scripted experts need 50 to 100


class Task:
    """One environment of Meta-World, whose object and goal lie elsewhere for every seed.

    Attributes:
        name: Meta-World's name of the task, such as `"pick-place-v3"`.
        env: the environment.
    """

    def __init__(self, name: str) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE  # pyright: ignore[reportMissingImports]

        self.name = name
        environments: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        self.env: Any = environments[f"{name}-goal-observable"](seed=0)
        self.env._freeze_rand_vec = False  # Meta-World's own wrappers set it so
        self.env.seeded_rand_vec = True

    def reset(self, seed: int) -> np.ndarray:
        """Start the episode of a seed and return its first full observation, shape (39,)."""
        self.env.seed(seed)
        return self.env.reset()[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Move by an action, shape (4,) in [-1, 1]; return the next full observation and whether the task is done."""
        observation, _, _, _, info = self.env.step(np.clip(action, -1, 1))
        return observation, bool(info["success"] > 0)


def observation(full: np.ndarray) -> np.ndarray:
    """Take what a policy sees, shape (21,), of a full observation: arm and objects now, and the goal.

    What lies between is the observation of the step before, which a policy of two observation steps has anyway.
    """
    return np.concatenate([full[:18], full[-3:]])
