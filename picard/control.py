"""Step size control: how large the error of a step is, and how long the next one may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picard.shapes import Float

_SAFETY = 0.8  # below what one step at a time takes: an attempt of many steps ends where one of them fails
_LONGEST, _SHORTEST = 10.0, 0.2


@dataclass(frozen=True)
class Control:
    """The largest error of a step, `atol + rtol max(|y0|, |y1|)`, and the power of the step size it falls with.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, sec. II.4.

    Attributes:
        rtol: relative part.
        atol: absolute part.
        order: the power.
    """

    rtol: float
    atol: float
    order: int

    def error(
        self,
        estimate: Float[Tensor, "steps batch *state"],
        start: Float[Tensor, "steps batch *state"],
        end: Float[Tensor, "steps batch *state"],
    ) -> list[float]:
        """Return the error of every step in units of the largest it may have, that of the worst sample.

        Args:
            estimate: estimated errors.
            start: states before the steps.
            end: states after them.
        """
        scale = self.atol + self.rtol * torch.maximum(start.abs(), end.abs())
        ratio = torch.where(estimate == 0, 0, estimate / scale).flatten(2)
        found: list[float] = ratio.square().mean(2).sqrt().amax(1).tolist()
        return found

    def factor(self, errors: Sequence[float]) -> float:
        """Say by how much steps of such errors may grow, or must shrink."""
        worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
        if not worst < math.inf:
            return _SHORTEST
        return min(_LONGEST, max(_SHORTEST, _SAFETY * max(worst, 1e-12) ** (-1 / self.order)))

    def first(self, x: Float[Tensor, "batch *state"], slope: Callable[[float, Tensor], Tensor]) -> float:
        """Guess the length of the first step.

        Args:
            x: initial states.
            slope: returns the field so far ahead, at states like these.
        """

        def size(value: Tensor) -> float:
            return self.error(value[None], x[None], x[None])[0]

        here = slope(0.0, x)
        there, speed = size(x), size(here)
        step = 1e-6 if min(there, speed) < 1e-5 or not speed < math.inf else 0.01 * there / speed
        steepest = max(speed, size(slope(step, x + step * here) - here) / step)
        if not steepest < math.inf:
            return step
        longest = max(1e-6, 1e-3 * step) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / self.order)
        return min(100 * step, longest)
