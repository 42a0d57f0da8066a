"""Small problems of every kind, with known answers, for all tests of the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import picard
from benchmarks.problems import GaussianMixture
from picard.convert import Prediction
from picard.plan import Integrator
from picard.schedule import Schedule, SigmaSchedule, TrainedSchedule
from picard.sde import NoiseType

F64 = torch.float64
Model = Callable[..., Tensor]
Case = tuple["picard.ODE | picard.SDE | picard.Diffusion", "int | Tensor", "str | Integrator"]

CHANNELS: dict[NoiseType, int] = {"diagonal": 0, "scalar": 1, "additive": 3, "general": 2}


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.double().square().mean().sqrt())


def start(batch: int, *state: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    """Draw initial states; sample b is the same in every batch."""
    return torch.stack(
        [torch.randn(state, generator=torch.Generator().manual_seed(seed + 31 * b), dtype=F64) for b in range(batch)]
    ).to(dtype)


def times(steps: int, first: float = 0.0, last: float = 2.0, dtype: torch.dtype = F64) -> Tensor:
    """Return an uneven grid of so many steps, decreasing if `last` is smaller."""
    u = torch.linspace(0, 1, steps + 1, dtype=F64)
    return (first + (last - first) * (u + 0.3 * u * (1 - u))).to(dtype)


def pendulum_drift(t: Tensor, x: Tensor, gain: Tensor | None = None) -> Tensor:
    """Return a damped, driven pendulum's drift; the state is (..., 2), `gain` one number a row."""
    angle, speed = x.unbind(-1)
    ones = [1] * (angle.ndim - 1)
    pull = 2.0 if gain is None else gain.reshape(-1, *ones)
    drive = torch.cos(t).to(x.dtype).reshape(-1, *ones)
    return torch.stack([speed, drive - 0.3 * speed - pull * torch.sin(angle)], -1)


def pendulum(batch: int = 2) -> picard.ODE:
    """Build a nonlinear, non-autonomous equation with conditioning; state (2,)."""
    gain = torch.linspace(1, 3, batch, dtype=F64)
    return picard.ODE(pendulum_drift, start(batch, 2), cond={"gain": gain})


def diffusion_of(noise_type: NoiseType, strength: float = 0.4) -> Model:
    """Build a diffusion of a noise type for states (dims,); only additive noise ignores the state."""
    channels = CHANNELS[noise_type]

    def diagonal(t: Tensor, x: Tensor) -> Tensor:
        return strength * torch.cos(x + t.to(x)[:, None])

    def matrix(t: Tensor, x: Tensor) -> Tensor:
        mix = torch.linspace(-1, 1, x.shape[1] * channels, dtype=x.dtype).reshape(x.shape[1], channels) + 0.1
        shape = torch.ones_like(x) if noise_type == "additive" else torch.cos(x)
        return strength * (1 + 0.5 * torch.sin(t.to(x)))[:, None, None] * shape[..., None] * mix

    return diagonal if noise_type == "diagonal" else matrix


def sde(noise_type: NoiseType = "diagonal", batch: int = 2, dims: int = 4, seed: int = 7) -> picard.SDE:
    """Build a nonlinear SDE of a noise type."""

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(2 * x) - 0.5 * x + torch.cos(t).to(x)[:, None]

    return picard.SDE(
        drift, diffusion_of(noise_type), start(batch, dims), noise=picard.Noise.from_seed(seed), noise_type=noise_type
    )


MIXTURE = GaussianMixture(
    torch.tensor([[1.0, -0.5, 0.3], [-0.7, 0.8, -1.0]], dtype=F64),
    torch.tensor([[0.09, 0.25, 0.16], [0.2, 0.04, 0.3]], dtype=F64),
    torch.tensor([0.4, 0.6], dtype=F64),
)

SCHEDULES: dict[str, Schedule] = {
    "linear": Schedule.linear(),
    "scaled_linear": Schedule.scaled_linear(spacing="trailing"),
    "cosine": Schedule.cosine(),
    "karras": Schedule.karras(),
    "flow": Schedule.flow(shift=3.0, time_scale=1000.0),  # starts at pure noise, alpha = 0
}
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction", "flow")


def scales(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at model times, shape (rows,)."""
    if isinstance(schedule, TrainedSchedule):
        bar = schedule.alphas_cumprod[t]
        return bar.sqrt(), (1 - bar).sqrt()
    assert isinstance(schedule, SigmaSchedule)
    sigma = t / schedule.time_scale
    return (1 - sigma if schedule.kind == "flow" else torch.ones_like(sigma)), sigma


def network(schedule: Schedule, prediction: Prediction, mixture: GaussianMixture = MIXTURE) -> Model:
    """Build the exact network of a Gaussian mixture; `shift`, one number a row, moves its output."""

    def model(x: Tensor, t: Tensor, shift: Tensor | None = None, **_: Any) -> Tensor:
        alpha, sigma = scales(schedule, t)
        data = mixture.data(x.double(), alpha.double(), sigma.double())
        if shift is not None:
            data = data + shift[:, None]
        alpha, sigma = alpha[:, None], sigma[:, None]
        noise = (x - alpha * data) / sigma
        outputs = {"epsilon": noise, "sample": data, "v_prediction": alpha * noise - sigma * data, "flow": noise - data}
        return outputs[prediction].to(x.dtype)

    return model


def diffusion(
    schedule: Schedule = SCHEDULES["linear"],
    prediction: Prediction = "sample",
    batch: int = 2,
    *,
    seed: int = 3,
    cond: Mapping[str, Any] | None = None,
    **options: Any,
) -> picard.Diffusion:
    """Build a sampling problem with an exact network."""
    first = float(schedule.levels(10).sigma[0])
    denoiser = picard.Denoiser(network(schedule, prediction), schedule, prediction=prediction, **options)
    noise = picard.Noise.from_seed(seed)
    return picard.Diffusion(denoiser, first * start(batch, 3), noise=noise, cond=cond or {})


class Counted:
    """A function that counts its calls and the rows it was given."""

    def __init__(self, function: Model) -> None:
        self.function = function
        self.rows: list[int] = []

    def __call__(self, first: Tensor, second: Tensor, **cond: Any) -> Tensor:
        """Count, then call."""
        self.rows.append(len(first))
        return self.function(first, second, **cond)


def solve_failing(*, throw: bool, **options: Any) -> picard.Solution:
    """Solve for two samples, of which one's field ends to be finite at time 1; the other goes on if nobody throws."""

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.where((t[:, None] > 1) & (x < 0), torch.nan, -x)

    problem = picard.ODE(drift, torch.tensor([[1.0], [-1.0]], dtype=F64))
    try:
        return picard.solve(problem, times(40), method="euler", window=8, guess="hold", throw=throw, **options)
    except picard.NonFiniteError as error:
        return error.solution
