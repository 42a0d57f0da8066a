"""Draw one episode, sampled sequentially and in parallel: `python -m examples.metaworld.plot`, a minute."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from examples.metaworld.closed_loop import Episode, run
from examples.metaworld.methods import Plans, sampler
from examples.metaworld.policy import ACTION_STEPS, load
from examples.metaworld.tasks import TASKS, Task

METHODS = {"sequential": ("0.55", "-"), "default": ("tab:blue", "--")}
NAMES = ("hand: x", "hand: y", "hand: z", "gripper")
HAND, OBJECT, GOAL = slice(0, 3), slice(4, 7), slice(-3, None)
mpl.use("Agg")


@dataclass(frozen=True)
class Take:
    """An episode and the rounds of its plans."""

    episode: Episode
    rounds: list[int]


def record(task: str, seed: int, method: str) -> Take:
    """Run the episode of a seed."""
    policy = load(task)
    sample, rounds = sampler(policy, method), list[int]()

    def counted(*args: object) -> Plans:
        plans = sample(*args)  # type: ignore[arg-type]
        rounds.append(int(plans.rounds))
        return plans

    (episode,) = run(policy, [Task(task)], [seed], counted)
    return Take(episode, rounds)


def draw(task: str, seed: int, takes: Mapping[str, Take], path: Path) -> None:
    """Draw the ways of hand and object, the actions and the rounds of every plan."""
    figure = plt.figure(figsize=(13, 8.5), layout="constrained")
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.25))
    ways = parts[0, 0].subplots(2, 1)
    panels = parts[0, 1].subplots(5, 1, sharex=True)
    for method, take in takes.items():
        _draw_ways(ways, method, take.episode)
        actions, (color, style) = np.clip(np.stack(take.episode.done), -1, 1), METHODS[method]
        for i, name in enumerate(NAMES):
            panels[i].plot(actions[:, i], style, color=color, label=method)
            panels[i].set(ylabel=name, ylim=(-1.1, 1.1))
        starts = ACTION_STEPS * np.arange(len(take.rounds))
        shift = 0.45 * ACTION_STEPS * (method != "sequential")
        bars = panels[4].bar(starts + shift, take.rounds, 0.4 * ACTION_STEPS, align="edge", color=color)
        panels[4].bar_label(bars, fontsize=7)
    for panel in panels:
        for start in range(0, max(len(take.episode.done) for take in takes.values()), ACTION_STEPS):
            panel.axvline(start, color="0.9", zorder=0)
    panels[0].set_title("executed actions; a new plan at every line")
    panels[0].legend(loc="lower left", fontsize=8)
    panels[4].set(ylabel="rounds a plan", xlabel="step", ylim=(0, 118))
    ended = ", ".join(
        f"{method}: {'done' if take.episode.success else 'not done'} after {len(take.episode.done)} steps"
        for method, take in takes.items()
    )
    figure.suptitle(f"{task}, episode {seed}, the same noise for both samplers\n{ended}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_ways(ways: np.ndarray, method: str, episode: Episode) -> None:
    seen, (color, style) = np.stack(episode.seen), METHODS[method]
    for panel, height, label in ((ways[0], 1, "y (m), from above"), (ways[1], 2, "z (m), from the front")):
        axis: Axes = panel
        axis.plot(seen[:, HAND][:, 0], seen[:, HAND][:, height], style, color=color, label=f"hand, {method}")
        axis.plot(seen[:, OBJECT][:, 0], seen[:, OBJECT][:, height], style, color="tab:orange", alpha=0.8)
        if method == "sequential":
            axis.plot(*seen[0, OBJECT][[0, height]], "s", color="tab:orange", label="object, and its way")
            axis.plot(*seen[0, GOAL][[0, height]], "*", color="tab:green", markersize=14, label="goal")
        axis.set(xlabel="x (m)", ylabel=label)
        axis.set_aspect("equal", adjustable="datalim")
    ways[0].legend(fontsize=8)


def main() -> None:
    """Run the episode with both methods and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default=TASKS[0])
    parser.add_argument("--seed", type=int, default=0, help="of the episode (default: 0)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("episode.png"))
    options = parser.parse_args()
    takes = {method: record(options.task, options.seed, method) for method in METHODS}
    draw(options.task, options.seed, takes, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
