"""The held guess: the recurrence run on with the last field value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from picard.device import take
from picard.entering import Entering
from picard.propagate import hold
from picard.rows import kicked
from picard.shapes import Float
from picard.tables import Tables


@dataclass(frozen=True, eq=False)
class Hold:
    """Run the recurrence on with the last field value held, and with the right noise.

    For diffusion models the field is the data prediction: the x0-frozen start of ParaSolver (Lu et al., 2025).

    Attributes:
        tables: the plan's coefficients.
        state: shape of one state.
        eager: whether the first round fills its windows, too, with the field taken as zero, the mean of normalized
            data; otherwise it evaluates the first node alone.
    """

    carries_noise: ClassVar[bool] = True
    tables: Tables
    state: tuple[int, ...]
    eager: bool = field(default=False, kw_only=True)

    @property
    def opens(self) -> bool:
        """Say whether first windows are full."""
        return self.eager

    def __call__(self, entering: Entering) -> Float[Tensor, "batch count dims"]:
        """Return the held continuation."""
        tables, history = self.tables, entering.history
        nodes = entering.new().clamp_max(len(tables.a) - 1)
        before = entering.slot + torch.arange(-history, 1, device=nodes.device)
        z = take(entering.known, before)
        past = entering.field.at(before.clamp_min(0))
        held = self.ahead(entering, past[:, -1:])
        c = noise = None
        if entering.noise is not None:
            drawn = entering.noise(nodes)
            if entering.diffusion is None:
                c, noise = tables.c[nodes], drawn.flatten(2)
            else:
                held = self._kicked(entering, held, nodes, drawn)
        return hold(tables.a[nodes], tables.b[nodes], z, past[:, 1:], held, c, noise)

    def ahead(self, entering: Entering, held: Float[Tensor, "batch 1 dims"]) -> Float[Tensor, "batch held dims"]:
        """Return the field values assumed at the new nodes, or one for all of them: here the last one, held."""
        return held

    def _kicked(self, entering: Entering, held: Tensor, nodes: Tensor, noise: Tensor) -> Tensor:
        """Replace the source node's own increment in the held value by that of every new node's step."""
        if entering.diffusion is None or entering.kick is None:
            return held
        source = (entering.slot - entering.history).clamp_min(0)  # of a sample that is through, it means nothing
        drift = (held - take(entering.kick, source)).unflatten(2, self.state)
        diffusion = take(entering.diffusion, source)
        kick = self.tables.kicks(nodes, noise)
        drift = drift.expand(-1, nodes.shape[1], *self.state)
        return kicked(drift, diffusion.expand(-1, nodes.shape[1], *diffusion.shape[2:]), kick).flatten(2)
