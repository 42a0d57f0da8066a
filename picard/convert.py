"""Conversion: from what a network returns to the field's value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from picard.errors import InvalidProblemError
from picard.shapes import Float

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]


@runtime_checkable
class Conversion(Protocol):
    """An elementwise function of tensors, so that a compiler can take it; equal to others like it, and hashable."""

    def __call__(
        self,
        x: Float[Tensor, "rows *state"],
        output: Float[Tensor, "rows *state"],
        t: Tensor,
        scales: Any,
        numbers: Any,
    ) -> Float[Tensor, "rows *state"]:
        """Return the field's value.

        Args:
            x: states, as they are or flattened.
            output: what the network returned for them.
            t: model times, shape (rows,).
            scales: alpha and sigma of every row, shape (rows, 2), or `None` if the plan has none.
            numbers: a tensor or `None`, what else the problem knows, see `Problem.numbers`.
        """
        ...


@dataclass(frozen=True)
class FromPrediction:
    """The data prediction of a diffusion network.

    Attributes:
        prediction: what the network predicts, see `Denoiser`.
        clip: see `Denoiser`.
    """

    prediction: Prediction
    clip: float | Callable[[Tensor], Tensor] | None

    def __call__(self, x: Tensor, output: Tensor, t: Tensor, scales: Any, numbers: Any = None) -> Tensor:
        """Return the data prediction, with the dtype of `x`.

        Raises:
            InvalidProblemError: if the plan has no scales.
        """
        if scales is None:
            msg = "a diffusion method's plan must carry `scales`, the alpha and sigma of every node"
            raise InvalidProblemError(msg)
        wide = scales.reshape(*scales.shape, *[1] * (x.ndim - 1)).to(torch.promote_types(x.dtype, torch.float32))
        data = self._data(x, output, wide[:, 0], wide[:, 1]).to(x.dtype)
        if callable(self.clip):
            return self.clip(data)
        return data if self.clip is None else data.clamp(-self.clip, self.clip)

    def _data(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "sample":
            return output
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha
        if self.prediction == "v_prediction":
            return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
        return (x - sigma * output) / (alpha + sigma)
