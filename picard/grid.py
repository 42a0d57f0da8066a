"""Grids: the points a method steps over, times for ODEs and SDEs, noise levels for diffusion models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from picard.device import check_data, fetch
from picard.errors import InvalidGridError, InvalidProblemError, describe
from picard.number import check_flags

NoiseKind = Literal["none", "additive", "multiplicative"]


@dataclass(frozen=True, eq=False)
class Times:
    """A monotone time grid, increasing or decreasing.

    Attributes:
        values: grid points, shape (steps + 1,), float64, on the CPU.
        noise: whether Brownian noise enters the drift, and whether its strength depends on the state.
    """

    values: Tensor
    noise: NoiseKind = "none"


@dataclass(frozen=True, eq=False)
class Levels:
    """Noise levels `x = alpha * data + sigma * noise`, from the noisiest to the cleanest.

    Attributes:
        timesteps: what the model is given as time at every step, shape (steps,), float64.
        alpha: signal scale at every grid point, shape (steps + 1,), float64.
        sigma: noise scale at every grid point, shape (steps + 1,), float64, decreasing relative to `alpha`.
        straight: whether the path is the straight line of flow matching, alpha = 1 - sigma, whose natural time is
            `sigma` itself; otherwise the natural time is `sigma / alpha`.

    Raises:
        InvalidProblemError: if a tensor has another shape or dtype.
    """

    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    straight: bool = False

    def __post_init__(self) -> None:
        """Check the forms."""
        steps = len(self.timesteps) if isinstance(self.timesteps, Tensor) and self.timesteps.ndim else 0
        for name, shape in (("timesteps", (steps,)), ("alpha", (steps + 1,)), ("sigma", (steps + 1,))):
            value = getattr(self, name)
            if not steps or not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float64:
                msg = (
                    "Levels must hold float64 tensors: one timestep a step, and one alpha and one sigma more than "
                    f"there are steps; given {describe(value)} for {name} of {steps} steps: "
                    "write .double(), and the level after the last step, too"
                )
                raise InvalidProblemError(msg)
            check_data(f"Levels.{name}", value)
        check_flags(straight=self.straight)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.timesteps.shape[0]

    @property
    def log_snr(self) -> Tensor:
        """Half the logarithm of the signal-to-noise ratio, lambda = log(alpha / sigma), infinite where sigma is 0."""
        return torch.log(self.alpha) - torch.log(self.sigma)

    def posterior_std(self) -> Tensor:
        """Standard deviation of the ancestral (DDPM posterior) noise of every step, shape (steps,).

        Source: Ho et al., 2020, eq. 7, written for any alpha and sigma.
        """
        alpha, sigma, alpha_next, sigma_next = self.alpha[:-1], self.sigma[:-1], self.alpha[1:], self.sigma[1:]
        added = (sigma**2 - (alpha / alpha_next * sigma_next) ** 2).clamp_min(0)
        return sigma_next / sigma * added.sqrt()

    def yardstick(self) -> Tensor:
        """Posterior standard deviation with the zeros of the last steps replaced by the last positive value, (steps,).

        Where no step has any noise, as in one step to clean data, it is the noise scale of the step's start.
        """
        std = self.posterior_std()
        positive = torch.nonzero(std > 0)
        if len(positive) == 0:
            return self.sigma[:-1].clone()
        last = int(positive[-1])
        return torch.where(torch.arange(len(std), device="cpu") > last, std[last], std)


def check_times(grid: object, name: str = "the grid", *, steps: bool = True) -> Tensor:
    """Check a time grid and return it as float64 on the CPU.

    Args:
        grid: one-dimensional floating tensor with at least two strictly monotone, finite points.
        name: what the caller calls it.
        steps: whether its points are all the steps there are: two are then refused.

    Returns:
        The points, shape (steps + 1,), float64.

    Raises:
        InvalidGridError: if the grid is anything else.
    """
    fix, short = "write e.g. torch.linspace(0.0, 1.0, 101)", name.removeprefix("the ")
    if not isinstance(grid, Tensor):
        listed = isinstance(grid, (list, tuple, np.ndarray))
        fix = f"write torch.as_tensor({short})" if listed else fix
        msg = f"{name} must be a one-dimensional floating tensor of times; given {describe(grid)}: {fix}"
        raise InvalidGridError(msg)
    if not grid.is_floating_point():
        msg = f"{name} must have a floating dtype; given {describe(grid)}: write {short}.double()"
        raise InvalidGridError(msg)
    if grid.ndim != 1 or grid.numel() < 2:
        msg = f"{name} must be one-dimensional with at least two points; given {describe(grid)}: {fix}"
        raise InvalidGridError(msg)
    if steps and grid.numel() == 2:
        msg = (
            f"{name} must name every step; two points would be one single step: write "
            "torch.linspace(t0, t1, steps + 1), or torch.tensor([t0, (t0 + t1) / 2, t1]) for very few"
        )
        raise InvalidGridError(msg)
    values = fetch(grid)
    h = values.diff()
    if not bool(torch.isfinite(values).all()) or not (bool((h > 0).all()) or bool((h < 0).all())):
        turns = ~((h * h[0].sign() > 0) & torch.isfinite(values[1:]))
        bad = int(turns.int().argmax())
        msg = (
            f"{name} must be finite and strictly increasing or strictly decreasing; given "
            f"{describe(grid)} with {values[bad]:g} followed by {values[bad + 1]:g} at index {bad}: "
            "sort it and drop repeats"
        )
        raise InvalidGridError(msg)
    return values
