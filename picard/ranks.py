"""The ranks of a process group: what they exchange, and whether they agree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from picard.errors import DistributedError

Result = TypeVar("Result")
# the second is its older name
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of a process group, and this one's place among them.

    Attributes:
        group: the process group.
    """

    group: Any

    @property
    def size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This rank, counted within the group."""
        return dist.get_rank(self.group)

    def gather(self, mine: Tensor) -> Tensor:
        """Gather tensors of one shape (numbers,) and dtype from all ranks, shape (ranks, numbers)."""
        every = mine.new_empty(self.size, len(mine))
        sent = mine.view(torch.uint8)  # bytes: every backend can send them, whatever the dtype
        _or_lost(lambda: _all_gather(every.view(torch.uint8).view(-1), sent, group=self.group))
        return every

    def gather_objects(self, mine: Any) -> list[Any]:
        """Gather small picklable objects from all ranks."""
        every: list[Any] = [None] * self.size
        _or_lost(lambda: dist.all_gather_object(every, mine, group=self.group))
        return every

    def shares(self, count: int) -> list[int]:
        """Divide rows among the ranks: their first and last, as `ranks + 1` bounds that ascend from 0 to `count`."""
        return [count * rank // self.size for rank in range(self.size + 1)]


def digest(value: Any) -> str:
    """Hash what decides a solve: tensors by shape, dtype and content, functions and modules by their type."""
    found = hashlib.sha256()
    _feed(value, found)
    return found.hexdigest()


def _feed(value: Any, found: Any) -> None:
    if isinstance(value, Tensor):
        host = value.detach().cpu().contiguous()
        found.update(f"{tuple(host.shape)} {host.dtype}".encode())
        found.update(host.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, (str, int, float, bool)):
        found.update(repr(value).encode())
    elif isinstance(value, Mapping):
        for name, item in value.items():
            found.update(repr(name).encode())
            _feed(item, found)
    elif isinstance(value, (list, tuple)):
        found.update(str(len(value)).encode())
        for item in value:
            _feed(item, found)
    else:
        found.update(type(value).__qualname__.encode())
        if is_dataclass(value):
            _feed({one.name: getattr(value, one.name) for one in fields(value)}, found)


def _or_lost(exchange: Callable[[], Result]) -> Result:
    """Exchange something with the other ranks.

    Raises:
        DistributedError: if it fails: a rank has ended, or does not answer within the group's timeout.
    """
    try:
        return exchange()
    except RuntimeError as error:  # what all backends raise
        msg = (
            "all ranks must stay until the solve ends; one has ended, or did not answer within the group's timeout "
            f"(init_process_group(timeout=...)): {error}"
        )
        raise DistributedError(msg) from error
