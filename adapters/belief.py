"""Beliefs: denoiser outputs and the states they belong to, until the pipeline's own states confirm them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from .calls import Call, main_tensor
from .secant import error_of, overlap, shifted

logger = logging.getLogger("picard")
_LIMIT = 1e-3  # how far the pipeline's states may be from these; outputs of the wrong loop are much farther


class Belief:
    """All outputs of a pipeline's denoiser calls, with the noisy states they were evaluated at.

    Args:
        outputs: of every call.
        inputs: the states, by call; of leading rows and channels where the rest is the same.
        tolerance: largest relative error of an output that counted as right.
        eps: unit in the last place of the numbers that the denoiser computes with.
        slopes: by call, how outputs follow the pipeline's states, where it rounds these and the others are not rounded.
    """

    def __init__(
        self,
        outputs: list[Any],
        inputs: list[Tensor],
        tolerance: float,
        eps: float,
        slopes: list[float] | None = None,
    ) -> None:
        self.outputs, self.inputs, self._slopes = outputs, inputs, slopes
        self._limit = 10 * tolerance + max(_LIMIT, 16 * eps)
        self._missed: list[Tensor] = []

    def meet(self, i: int, call: Call) -> Any:
        """Take note of the state that the pipeline gives its call number i, and return the output.

        Fixed outputs would let what the pipeline rounds grow from step to step, by the ratio of the signals: the
        denoiser would have corrected it.
        """
        there = self.inputs[i]
        here = call.x[tuple(slice(size) for size in there.shape)]
        self._missed.append(error_of(here, there))
        if self._slopes is not None:
            value, moved = main_tensor(self.outputs[i]), self._slopes[i] * (here.float() - there.float())
            moved = torch.cat([moved] * (len(value) // len(there)))
            part = overlap(moved, value)
            self.outputs[i] = shifted(self.outputs[i], part, moved[part])
        return self.outputs[i]

    def first_mistake(self) -> int | None:
        """Find the first call whose state was another one; waits for the device once."""
        missed = torch.stack(self._missed).tolist() if self._missed else [0.0]
        logger.debug("the outputs were evaluated within %.1e of the pipeline's states", max(missed))
        return next((i for i, error in enumerate(missed) if not error <= self._limit), None)
