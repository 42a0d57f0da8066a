"""Beliefs: denoiser outputs and the states they belong to, until the pipeline's own states confirm them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from .calls import Call
from .secant import error_of

logger = logging.getLogger("picard")
_LIMIT = 1e-3  # how far the pipeline's states may be from these; outputs of the wrong loop are much farther


class Belief:
    """All outputs of a pipeline's denoiser calls, with the noisy states they were evaluated at.

    Args:
        outputs: of every call.
        inputs: the states, by call; of leading rows and channels where the rest is the same.
        tolerance: largest relative error of an output that counted as right.
    """

    def __init__(self, outputs: list[Any], inputs: list[Tensor], tolerance: float) -> None:
        self.outputs, self.inputs = outputs, inputs
        self._limit = 10 * tolerance + max(_LIMIT, 16 * torch.finfo(inputs[0].dtype).eps)
        self._missed: list[Tensor] = []

    def meet(self, i: int, call: Call) -> None:
        """Take note of the state that the pipeline gives its call number i."""
        there = self.inputs[i]
        self._missed.append(error_of(call.x[tuple(slice(size) for size in there.shape)], there))

    def first_mistake(self) -> int | None:
        """Find the first call whose state was another one; waits for the device once."""
        missed = torch.stack(self._missed).tolist() if self._missed else [0.0]
        logger.debug("the outputs were evaluated within %.1e of the pipeline's states", max(missed))
        return next((i for i, error in enumerate(missed) if not error <= self._limit), None)
