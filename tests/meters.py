"""Meters for tests of cost: live tensor bytes, waits of the host for the device, and a clock that only models move."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import picard


class Memory(TorchDispatchMode):
    """Counts the bytes of every storage that an operation returned, until it is freed.

    Attributes:
        live: bytes now.
        peak: most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, size: int) -> None:
        self.live -= size


class Syncs(TorchDispatchMode):
    """Counts the times a value that depends on the state is read by the host, as if the state were on a device.

    On the CPU nothing tells a device's tensors from the host's, so they are traced: what is computed from a traced
    tensor is traced. Reading one (`item`, `tolist`, `bool`, a mask as index, `nonzero`) would make the host wait, and
    so would a copy to the state's device that is not `non_blocking`.

    Attributes:
        reads: counts of reads, by what did it.
        uploads: counts of copies to the device that wait, by shape.
    """

    READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")

    def __init__(self, *device: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[str] = Counter()
        self.uploads: Counter[tuple[int, ...]] = Counter()
        self._patch = pytest.MonkeyPatch()
        self._traced: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in device:
            self._trace(tensor)

    def _trace(self, tensor: Tensor) -> None:
        self._traced.add(tensor.untyped_storage())

    def _is_traced(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.untyped_storage() in self._traced

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.__name__.split(".")[0]
        leaves = tree_leaves((args, kwargs))
        traced = any(self._is_traced(leaf) for leaf in leaves)
        mask = name in ("index", "index_put", "index_put_") and any(
            self._is_traced(leaf) and leaf.dtype is torch.bool for leaf in tree_leaves(args[1])
        )
        if traced and (name in self.READS or mask):
            self.reads[name] += 1
        out = function(*args, **(kwargs or {}))
        if traced:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._trace(leaf)
        return out

    def __enter__(self) -> Syncs:  # noqa: PYI034  # beartype cannot read Self on a method
        tolist: Callable[..., Any] = Tensor.tolist
        to: Callable[..., Any] = Tensor.to

        def counted_tolist(tensor: Tensor) -> Any:
            if self._is_traced(tensor):
                self.reads["tolist"] += 1
            return tolist(tensor)

        def counted_to(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            moves = any(isinstance(one, torch.device) for one in (*args, kwargs.get("device")))
            if moves and not self._is_traced(tensor) and not kwargs.get("non_blocking", False):
                self.uploads[tuple(tensor.shape)] += 1
            return to(tensor, *args, **kwargs)

        self._patch.setattr(Tensor, "tolist", counted_tolist)
        self._patch.setattr(Tensor, "to", counted_to)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: PYI036
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patch.undo()


class Clocked:
    """A model that takes a number of seconds, by rows."""

    def __init__(self, model: Callable[..., Tensor], cost: Callable[[int], float]) -> None:
        self.model, self.cost, self.now = model, cost, 0.0
        self.rows = 0

    def __call__(self, first: Tensor, second: Tensor, **cond: Any) -> Tensor:
        self.rows += len(first)
        self.now += self.cost(len(first))
        return self.model(first, second, **cond)

    def clock(self) -> float:
        return self.now

    def taken(self, solve: Callable[[], picard.Solution]) -> tuple[float, picard.Solution]:
        before = self.now
        solution = solve()
        return self.now - before, solution
