"""The window: states, field values and noise of the nodes in flight, per sample, on the device and on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.captured import Captured
from picard.device import send
from picard.plan import Plan
from picard.ring import Ring
from picard.shapes import Bool, Float, Int


class State(NamedTuple):
    """The nodes in flight, as the device knows them; every tensor leads with the unfinished samples.

    Slot s of a sample is node `begin - history + s`: `history = order - 1` accepted nodes precede the window. A sample
    evaluates its nodes `begin .. begin + width - 1`; what stands in slots past those means nothing and is finite.

    Attributes:
        begin: first node, whose state is exact, shape (batch,).
        width: nodes to evaluate this round, shape (batch,).
        z: states, shape (batch, history + nodes + 1, dims).
        past: field values of the history, shape (batch, history, dims).
        moved: how far what the field is evaluated at moved in the round before, shape (batch, nodes, dims).
        distance: root mean square of that, shape (batch, nodes); zero if it is rounding, or the node was not evaluated.
        values: field values of the round before, shape (batch, nodes, dims).
        slope: slopes of the round before, shape (batch, nodes).
        known: whether those were measured.
        age: rounds every node has been in the window, shape (batch, nodes).
    """

    begin: Int[Tensor, " batch"]
    width: Int[Tensor, " batch"]
    z: Float[Tensor, "batch states dims"]
    past: Float[Tensor, "batch history dims"]
    moved: Float[Tensor, "batch nodes dims"]
    distance: Float[Tensor, "batch nodes"]
    values: Float[Tensor, "batch nodes dims"]
    slope: Float[Tensor, "batch nodes"]
    known: Bool[Tensor, "batch nodes"]
    age: Int[Tensor, "batch nodes"]

    def nodes(self) -> int:  # a method: the compiler of torch 2.8 knows no properties of named tuples
        """Return the number of slots for nodes to evaluate."""
        return self.slope.shape[1]

    def history(self) -> int:
        """Return the number of accepted nodes before the window."""
        return self.past.shape[1]

    def ahead(self) -> Int[Tensor, "batch nodes"]:
        """Return the node in every slot, counted on past the plan's last one."""
        return self.begin[:, None] + torch.arange(self.nodes(), device=self.begin.device)

    def inside(self, after: int = 0) -> Bool[Tensor, "batch nodes"]:
        """Say whether the node in every slot, or so many slots later, is one its sample's window holds."""
        return torch.arange(after, self.nodes() + after, device=self.width.device) < self.width[:, None]


class Asks(NamedTuple):
    """What the network is asked in the next round.

    Attributes:
        nodes: node in every slot, none past the plan's last.
        t: what the network is given as time, shape (rows,), a row for every slot of every sample.
        x: what it is given as state, shape (rows, *state).
        limit: most nodes a window may hold.
    """

    nodes: Int[Tensor, "batch nodes"]
    t: Tensor
    x: Tensor
    limit: Int[Tensor, " batch"]


class Window:
    """The nodes in flight of every unfinished sample: their state on the device, and where they are on the host.

    Attributes:
        samples: indices in the batch, unfinished only.
        begin: first node of every sample.
        width: nodes every sample evaluates this round.
        limit: most nodes every sample's window may hold.
        state: the same and all else on the device.
        ring: the noise, if the problem has any.
        asks: what the network is asked next, if it is known.
        captured: the captured round that takes these windows on, if there is one.
    """

    def __init__(
        self,
        plan: Plan,
        x: Float[Tensor, "batch dims"],
        ring: Ring | None,
        limit: int,
        width: Sequence[int],
        slots: int,
    ) -> None:
        """Start at the first node; states after the initial ones are zero.

        Args:
            plan: the plan.
            x: initial states.
            ring: the noise, if the problem has any.
            limit: most nodes a window may hold.
            width: nodes every sample evaluates in the first round.
            slots: slots for nodes, at least as many.
        """
        batch, dims = x.shape
        history = plan.order - 1
        self.samples = list(range(batch))
        self.begin, self.width = [0] * batch, list(width)
        self.limit = [limit] * batch
        self._total = plan.nodes
        self._index: Tensor | None = None
        self.asks: Asks | None = None
        self.captured: Captured | None = None
        self._rows: tuple[Sequence[int], Tensor] | None = None
        self.ring = ring

        def nothing(dtype: torch.dtype, *shape: int) -> Tensor:  # no two are the same tensor, for compilers would ask
            return torch.zeros(batch, *shape, dtype=dtype, device=x.device)

        wide = x.dtype
        empty = nothing(wide, slots, dims)
        self.state = State(
            begin=nothing(torch.int64),
            width=send(self.width, x),
            z=torch.cat([nothing(wide, history, dims), x[:, None], empty], 1),
            past=nothing(wide, history, dims),
            moved=empty,
            distance=nothing(wide, slots),
            values=nothing(wide, slots, dims),
            slope=nothing(wide, slots),
            known=nothing(torch.bool, slots),
            age=nothing(torch.int64, slots),
        )
        self.draw()

    @property
    def nodes(self) -> int:
        """Slots for nodes, at least as many as a sample evaluates this round."""
        return self.state.nodes()

    @property
    def full(self) -> bool:
        """Whether every slot holds a node to evaluate."""
        return min(self.width) == self.nodes

    def index(self) -> Int[Tensor, "batch nodes"]:
        """Return the node in every slot, none past the plan's last."""
        if self._index is None:
            self._index = self.state.ahead().clamp_max(self._total - 1)
        return self._index

    def sample(self) -> Int[Tensor, " rows"]:
        """Return the index in the batch of every slot of every sample."""
        if self._rows is None or self._rows[0] != self.samples or len(self._rows[1]) != self.nodes * len(self.samples):
            self._rows = self.samples, send(np.repeat(self.samples, self.nodes), self.state.begin)
        return self._rows[1]

    def rows(self, asked: NDArray[np.bool_] | None) -> tuple[Int[Tensor, " rows"] | None, Tensor, object]:
        """Say which rows, one for every slot of every sample, are evaluated.

        Args:
            asked: which slots are, shape (batch, nodes); `None` if all are.

        Returns:
            The places of these rows, `None` if they are all; their samples' indices in the batch; and a name for the
            latter, under which what is repeated for them is found again.
        """
        sample = self.sample()
        if asked is None:
            return None, sample, (tuple(self.samples), self.nodes)
        place = send(np.flatnonzero(asked), sample)
        return place, sample[place], (tuple(self.samples), tuple(asked.sum(1).tolist()))

    def move(self, state: State, asks: Asks | None = None) -> None:
        """Take on a new state, and what the network is asked there, if it is known."""
        self.state, self.asks, self._index = state, asks, None

    def draw(self, ahead: int = 0) -> None:
        """Draw the noise of all nodes in the window, and of so many after it, that have none."""
        if self.ring is not None:
            need = [first + width + ahead for first, width in zip(self.begin, self.width, strict=True)]
            self.ring.fill(self.samples, self.begin, need)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all samples but those in some rows."""
        chosen, self.captured = send(rows, self.state.z), None
        self.state = State(*[buffer[chosen] for buffer in self.state])
        self.samples = [self.samples[i] for i in rows]
        self.begin, self.width, self.limit = ([one[i] for i in rows] for one in (self.begin, self.width, self.limit))
        if self.ring is not None:
            self.ring.keep(rows)
