"""The held guess: the recurrence run on with the last field value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from picard.device import send
from picard.propagate import hold
from picard.rows import kicked
from picard.shapes import Float
from picard.tables import Tables
from picard.window import Window, column, take


@dataclass(frozen=True, eq=False)
class Hold:
    """Run the recurrence on with the last field value held, and with the right noise.

    For diffusion models the field is the data prediction: the x0-frozen start of ParaSolver (Lu et al., 2025).

    Attributes:
        tables: the plan's coefficients.
        state: shape of one state.
    """

    carries_noise: ClassVar[bool] = True
    tables: Tables
    state: tuple[int, ...]

    def __call__(
        self,
        window: Window,
        known: Float[Tensor, "batch slots dims"],
        values: Float[Tensor, "batch evaluated dims"],
        old_begin: Sequence[int],
        end: Sequence[int],
        count: int,
    ) -> Float[Tensor, "batch count dims"]:
        """Return the held continuation."""
        tables, history = self.tables, window.history
        last = column(end) - column(old_begin) + history
        new, before = column(end) + np.arange(count), last + np.arange(-history, 1)
        nodes = send(np.minimum(new, len(tables.a) - 1), known)
        z = take(known, send(before, known))
        past = take(values, send(np.maximum(before - 1, 0), known))
        held = self.ahead(window, values, old_begin, end, past[:, -1:].expand(-1, count, -1))
        forcing = None
        if window.noise is not None:
            slots = np.minimum(new - column(window.begin), window.noise.shape[1] - 1)
            noise = take(window.noise, send(slots, known))
            if window.diffusion is None:
                forcing = tables.c[nodes][..., None] * noise.flatten(2)
            else:
                held = self._kicked(window, held, send(last - 1 - history, known), nodes, noise)
        return hold(tables.a[nodes], tables.b[nodes], z, past[:, 1:], held, forcing)

    def ahead(
        self,
        window: Window,
        values: Float[Tensor, "batch evaluated dims"],
        old_begin: Sequence[int],
        end: Sequence[int],
        held: Float[Tensor, "batch count dims"],
    ) -> Float[Tensor, "batch count dims"]:
        """Return the field values assumed at the new nodes: here the last one, held."""
        return held

    def _kicked(self, window: Window, held: Tensor, source: Tensor, nodes: Tensor, noise: Tensor) -> Tensor:
        """Replace the source node's own increment in the held value by that of every new node's step."""
        if window.diffusion is None or window.kick is None:
            return held
        drift = (held - take(window.kick, source)).unflatten(2, self.state)
        diffusion = take(window.diffusion, source)
        kick = self.tables.kick[nodes].reshape(*nodes.shape, *[1] * (noise.ndim - 2))
        return kicked(drift, diffusion.expand(-1, nodes.shape[1], *diffusion.shape[2:]), kick * noise).flatten(2)
