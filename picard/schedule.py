"""Noise schedules: which noise levels a diffusion model was trained on, and which of them a sampler visits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from picard.betas import cosine_betas, linear_betas
from picard.device import fetch
from picard.errors import InvalidGridError, InvalidProblemError, check_choice, describe
from picard.grid import Levels
from picard.number import check_count, keep_numbers
from picard.spacing import SPACINGS, Spacing, check_steps, karras_sigmas, nearest_training_steps, training_steps


class Schedule(ABC):
    """The noise levels `x = alpha * data + sigma * noise` of a diffusion model; build one by a class method.

    Class methods raise `InvalidProblemError` for what makes no schedule.

    Attributes:
        discrete: whether the model's time is an integer training step.
    """

    discrete: bool

    @abstractmethod
    def levels(self, grid: int | Tensor) -> Levels:
        """List the levels a sampler visits.

        Args:
            grid: number of steps, or the decreasing times themselves, shape (steps,): training steps for a discrete
                schedule, values of sigma for a continuous one. The final, clean level is added.

        Returns:
            The levels, noisiest first.

        Raises:
            InvalidGridError: if the number of steps or the times do not fit the schedule.
        """

    @staticmethod
    def from_alphas_cumprod(
        alphas_cumprod: Tensor,
        *,
        spacing: Spacing = "leading",
        steps_offset: int = 0,
        final: Literal["data", "first"] = "data",
    ) -> TrainedSchedule:
        """Take the cumulative products of a trained variance-preserving model: alpha^2 = alphas_cumprod.

        Args:
            alphas_cumprod: shape (training steps,), decreasing, all in (0, 1].
            spacing: how a number of steps becomes training steps: `leading`, `trailing`, `linspace` as Diffusers
                names them, or `karras`, spaced by Karras et al. (2022) eq. 5 within the trained range.
            steps_offset: added to the training steps of `leading`.
            final: the level after the last step, clean `data` (sigma = 0) or that of the `first` training step.

        Returns:
            The schedule.

        Raises:
            InvalidProblemError: if a value is outside (0, 1] or an option is unknown.
        """
        return TrainedSchedule(alphas_cumprod, spacing, steps_offset, final)

    @staticmethod
    def linear(
        train_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, *, spacing: Spacing = "leading"
    ) -> TrainedSchedule:
        """Build the linear schedule of DDPM (Ho et al., 2020).

        Args:
            train_steps: number of training steps.
            beta_start: beta of the first training step.
            beta_end: beta of the last one.
            spacing: as for `from_alphas_cumprod`.

        Raises:
            InvalidProblemError: if a beta is outside [0, 1) or the spacing is unknown.
        """
        return TrainedSchedule(torch.cumprod(1 - linear_betas(train_steps, beta_start, beta_end, 1.0), 0), spacing)

    @staticmethod
    def scaled_linear(
        train_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, *, spacing: Spacing = "leading"
    ) -> TrainedSchedule:
        """Build the schedule of latent diffusion (Rombach et al., 2022): the square root of beta is linear.

        Arguments and errors are those of `linear`.
        """
        return TrainedSchedule(torch.cumprod(1 - linear_betas(train_steps, beta_start, beta_end, 2.0), 0), spacing)

    @staticmethod
    def cosine(train_steps: int = 1000, *, max_beta: float = 0.999, spacing: Spacing = "leading") -> TrainedSchedule:
        """Build the squared-cosine schedule (Nichol and Dhariwal, 2021).

        Args:
            train_steps: number of training steps.
            max_beta: largest beta, below 1; larger ones are cut.
            spacing: as for `from_alphas_cumprod`.
        """
        return TrainedSchedule(torch.cumprod(1 - cosine_betas(train_steps, max_beta), 0), spacing)

    @staticmethod
    def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> SigmaSchedule:
        """Build the schedule of Karras et al. (2022), eq. 5: alpha = 1, the model's time is sigma.

        Args:
            sigma_min: smallest level above 0, which is added.
            sigma_max: largest level, the standard deviation of the start.
            rho: how much closer levels are where there is little noise.

        Raises:
            InvalidProblemError: if they are not positive and in this order.
        """
        return SigmaSchedule("karras", sigma_min, sigma_max, rho)

    @staticmethod
    def flow(shift: float = 1.0, time_scale: float = 1.0) -> SigmaSchedule:
        """Build the straight path of flow matching, alpha = 1 - sigma (Lipman et al., 2023; Esser et al., 2024).

        Args:
            shift: resolution shift, sigma -> shift * sigma / (1 + (shift - 1) * sigma).
            time_scale: the model's time is `time_scale * sigma`, e.g. 1000 for Stable Diffusion 3.
        """
        return SigmaSchedule("flow", 0.0, 1.0, shift, time_scale)


@dataclass(frozen=True, eq=False)
class TrainedSchedule(Schedule):
    """A variance-preserving schedule given by its training steps; see `Schedule.from_alphas_cumprod` for its fields."""

    alphas_cumprod: Tensor
    spacing: Spacing = "leading"
    steps_offset: int = 0
    final: Literal["data", "first"] = "data"
    discrete = True

    def __post_init__(self) -> None:
        """Check the values and keep them as float64 on the CPU."""
        bar = self.alphas_cumprod
        if not isinstance(bar, Tensor) or bar.ndim != 1 or bar.numel() == 0 or not bar.is_floating_point():
            msg = f"alphas_cumprod must be a one-dimensional floating tensor; given {describe(bar)}"
            raise InvalidProblemError(msg)
        bar = fetch(bar)
        if not bool(((bar > 0) & (bar <= 1)).all()) or not bool((bar.diff() <= 0).all()):
            msg = (
                "alphas_cumprod must decrease within (0, 1]; given values from "
                f"{bar.min():g} to {bar.max():g}: pass torch.cumprod(1 - betas, 0) with every beta in [0, 1)"
            )
            raise InvalidProblemError(msg)
        check_choice("spacing", self.spacing, SPACINGS)
        check_choice("final", self.final, ("data", "first"))
        object.__setattr__(self, "steps_offset", check_count("steps_offset", self.steps_offset, least=0))
        object.__setattr__(self, "alphas_cumprod", bar)

    def levels(self, grid: int | Tensor) -> Levels:
        """List the levels at a number of steps, or at given decreasing training steps."""
        train = len(self.alphas_cumprod)
        steps, offset = check_steps(grid, train), self.steps_offset
        if steps is not None and self.spacing == "karras":
            return self._karras_levels(steps)
        t = self._check_timesteps(grid if steps is None else training_steps(steps, train, self.spacing, offset))
        first = self.alphas_cumprod[:1]
        bar = torch.cat([self.alphas_cumprod[t], torch.ones_like(first) if self.final == "data" else first])
        return Levels(t.double(), bar.sqrt(), (1 - bar).sqrt())

    def _check_timesteps(self, t: Any) -> Tensor:
        train = len(self.alphas_cumprod)
        whole = isinstance(t, Tensor) and t.ndim == 1 and t.numel() > 0 and not t.is_complex()
        t = fetch(t) if whole else t
        if not whole or not bool((t == t.round()).all()) or not bool(((t >= 0) & (t < train)).all()):
            msg = (
                f"timesteps must be a one-dimensional tensor of whole training steps within [0, {train}); given "
                f"{describe(t)}: pass a number of steps, or e.g. torch.arange({train - 1}, -1, -10)"
            )
            raise InvalidGridError(msg)
        if not bool((t.diff() < 0).all()):
            msg = (
                f"timesteps must decrease strictly, from noise to data; given {describe(t)}: "
                "write t.flip(0), or t.unique().flip(0) to drop repeats"
            )
            raise InvalidGridError(msg)
        return t.long()

    def _karras_levels(self, steps: int) -> Levels:
        sigma = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        visited = karras_sigmas(steps, float(sigma[0]), float(sigma[-1]), 7.0)
        t = nearest_training_steps(visited, sigma)
        scaled = torch.cat([visited, torch.zeros_like(sigma[:1]) if self.final == "data" else sigma[:1]])
        alpha = 1 / (1 + scaled**2).sqrt()
        return Levels(t, alpha, scaled * alpha)


@dataclass(frozen=True)
class SigmaSchedule(Schedule):
    """A continuous schedule, `Schedule.karras` or `Schedule.flow` by its `kind`; `shape` is the rho or the shift."""

    kind: Literal["karras", "flow"]
    sigma_min: float
    sigma_max: float
    shape: float
    time_scale: float = 1.0
    discrete = False

    def __post_init__(self) -> None:
        """Check the range."""
        check_choice("kind", self.kind, ("karras", "flow"))
        keep_numbers(self, "sigma_min", "sigma_max", "shape", "time_scale")
        least = self.sigma_min > 0 if self.kind == "karras" else self.sigma_min >= 0
        sizes = (self.sigma_max - self.sigma_min, self.shape, self.time_scale)
        if not least or not all(0 < size < math.inf for size in sizes):
            msg = (
                "a schedule needs finite 0 < sigma_min < sigma_max (0 is added), positive rho, shift and time_scale; "
                f"given {self.sigma_min:g}, {self.sigma_max:g}, {self.shape:g}, {self.time_scale:g}"
            )
            raise InvalidProblemError(msg)

    def levels(self, grid: int | Tensor) -> Levels:
        """List the levels at a number of steps, or at given decreasing values of sigma; the final sigma is 0."""
        steps = check_steps(grid, None)
        sigma = self._check_sigmas(grid if steps is None else self._sigmas(steps))
        full = torch.cat([sigma, torch.zeros_like(sigma[:1])])
        flow = self.kind == "flow"
        return Levels(sigma * self.time_scale, 1 - full if flow else torch.ones_like(full), full, straight=flow)

    def _sigmas(self, steps: int) -> Tensor:
        if self.kind == "karras":
            return karras_sigmas(steps, self.sigma_min, self.sigma_max, self.shape)
        sigma = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")[:-1]
        return self.shape * sigma / (1 + (self.shape - 1) * sigma)

    def _check_sigmas(self, sigma: Any) -> Tensor:
        if not isinstance(sigma, Tensor) or sigma.ndim != 1 or sigma.numel() == 0 or not sigma.is_floating_point():
            msg = f"sigmas must be a floating tensor of one dimension, or a number of steps; given {describe(sigma)}"
            raise InvalidGridError(msg)
        sigma, top = fetch(sigma), 1.0 if self.kind == "flow" else math.inf
        if not bool((sigma.diff() < 0).all()) or not bool((sigma > 0).all()) or not float(sigma[0]) <= top:
            msg = (
                f"sigmas must decrease strictly, stay positive and not exceed {top:g} (the final 0 is added); "
                f"given {describe(sigma)}"
            )
            raise InvalidGridError(msg)
        return sigma
