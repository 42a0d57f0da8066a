"""The open table of methods: names to makers of integrators."""

from __future__ import annotations

from collections.abc import Callable

from picard.errors import InvalidProblemError, NotSupportedError, UnknownMethodError, close_match, describe
from picard.plan import Integrator

_IMPLICIT: tuple[str, ...] = ("implicit_adams", "fixed_adams", "implicit_euler", "implicit_midpoint", "trapezoid")
_IMPLICIT += ("radauIIA3", "gl4", "radauIIA5", "gl6", "sdirk2", "trbdf2")
NOT_OFFERED: dict[str, str] = {
    **dict.fromkeys(_IMPLICIT, "solves for its steps one after the other: write an explicit Runge-Kutta method"),
    "tsit5": "is a Runge-Kutta method that is not offered: write dopri5, one of the same order",
    "explicit_adams": "is a method of several steps, which is not offered: write a Runge-Kutta method",
    "scipy_solver": "runs in SciPy, one step after the other: write a Runge-Kutta method",
}
"""Methods of torchdiffeq that are not offered: why, and what to write."""
_METHODS: dict[str, Callable[[], Integrator]] = {}


def register(name: str, make: Callable[[], Integrator]) -> None:
    """Make a method known by name, for `solve(..., method=name)`.

    Args:
        name: the name, in lower case; an existing name is replaced.
        make: called without arguments for every solve, usually the integrator's class.

    Raises:
        InvalidProblemError: if it cannot be called, or the name is no string.
    """
    if not isinstance(name, str):
        msg = f"a method's name must be a string; given {describe(name)}: write register('mine', make)"
        raise InvalidProblemError(msg)
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
        NotSupportedError: if the name is that of a method which this library does not offer.
    """
    if isinstance(method, str):
        if method in NOT_OFFERED and method not in _METHODS:
            msg = (
                f"{method} {NOT_OFFERED[method]}; method='rk4' and the like need a grid fine enough for them, which "
                "picard.adaptive chooses by itself"
            )
            raise NotSupportedError(msg)
        if method == "milstein" and method not in _METHODS:
            msg = "milstein needs the derivative of the diffusion, which picard.sdeint takes: write method='euler' here"
            raise NotSupportedError(msg)
        if method not in _METHODS:
            msg = f"unknown method {method!r}: {close_match(method, _METHODS)}"
            raise UnknownMethodError(msg)
        return _METHODS[method]()
    if isinstance(method, type) or not isinstance(method, Integrator):
        fix = f"{method.__name__}()" if isinstance(method, type) else "method='euler' or DDIM(eta=0.5)"
        msg = f"method must be a name or an integrator with a `plan`; given {describe(method)}: write {fix}"
        raise UnknownMethodError(msg)
    return method
