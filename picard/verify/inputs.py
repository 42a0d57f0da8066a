"""The inputs of a solver: copies of all tensors in them, by which it is seen whether it left them as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


class Inputs:
    """All tensors that a solver is given, by name, and what they hold before the call."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._kept = [(name, tensor, tensor.detach().clone()) for name, tensor in _tensors(given)]

    def restore(self) -> list[str]:
        """Give every changed tensor its old values again.

        Returns:
            The names of those that were changed.
        """
        changed = [(name, tensor, before) for name, tensor, before in self._kept if not same(tensor, before)]
        for _, tensor, before in changed:
            with torch.inference_mode():  # where tensors made in this mode and leaves of a graph can be written to
                if tensor.shape == before.shape:
                    tensor.copy_(before)
                else:
                    tensor.data = before
        return [name for name, _, _ in changed]


def _tensors(given: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Find the tensors inside mappings, lists, tuples and dataclasses."""
    found, seen = list(given.items()), set()
    while found:
        name, value = found.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            found += [(f"{name}[{key!r}]", item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            found += [(f"{name}[{place}]", item) for place, item in enumerate(value)]
        elif is_dataclass(value):
            found += [(f"{name}.{one.name}", getattr(value, one.name, None)) for one in fields(value)]


def same(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors of a device hold the same, where what is not a number equals itself."""
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    if one.layout != torch.strided:  # a sparse matrix that all rows share
        one, other = one.to_dense(), other.to_dense()
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
