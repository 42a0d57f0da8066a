"""Ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from picard.grid import Times, check_times
from picard.noise import Noise
from picard.noted import called
from picard.problem import Problem, check_callable, check_cond, check_state
from picard.rows import Rows


@dataclass(frozen=True, eq=False)
class ODE(Problem):
    """An ordinary differential equation dx/dt = drift(t, x).

    Attributes:
        drift: called as `drift(t, x, **cond)` with t (rows,) and x (rows, *state); returns (rows, *state). Rows are
            independent: many times and samples come in one call.
        x0: initial states, shape (batch, *state), floating.
        cond: keyword arguments of the drift; tensors whose first dimension is the batch are repeated per row;
            one that only looks so is bound with `functools.partial`.

    Raises:
        InvalidProblemError: if an argument has the wrong form.
    """

    drift: Callable[..., Tensor]
    x0: Tensor
    cond: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    noise: Noise | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_callable("drift", self.drift)
        check_state("x0", self.x0)
        object.__setattr__(self, "cond", check_cond(self.cond))

    @property
    def callee(self) -> object:
        """The drift."""
        return self.drift

    @property
    def parts(self) -> tuple[object, ...]:
        """The drift."""
        return (self.drift,)

    def points(self, grid: Any) -> Times:
        """Check the time grid."""
        return Times(check_times(grid))

    def time_dtype(self, grid: Any) -> torch.dtype:
        """Return the grid's own dtype: time is never promoted."""
        dtype: torch.dtype = grid.dtype
        return dtype

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate the drift."""
        return called(self.drift, {"t": rows.t, "x": rows.x}, rows.cond.tensors()), None
