"""The window: states, field values and noise of the nodes in flight, per sample, and how it slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from picard.device import send
from picard.plan import Plan
from picard.shapes import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Tables:
    """A plan's coefficients on the state's device, in the dtype of the computation."""

    a: Tensor
    b: Tensor
    c: Tensor
    factor: Tensor
    kick: Tensor
    times: Tensor
    yardstick: Tensor | None
    scales: Tensor | None
    inputs: Tensor | None

    @classmethod
    def of(cls, plan: Plan, like: Tensor, time_dtype: torch.dtype) -> Tables:
        """Move a plan to a tensor's device and dtype, each number rounded once."""

        def move(value: Tensor) -> Tensor:
            return value.to(like.dtype).to(like.device)

        return cls(
            a=move(plan.a),
            b=move(plan.b),
            c=move(plan.c),
            factor=move(plan.factor),
            kick=move(plan.kick),
            times=plan.times.to(time_dtype).to(like.device),
            yardstick=None if plan.yardstick is None else move(plan.yardstick),
            scales=None if plan.scales is None else move(plan.scales),
            inputs=None if plan.inputs is None else move(plan.inputs),
        )


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


_BUFFERS = ("z", "values", "argument", "asked", "evaluated", "slope", "known", "age", "noise", "diffusion", "kick")


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
        age: rounds every node has been in the window, shape (batch, nodes).
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
        self.age = torch.zeros(batch, 1, dtype=torch.int64, device=x.device)
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

    def index(self) -> tuple[Int[Tensor, "batch nodes"], Bool[Tensor, "batch nodes"]]:
        """Return the node in every slot of the window, and whether it is one its sample evaluates."""
        offsets = torch.arange(self.nodes)
        index = (torch.tensor(self.begin)[:, None] + offsets).clamp_max(self._nodes - 1)
        inside = offsets < torch.tensor(self.width)[:, None]
        return send(index, self.z), send(inside, self.z)

    def age_after(self) -> Int[Tensor, "batch nodes"]:
        """Return the age of the state after every node; after the last there is none."""
        return torch.cat([self.age[:, 1:], torch.zeros_like(self.age[:, :1])], 1)

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
        shift = torch.tensor(self.begin)[:, None] - torch.tensor(old.begin)[:, None]
        usable = torch.tensor(end)[:, None] - torch.tensor(old.begin)[:, None]
        slots = torch.arange(history + self.nodes + 1) + shift
        guessed = history + old.nodes + 1 + slots - (usable + history + 1)
        source = torch.where(slots <= usable + history, slots, guessed).clamp_max(known.shape[1] - 1)
        before = send((torch.arange(self.nodes) + shift).clamp_max(old.nodes - 1), known)
        seen = send(torch.arange(self.nodes) + shift < usable, known)
        old_values = self.values[:, history:]
        self.z = take(known, send(source, known))
        self.z_before, self.values_before = take(self.argument, before), take(old_values, before)
        past = torch.arange(history) + shift
        self.values = torch.cat([take(values, send(past, known)), torch.zeros_like(self.z[:, history + 1 :])], 1)
        self.evaluated = seen & self.asked.gather(1, before)
        self.slope = self.slope.gather(1, before)
        self.known = self.known.gather(1, before) & seen
        self.age = torch.where(seen, self.age.gather(1, before), 0)

    def _move_noise(self, old: _Old) -> None:
        if self.noise is None or self._draw is None:
            return
        nodes = torch.tensor(self.begin)[:, None] + torch.arange(self.nodes)
        had = nodes - torch.tensor(old.begin)[:, None]
        kept = had < torch.tensor(old.width)[:, None]
        moved = take(self.noise, send(had.clamp_max(old.nodes - 1), self.z))
        fresh = ~kept & (nodes < torch.tensor(self.begin)[:, None] + torch.tensor(self.width)[:, None])
        place = torch.nonzero(fresh)
        if len(place):
            drawn = self._draw([self.samples[i] for i in place[:, 0].tolist()], nodes[fresh].tolist())
            rows, slots = send(place, self.z).unbind(1)
            moved[rows, slots] = drawn
        self.noise = moved


class _Old:
    """Where the windows of the samples that go on stood before a slide."""

    def __init__(self, begin: Sequence[int], width: Sequence[int], keep: Sequence[int]) -> None:
        self.nodes = max(width)
        self.begin = [begin[i] for i in keep]
        self.width = [width[i] for i in keep]


def take(source: Tensor, slots: Tensor) -> Tensor:
    """Take slots of every sample: (batch, slots, ...) and (batch, wanted) to (batch, wanted, ...)."""
    batch = torch.arange(len(source), device=source.device)[:, None]
    return source[batch, slots]
