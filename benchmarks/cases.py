"""The problems methods are compared on: exact scores, and trained networks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


class Digits(nn.Module):
    """The trained U-Net of the demo as a function of states, times and labels."""

    def __init__(self) -> None:
        super().__init__()
        folder = str(ROOT / "examples" / "digits")
        if folder not in sys.path:
            sys.path.insert(0, folder)
        demo: Any = importlib.import_module("model")
        self.unet, self.epsilon, self.levels = demo.load(), demo.epsilon, demo.TRAIN_STEPS

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Predict the noise."""
        predicted: Tensor = self.epsilon(self.unet, x, t, label)
        return predicted


class Ballast(nn.Module):
    """A network that carries the cost, beside a model that gives the answer.

    Args:
        network: called with one batch of what `given` holds, expanded to the rows, and the times.
        answer: the model.
        given: the network's other arguments, of one row; by default it is given what the model is.
    """

    def __init__(
        self, network: Callable[..., Any], answer: Callable[..., Tensor], given: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.network, self.answer = network, answer
        for number, value in enumerate(given):
            self.register_buffer(f"given{number}", value)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Call both, and drop what the network says."""
        held = [value.expand(len(x), *value.shape[1:]) for value in self.buffers(recurse=False)]
        if held:
            self.network(held[0], t, *held[1:])
        else:
            self.network(x, t, **cond)
        answer: Tensor = self.answer(x, t, **cond)
        return answer


def digit(seed: int) -> picard.Diffusion:
    """Make the problem of one digit, of class `seed` modulo 10, for the trained U-Net of the demo."""
    model = Digits()
    denoiser = picard.Denoiser(model, picard.Schedule.linear(model.levels))
    start = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    label = torch.tensor([seed % 10])
    return picard.Diffusion(denoiser, start, noise=picard.Noise.from_seed(seed), cond={"label": label})


def plan(seed: int) -> picard.Diffusion:
    """Make the problem of one plan of the trained robot policy."""
    module: Any = importlib.import_module("examples.metaworld.problem")
    problem: picard.Diffusion = module.problem(TASK, (seed,))
    return problem


def published(seed: int) -> picard.Diffusion:
    """Make the problem of one plan at the cost of a network of the published size, 65.8 million parameters."""
    policy: Any = importlib.import_module("examples.metaworld.policy")
    small = plan(seed)
    model = Ballast(policy.network(published_size=True).eval().requires_grad_(False), small.denoiser.model)
    return replace(small, denoiser=replace(small.denoiser, model=model))


def latent(seed: int) -> picard.Diffusion:
    """Make the problem `img256` at the cost of a U-Net like Stable Diffusion's, 860 million parameters in float16."""
    from diffusers import UNet2DConditionModel

    kind: Any = UNet2DConditionModel
    given = (torch.randn(1, 4, 64, 64, dtype=torch.float16), torch.randn(1, 77, 768, dtype=torch.float16))
    network = kind(cross_attention_dim=768, attention_head_dim=8, sample_size=64).half().eval().requires_grad_(False)
    found = benchmarks()["img256"].problem(seed)
    return replace(found, denoiser=replace(found.denoiser, model=Ballast(network, found.denoiser.model, given)))


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


def costly(seeds: int) -> dict[str, Case]:
    """List the cases whose network carries the cost and not the answer, by name."""
    return {"published": Case(published, "ddpm", 100, 20, seeds), "latent": Case(latent, "ddpm", 1000, 80, seeds)}


def _diagonal(benchmark: Benchmark) -> Diagonal:
    levels = benchmark.schedule.levels(benchmark.steps)

    def diagonal(x: Tensor, nodes: Tensor) -> Tensor:
        return benchmark.mixture.diagonal(x, levels.alpha[nodes], levels.sigma[nodes])

    return diagonal
