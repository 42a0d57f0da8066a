"""The run-time type checks of the tests: every annotation of the package, once for each kind of call.

A check takes several times as long as most functions do, and says the same wherever types and shapes are the same: a
call like one that passed is not checked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from inspect import isfunction, signature
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from jaxtyping import config
from torch import Tensor
from torch.compiler import is_compiling

_jaxtyped = jaxtyping.jaxtyped
_SEEN: list[tuple[Any, Callable[[Any], Any]]] = [
    (Tensor, lambda value: (type(value), value.dtype, value.shape)),
    ((str, type), lambda value: value),  # which may be one of the words that are allowed
    (tuple, lambda value: (type(value), tuple(map(kind, value)))),
    ((list, set, frozenset), lambda value: (type(value), frozenset(map(kind, value)))),
    (dict, lambda value: (type(value), frozenset((kind(key), kind(item)) for key, item in value.items()))),
]


class _Sights(dict[type, "Callable[[Any], Any] | None"]):
    """What a type check sees of values of a type; of most it sees the type alone."""

    def __missing__(self, of: type) -> Callable[[Any], Any] | None:
        self[of] = next((see for known, see in _SEEN if issubclass(of, known)), None)
        return self[of]


_sights = _Sights()


def kind(value: object) -> Any:
    """What a type check sees of a value."""
    return see(value) if (see := _sights[type(value)]) else type(value)


class _Checks:
    """The checks of a function, made when they are first needed. Closures that are made anew share them."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._checked: Callable[..., Any] | None = None
        self._function: Callable[..., Any] | None = None
        self.passed: set[Any] = set()

    def _make(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            now, self._function = self._function, None
            assert now is not None
            return now(*args, **kwargs)

        # annotations are looked up where the function is defined
        there = update_wrapper(FunctionType(call.__code__, function.__globals__, closure=call.__closure__), function)
        there.__signature__ = signature(function)  # type: ignore[attr-defined]
        del there.__wrapped__  # which would keep alive what the first closure holds
        checked: Callable[..., Any] = _jaxtyped(there, **self._options)
        return checked

    def __call__(
        self, like: FunctionType, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Check a call of a function like another one, whose annotations count."""
        self._checked = self._checked or self._make(like)
        self._function = function
        try:
            return self._checked(*args, **kwargs)
        finally:
            self._function = None


_checks: dict[tuple[str, str, CodeType], _Checks] = {}


def _checked_function(function: FunctionType, options: dict[str, Any]) -> Callable[..., Any]:
    key = function.__module__, function.__qualname__, function.__code__
    check = _checks.get(key) or _checks.setdefault(key, _Checks(options))
    passed = check.passed

    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable or is_compiling():
            return function(*args, **kwargs)
        call: Any = tuple([see(value) if (see := _sights[type(value)]) else type(value) for value in args])
        if kwargs:
            call = call, tuple([(name, kind(value)) for name, value in kwargs.items()])
        if call not in passed:
            out = check(function, function, args, kwargs)
            passed.update((call, (call, kind(out))))
            return out
        out = function(*args, **kwargs)
        if (result := (call, kind(out))) not in passed:
            check(function, lambda *args, **kwargs: out, args, kwargs)
            passed.add(result)
        return out

    return update_wrapper(checked, function)


def jaxtyped(made: Any = None, **options: Any) -> Any:
    """Take the place of `jaxtyping.jaxtyped`, by which every function and every class of the package is decorated."""
    if made is None:
        return lambda made: jaxtyped(made, **options)
    if isfunction(made):
        return _checked_function(made, options)
    constructor = vars(made).get("__init__")
    if hasattr(made, "__dataclass_fields__") and isfunction(constructor) and not hasattr(constructor, "__wrapped__"):
        made.__init__ = _checked_function(constructor, options)
    return made


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Switch the checks off."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
