"""Problems about which everything is known: Lipschitz constants, exact denoisers, stiffness. No Hypothesis needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from picard.denoiser import Denoiser, Prediction
from picard.diffusion import Diffusion
from picard.errors import InvalidProblemError, describe
from picard.noise import Noise
from picard.ode import ODE
from picard.schedule import Schedule, SigmaSchedule, TrainedSchedule
from picard.sde import SDE, NoiseType
from picard.shapes import Float


@dataclass(frozen=True, eq=False)
class LipschitzODE(ODE):
    """An ODE whose drift has a known Lipschitz constant in the Euclidean norm of one sample's state.

    Attributes:
        lipschitz: the constant.
    """

    lipschitz: float = field(kw_only=True)


def _orthogonal(dims: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64)).Q


def _start(batch: int, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)


def tanh_ode(
    seed: int,
    *,
    batch: int = 2,
    shape: Sequence[int] = (3,),
    lipschitz: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> LipschitzODE:
    """Build dx/dt = L Q tanh(P x + b cos t) with orthogonal P and Q: a network whose Lipschitz constant is L.

    Args:
        seed: seed of the weights and of the start.
        batch: number of samples.
        shape: shape of one state.
        lipschitz: the constant L.
        dtype: dtype of the state.
    """
    generator = torch.Generator().manual_seed(seed)
    dims = int(torch.tensor(shape).prod())
    inner, outer = _orthogonal(dims, generator).to(dtype), (lipschitz * _orthogonal(dims, generator)).to(dtype)
    bias = torch.randn(dims, generator=generator, dtype=torch.float64).to(dtype)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        hidden = x.flatten(1) @ inner + torch.cos(t).to(x.dtype)[:, None] * bias
        return (torch.tanh(hidden) @ outer).reshape(x.shape)

    return LipschitzODE(drift, _start(batch, shape, generator, dtype), lipschitz=lipschitz)


def linear_system(
    seed: int, *, batch: int = 2, dims: int = 3, lipschitz: float = 1.0, dtype: torch.dtype = torch.float64
) -> LipschitzODE:
    """Build dx/dt = A x + b cos t, the spectral norm of A being the given constant.

    Args:
        seed: seed of A, b and the start.
        batch: number of samples.
        dims: size of one state.
        lipschitz: the norm.
        dtype: dtype of the state.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    matrix = (lipschitz * matrix / torch.linalg.matrix_norm(matrix, 2)).to(dtype)
    bias = torch.randn(dims, generator=generator, dtype=torch.float64).to(dtype)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return x @ matrix + torch.cos(t).to(x.dtype)[:, None] * bias

    return LipschitzODE(drift, _start(batch, (dims,), generator, dtype), lipschitz=lipschitz)


def runaway_ode(seed: int, *, batch: int = 2, dims: int = 2, rate: float = 1.0) -> ODE:
    """Build dx/dt = -rate x^3: tame when stepped one after the other, overflowing when a window is guessed.

    Args:
        seed: seed of the start, whose numbers lie between 0.5 and 1.
        batch: number of samples.
        dims: size of one state.
        rate: the rate; explicit Euler with steps h stays bounded for rate h < 2.
    """
    generator = torch.Generator().manual_seed(seed)
    start = 0.5 + 0.5 * torch.rand(batch, dims, generator=generator, dtype=torch.float64)
    return ODE(lambda t, x: -rate * x**3, start)


def tanh_sde(
    seed: int,
    *,
    batch: int = 2,
    dims: int = 3,
    noise_type: NoiseType = "diagonal",
    lipschitz: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> SDE:
    """Build an SDE with the drift of `tanh_ode` and a bounded, smooth diffusion of the given kind.

    Args:
        seed: seed of the weights, the start and the noise.
        batch: number of samples.
        dims: size of one state.
        noise_type: `diagonal`, `scalar`, `additive` or `general`; the last two have two channels.
        lipschitz: Lipschitz constant of the drift.
        dtype: dtype of the state.
    """
    ode = tanh_ode(seed, batch=batch, shape=(dims,), lipschitz=lipschitz, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    channels = {"diagonal": 0, "scalar": 1, "additive": 2, "general": 2}[noise_type]
    matrix = (0.3 * torch.randn(dims, max(channels, 1), generator=generator, dtype=torch.float64)).to(dtype)

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        if noise_type == "additive":
            return matrix.expand(len(x), *matrix.shape)
        strength = 1 + 0.5 * torch.sin(x)
        return 0.3 * strength if noise_type == "diagonal" else strength[..., None] * matrix

    return SDE(ode.drift, diffusion, ode.x0, noise=Noise.from_seed(seed), noise_type=noise_type)


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
        if self.means.ndim != 2 or self.stds.shape != self.means.shape or self.weights.shape != self.means.shape[:1]:
            msg = (
                "a mixture must have means and stds of shape (components, dims) and one weight a component; given "
                f"{describe(self.means)}, {describe(self.stds)} and {describe(self.weights)}"
            )
            raise InvalidProblemError(msg)

    @staticmethod
    def random(seed: int, *, components: int = 3, dims: int = 2) -> Mixture:
        """Draw a mixture: means of size one, standard deviations between 0.1 and 0.6."""
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(components, dims, generator=generator, dtype=torch.float64)
        stds = 0.1 + 0.5 * torch.rand(components, dims, generator=generator, dtype=torch.float64)
        weights = 0.2 + torch.rand(components, generator=generator, dtype=torch.float64)
        return Mixture(means, stds, weights / weights.sum())

    def data(
        self, x: Float[Tensor, "rows dims"], alpha: Float[Tensor, " rows"], sigma: Float[Tensor, " rows"]
    ) -> Float[Tensor, "rows dims"]:
        """Return E[data | alpha data + sigma noise = x] by Bayes' rule, in the dtype of `x`."""
        means, stds, weights = (value.to(x.dtype) for value in (self.means, self.stds, self.weights))
        alpha, sigma = alpha.to(x.dtype)[:, None, None], sigma.to(x.dtype)[:, None, None]
        total = alpha**2 * stds**2 + sigma**2
        offset = x[:, None] - alpha * means
        score = torch.log(weights) - 0.5 * (offset**2 / total + torch.log(total)).sum(-1)
        posterior = torch.softmax(score, 1)[..., None]
        return (posterior * (means + alpha * stds**2 / total * offset)).sum(1)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count dims"]:
        """Draw clean data."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.stds[chosen] * noise

    def denoiser(self, schedule: Schedule, prediction: Prediction = "sample") -> Denoiser:
        """Build the exact network of a schedule, predicting the data, the noise, v or the flow velocity."""
        return Denoiser(_Network(self, level_scales(schedule), prediction), schedule, prediction=prediction)


@dataclass(frozen=True, eq=False)
class _Network:
    mixture: Mixture
    scales: Callable[[Tensor], tuple[Tensor, Tensor]]
    prediction: Prediction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict what a network trained without error would."""
        alpha, sigma = (scale.to(x.dtype) for scale in self.scales(t))
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
        bar = schedule.alphas_cumprod
        return lambda t: (bar[t.long()].sqrt(), (1 - bar[t.long()]).sqrt())
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
    generator = torch.Generator().manual_seed(seed)
    start = _start(batch, (mixture.means.shape[1],), generator, torch.float64)
    if isinstance(schedule, SigmaSchedule):
        start = start * schedule.sigma_max
    return Diffusion(mixture.denoiser(schedule, prediction), start.to(dtype), noise=Noise.from_seed(seed))
