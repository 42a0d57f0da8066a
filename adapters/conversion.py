"""Conversion: from the output of a traced scheduler's model to the data prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .probe import Clamp, Clip


@dataclass(frozen=True)
class FromOutput:
    """The data prediction of a traced scheduler's model, clipped as the scheduler does.

    Attributes:
        clip: how.
        every: whether the clipped prediction is all that counts at every node.
    """

    clip: Clip | None
    every: bool

    def __call__(self, x: Tensor, output: Tensor, t: Tensor, scales: Any, numbers: Any) -> Tensor:
        """Return the data prediction; time is the index of the node."""
        u, w, plain, clipped = numbers[t].reshape(len(t), 4, *[1] * (x.ndim - 1)).unbind(1)
        data = (u * x).addcmul_(w, output)
        if self.clip is None:
            return data
        return self.clip(data) if self.every else plain * data + clipped * self.clip(data)

    @property
    def comparable(self) -> bool:
        """Whether that of another trace is known to be the same."""
        return self.clip is None or (
            isinstance(self.clip, Clamp)
            and all(bound is None or isinstance(bound, (int, float)) for bound in (self.clip.low, self.clip.high))
        )


def unwrap(output: Any) -> Tensor:
    """Take the tensor out of what a model of Diffusers returns."""
    while not isinstance(output, Tensor):
        output = output.sample if hasattr(output, "sample") else output[0]
    return output
