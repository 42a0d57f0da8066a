"""Stand-ins: objects that are a pipeline's own components in everything but a few methods."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from picard.conditioning import versions

from .calls import leaves


def stand_in(component: Any, **methods: Callable[..., Any]) -> Any:
    """Make an object that shares everything with a component except some methods.

    It has a subclass of the component's class and the same `__dict__`: configuration, parameters and hooks are the same
    objects, and what is set on one is set on the other.

    Args:
        component: any ordinary object.
        **methods: functions called without the object, in place of its methods.
    """
    original = type(component)
    replaced: dict[str, Any] = {"__module__": original.__module__, "__doc__": original.__doc__}
    replaced["__deepcopy__"] = lambda _, memo: copy.deepcopy(component, memo)  # a copy goes its own way
    for name, method in methods.items():
        replaced[name] = _method(getattr(original, name), method)
    twin: Any = object.__new__(type(original.__name__, (original,), replaced))
    object.__setattr__(twin, "__dict__", component.__dict__)
    return twin


def _method(original: Any, method: Callable[..., Any]) -> Any:
    @functools.wraps(original)  # pipelines look at the signature of `scheduler.step`
    def replaced(_: Any, *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return replaced


def by_making(make: Callable[..., Any], original: Any, *more: Any) -> Callable[..., Any]:
    """Let objects of a class made on the way be pickled: by name, its original would be found."""

    def reduce(self: Any, protocol: Any) -> Any:
        _, _, *state = original.__reduce_ex__(self, protocol)
        return _blank, (make, original, *more), *state

    return reduce


def _blank(make: Callable[..., Any], *arguments: Any) -> Any:
    """Make an object with nothing in it, for pickle to fill."""
    kind = make(*arguments)
    return kind.__new__(kind)


@contextmanager
def replaced(pipeline: Any, components: Mapping[str, Any]) -> Iterator[None]:
    """Put components in place of a pipeline's own for a while; its configuration does not notice."""
    held = vars(pipeline)
    before = {name: held[name] for name in components}
    held.update(components)
    try:
        yield
    finally:
        held.update(before)


class Memo:
    """Remembers what encoders returned before the first denoiser call, for the passes after the first."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, tuple[int, ...]]] = []
        self._next = 0

    def rewind(self) -> None:
        """Start another pass."""
        self._next = 0

    def call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what this call returned in the first pass, unless somebody has changed it since."""
        i, self._next = self._next, self._next + 1
        if i < len(self._kept):
            output, before = self._kept[i]
            if before == versions(output):
                return output
            return original(*args, **kwargs)
        output = original(*args, **kwargs)
        self._kept.append((output, versions(output)))
        return output


class RandomState:
    """Every random state a pipeline call may use: the global ones and the generators among its arguments."""

    def __init__(self, arguments: Any) -> None:
        generators = dict.fromkeys(leaf for _, leaf in leaves(arguments) if isinstance(leaf, Generator))
        own = [(one.get_state, one.set_state) for one in generators]
        known = [*own, (torch.get_rng_state, torch.set_rng_state), *_of_devices()]
        self._kept = [(put, get()) for get, put in known]
        self._python, self._numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # callbacks'

    def restore(self) -> None:
        """Bring everything back to where it was."""
        for put, state in self._kept:
            put(state)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002  # callbacks'

    @property
    def states(self) -> list[Tensor]:
        """Where the generators of PyTorch were."""
        return [one for _, state in self._kept for one in (state if isinstance(state, list) else [state])]


def _of_devices() -> Iterator[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """List what reads and what sets the random states of the devices in use."""
    for module in (torch.cuda, torch.xpu):
        if module.is_initialized():
            yield module.get_rng_state_all, module.set_rng_state_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state
