"""The problems methods are compared on: exact scores, and trained networks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import picard
from benchmarks.baselines.newton import Diagonal
from benchmarks.problems import Benchmark, benchmarks

ROOT = Path(__file__).parents[1]
TASK = "pick-place-v3"


@dataclass(frozen=True, eq=False)
class Case:
    """One problem at several seeds, each of one sample.

    Attributes:
        make: builds the problem of a seed.
        method: the sampler.
        steps: number of steps.
        window: nodes in flight.
        seeds: how many seeds, from 0 on.
        diagonal: exact diagonal of the data prediction's Jacobian, where it is known.
    """

    make: Callable[[int], picard.Diffusion]
    method: str
    steps: int
    window: int
    seeds: int
    diagonal: Diagonal | None = None

    @cached_property
    def problems(self) -> Sequence[picard.Diffusion]:
        """The problems, seed by seed."""
        return [self.make(seed) for seed in range(self.seeds)]

    @cached_property
    def references(self) -> Sequence[Tensor]:
        """Their sequential samples."""
        return [picard.sequential(problem, self.steps, method=self.method).final for problem in self.problems]

    def errors(self, finals: Sequence[Tensor]) -> list[float]:
        """Return the root mean square distance of every final sample to the sequential one."""
        pairs = zip(finals, self.references, strict=True)
        return [float((final.reshape(one.shape) - one).square().mean().sqrt()) for final, one in pairs]


def digit(seed: int) -> picard.Diffusion:
    """Make the problem of one digit, of class `seed` modulo 10, for the trained U-Net of the demo."""
    folder = str(ROOT / "examples" / "digits")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    model: Any = importlib.import_module("model")
    unet = model.load()

    def predict(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return model.epsilon(unet, x, t, label)

    denoiser = picard.Denoiser(predict, picard.Schedule.linear(model.TRAIN_STEPS))
    start = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    label = torch.tensor([seed % 10])
    return picard.Diffusion(denoiser, start, noise=picard.Noise.from_seed(seed), cond={"label": label})


def plan(seed: int) -> picard.Diffusion:
    """Make the problem of one plan of the trained robot policy."""
    module: Any = importlib.import_module("examples.metaworld.problem")
    problem: picard.Diffusion = module.problem(TASK, (seed,))
    return problem


def cases(seeds: int, networks: bool = True) -> dict[str, Case]:
    """List the cases by name; `networks` says whether those of trained networks are among them."""
    found = {
        name: Case(one.problem, one.method, one.steps, one.window, seeds, _diagonal(one))
        for name, one in benchmarks().items()
    }
    if networks:
        found["digits"] = Case(digit, "ddpm", 1000, 64, seeds)
        found["policy"] = Case(plan, "ddpm", 100, 20, seeds)
    return found


def _diagonal(benchmark: Benchmark) -> Diagonal:
    levels = benchmark.schedule.levels(benchmark.steps)

    def diagonal(x: Tensor, nodes: Tensor) -> Tensor:
        return benchmark.mixture.diagonal(x, levels.alpha[nodes], levels.sigma[nodes])

    return diagonal
