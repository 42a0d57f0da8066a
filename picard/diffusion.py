"""Sampling from diffusion models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picard.convert import FromPrediction
from picard.denoiser import Denoiser
from picard.errors import InvalidGridError, InvalidProblemError, describe
from picard.grid import Levels
from picard.guidance import check_halves, double
from picard.noise import Noise
from picard.number import whole
from picard.problem import Problem, check_cond, check_noise, check_state
from picard.rows import Rows


@dataclass(frozen=True, eq=False)
class Diffusion(Problem):
    """Sampling from a diffusion model, from noise to data.

    Attributes:
        denoiser: the network with its schedule.
        x_T: start, shape (batch, *state), floating, already scaled by the first level's sigma.
        noise: the realization for stochastic samplers; without one, a seed is taken from PyTorch's global generator.
        cond: keyword arguments of the network; tensors whose first dimension is the batch are repeated per row;
            one that only looks so is bound with `functools.partial`.

    Raises:
        InvalidProblemError: if an argument has the wrong form.
    """

    denoiser: Denoiser
    x_T: Tensor  # noqa: N815  # the field's name for the start of sampling
    noise: Noise | None = field(default=None, kw_only=True)
    cond: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments and fix the realization, so that every solve of this problem has the same."""
        if not isinstance(self.denoiser, Denoiser):
            msg = f"the denoiser must be a Denoiser; given {describe(self.denoiser)}: write Denoiser(model, schedule)"
            raise InvalidProblemError(msg)
        check_state("x_T", self.x_T)
        object.__setattr__(self, "cond", check_cond(self.cond))
        object.__setattr__(self, "noise", Noise.from_generator() if self.noise is None else check_noise(self.noise))
        guidance = self.denoiser.guidance
        uncond = {} if guidance is None else guidance.uncond
        if guidance is not None and not uncond:
            msg = (
                "guidance needs the conditioning of its unconditional half, or both halves are the same; given none: "
                "write Guidance(scale, uncond=dict(label=none))"
            )
            raise InvalidProblemError(msg)
        if not set(uncond) <= set(self.cond):
            unknown = sorted(set(uncond) - set(self.cond))
            msg = f"guidance's uncond must name entries of cond; given {unknown}, cond has {sorted(self.cond)}"
            raise InvalidProblemError(msg)
        for name, value in uncond.items():
            check_halves(name, value, self.cond[name], len(self.x_T))

    @property
    def x0(self) -> Tensor:  # type: ignore[override]  # read-only here, as the whole object is
        """Start of sampling."""
        return self.x_T

    @property
    def callee(self) -> object:
        """The network."""
        return self.denoiser.model

    @property
    def parts(self) -> tuple[object, ...]:
        """The network, and what is made of its output."""
        denoiser, guidance = self.denoiser, self.denoiser.guidance
        guided = () if guidance is None else (guidance.scale, guidance.rescale, *guidance.uncond)
        return (denoiser.model, denoiser.prediction, denoiser.clip, guided)

    def points(self, grid: Any) -> Levels:
        """List the noise levels of a number of steps, or of given timesteps."""
        if not isinstance(grid, Tensor) and whole(grid) is None:
            fix = "torch.as_tensor(grid)" if isinstance(grid, (list, tuple, range, np.ndarray)) else "e.g. 50"
            msg = (
                "a diffusion model's grid must be a number of steps or a tensor of timesteps; "
                f"given {describe(grid)}: write {fix}"
            )
            raise InvalidGridError(msg)
        levels: object = self.denoiser.schedule.levels(grid)
        if not isinstance(levels, Levels):
            msg = (
                f"a schedule's `levels` must return a picard.Levels; it returned {describe(levels)}: "
                "write picard.Levels(timesteps, alpha, sigma)"
            )
            raise InvalidProblemError(msg)
        self.denoiser.check(levels.alpha[:-1])
        return levels

    def time_dtype(self, grid: Any) -> torch.dtype:
        """Return int64 for training steps, the state's dtype for continuous time."""
        return torch.int64 if self.denoiser.schedule.discrete else self.x_T.dtype

    def conditioning(self) -> Mapping[str, Any]:
        """Return the network's keyword arguments for both halves of guidance."""
        return {"cond": self.cond, "uncond": self._uncond()} if self.cond else {}

    @property
    def conversion(self) -> FromPrediction | None:
        """The denoiser's, unless it clips in a way of its own."""
        return None if callable(self.denoiser.clip) else self.denoiser.conversion

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate the data prediction."""
        return self.denoiser.conversion(rows.x, self._answer(rows), rows.t, rows.scales), None

    def output(self, rows: Rows) -> Tensor:
        """Evaluate the network."""
        return self._answer(rows).to(rows.x.dtype)

    def _answer(self, rows: Rows) -> Tensor:
        """Evaluate the network, whose dtype may be its own."""
        both = rows.cond.tensors()
        cond = both.get("cond", {})
        if self.denoiser.guidance is not None:
            cond = double(both.get("uncond", {}), cond, self.cond, len(self.x_T))
        return self.denoiser.output(rows.x, rows.t, cond)

    def _uncond(self) -> Mapping[str, Any]:
        guidance = self.denoiser.guidance
        return {} if guidance is None else {**self.cond, **guidance.uncond}
