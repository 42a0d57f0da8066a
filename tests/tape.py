"""A tape in place of a CUDA graph: it records operations without doing them, and repeats them on the same memory.

So the CPU shows what a captured round would: what Python decides is decided once, tensors are read where they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.meters import Syncs


class Tape(TorchDispatchMode):
    """Records operations, and undoes at the end what they have changed in place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.__name__.split(".")[0] in Syncs.READS:
            msg = "CUDA error: operation not permitted when stream is capturing"
            raise RuntimeError(msg)
        named = {**dict(zip([one.name for one in function._schema.arguments], args, strict=False)), **kwargs}
        written = [one.name for one in function._schema.arguments if one.alias_info and one.alias_info.is_write]
        self._before += [(named[one], named[one].clone()) for one in written if named.get(one) is not None]
        out = function(*args, **kwargs)
        self.steps.append((function, args, kwargs, out))
        return out

    def rewind(self) -> None:
        """Put back what was there before."""
        for tensor, before in reversed(self._before):
            tensor.copy_(before)
        self._before.clear()

    def replay(self) -> None:
        """Do again what was recorded, into the memory that held the results."""
        for function, args, kwargs, out in self.steps:
            for old, new in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Stand in for `picard.captured._recorded`."""
    tape = Tape()
    try:
        with tape:
            work()
    finally:
        tape.rewind()
    return tape.replay
