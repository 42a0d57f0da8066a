"""Record what the policies see in closed loop, for tests and benchmarks: `python -m examples.metaworld.record`."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_file

from examples.metaworld.closed_loop import EARLY, run
from examples.metaworld.methods import sampler
from examples.metaworld.policy import ACTION_STEPS, WEIGHTS, load
from examples.metaworld.problem import RECORDED
from examples.metaworld.tasks import TASKS, Task

FIRST_SEED = 2_000_000  # far from the demonstrations and from the evaluation
COUNT, PLANS = 64, 8  # in all, and of one episode at most


def main() -> None:
    """Run the sequential sampler and store observations at which it plans, from the first of every episode on.

    And once more with what was seen a step earlier: the first observation of an episode repeats.
    """
    found: dict[str, torch.Tensor] = {}
    for name in TASKS:
        policy = load(name)
        seeds = range(FIRST_SEED, FIRST_SEED + COUNT // 4)
        episodes = run(policy, [Task(name) for _ in seeds], seeds, sampler(policy, "sequential"))
        starts = [range(0, len(episode.done), ACTION_STEPS)[:PLANS] for episode in episodes]
        steps = [(i, step) for i, some in enumerate(starts) for step in some]
        seen = [np.stack([*episodes[i].recent(step - EARLY)[:EARLY], *episodes[i].recent(step)]) for i, step in steps]
        recent = torch.from_numpy(np.stack(seen[:COUNT])).float()
        found[name], found[f"{name}/recent"] = recent[:, EARLY:].clone(), recent
        found[f"{name}/episode"] = torch.tensor([i for i, _ in steps[:COUNT]])
        print(f"{name}: {sum(episode.success for episode in episodes)} of {len(episodes)} episodes successful")
    save_file(found, WEIGHTS / RECORDED)


if __name__ == "__main__":
    main()
