"""Memory: calls that do not fit are split, and what a model can take is remembered."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from picard.permodel import PerModel

_MOST: PerModel[int] = PerModel()


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on any device.

    GPUs raise an error of their own; the allocators of the CPU and of MPS raise a `RuntimeError` with these words.
    """
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    words = ("DefaultCPUAllocator: ", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


class RowLimit:
    """The rows that one call of a model may hold: as many as asked for, or as have been found to fit."""

    def __init__(self, problem: Any, x: Tensor) -> None:
        """Find what is known.

        Args:
            problem: a problem; of another kind, a row of the same model needs other memory.
            x: rows of states, shape (rows, *state).
        """
        self._problem, self._x = problem, x

    @cached_property
    def _known(self) -> dict[Hashable, int]:
        return _MOST.of(self._problem.callee)

    @cached_property
    def _key(self) -> Hashable:
        x, kind = self._x, type(self._problem).__name__
        return (kind, tuple(x.shape[1:]), x.dtype, x.device, torch.is_grad_enabled())

    def rows(self, wanted: int | None) -> int | None:
        """Return the rows a call may hold if so many are wanted; `None` means any number."""
        if not _MOST:  # no model has ever run out of memory
            return wanted
        known = self._known.get(self._key)
        return min((most for most in (known, wanted) if most is not None), default=None)

    def halve(self, failed: int) -> int:
        """Remember that so many rows did not fit, and return half of them."""
        self._known[self._key] = max(1, failed // 2)
        return self._known[self._key]
