"""What enters a window: nodes never evaluated, and all that a guess may know to start them from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from picard.device import take
from picard.shapes import Float, Int


class Linearized(NamedTuple):
    """The field at the new states, linearized at the old ones; worked out only where it is asked for.

    Attributes:
        values: field at the old states, the history in front, shape (batch, history + nodes, dims).
        slope: slopes, shape (batch, nodes).
        moved: change of the state after every node, shape (batch, nodes, dims); `None` if `values` has it already.
    """

    values: Float[Tensor, "batch slots dims"]
    slope: Float[Tensor, "batch nodes"]
    moved: Float[Tensor, "batch nodes dims"] | None

    def at(self, slots: Int[Tensor, "batch wanted"]) -> Float[Tensor, "batch wanted dims"]:
        """Return the field at slots; the first `history` ones are those before the window."""
        found = take(self.values, slots)
        if self.moved is None:
            return found
        node = slots - (self.values.shape[1] - self.slope.shape[1])
        slope = self.slope.gather(1, node.clamp_min(0)) * (node > 0)  # the first node's state is exact
        return found.addcmul_(slope[..., None], take(self.moved, (node - 1).clamp_min(0)))

    def nodes(self) -> Float[Tensor, "batch nodes dims"]:
        """Return the field at all nodes of the window."""
        first = self.values.shape[1] - self.slope.shape[1]
        if self.moved is None:
            return self.values[:, first:]
        return torch.cat([self.values[:, first : first + 1], self.inner()], 1)

    def inner(self) -> Float[Tensor, "batch inner dims"]:
        """Return the field at all nodes of the window but the first."""
        first = self.values.shape[1] - self.slope.shape[1] + 1
        if self.moved is None:
            return self.values[:, first:]
        return torch.addcmul(self.values[:, first:], self.slope[:, 1:, None], self.moved[:, :-1])


class Places(NamedTuple):
    """Where the windows are, on the host, one number a sample.

    Attributes:
        end: last node whose state is known.
        samples: index in the batch.
    """

    end: Sequence[int]
    samples: Sequence[int]


class Entering(NamedTuple):
    """Nodes that enter the windows: those after `end`, `wanted` of every sample.

    Attributes:
        wanted: number of states wanted.
        history: accepted nodes before a window.
        begin: first node of the last window, shape (batch, 1).
        final: last node whose state is wanted, shape (batch, 1); later ones mean nothing.
        end: last node whose state is known, shape (batch, 1).
        slot: where in `known` its state is, shape (batch, 1); in `field` it is that of the node before it.
        known: states of the last window, the history in front, shape (batch, slots, dims); later ones mean nothing.
        field: the field at these states.
        noise: returns the noise of nodes (batch, wanted), shape (batch, wanted, *noise), if there is any.
        diffusion: diffusion at the nodes of the last window, where noise enters through the field.
        kick: what that noise added to the field values, shape (batch, nodes, dims).
        places: the same on the host.
    """

    wanted: int
    history: int
    begin: Int[Tensor, "batch 1"]
    final: Int[Tensor, "batch 1"]
    end: Int[Tensor, "batch 1"]
    slot: Int[Tensor, "batch 1"]
    known: Float[Tensor, "batch slots dims"]
    field: Linearized
    noise: Callable[[Tensor], Tensor] | None
    diffusion: Tensor | None
    kick: Tensor | None
    places: Places

    def new(self, first: int = 0) -> Int[Tensor, "batch count"]:
        """Return nodes, from `first` after the last known one on; they count on past the plan's last one."""
        return self.end + torch.arange(first, first + self.wanted, device=self.end.device)


@runtime_checkable
class Guess(Protocol):
    """A supplier of starting states for nodes that enter a window.

    Attributes:
        carries_noise: whether its states hold the noise of the step before them, as those of later rounds do.
        opens: whether it can fill the first windows, where nothing was evaluated and the field is taken as zero.
    """

    carries_noise: ClassVar[bool]

    @property
    def opens(self) -> bool:
        """Say whether first windows are full."""
        ...

    def __call__(self, entering: Entering) -> Float[Tensor, "batch count dims"]:
        """Supply the states after nodes `end .. end + count - 1` of every sample."""
        ...
