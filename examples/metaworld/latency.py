"""Time single plans: `python -m examples.metaworld.evaluate --latency`, on an idle machine.

All methods take turns on the same recorded observations and with the same noise. The published size is timed by a
network of that size, whose answer is dropped for the trained one's: the rounds are those of a trained policy. Of plans
that were made ahead, the time from the observation to the actions counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from examples.metaworld.methods import METHODS, ahead_of, parallel_options
from examples.metaworld.policy import DiffusionPolicy, load, network, scheduler
from examples.metaworld.problem import recorded_early
from picard.adapters import parallelize

COMPILED = "default, compiled rounds"
OPTIONS = {**METHODS, COMPILED: {"window": 20, "compile": True}}  # the same plans as the default's
CALLS = 8  # consecutive plans of an episode
SIZES = {"trained, 1.2 million parameters": False, "published size, 65.8 million parameters": True}
HEADER = """| method | median ms | 90% of plans within | speed-up | outside the network | rounds |
|---|---|---|---|---|---|"""


class Timed(nn.Module):
    """A network that is timed; another one may run beside it, whose answer is dropped.

    Args:
        trained: the network that answers.
        ballast: what else runs, if anything.
    """

    def __init__(self, trained: nn.Module, ballast: nn.Module | None) -> None:
        super().__init__()
        self.trained, self.ballast, self.seconds = trained, ballast, 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Predict the noise."""
        started = time.perf_counter()
        if self.ballast is not None:
            self.ballast(*args, **kwargs)
        predicted = self.trained(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return predicted


@dataclass
class Times:
    """What the plans of a method took.

    Attributes:
        whole: seconds, one number a plan.
        outside: seconds spent outside the network, likewise.
        rounds: network calls one after the other, likewise.
    """

    whole: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    def add(self, whole: float, inside: float, rounds: int) -> None:
        """Add a plan."""
        self.whole.append(whole)
        self.outside.append(whole - inside)
        self.rounds.append(rounds)

    def row(self, method: str, sequential: float) -> str:
        """Write one line of the table."""
        middle, most = 1e3 * median(self.whole), 1e3 * quantiles(self.whole, n=10)[-1]
        share = sum(self.outside) / sum(self.whole)
        return (
            f"| {method} | {middle:.0f} | {most:.0f} | {sequential / median(self.whole):.2f} | {share:.0%} | "
            f"{fmean(self.rounds):.1f} |"
        )


def _policies(trained: DiffusionPolicy, timed: Timed, methods: Sequence[str]) -> dict[str, DiffusionPolicy]:
    """Make one policy a method, all with the same network: the first call of an adapter is slow."""
    policies: dict[str, DiffusionPolicy] = {}
    for method in dict.fromkeys(["sequential", *methods, COMPILED]):
        policies[method] = DiffusionPolicy(timed, scheduler()).eval()
        policies[method].normalizer = trained.normalizer
        options = OPTIONS[method]
        if options is not None:
            parallelize(policies[method], **parallel_options(options))
    return policies


def _plan(policy: DiffusionPolicy, observation: Tensor, seed: int) -> None:
    """Make a plan from one observation, shape (OBSERVATION_STEPS, 21)."""
    torch.manual_seed(seed)
    policy.predict_action({"obs": observation[None]})


def _prepare(policy: DiffusionPolicy, method: str, early: Tensor, seed: int) -> None:
    """Plan ahead from the observation a control step before, if the method does."""
    options = OPTIONS[method] or {}
    if "ahead" in options:
        handle: Any = policy.picard
        handle.forget()
        with handle.ahead():
            _plan(policy, ahead_of(options, early.flatten()[None]).view_as(early), seed)


@torch.no_grad()
def measure(task: str, methods: Sequence[str], repeats: int) -> None:
    """Print one table a size.

    Args:
        task: Meta-World's name of the task.
        methods: names of methods.
        repeats: how often every method makes every plan.
    """
    early, observations, _ = (found[:CALLS] for found in recorded_early(task))
    for size, published in SIZES.items():
        trained = load(task)
        ballast = network(published_size=True).eval().requires_grad_(False) if published else None
        timed = Timed(trained.model, ballast)
        policies = _policies(trained, timed, methods)
        times = {method: Times() for method in policies}
        for repeat in range(repeats + 1):
            for method, policy in policies.items():
                for call, observation in enumerate(observations):
                    _prepare(policy, method, early[call], call)
                    timed.seconds, started = 0.0, time.perf_counter()
                    _plan(policy, observation, call)
                    seconds = time.perf_counter() - started
                    if repeat > 0:  # the first calls are slow
                        handle: Any = getattr(policy, "picard", None)
                        rounds = policy.num_inference_steps if handle is None else handle.stats.rounds
                        times[method].add(seconds, timed.seconds, rounds)
        print(f"\n{size}; {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.2f}\n\n{HEADER}")
        for method, found in times.items():
            print(found.row(method, median(times["sequential"].whole)), flush=True)
