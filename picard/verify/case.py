"""A case: a problem, a grid, a method and options of the solver, and the smaller cases it contains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import map_tensors
from picard.diffusion import Diffusion
from picard.errors import NotSupportedError, describe
from picard.expected import Expected
from picard.noise import Noise
from picard.number import check_samples, whole
from picard.ode import ODE
from picard.prepare import Prepared, prepare
from picard.problem import Problem
from picard.sde import SDE
from picard.solution import Solution


@dataclass(frozen=True, eq=False)
class Case:
    """One thing to solve.

    Attributes:
        problem: what the solver takes; `ODE`, `SDE` and `Diffusion` can be taken apart, anything else is handed on.
        grid: as for `picard.solve`.
        method: as for `picard.solve`.
        options: further keyword arguments of the solver.
        samples: indices of these samples in the batch of the first case, if it is a part of one.
    """

    problem: Any
    grid: Any
    method: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Keep a number of steps as Python's own."""
        steps = whole(self.grid)
        object.__setattr__(self, "grid", self.grid if steps is None else steps)

    def prepare(self) -> Prepared:
        """Write the case as a plan.

        Raises:
            NotSupportedError: if the problem is not one of this library's.
        """
        if not isinstance(self.problem, Problem | SDE):
            msg = f"this needs an ODE, an SDE or a Diffusion; given {describe(self.problem)}"
            raise NotSupportedError(msg)
        return prepare(self.problem, self.grid, self.method)

    @property
    def batch(self) -> int | None:
        """Number of samples, if the problem can be taken apart."""
        return len(self.problem.x0) if isinstance(self.problem, ODE | SDE | Diffusion) else None

    @property
    def steps(self) -> int | None:
        """Number of grid steps, if the grid says it."""
        if isinstance(self.grid, Tensor):
            return len(self.grid) - (not isinstance(self.problem, Diffusion))
        return whole(self.grid)

    def select(self, samples: list[int]) -> Case:
        """Keep some samples of the batch, in the given order.

        Args:
            samples: indices in the batch.

        Returns:
            The case of these samples; options that have them keep the same: a `guess`, and tensors whose first
            dimension is the batch.

        Raises:
            NotSupportedError: if the problem cannot be taken apart.
        """
        problem, batch = select(self.problem, samples), len(self.problem.x0)
        origin = range(batch) if self.samples is None else self.samples
        kept = tuple(origin[sample] for sample in samples)
        return replace(self, problem=problem, options=self._of(samples, batch), samples=kept)

    def _of(self, samples: list[int], batch: int) -> dict[str, Any]:
        """Select the samples of all options that have them."""

        def part(name: str, value: Any) -> Any:
            if name != "guess":
                return value if name == "save" else _rows(value, samples, batch)
            if isinstance(value, Expected):
                return replace(value, values=value.values[:, samples])
            value = value.ys if isinstance(value, Solution) else value
            return value[:, samples] if isinstance(value, Tensor) and value.ndim > 1 else value

        return {name: part(name, value) for name, value in self.options.items()}

    def shorten(self, steps: int) -> Case:
        """Keep the first steps of a time grid, or take fewer steps of a schedule.

        Args:
            steps: number of steps to keep, at most `self.steps`.

        Returns:
            The case; a guess in its options is cut to the same length.
        """
        options, guess = dict(self.options), self.options.get("guess")
        if isinstance(guess, Expected) and self.steps:
            options["guess"] = replace(guess, values=guess.values[: len(guess.values) * steps // self.steps])
        if isinstance(guess, Solution | Tensor):
            options["guess"] = (guess.ys if isinstance(guess, Solution) else guess)[: steps + 1]
        if isinstance(self.grid, Tensor):
            points = steps + (not isinstance(self.problem, Diffusion))
            return replace(self, grid=self.grid[:points], options=options)
        return replace(self, grid=steps, options=options)

    def with_noise(self, values: Tensor) -> Case:
        """Replace the realization.

        Args:
            values: standard normal, shape (steps, batch, *noise).

        Returns:
            The case with this noise.
        """
        return replace(self, problem=replace(self.problem, noise=Noise.from_tensor(values)))

    def noise(self) -> Tensor | None:
        """Return the whole realization, shape (steps, batch, *noise), or `None` if the method uses no noise."""
        prepared = self.prepare()
        noise = prepared.problem.noise
        if prepared.draw is None or noise is None:
            return None
        batch, steps, shape = len(prepared.problem.x0), prepared.plan.steps, prepared.problem.noise_shape
        index = [(sample, step) for step in range(steps) for sample in range(batch)]
        values = noise.draw([sample for sample, _ in index], [step for _, step in index], shape)
        return values.unflatten(0, (steps, batch))

    def scaled(self, factor: float) -> Case:
        """Multiply the start by a number.

        Args:
            factor: the number.

        Returns:
            The case with this start.
        """
        name = "x_T" if isinstance(self.problem, Diffusion) else "x0"
        return replace(self, problem=replace(self.problem, **{name: factor * getattr(self.problem, name)}))

    def __repr__(self) -> str:
        """Show what there is in one line: shapes and options, never values."""
        x0 = getattr(self.problem, "x0", None)
        state = f", x0={tuple(x0.shape)} {x0.dtype}" if isinstance(x0, Tensor) else ""
        options = "".join(f", {name}={show(value)}" for name, value in self.options.items())
        return f"Case({type(self.problem).__name__}{state}, grid={show(self.grid)}, method={self.method!r}{options})"


def select(problem: Any, samples: list[int]) -> Any:
    """Take some samples of a problem's batch: start, noise and conditioning.

    Args:
        problem: an `ODE`, an `SDE` or a `Diffusion`.
        samples: indices in the batch, in the order wanted.

    Returns:
        The problem of these samples.

    Raises:
        NotSupportedError: if the problem is something else.
    """
    if not isinstance(problem, ODE | SDE | Diffusion):
        msg = f"only an ODE, an SDE or a Diffusion has a batch that can be taken apart; given {describe(problem)}"
        raise NotSupportedError(msg)
    batch = len(problem.x0)
    samples = check_samples(samples, batch)
    changes: dict[str, Any] = {"cond": _rows(problem.cond, samples, batch)}
    if isinstance(problem, Diffusion):
        guidance = problem.denoiser.guidance
        if guidance is not None:
            guidance = replace(guidance, uncond=_rows(guidance.uncond, samples, batch))
            changes["denoiser"] = replace(problem.denoiser, guidance=guidance)
        changes["x_T"] = problem.x_T[samples]
    else:
        changes["x0"] = problem.x0[samples]
    if not isinstance(problem, ODE) and problem.noise is not None:
        changes["noise"] = problem.noise.select(samples)
    return replace(problem, **changes)


def _rows(value: Any, samples: list[int], batch: int) -> Any:
    return map_tensors(value, lambda tensor: tensor[samples] if tensor.ndim and len(tensor) == batch else tensor)


def show(value: object) -> str:
    """Show an option or a grid: numbers as they are, tensors by the expression that makes a grid like them."""
    if isinstance(value, Tensor):
        if value.ndim == 1 and value.numel() <= 8:
            return f"torch.tensor({value.tolist()}, dtype={value.dtype})"
        return f"<tensor {tuple(value.shape)} {value.dtype}>"
    return repr(value)


def largest_difference(got: Tensor, wanted: Tensor) -> tuple[float, int, int]:
    """Compare trajectories of shape (points, batch, *state).

    Returns:
        The largest difference relative to the largest number of the sample's wanted trajectory (infinite if either is
        not finite where it should be), and the grid point and the sample where it is.
    """
    got, wanted = (states.double().reshape(*states.shape[:2], -1) for states in (got, wanted))
    scale = wanted.abs().amax((0, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    ratio = torch.nan_to_num((got - wanted).abs().amax(2) / scale, nan=torch.inf)
    place = int(ratio.argmax())
    return float(ratio.max()), place // ratio.shape[1], place % ratio.shape[1]
