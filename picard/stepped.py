"""SDEs stepped as torchsde steps them: Ito or Stratonovich, with the derivative term of Milstein if it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from picard.device import check_data, fetch
from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.grid import NoiseKind, Times
from picard.noise import Brownian, Noise
from picard.rows import Rows
from picard.sde import AbsorbedSDE
from picard.shapes import Float

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Drift and diffusion at rows: t (rows,), x (rows, *state)."""
Diffusion = Callable[[Tensor, Tensor], Tensor]
"""The diffusion at rows."""


@dataclass(frozen=True, eq=False)
class SteppedSDE(AbsorbedSDE):
    """An SDE whose noise is part of the field, F = drift + diffusion * dW / h, the same at all stages of a step.

    Heun's method and the midpoint rule then converge to the Stratonovich solution, Euler's to the Ito solution.

    Attributes:
        rowwise: drift and diffusion at rows.
        kind: how the method is to see the noise.
    """

    rowwise: Field
    kind: NoiseKind

    def points(self, grid: Any) -> Times:
        """Take the grid as it is: it may have a single step."""
        return Times(fetch(grid), self.kind)

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate drift and diffusion."""
        return self.rowwise(rows.t, rows.x)


def with_milstein(evaluate: Field, diffusion: Diffusion, noise_type: str) -> Field:
    """Add a channel to the diffusion: half its derivative along itself, the coefficient of Milstein's correction.

    Args:
        evaluate: drift and diffusion.
        diffusion: the diffusion alone.
        noise_type: `diagonal` or `scalar`.
    """

    def extended(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        drift, along = evaluate(t, x)
        if noise_type == "diagonal":  # the Jacobian is diagonal, so its transpose will do
            slope = _transposed(diffusion, t, x)(along)
        else:
            along = along.squeeze(-1)
            transposed = _transposed(lambda t, y: diffusion(t, y).squeeze(-1), t, x)
            slope = torch.func.vjp(transposed, torch.zeros_like(x))[1](along)[0]  # the transpose of the transpose
        return drift, torch.stack([along, 0.5 * slope], -1)

    return extended


def _transposed(function: Diffusion, t: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the transpose of a function's derivative at t (rows,), x (rows, *state)."""
    pull = torch.func.vjp(lambda y: function(t, y), x)[1]
    return lambda along: pull(along)[0]


def check_diagonal(diffusion: Diffusion, t: Tensor, x: Tensor) -> None:
    """Refuse diagonal noise whose components depend on each other: Milstein's correction is another one then.

    Raises:
        NotSupportedError: if the derivative of the diffusion at t (rows,) is not diagonal at x (rows, *state) or near.
    """
    ramp = torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)
    for place in (x, x + ramp):  # at the start alone, often zero, derivatives of even functions vanish
        transposed = _transposed(diffusion, t, place)
        slope, along = transposed(torch.ones_like(x)).detach(), transposed(ramp).detach()
        known = torch.isfinite(slope) & torch.isfinite(along)
        slope, along = torch.where(known, slope, 0), torch.where(known, along, 0)
        if not torch.allclose(along, slope * ramp, rtol=1e-3, atol=1e-4 * float(slope.abs().amax())):
            msg = (
                "milstein with diagonal noise needs every component of g to depend on its own component of y alone; "
                'here they depend on others: write method="euler" (Ito) or "heun" (Stratonovich)'
            )
            raise NotSupportedError(msg)


@dataclass(frozen=True, eq=False)
class MilsteinNoise(Noise):
    """Noise with a second channel, (dW^2 - h) / h (Ito) or dW^2 / h (Stratonovich), in units of sqrt(h) as the first.

    Attributes:
        source: the noise.
        times: the grid.
        ito: whether h is subtracted.
        stacked: whether the channels get a dimension of their own (diagonal noise), or follow each other (scalar).
    """

    source: Noise
    times: Tensor
    ito: bool
    stacked: bool

    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        """Draw both channels."""
        xi = self.source.draw(samples, steps, shape[:-1] if self.stacked else (*shape[:-1], 1))
        h = self.times.diff()[list(steps)].to(xi).reshape(-1, *[1] * (xi.ndim - 1))
        square = h.sqrt() * (xi.square() - 1 if self.ito else xi.square())
        return torch.stack([xi, square], -1) if self.stacked else torch.cat([xi, square], -1)

    def select(self, samples: Sequence[int]) -> Noise:
        """Select from the source."""
        return replace(self, source=self.source.select(samples))


@dataclass(frozen=True, eq=False)
class WholeNoise(Noise):
    """The noise of a batch as that of one sample: the state of that sample is the whole batch.

    Attributes:
        source: the noise, indexed by sample.
        batch: number of samples.
    """

    source: Noise
    batch: int

    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        """Draw the noise of all samples."""
        repeated = [step for step in steps for _ in range(self.batch)]
        values = self.source.draw(list(range(self.batch)) * len(steps), repeated, shape[1:])
        return values.unflatten(0, (len(steps), self.batch))

    def select(self, samples: Sequence[int]) -> Noise:
        """Return the same: there is one sample."""
        return self

    def on(self, times: Float[Tensor, " points"]) -> Noise:
        """Bind the source to a grid."""
        return replace(self, source=self.source.on(times))

    def check(self, batch: int, steps: int, shape: tuple[int, ...]) -> None:
        """Check the source."""
        self.source.check(self.batch, steps, shape[1:])


@dataclass(frozen=True, eq=False)
class PathNoise(Noise):
    """A Brownian path of torchsde, asked once for every step, in ascending order, as torchsde's solvers ask it.

    The values of such a path may depend on what it was asked before, so the latest answers are kept.

    Attributes:
        path: called as path(a, b); returns W(b) - W(a).
        shape: of its answers, (batch, channels).
        times: the grid.
        keep: number of answers kept.
        whole: whether the batch is the state of one sample.
    """

    path: Brownian
    shape: tuple[int, int]
    times: Tensor
    keep: int
    whole: bool
    _answers: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        """Ask for the steps not asked yet."""
        drawn = {step: self._draw(step) for step in sorted(set(steps))}
        for step in sorted(self._answers)[: -self.keep]:
            del self._answers[step]
        if self.whole:
            return torch.stack([drawn[step] for step in steps])
        return torch.stack([drawn[step][sample] for sample, step in zip(samples, steps, strict=True)])

    def _draw(self, step: int) -> Tensor:
        if step not in self._answers:
            start, end = float(self.times[step]), float(self.times[step + 1])
            increment: object = self.path(start, end)
            floating = isinstance(increment, Tensor) and increment.is_floating_point()
            if not isinstance(increment, Tensor) or not floating or tuple(increment.shape) != self.shape:
                msg = (
                    f"bm must return a floating tensor of shape {self.shape} when called as bm(a, b); it returned "
                    f"{describe(increment)}"
                )
                raise InvalidProblemError(msg)
            check_data("what bm returns", increment)
            self._answers[step] = increment / (end - start) ** 0.5
        return self._answers[step]

    def select(self, samples: Sequence[int]) -> Noise:
        """Return the path itself."""
        return self
