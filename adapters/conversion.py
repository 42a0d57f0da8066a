"""Conversion: from the output of a traced scheduler's model to the data prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from picard.errors import InvalidProblemError, describe

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
    """Take the tensor out of what a model of Diffusers returns.

    Raises:
        InvalidProblemError: if there is none.
    """
    found = output
    while not isinstance(found, Tensor):
        try:
            inner = found.sample if hasattr(found, "sample") else found[0]
        except (TypeError, LookupError):
            inner = found
        if inner is found:  # a letter's first one, too
            msg = (
                "the model must return a tensor, a tuple with the tensor first, or an output with `.sample`; it "
                f"returned {describe(output)}"
            )
            raise InvalidProblemError(msg)
        found = inner
    return found
