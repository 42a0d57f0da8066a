"""What the solver needs of a problem, and the checks every problem makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from picard.convert import Conversion
from picard.device import check_data
from picard.errors import InvalidProblemError, check_names, describe, holds_tensors
from picard.grid import Levels, Times
from picard.noise import Noise
from picard.rows import Rows
from picard.uncompiled import uncompiled

Result = TypeVar("Result")


class Problem(ABC):
    """What the solver needs of a problem: a start, points on its grid, and a field over rows.

    Attributes:
        x0: initial states, shape (batch, *state), floating.
        cond: keyword arguments of the model; tensors whose first dimension is the batch are repeated per row.
        noise: the realization, for problems that have noise.
    """

    x0: Tensor
    cond: Mapping[str, Any]
    noise: Noise | None

    @abstractmethod
    def points(self, grid: Any) -> Times | Levels:
        """Check a grid and return its points."""

    @abstractmethod
    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate the field at rows.

        Returns:
            The drift or data prediction, with the shape and dtype of `rows.x`, and the diffusion if noise enters
            through the field.
        """

    @property
    def conversion(self) -> Conversion | None:
        """How the field's value follows from what `output` returns; `None` if that is the value already."""
        return None

    @property
    def numbers(self) -> Tensor | None:
        """What the conversion needs beside the row."""
        return None

    @property
    def clock(self) -> Tensor | None:
        """What the network is given for every time, if times are indices; `output` is given it, too."""
        return None

    def output(self, rows: Rows) -> Tensor:
        """Evaluate the network alone, where there is a conversion, with the shape and dtype of `rows.x`."""
        return self.field(rows)[0]

    @abstractmethod
    def time_dtype(self, grid: Any) -> torch.dtype:
        """Return the dtype in which the model is given time."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one step's noise of one sample."""
        return tuple(self.x0.shape[1:])

    @property
    def callee(self) -> object:
        """What the field calls, by whose identity measurements are kept; this problem itself if nothing is known."""
        return self

    @property
    def parts(self) -> tuple[object, ...]:
        """What the field is made of besides tensors; problems of a class with equal parts have the same."""
        return (self,)

    @property
    def noise_in_field(self) -> bool:
        """Whether noise enters through the field, whose diffusion then comes with its value."""
        return False

    @property
    def linear(self) -> bool:
        """Whether the field is linear in the state."""
        return False

    @property
    def alone(self) -> Problem:
        """The problem as this process evaluates it alone: itself, unless its rows are spread over processes."""
        return self

    def like(self, other: Problem) -> Problem:
        """Evaluate another problem where this one is: as it is, unless rows are spread over processes."""
        return other

    def share(self, value: Any) -> list[Any]:
        """Return the values that all processes that share the rows have, by rank: just the given one here.

        Measured times differ between processes, decisions must not.
        """
        return [value]

    def agree(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Check, at the start of a solve, that all processes that share its rows know the same; there is one here.

        Args:
            facts: returns what decides the solve, by name.
        """

    def together(self, look: Callable[[], Result]) -> Result:
        """Call a function that calls the model in this process alone; if it raises in one, it raises in all."""
        return look()

    def conditioning(self) -> Mapping[str, Any]:
        """Return everything that is repeated per row."""
        return self.cond


def check_callable(name: str, value: object, takes: str = "t, x, **cond") -> None:
    """Check that a function can be called; a class makes objects, and is no function itself."""
    if not callable(value) or isinstance(value, type):
        fix = f": write {value.__name__}(...)" if isinstance(value, type) else ""
        msg = f"{name} must be callable as {name}({takes}); given {describe(value)}{fix}"
        raise InvalidProblemError(msg)


def check_state(name: str, x: object) -> None:
    """Check the form of initial states."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        msg = f"{name} must be a floating tensor of shape (batch, *state); given {describe(x)}: write "
        if isinstance(x, Tensor) and x.is_complex():
            fix = f"torch.view_as_real({name}), and the drift of pairs of numbers, or use picard.odeint"
        else:
            fix = floating(name, x) or f"{name}[None] for one sample, {name}[:, None] for a batch of numbers"
        raise InvalidProblemError(msg + fix)
    if x.numel() == 0:
        msg = f"{name} must hold at least one sample and one number; given {describe(x)}"
        raise InvalidProblemError(msg)
    check_finite(name, x)


def floating(name: str, x: object) -> str:
    """Say how to make a floating tensor of something, nothing if it is one."""
    if isinstance(x, (Mapping, tuple)) and holds_tensors(x):
        parts = f"{name}.values()" if isinstance(x, Mapping) else name
        return f"torch.cat([part.flatten(1) for part in {parts}], 1), and take the parts apart in the function"
    if not isinstance(x, Tensor):
        return f"torch.as_tensor({name}, dtype=torch.float32)"
    return "" if x.is_floating_point() or x.is_complex() else f"{name}.float() for integers"


@uncompiled
def check_finite(name: str, x: Tensor) -> None:
    """Check that every number of an initial state is finite."""
    check_data(name, x)
    if not bool(torch.isfinite(x).all()):
        msg = f"{name} must be finite; given {describe(x)} with {int((~torch.isfinite(x)).sum())} non-finite values"
        raise InvalidProblemError(msg)


def check_cond(cond: object, argument: str = "cond") -> dict[str, Any]:
    """Check conditioning and copy the mapping."""
    return check_names(argument, cond, f"{argument}=dict(label=label)")


def check_noise(noise: object) -> Noise:
    """Check that noise is a `Noise`."""
    if not isinstance(noise, Noise):
        fix = "Noise.from_brownian(path)" if callable(noise) else "e.g. Noise.from_seed(0)"
        msg = f"noise must be a picard.Noise; given {describe(noise)}: write {fix}"
        raise InvalidProblemError(msg)
    return noise
