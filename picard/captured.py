"""Captured: a function of tensors, recorded once as a CUDA graph and repeated as one piece of work for the GPU."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from picard.errors import NotSupportedError
from picard.memory import out_of_memory

logger = logging.getLogger("picard")


class Repeatable(Protocol):
    """A function of tensors that is applied again and again to what it has returned."""

    def __call__(self, carried: Any) -> tuple[Any, Any]:
        """Return what is carried on, of the same shapes, and what is shown."""
        ...

    def renew(self) -> None:
        """Compute anew, in place, what has been made once of the constants, which now have other values."""
        ...


class Captured:
    """A function of tensors, applied again and again to what it has returned.

    All that it reads and writes stays where it is, as a CUDA graph demands: new inputs are written into the old ones.
    The first application is a plain one. It counts, and lets libraries set up what they cannot while recording.

    Attributes:
        constants: tensors that the function reads and `renew` replaces, nested in tuples and dicts.
        carried: tensors that the function is given: those that it returned last.
    """

    def __init__(self, constants: Any, carried: Any, slots: int, make: Callable[[Any], Repeatable]) -> None:
        """Make room.

        Args:
            constants: what the function reads, copied.
            carried: what it is given first, copied.
            slots: applications whose results must be there at once.
            make: builds the function around the copied constants.
        """
        with torch.inference_mode(mode=False):
            self.constants, self.carried = _copied(constants), _copied(carried)
            self._slot = torch.zeros(1, dtype=torch.int64, device=tensors_in(carried)[0].device)
        self._function = make(self.constants)
        self._slots, self._count = slots, 0
        self._shown: Any = None
        self._replay: Callable[[], None] | None = None

    def renew(self, constants: Any, carried: Any) -> None:
        """Take over other values of the same shapes."""
        _write(self.constants, constants)
        _write(self.carried, carried)
        self._function.renew()

    def apply(self) -> Any:
        """Apply the function once more.

        Returns:
            What it has shown, which stays as it is for `slots` more applications.

        Raises:
            NotSupportedError: if the function cannot be recorded.
        """
        slot = self._count % self._slots
        if self._shown is None:
            self._once()
        elif self._replay is None:
            self._replay = _record(self._once, self._slot.device)
        if self._replay is not None:
            self._replay()
        self._count += 1
        return tree_map(lambda kept: kept[slot] if isinstance(kept, Tensor) else kept, self._shown)

    def _once(self) -> None:
        with _uncached(self._slot.device.type):
            after, shown = self._function(self.carried)
        if self._shown is None:
            with torch.inference_mode(mode=False):
                self._shown = tree_map(self._room, shown)
        for kept, one in zip(tensors_in(self._shown), tensors_in(shown), strict=True):
            if one.numel():
                kept.index_copy_(0, self._slot, one[None])
        _write(self.carried, after)
        self._slot.add_(1).remainder_(self._slots)

    def _room(self, one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        return torch.zeros(self._slots, *one.shape, dtype=one.dtype, device=one.device)


def has_graphs(device: torch.device) -> bool:
    """Say whether work on a device can be recorded."""
    return device.type == "cuda"


def _copied(values: Any) -> Any:
    """Copy all tensors in nested tuples and dicts."""
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, values)


def _write(into: Any, values: Any) -> None:
    """Write tensors into others, where they are not the same ones already."""
    for old, new in zip(tensors_in(into), tensors_in(values), strict=True):
        if old is not new:
            old.copy_(new)


def tensors_in(values: Any) -> list[Tensor]:
    """List all tensors in nested tuples and dicts."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what the GPU is given to do as a graph, without doing it, and return what repeats it.

    Where there is no memory for a graph, that is the work itself.

    Raises:
        NotSupportedError: if something in it cannot be recorded.
    """
    for _ in range(2):
        try:
            with _uncollected():
                return _recorded(work, device)
        except Exception as error:
            if not out_of_memory(error):
                said = (str(error) or type(error).__name__).splitlines()[0]
                msg = (
                    f"the model cannot be captured as a CUDA graph: {said}; it must not wait for the GPU (item, "
                    "tolist, nonzero, a mask as index) nor copy from the host (torch.tensor(..., device=x.device)): "
                    "change that, or leave cuda_graph out"
                )
                raise NotSupportedError(msg) from error
        torch.cuda.empty_cache()  # what plain calls left behind is free to others, not to a graph
    logger.warning("no memory is left to capture rounds as a CUDA graph; they go on without one")
    return work


@contextmanager
def _uncached(device: str) -> Iterator[None]:
    """Cast weights under autocast each time: a graph would read those kept from the plain call, which will be gone."""
    cached = torch.is_autocast_cache_enabled()
    if not torch.is_autocast_enabled(device):  # a compiler would compile once more where the setting is another
        yield
        return
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage: another graph may be among it, which cannot be freed while one is recorded."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    cuda: Any = torch.cuda  # parts of it have no types
    graph, stream = cuda.CUDAGraph(), cuda.Stream(device)
    stream.wait_stream(cuda.current_stream(device))
    with cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(Exception):  # of a graph that is broken already
                graph.capture_end()
            raise
        graph.capture_end()
    cuda.current_stream(device).wait_stream(stream)
    replay: Callable[[], None] = graph.replay
    return replay
