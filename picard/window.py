"""The window: states, field values and noise of the nodes in flight, per sample, and how it slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.device import send
from picard.plan import Plan
from picard.shapes import Bool, Float, Int

Host = NDArray[Any]
"""Numbers about slots, worked out on the host, where small arrays cost less than small tensors."""


Draw = Callable[[Sequence[int], Sequence[int]], Tensor]
"""Noise of the pairs (sample of the batch, node), on the state's device and in its dtype."""


@runtime_checkable
class Guess(Protocol):
    """A supplier of starting states for nodes that enter a window.

    Attributes:
        carries_noise: whether its states hold the noise of the step before them, as those of later rounds do.
    """

    carries_noise: ClassVar[bool]

    def __call__(
        self,
        window: Window,
        known: Float[Tensor, "batch slots dims"],
        values: Float[Tensor, "batch evaluated dims"],
        old_begin: Sequence[int],
        end: Sequence[int],
        count: int,
    ) -> Float[Tensor, "batch count dims"]:
        """Supply the states of nodes `end + 1 .. end + count` of every sample.

        Args:
            window: the window, its `begin`, `width` and `noise` already those of the next round.
            known: states from `history` nodes before `old_begin` on; those after `end` mean nothing.
            values: field values at the same nodes.
            old_begin: first node of every sample's last window.
            end: last node whose state is known, per sample.
            count: number of states wanted.
        """
        ...


_BUFFERS = ("z", "values", "argument", "asked", "evaluated", "slope", "known", "noise", "diffusion", "kick")


class Window:
    """The nodes in flight of every unfinished sample.

    Slot s of a sample is node `begin - history + s`: `history = order - 1` accepted nodes precede the window. All
    tensors are of the unfinished samples only. A sample evaluates its nodes `begin .. begin + width - 1`; what stands
    in slots past those means nothing and is finite.

    Attributes:
        samples: indices in the batch, unfinished only.
        begin: first node of every sample; its state is exact.
        width: number of nodes every sample evaluates this round.
        z: states, shape (batch, history + nodes + 1, dims).
        values: field values, shape (batch, history + nodes, dims).
        argument: what the field was evaluated at, the states or their weighted sums, shape (batch, nodes, dims).
        z_before: arguments at which `values_before` was evaluated, shape (batch, nodes, dims).
        values_before: field values of the round before.
        asked: whether the node is evaluated this round, shape (batch, nodes).
        evaluated: whether the node was evaluated in the round before, shape (batch, nodes).
        slope: slopes of the round before, shape (batch, nodes).
        known: whether those were measured.
        age: rounds every node has been in the window, shape (batch, nodes), on the host.
        noise: noise of the step every node belongs to, shape (batch, nodes, *noise), if the problem has any.
        diffusion: diffusion at every node, where noise enters through the field.
        kick: what that noise added to the field values, shape (batch, nodes, dims).
    """

    def __init__(self, plan: Plan, x: Float[Tensor, "batch dims"], draw: Draw | None) -> None:
        """Start with one node a sample: the initial state."""
        batch, dims = x.shape
        self._nodes, self._draw = plan.nodes, draw
        self.history = plan.order - 1
        self.samples = list(range(batch))
        self.begin = [0] * batch
        self.width = [1] * batch
        self.z = torch.cat([x.new_zeros(batch, self.history, dims), x[:, None], x.new_zeros(batch, 1, dims)], 1)
        self.values = x.new_zeros(batch, self.history + 1, dims)
        self.argument = self.z_before = self.values_before = x.new_zeros(batch, 1, dims)
        self.slope = x.new_zeros(batch, 1)
        self.asked = torch.ones(batch, 1, dtype=torch.bool, device=x.device)
        self.evaluated = self.known = torch.zeros(batch, 1, dtype=torch.bool, device=x.device)
        self.age: Host = np.zeros((batch, 1), dtype=np.int64)
        self.noise = None if draw is None else draw(self.samples, self.begin).unsqueeze(1)
        self.diffusion: Tensor | None = None
        self.kick: Tensor | None = None

    @property
    def nodes(self) -> int:
        """Largest number of nodes a sample evaluates this round."""
        return max(self.width)

    def current(self) -> slice:
        """Slots of the nodes to evaluate."""
        return slice(self.history, self.history + self.nodes)

    @property
    def full(self) -> bool:
        """Whether all samples have windows of the same width."""
        return min(self.width) == self.nodes

    def index(self) -> Int[Tensor, "batch nodes"]:
        """Return the node in every slot of the window."""
        return send(np.minimum(column(self.begin) + np.arange(self.nodes), self._nodes - 1), self.z)

    def inside(self, after: int = 0) -> Bool[Tensor, "batch nodes"]:
        """Say whether the node in every slot, or so many slots later, is one its sample's window holds."""
        return send(np.arange(after, self.nodes + after) < column(self.width), self.z)

    def age_after(self) -> Int[Tensor, "batch nodes"]:
        """Return the age of the state after every node; after the last there is none."""
        return send(np.append(self.age[:, 1:], np.zeros_like(self.age[:, :1]), axis=1), self.z)

    def slide(
        self,
        states: Float[Tensor, "batch nodes dims"],
        values: Float[Tensor, "batch slots dims"],
        stride: Sequence[int],
        end: Sequence[int],
        limit: Sequence[int],
        guess: Guess,
    ) -> None:
        """Accept `stride` nodes of every sample, drop finished samples, and guess the nodes that enter.

        Args:
            states: new state after every node of the window.
            values: linearized field values at those states, with the history before them.
            stride: nodes accepted, per sample.
            end: last node whose new state is usable, per sample; later ones are guessed again.
            limit: most nodes the next window may hold, per sample.
            guess: supplies states for the nodes after `end`.
        """
        keep = [i for i in range(len(stride)) if self.begin[i] + stride[i] < self._nodes]
        if not keep:
            self.samples, self.begin, self.width = [], [], []
            return
        if len(keep) < len(stride):
            kept = send(keep, self.z)
            states, values = states[kept], values[kept]
            for name in _BUFFERS:
                buffer = getattr(self, name)
                setattr(self, name, buffer if buffer is None else buffer[kept])
            self.age = self.age[keep]
        old = _Old(self.begin, self.width, keep)
        stride, end, limit = ([one[i] for i in keep] for one in (stride, end, limit))
        self.samples = [self.samples[i] for i in keep]
        self.begin = [first + step for first, step in zip(old.begin, stride, strict=True)]
        self.width = [min(most, self._nodes - first) for most, first in zip(limit, self.begin, strict=True)]
        self._move_noise(old)
        entering = [first + width - 1 - last for first, width, last in zip(self.begin, self.width, end, strict=True)]
        known = torch.cat([self.z[:, : self.history + 1], states], 1)
        count = max(0, *entering)
        if count:
            known = torch.cat([known, guess(self, known, values, old.begin, end, count)], 1)
        self._move_states(known, values, old, end)

    def _move_states(self, known: Tensor, values: Tensor, old: _Old, end: Sequence[int]) -> None:
        """Shift every buffer; in `known` the old slots come first, then the guessed nodes after `end`."""
        history = self.history
        shift, usable = column(self.begin) - column(old.begin), column(end) - column(old.begin)
        slots = np.arange(history + self.nodes + 1) + shift
        source = np.where(slots <= usable + history, slots, old.nodes + slots - usable)
        before_host = np.minimum(np.arange(self.nodes) + shift, old.nodes - 1)
        seen_host = np.arange(self.nodes) + shift < usable
        before, seen = send(before_host, known), send(seen_host, known)
        old_values = self.values[:, history:]
        self.z = take(known, send(np.minimum(source, known.shape[1] - 1), known))
        self.z_before, self.values_before = take(self.argument, before), take(old_values, before)
        new_values = torch.empty_like(self.z[:, history + 1 :])  # all are written before they are read
        past = np.arange(history) + shift
        self.values = torch.cat([take(values, send(past, known)), new_values], 1) if history else new_values
        self.evaluated = seen & self.asked.gather(1, before)
        self.slope = self.slope.gather(1, before)
        self.known = self.known.gather(1, before) & seen
        self.age = np.where(seen_host, np.take_along_axis(self.age, before_host, 1), 0)

    def _move_noise(self, old: _Old) -> None:
        if self.noise is None or self._draw is None:
            return
        nodes = column(self.begin) + np.arange(self.nodes)
        had = nodes - column(old.begin)
        moved = take(self.noise, send(np.minimum(had, old.nodes - 1), self.z))
        fresh = (had >= column(old.width)) & (nodes < column(self.begin) + column(self.width))
        rows, slots = np.nonzero(fresh)
        if len(rows):
            drawn = self._draw([self.samples[i] for i in rows.tolist()], nodes[fresh].tolist())
            moved[send(rows, self.z), send(slots, self.z)] = drawn
        self.noise = moved


class _Old:
    """Where the windows of the samples that go on stood before a slide."""

    def __init__(self, begin: Sequence[int], width: Sequence[int], keep: Sequence[int]) -> None:
        self.nodes = max(width)
        self.begin = [begin[i] for i in keep]
        self.width = [width[i] for i in keep]


def take(source: Tensor, slots: Tensor) -> Tensor:
    """Take slots of every sample: (batch, slots, ...) and (batch, wanted) to (batch, wanted, ...)."""
    if len(source) == 1:
        return source.index_select(1, slots[0])  # the same, in a third of the time
    batch = torch.arange(len(source), device=source.device)[:, None]
    return source[batch, slots]


def column(numbers: Sequence[int]) -> Host:
    """Make a column, one row a sample, of numbers about samples."""
    return np.array(numbers)[:, None]
