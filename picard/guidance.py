"""Guidance: classifier-free guidance, whose two halves are one doubled batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import map_tensors
from picard.errors import InvalidProblemError, describe
from picard.number import keep_numbers, number, one_number, share
from picard.problem import check_cond


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans, 2022), computed as one doubled batch.

    Attributes:
        scale: guidance scale w, one for all samples; the output is `uncond + w * (cond - uncond)`.
        uncond: conditioning of the unconditional half, named and shaped as the problem's `cond`.
        rescale: share of the rescaling that keeps the conditional output's standard deviation (Lin et al., 2024, 3.4).

    Raises:
        InvalidProblemError: if the scale is not one number or `rescale` is not a share.
    """

    scale: float
    uncond: Mapping[str, Any] = field(default_factory=dict)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers and the mapping."""
        tensor = isinstance(self.scale, Tensor)  # is kept: it may ask for a gradient, or be on a device
        if not one_number(self.scale) or not (tensor or math.isfinite(number("scale", self.scale))):
            msg = (
                f"guidance scale must be one finite number; given {describe(self.scale)}: write e.g. "
                "Guidance(3.0, uncond), or, for a scale a sample, combine both outputs in the model and pass the "
                "scales in cond"
            )
            raise InvalidProblemError(msg)
        if not tensor:
            keep_numbers(self, "scale")
        keep_numbers(self, "rescale", of=share)
        object.__setattr__(self, "uncond", check_cond(self.uncond, "uncond"))

    def combine(self, uncond: Tensor, cond: Tensor) -> Tensor:
        """Combine the two halves of the network's output, each (rows, *state).

        Raises:
            InvalidProblemError: if one number is to be rescaled, which has no standard deviation.
        """
        guided = uncond + self.scale * (cond - uncond)
        if not self.rescale:
            return guided
        if cond[:1].numel() == 1:
            msg = (
                "guidance rescale keeps the standard deviation over a state, which must have several numbers; given "
                f"{describe(cond)}: write rescale=0.0"
            )
            raise InvalidProblemError(msg)
        dims = tuple(range(1, cond.ndim))
        spread = guided.std(dims, keepdim=True)
        matched = guided * torch.where(spread > 0, cond.std(dims, keepdim=True) / spread, 1.0)  # 0 / 0: all the same
        return self.rescale * matched + (1 - self.rescale) * guided


def check_halves(name: str, uncond: Any, cond: Any, batch: int) -> None:
    """Check that the two halves of guidance differ in rows of samples only: all else, one call gives to both.

    Args:
        name: the argument's, for the message.
        uncond: its value in the unconditional half.
        cond: its value in the conditional one.
        batch: number of samples.

    Raises:
        InvalidProblemError: if they differ in something else.
    """
    if isinstance(cond, Mapping) and isinstance(uncond, Mapping) and cond.keys() == uncond.keys():
        for key, value in cond.items():
            check_halves(f"{name}[{key!r}]", uncond[key], value, batch)
    elif isinstance(cond, (list, tuple)) and isinstance(uncond, (list, tuple)) and len(cond) == len(uncond):
        for i, value in enumerate(cond):
            check_halves(f"{name}[{i}]", uncond[i], value, batch)
    elif isinstance(cond, Tensor) and isinstance(uncond, Tensor) and cond.shape == uncond.shape:
        if (cond.ndim == 0 or len(cond) != batch) and uncond is not cond and not torch.equal(uncond, cond):
            msg = (
                f"guidance's uncond may differ from cond in tensors with one row a sample only; given "
                f"{describe(uncond)} for {name} and {batch} samples: write value.expand({batch}, *value.shape) for both"
            )
            raise InvalidProblemError(msg)
    elif isinstance(cond, (Tensor, Mapping, list, tuple)) or (uncond is not cond and uncond != cond):
        msg = (
            f"guidance's uncond must be shaped as cond, and differ in tensors only; given {describe(uncond)} for "
            f"{name}, cond has {describe(cond)}: write a tensor with one row a sample, e.g. uncond.expand_as(cond)"
        )
        raise InvalidProblemError(msg)


def double(uncond: Any, cond: Any, original: Any, batch: int) -> Any:
    """Put the rows of the unconditional half before those of the conditional one.

    Args:
        uncond: repeated per row.
        cond: repeated per row.
        original: the same before it was repeated; tensors whose first dimension is the batch have rows.
        batch: number of samples.
    """

    def both(one: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second]) if one.ndim and len(one) == batch else second

    return map_tensors(original, both, uncond, cond)
