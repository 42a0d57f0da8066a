"""A policy's network: replaced for a while, and called on rows of fixed counts where it is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import map_tensors


class StandIn(torch.nn.Module):
    """Answers in a network's place. The network stays a submodule, so that its parameters are found as before."""

    def __init__(self, network: Any, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a call."""
        return self.answer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Take everything else from the network."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


@contextmanager
def answered_by(owner: Any, name: str, answer: Callable[..., Any]) -> Iterator[None]:
    """Let a function answer the calls of an owner's network for a while."""
    place: dict[str, Any] = owner._modules if name in owner._modules else vars(owner)
    network = place[name]
    place[name] = StandIn(network, answer)
    try:
        yield
    finally:
        place[name] = network


def is_compiled(network: Any) -> bool:
    """Whether `torch.compile` has been applied to a network, in either of its two ways."""
    return hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None


def call_padded(
    network: Callable[..., Any],
    counts: tuple[int, ...],
    x: Tensor,
    t: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call a network on as many rows as the smallest of some counts that holds them; the first row fills up the rest.

    A compiled network is compiled again for every new number of rows, and windows have many.

    Args:
        network: called as `network(x, t, *args, **kwargs)`.
        counts: ascending; rows beyond the last one are not padded.
        x: states, shape (rows, *state).
        t: model times, shape (rows,).
        args: conditioning; tensors whose first dimension is the rows are padded as well.
        kwargs: the same.
    """
    rows = len(x)
    to = next((count for count in counts if count >= rows), rows)

    def pad(value: Tensor) -> Tensor:
        if value.ndim == 0 or len(value) != rows or rows == to:
            return value.contiguous()
        return torch.cat([value, value[:1].expand(to - rows, *value.shape[1:])])

    x, t, args, kwargs = map_tensors((x, t, tuple(args), dict(kwargs)), pad)
    return map_tensors(network(x, t, *args, **kwargs), lambda value: value[:rows])
