"""Memory: how a call that does not fit is recognized."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on any device.

    GPUs raise an error of their own; the allocators of the CPU and of MPS raise a `RuntimeError` with these words.
    """
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    words = ("DefaultCPUAllocator: ", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
