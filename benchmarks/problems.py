"""Benchmark problems: Gaussian-mixture data, whose denoiser is known exactly, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

import picard
from picard.schedule import TrainedSchedule


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of Gaussians with diagonal covariances.

    Attributes:
        means: shape (components, dims).
        variances: shape (components, dims).
        weights: shape (components,).
    """

    means: Tensor
    variances: Tensor
    weights: Tensor

    def data(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[data | alpha data + sigma noise = x], the exact denoiser; all arguments have a rows dimension."""
        posterior, means, *_ = self._components(x, alpha, sigma)
        return (posterior * means).sum(1)

    def diagonal(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the diagonal of the Jacobian of `data`, shape (rows, dims)."""
        posterior, means, slope, total = self._components(x, alpha, sigma)
        within = (posterior * alpha[:, None, None] * self.variances / total).sum(1)
        return within + (posterior * means * (slope - (posterior * slope).sum(1, keepdim=True))).sum(1)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return every component's probability, mean of the data, slope of the log density, and variance of x."""
        alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        total = alpha**2 * self.variances + sigma**2
        offset = x[:, None] - alpha * self.means
        score = torch.log(self.weights) - 0.5 * (offset**2 / total + torch.log(total)).sum(-1)
        means = self.means + alpha * self.variances / total * offset
        return torch.softmax(score, 1)[..., None], means, -offset / total, total


class Score(nn.Module):
    """The exact denoiser of a mixture under a schedule, on any device."""

    def __init__(self, mixture: GaussianMixture, schedule: TrainedSchedule) -> None:
        super().__init__()
        for name, value in vars(mixture).items():
            self.register_buffer(name, value)
        self.register_buffer("signal", schedule.alphas_cumprod)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the data."""
        mixture = GaussianMixture(*[self.get_buffer(name) for name in ("means", "variances", "weights")])
        signal = self.get_buffer("signal")[t]
        return mixture.data(x, signal.sqrt(), (1 - signal).sqrt())


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A mixture, a schedule, a sampler and a window.

    Attributes:
        name: what the tables call it.
        mixture: the data.
        schedule: the noise schedule, as `Schedule.linear` and its like return it.
        method: the sampler.
        steps: number of steps.
        window: nodes in flight.
    """

    name: str
    mixture: GaussianMixture
    schedule: TrainedSchedule
    method: str
    steps: int
    window: int

    @cached_property
    def model(self) -> Score:
        """The exact denoiser, a model of the training step."""
        return Score(self.mixture, self.schedule)

    def problem(self, seed: int, batch: int = 1) -> picard.Diffusion:
        """Draw the start and the noise of a batch of samples."""
        dims = self.mixture.means.shape[1]
        start = picard.Noise.from_seed(seed).draw(list(range(batch)), [2**32] * batch, (dims,)).double()
        denoiser = picard.Denoiser(self.model, self.schedule, prediction="sample")
        return picard.Diffusion(denoiser, start, noise=picard.Noise.from_seed(seed))


def benchmarks() -> dict[str, Benchmark]:
    """Build the three problems whose counts stand in for the published tables: robot actions, 2-D, and images."""
    rng = np.random.default_rng(0)

    def mixture(means: np.ndarray, variances: np.ndarray) -> GaussianMixture:
        weights = torch.full((len(means),), 1 / len(means), dtype=torch.float64)
        return GaussianMixture(torch.from_numpy(means), torch.from_numpy(variances), weights)

    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    gmm2 = mixture(corners, np.full((4, 2), 0.06**2))
    act32 = mixture(rng.normal(size=(5, 32)) * 0.7, np.full((5, 32), 0.1**2))
    means = np.zeros((10, 256))
    means[:, :24] = rng.normal(size=(10, 24)) * 1.5
    variances = np.full((10, 256), 0.03**2)
    variances[:, :64] = 0.5**2
    img256 = mixture(means, variances)
    schedule = picard.Schedule
    return {
        "act32": Benchmark("act32", act32, schedule.cosine(100), "ddpm", 100, 20),
        "gmm2": Benchmark("gmm2", gmm2, schedule.linear(1000), "ddpm", 1000, 80),
        "img256": Benchmark("img256", img256, schedule.scaled_linear(1000), "ddpm", 1000, 80),
    }
