"""The open table of methods: names to makers of integrators."""

from __future__ import annotations

from collections.abc import Callable

from picard.errors import InvalidProblemError, UnknownMethodError, close_match, describe
from picard.plan import Integrator

_METHODS: dict[str, Callable[[], Integrator]] = {}


def register(name: str, make: Callable[[], Integrator]) -> None:
    """Make a method known by name, for `solve(..., method=name)`.

    Args:
        name: the name, in lower case; an existing name is replaced.
        make: called without arguments for every solve, usually the integrator's class.

    Raises:
        InvalidProblemError: if it cannot be called.
    """
    if not callable(make):
        msg = f"a method must be registered with what makes it; given {describe(make)}: write lambda: {make!r}"
        raise InvalidProblemError(msg)
    _METHODS[name] = make


def methods() -> list[str]:
    """List the registered method names."""
    return sorted(_METHODS)


def resolve(method: str | Integrator) -> Integrator:
    """Turn a method's name into an integrator; an integrator is returned as it is.

    Raises:
        UnknownMethodError: if no such name is registered, or the object has no `plan`.
    """
    if isinstance(method, str):
        if method not in _METHODS:
            msg = f"unknown method {method!r}: {close_match(method, _METHODS)}"
            raise UnknownMethodError(msg)
        return _METHODS[method]()
    if isinstance(method, type) or not isinstance(method, Integrator):
        msg = (
            f"method must be a name or an integrator with a `plan`; given {describe(method)}: write e.g. DDIM(eta=0.5)"
        )
        raise UnknownMethodError(msg)
    return method
