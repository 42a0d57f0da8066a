"""Small host tensors on their way to the device, and lookups there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.errors import InvalidProblemError, describe


def send(values: Tensor | NDArray[Any] | Sequence[int], like: Tensor) -> Tensor:
    """Copy indices to a tensor's device, without waiting for it where that is possible.

    Args:
        values: a tensor on the CPU, an array, or integers.
        like: any tensor on the device.
    """
    host = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    if like.device.type == host.device.type == "cpu":
        return host
    # Only a copy from pinned memory may go on alone: from other memory CUDA waits, and MPS reads what is freed by then.
    pinned = like.device.type == "cuda" and host.device.type == "cpu"
    return (host.pin_memory() if pinned else host).to(like.device, non_blocking=pinned)


def on_host() -> AbstractContextManager[Any]:
    """Make tensors on the CPU where code that is not this package's does not say where, whatever the default device."""
    return nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")


def mixed_as_now(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return what sets autocast on a device to what it is now."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    return partial(torch.autocast, kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))


def fetch(values: Tensor) -> Tensor:
    """Copy numbers to the CPU, as float64; they are converted there, since not every device has that type."""
    check_data("a tensor whose numbers are needed", values)
    return values.detach().cpu().double()


def check_data(name: str, values: Tensor) -> None:
    """Check that a tensor has numbers, one beside the other.

    Raises:
        InvalidProblemError: if it is sparse, or on the meta device, where there are only shapes.
    """
    if values.is_meta:
        msg = f"{name} must be on a device that holds numbers; given {describe(values)}: make it on the CPU or a GPU"
        raise InvalidProblemError(msg)
    if values.layout != torch.strided:
        msg = f"{name} must be dense; given {describe(values)}: write .to_dense()"
        raise InvalidProblemError(msg)


def take(source: Tensor, slots: Tensor) -> Tensor:
    """Take slots of every sample: (batch, slots, ...) and (batch, wanted) to (batch, wanted, ...)."""
    batch = source.shape[0]
    if batch == 1:
        return source.index_select(1, slots[0])  # the same, in a third of the time
    return source[torch.arange(batch, device=source.device)[:, None], slots]
