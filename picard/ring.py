"""The ring: the noise of the nodes in flight, drawn as the windows reach them and never moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from picard.device import send, take
from picard.shapes import Float, Int

Draw = Callable[[Sequence[int], Sequence[int]], Tensor]
"""Noise of the pairs (sample of the batch, node), on the state's device and in its dtype."""

_SMALL = 1 << 16  # numbers of a window's noise up to which one is drawn ahead, for half as many draws


class Ring:
    """Noise by node: that of node m is in slot `m % slots`, until the window has passed it by.

    Attributes:
        noise: shape (batch, slots, *noise), of the unfinished samples; slots not drawn are finite.
    """

    def __init__(self, draw: Draw, batch: int, nodes: int, window: int, shape: tuple[int, ...]) -> None:
        """Start with nothing drawn.

        Args:
            draw: supplies the noise.
            batch: number of samples.
            nodes: nodes of the plan.
            window: most nodes that are needed at once.
            shape: shape of one draw.
        """
        self._draw, self._nodes = draw, nodes
        self._slots = min(window if math.prod(shape) * window > _SMALL else 2 * window, nodes)
        self._drawn = [0] * batch
        self.noise = torch.zeros(0, device="cpu")

    def fill(self, samples: Sequence[int], begin: Sequence[int], need: Sequence[int]) -> None:
        """Draw what is missing of the noise before node `need` of every sample, and of more that has room.

        Args:
            samples: indices in the batch.
            begin: first node needed, of every sample.
            need: node after the last one needed.
        """
        if all(drawn >= min(end, self._nodes) for drawn, end in zip(self._drawn, need, strict=True)):
            return
        stop = [min(first + self._slots, self._nodes) for first in begin]
        spans = [range(drawn, end) for drawn, end in zip(self._drawn, stop, strict=True)]
        count = [len(span) for span in spans]
        nodes = [node for span in spans for node in span]
        drawn = self._draw([sample for sample, many in zip(samples, count, strict=True) for _ in range(many)], nodes)
        if self.noise.numel() == 0:
            self.noise = drawn.new_zeros(len(samples), self._slots, *drawn.shape[1:])
        rows, slots = np.repeat(np.arange(len(count)), count), np.array(nodes) % self._slots
        self.noise[send(rows, drawn), send(slots, drawn)] = drawn
        self._drawn = stop

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all samples but those in some rows."""
        self._drawn = [self._drawn[row] for row in rows]
        if self.noise.numel() > 0:
            self.noise = self.noise[send(rows, self.noise)]

    def at(self, nodes: Int[Tensor, "batch wanted"]) -> Float[Tensor, "batch wanted *noise"]:
        """Return the noise of nodes."""
        return noise_at(self.noise, nodes)


def noise_at(ring: Float[Tensor, "batch slots *noise"], nodes: Int[Tensor, "batch wanted"]) -> Tensor:
    """Return the noise of nodes from a ring's slots, shape (batch, wanted, *noise)."""
    return take(ring, nodes % ring.shape[1])
