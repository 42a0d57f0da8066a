"""Stochastic differential equations. `SDE.absorb` turns a fixed realization into a deterministic problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from picard.device import check_data
from picard.errors import InvalidGridError, InvalidProblemError, check_choice, describe
from picard.grid import Times, check_times
from picard.noise import Noise
from picard.noted import called
from picard.problem import Problem, check_callable, check_cond, check_noise, check_state
from picard.rows import Rows

NoiseType = Literal["diagonal", "scalar", "additive", "general"]
_NOISE_TYPES = ("diagonal", "scalar", "additive", "general")


@dataclass(frozen=True, eq=False)
class SDE:
    """An Ito stochastic differential equation dx = drift(t, x) dt + diffusion(t, x) dW with a fixed realization of W.

    Attributes:
        drift: called as `drift(t, x, **cond)` with t (rows,), x (rows, *state); returns (rows, *state).
        diffusion: called alike; returns (rows, *state) for diagonal noise and (rows, *state, channels) for scalar
            (one channel), additive (must not depend on x) and general noise.
        x0: initial states, shape (batch, *state), floating.
        noise: the realization.
        noise_type: `diagonal`, `scalar`, `additive` or `general`, as torchsde names them.
        cond: keyword arguments of both functions; tensors whose first dimension is the batch are repeated per row;
            one that only looks so is bound with `functools.partial`.

    Raises:
        InvalidProblemError: if an argument has the wrong form.
    """

    drift: Callable[..., Tensor]
    diffusion: Callable[..., Tensor]
    x0: Tensor
    noise: Noise = field(kw_only=True)
    noise_type: NoiseType = field(default="diagonal", kw_only=True)
    cond: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_callable("drift", self.drift)
        check_callable("diffusion", self.diffusion)
        check_state("x0", self.x0)
        check_noise(self.noise)
        object.__setattr__(self, "cond", check_cond(self.cond))
        check_choice("noise_type", self.noise_type, _NOISE_TYPES)

    def absorb(self, grid: Tensor) -> Problem:
        """Absorb the noise on a grid: dx/dt = drift(t, x) + diffusion(t, x) dW_i / h_i within step i.

        The result is an ordinary differential equation whose Euler solution is the Euler-Maruyama path of this
        realization (Ito); higher orders are offered for additive noise only, where Ito and Stratonovich agree.

        Args:
            grid: time grid, shape (steps + 1,), increasing or decreasing.

        Returns:
            The deterministic problem, to be solved on the same grid.

        Raises:
            InvalidGridError: if the grid is not valid.
            InvalidProblemError: if the noise does not cover the grid.
        """
        times = check_times(grid)
        shape = tuple(self.x0.shape[1:]) if self.noise_type == "diagonal" else (self._channels(grid),)
        noise = self.noise.on(times)
        noise.check(len(self.x0), len(times) - 1, shape)
        return AbsorbedSDE(self, times, noise, shape)

    def _channels(self, grid: Tensor) -> int:
        if self.noise_type == "scalar":
            return 1
        t = grid[:1].to(self.x0.device).expand(len(self.x0))
        given: object = called(self.diffusion, {"t": t, "x": self.x0}, self.cond)
        if not isinstance(given, Tensor) or given.shape[:-1] != self.x0.shape:
            msg = (
                f"diffusion must return (rows, *state, channels) for {self.noise_type} noise; "
                f"it returned {describe(given)}"
            )
            raise InvalidProblemError(msg)
        return given.shape[-1]


@dataclass(frozen=True, eq=False)
class AbsorbedSDE(Problem):
    """An SDE whose noise has become part of the drift, on one grid; made by `SDE.absorb`."""

    sde: SDE
    times: Tensor
    noise: Noise | None
    shape: tuple[int, ...]

    @property
    def x0(self) -> Tensor:  # type: ignore[override]  # read-only here, as the whole object is
        """Initial states of the SDE."""
        return self.sde.x0

    @property
    def cond(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Conditioning of the SDE."""
        return self.sde.cond

    @property
    def callee(self) -> object:
        """The drift."""
        return self.sde.drift

    @property
    def parts(self) -> tuple[object, ...]:
        """The two functions, and how noise enters."""
        return (self.sde.drift, self.sde.diffusion, self.sde.noise_type, self.shape)

    @property
    def noise_in_field(self) -> bool:
        """Whether noise enters through the field: always."""
        return True

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one step's noise of one sample: the state's, or (channels,)."""
        return self.shape

    def points(self, grid: Any) -> Times:
        """Check that the grid is the one the noise was absorbed on."""
        times = check_times(grid)
        if times.shape != self.times.shape or not torch.equal(times, self.times):
            msg = "an absorbed SDE must be solved on the grid it was absorbed on: write sde.absorb(grid) for another"
            raise InvalidGridError(msg)
        return Times(times, "additive" if self.sde.noise_type == "additive" else "multiplicative")

    def time_dtype(self, grid: Any) -> torch.dtype:
        """Return the grid's own dtype: time is never promoted."""
        dtype: torch.dtype = grid.dtype
        return dtype

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate drift and diffusion."""
        given, cond, sde = {"t": rows.t, "x": rows.x}, rows.cond.tensors(), self.sde
        drift = called(sde.drift, given, cond)
        diffusion: object = called(sde.diffusion, given, cond)
        shape = tuple(rows.x.shape) if sde.noise_type == "diagonal" else (*rows.x.shape, *self.shape)
        form = (shape, rows.x.dtype, rows.x.device)
        if not isinstance(diffusion, Tensor) or (tuple(diffusion.shape), diffusion.dtype, diffusion.device) != form:
            msg = (
                f"diffusion must return shape {shape} and {rows.x.dtype}, on {rows.x.device}, for {sde.noise_type} "
                f"noise; it returned {describe(diffusion)}"
            )
            raise InvalidProblemError(msg)
        check_data("what diffusion returns", diffusion)
        return drift, diffusion
