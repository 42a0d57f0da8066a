"""Gaussian data and a fixed number of rounds: samplers whose laws, and so their distance, are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import picard
from picard.certificate import LawCertificate
from picard.schedule import TrainedSchedule
from picard.verify import Mixture, gaussian_tv

F64 = torch.float64


@dataclass(frozen=True)
class Setting:
    """Gaussian data N(mean, std^2 I), a sampler, and a fixed number of rounds."""

    dims: int
    steps: int
    rounds: int
    window: int
    linearization: str
    guess: str
    cosine: bool
    std: float
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of the solve."""
        rule = picard.FixedRounds(self.rounds)
        return {"tolerance": rule, "window": self.window, "linearization": self.linearization, "guess": self.guess}

    @property
    def schedule(self) -> TrainedSchedule:
        """The noise schedule."""
        train = max(self.steps, 50)
        return (
            picard.Schedule.cosine(train) if self.cosine else picard.Schedule.linear(train, 1e-4, min(0.5, 20 / train))
        )

    def problem(self, mean: Tensor, start: Tensor, noise: Tensor) -> picard.Diffusion:
        """Build the problem of a data mean, starts and noise."""
        data = Mixture(mean[None], torch.full((1, len(mean)), self.std, dtype=F64), torch.ones(1, dtype=F64))
        return picard.Diffusion(data.denoiser(self.schedule), start, noise=picard.Noise.from_tensor(noise))

    def laws(self) -> tuple[tuple[Tensor, float], tuple[Tensor, float]]:
        """Means of coordinates whose data have mean 0 and 1, and the standard deviation: parallel, sequential.

        Coordinates do not interact and every map is affine: a coordinate's result is a sum of fixed weights times its
        start and noise, plus a constant affine in its mean. A random sample (which no rule finds converged by chance)
        and its copies, each with one input raised by 1, show all weights.
        """
        generator = torch.Generator().manual_seed(self.seed)
        inputs = torch.randn(self.steps + 1, 1, 2, generator=generator, dtype=F64).repeat(1, self.steps + 2, 1)
        inputs[torch.arange(self.steps + 1), torch.arange(self.steps + 1) + 1] += 1
        problem = self.problem(torch.tensor([0.0, 1.0], dtype=F64), inputs[0], inputs[1:])

        def law(final: Tensor) -> tuple[Tensor, float]:
            weights = final[1:] - final[0]
            return final[0] - (weights * inputs[:, 0]).sum(0), float(weights[:, 0].norm())

        return (
            law(picard.solve(problem, self.steps, method="ddpm", certify=True, **self.options).final),
            law(picard.sequential(problem, self.steps, method="ddpm").final),
        )

    def certificate(self, mean: Tensor) -> LawCertificate:
        """Certify a batch of samples."""
        generator = torch.Generator().manual_seed(self.seed)
        batch = max(16, min(256, 2048 // self.dims))
        start = torch.randn(batch, self.dims, generator=generator, dtype=F64)
        noise = torch.randn(self.steps, batch, self.dims, generator=generator, dtype=F64)
        solution = picard.solve(
            self.problem(mean, start, noise), self.steps, method="ddpm", certify=True, **self.options
        )
        assert isinstance(solution.certificate, LawCertificate)
        return solution.certificate


def exact(given: Setting, mean: Tensor) -> float:
    """Return the total variation distance between the parallel and the sequential law."""
    (shift_1, std_1), (shift_2, std_2) = given.laws()
    means = [shift[0] + (shift[1] - shift[0]) * mean for shift in (shift_1, shift_2)]
    return gaussian_tv(means[0], std_1, means[1], std_2)
