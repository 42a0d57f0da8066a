"""Compare ways to sample in closed loop: `python -m examples.metaworld.evaluate`, about an hour on one core.

Every method meets the same episodes, with the same noise in every plan. At every plan the sequential sampler plans
from the same observation too, and the largest difference of the actions to execute is kept. Rounds and evaluations are
those of a single plan: every sample of a batch has its own window. `--latency` measures time instead.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.metaworld import latency
from examples.metaworld.closed_loop import run
from examples.metaworld.methods import METHODS, Plans, sampler, sequential
from examples.metaworld.policy import DiffusionPolicy, load
from examples.metaworld.tasks import TASKS, Task

HEADER = """
| method | success | points to sequential, 95% interval | rounds | evaluations | off by: median, 99%, largest |
|---|---|---|---|---|---|"""


@dataclass
class Ledger:
    """What a method's plans cost and how far they are from the sequential ones.

    Attributes:
        rounds: one number a plan.
        evaluations: likewise.
        differences: largest difference of an action to execute, likewise.
        success: whether the task was done, one number an episode.
    """

    rounds: list[int] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)

    def add(self, plans: Plans, difference: Tensor) -> None:
        """Add a batch of plans."""
        self.rounds += plans.rounds.tolist()
        self.evaluations += plans.evaluations.tolist()
        self.differences += difference.tolist()


def evaluate(policy: DiffusionPolicy, tasks: Sequence[Task], seeds: Sequence[int], method: str) -> Ledger:
    """Run one episode a seed with a method."""
    ledger, sample = Ledger(), sampler(policy, method)

    def compared(condition: Tensor, seeds: Sequence[int], episodes: Sequence[int], early: Tensor | None) -> Plans:
        plans = sample(condition, seeds, episodes, early)
        reference = plans if method == "sequential" else sequential(policy, condition, seeds)
        difference = policy.actions(plans.trajectories) - policy.actions(reference.trajectories)
        ledger.add(plans, difference.abs().amax((1, 2)))
        return plans

    ledger.success = [episode.success for episode in run(policy, tasks, seeds, compared)]
    return ledger


def interval(success: Sequence[bool], reference: Sequence[bool]) -> tuple[float, float, float]:
    """Estimate a difference of success rates from paired episodes.

    Returns:
        The difference, and its 95% interval (Agresti and Min, 2005: Wald's, with half an episode added to every cell).
    """
    n = len(success)
    won = sum(a and not b for a, b in zip(success, reference, strict=True))
    lost = sum(b and not a for a, b in zip(success, reference, strict=True))
    middle = (won - lost) / (n + 2)
    spread = 1.96 * math.sqrt((won + lost + 1) - (won - lost) ** 2 / (n + 2)) / (n + 2)
    return (won - lost) / n, middle - spread, middle + spread


def row(method: str, ledger: Ledger, reference: Ledger) -> str:
    """Write one line of the table."""
    n = len(ledger.success)
    counts = [torch.tensor(values).double() for values in (ledger.rounds, ledger.evaluations)]
    apart = torch.tensor(ledger.differences).double()
    difference, low, high = (100 * value for value in interval(ledger.success, reference.success))
    compared = "" if method == "sequential" else f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
    off = "" if method == "sequential" else f"{apart.median():.3f}, {apart.quantile(0.99):.2f}, {apart.max():.2f}"
    success = f"{sum(ledger.success)}/{n}"
    return f"| {method} | {success} | {compared} | {counts[0].mean():.1f} | {counts[1].mean():.0f} | {off} |"


def main() -> None:
    """Run every method on every task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="how often a plan is timed (default: 5)")
    parser.add_argument("--json", type=Path, help="file for the numbers of every plan and episode")
    parser.add_argument("--latency", action="store_true", help="time single plans instead; needs an idle machine")
    options = parser.parse_args()
    if options.latency:
        latency.measure(options.tasks[0], options.methods, options.repeats)
        return
    numbers: dict[str, Any] = {}
    for name in options.tasks:
        policy, tasks = load(name), [Task(name) for _ in range(options.episodes)]
        print(f"\n{name}\n{HEADER}", flush=True)
        reference: Ledger | None = None
        for method in dict.fromkeys(["sequential", *options.methods]):
            ledger = evaluate(policy, tasks, range(options.episodes), method)
            reference = reference or ledger
            print(row(method, ledger, reference), flush=True)
            numbers.setdefault(name, {})[method] = vars(ledger)
            if options.json:
                options.json.write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()
