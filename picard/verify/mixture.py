"""Gaussian mixtures as data, whose denoiser is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from picard.convert import Prediction
from picard.denoiser import Denoiser
from picard.device import check_data
from picard.diffusion import Diffusion
from picard.errors import InvalidProblemError, describe
from picard.noise import Noise
from picard.number import check_generator
from picard.schedule import Schedule, SigmaSchedule, TrainedSchedule
from picard.shapes import Float
from picard.verify.seeded import check_dtype, check_size, seeded


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians with diagonal covariances, whose denoiser is known exactly.

    Attributes:
        means: shape (components, dims), float64.
        stds: standard deviations, shape (components, dims), float64.
        weights: shape (components,), float64, summing to 1.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        """Check the shapes."""
        if not all(isinstance(part, Tensor) for part in (self.means, self.stds, self.weights)):
            msg = f"a mixture must be made of tensors; given {describe(self)}: write Mixture(means, stds, weights)"
            raise InvalidProblemError(msg)
        for name in ("means", "stds", "weights"):
            check_data(name, getattr(self, name))
        if self.means.ndim != 2 or self.stds.shape != self.means.shape or self.weights.shape != self.means.shape[:1]:
            msg = (
                "a mixture must have means and stds of shape (components, dims) and one weight a component; given "
                f"{describe(self.means)}, {describe(self.stds)} and {describe(self.weights)}"
            )
            raise InvalidProblemError(msg)

    @staticmethod
    def random(seed: int, *, components: int = 3, dims: int = 2) -> Mixture:
        """Draw a mixture: means of size one, standard deviations between 0.1 and 0.6.

        Args:
            seed: seed of the draw.
            components: number of Gaussians.
            dims: number of dimensions.

        Returns:
            The mixture.

        Raises:
            InvalidProblemError: if one of them is no count.
        """
        generator, components, dims = seeded(seed), check_size("components", components), check_size("dims", dims)
        means = torch.randn(components, dims, generator=generator, dtype=torch.float64, device="cpu")
        stds = 0.1 + 0.5 * torch.rand(components, dims, generator=generator, dtype=torch.float64, device="cpu")
        weights = 0.2 + torch.rand(components, generator=generator, dtype=torch.float64, device="cpu")
        return Mixture(means, stds, weights / weights.sum())

    def data(
        self, x: Float[Tensor, "rows dims"], alpha: Float[Tensor, " rows"], sigma: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows dims"]:
        """Return E[data | alpha data + sigma noise = x] by Bayes' rule.

        Args:
            x: noisy states, shape (rows, dims).
            alpha: signal scale of every row, shape (rows,).
            sigma: noise scale of every row, shape (rows,).

        Returns:
            The expectation, shape (rows, dims), in the dtype of `x`.
        """
        means, stds, weights = (value.to(x) for value in (self.means, self.stds, self.weights))
        alpha, sigma = alpha.to(x)[:, None, None], sigma.to(x)[:, None, None]
        total = alpha**2 * stds**2 + sigma**2
        offset = x[:, None] - alpha * means
        score = torch.log(weights) - 0.5 * (offset**2 / total + torch.log(total)).sum(-1)
        posterior = torch.softmax(score, 1)[..., None]
        return (posterior * (means + alpha * stds**2 / total * offset)).sum(1)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count dims"]:
        """Draw clean data.

        Args:
            count: number of samples.
            generator: source of randomness, on the CPU.

        Returns:
            The samples, shape (count, dims), float64.
        """
        count = check_size("count", count)
        check_generator(generator)
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64, device="cpu")
        return self.means[chosen] + self.stds[chosen] * noise

    def denoiser(self, schedule: Schedule, prediction: Prediction = "sample") -> Denoiser:
        """Build the exact network of a schedule.

        Args:
            schedule: the noise levels, one of `picard.Schedule`.
            prediction: what it predicts: the data (`sample`), the noise (`epsilon`), v or the flow velocity.

        Returns:
            The denoiser.

        Raises:
            InvalidProblemError: if the schedule is not one of this library's.
        """
        return Denoiser(_Network(self, level_scales(schedule), prediction), schedule, prediction=prediction)


@dataclass(frozen=True, eq=False)
class _Network:
    mixture: Mixture
    scales: Callable[[Tensor], tuple[Tensor, Tensor]]
    prediction: Prediction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict what a network trained without error would."""
        given, x = x, x.to(torch.promote_types(x.dtype, torch.float32))  # squares overflow in half precision
        return self._predict(x, t).to(given.dtype)

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (scale.to(x) for scale in self.scales(t))
        data = self.mixture.data(x.flatten(1), alpha, sigma).reshape(x.shape)
        if self.prediction == "sample":
            return data
        wide = [1] * (x.ndim - 1)
        alpha, sigma = alpha.reshape(-1, *wide), sigma.reshape(-1, *wide)
        noise = (x - alpha * data) / sigma
        if self.prediction == "epsilon":
            return noise
        return alpha * noise - sigma * data if self.prediction == "v_prediction" else noise - data


def level_scales(schedule: Schedule) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the function that takes model times to (alpha, sigma), both float64.

    Raises:
        InvalidProblemError: if the schedule is not one of this library's.
    """
    if isinstance(schedule, TrainedSchedule):
        alpha, sigma = schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
        return lambda t: (alpha.to(t.device)[t.long()], sigma.to(t.device)[t.long()])
    if isinstance(schedule, SigmaSchedule):
        scale, straight = schedule.time_scale, schedule.kind == "flow"

        def scales(t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = t.double() / scale
            return (1 - sigma if straight else torch.ones_like(sigma)), sigma

        return scales
    msg = f"the schedule must be one that picard.Schedule builds; given {describe(schedule)}"
    raise InvalidProblemError(msg)


def mixture_diffusion(
    mixture: Mixture,
    schedule: Schedule,
    seed: int,
    *,
    batch: int = 2,
    prediction: Prediction = "sample",
    dtype: torch.dtype = torch.float64,
) -> Diffusion:
    """Build the sampling problem of a mixture with its exact network.

    Args:
        mixture: the data.
        schedule: the noise levels.
        seed: seed of the start and of the noise.
        batch: number of samples.
        prediction: what the network predicts; one that needs the signal fails where alpha is 0.
        dtype: dtype of the state.
    """
    if not isinstance(mixture, Mixture):
        msg = f"mixture must be a Mixture; given {describe(mixture)}: write e.g. Mixture.random(0)"
        raise InvalidProblemError(msg)
    check_dtype(dtype)
    shape = (check_size("batch", batch), mixture.means.shape[1])
    start = torch.randn(shape, generator=seeded(seed), dtype=torch.float64, device="cpu")
    if isinstance(schedule, SigmaSchedule):
        start = start * schedule.sigma_max
    return Diffusion(mixture.denoiser(schedule, prediction), start.to(dtype), noise=Noise.from_seed(seed))
