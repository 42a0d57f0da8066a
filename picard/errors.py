"""Errors, each saying what must hold, what was given, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from picard.solution import Solution


_MOST = 200  # letters of a value shown in a message: what a network returns may print all its numbers


class PicardError(Exception):
    """Base class of every error this library raises on purpose; other processes can be sent it, whatever made it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes, not the arguments it was made from."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[PicardError], args: tuple[Any, ...]) -> PicardError:
    return kind.__new__(kind, *args)


class InvalidProblemError(PicardError, ValueError):
    """A problem, a drift's output, a noise or an option does not have the form it must have."""


class InvalidGridError(PicardError, ValueError):
    """A time grid is empty, not monotone, of the wrong dtype, or says no step size."""


class UnknownMethodError(PicardError, ValueError):
    """A method name is not registered."""


class NotSupportedError(PicardError, NotImplementedError):
    """A combination is meaningful but this library does not offer it."""


class DistributedError(PicardError, RuntimeError):
    """The ranks of a process group do not agree, one of them is lost, or the model raised on another one."""


class MissingDependencyError(PicardError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"this needs the package `{package}`, which is not installed: pip install {package}")


class NotConvergedError(PicardError, RuntimeError):
    """The solve stopped before every step converged; `solution` holds what was reached."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


class NonFiniteError(PicardError, ArithmeticError):
    """The model returned a non-finite value at a state that is already exact, so the sequential solver meets it too.

    Attributes:
        round: the round (or, in a sequential solve, the model call) it happened in, counted from 1.
        step: the step of the grid, counted from 0.
        time: the time given to the model.
        sample: the index in the batch.
        where: `"drift"` if the model's value is at fault, `"state"` if the step from it overflows.
        solution: what was solved before.
    """

    def __init__(
        self, *, round_number: int, step: int, time: float, sample: int, where: str, solution: Solution
    ) -> None:
        what, advice = {
            "drift": (
                "what the model returns",
                "check the model at this input; where the state has grown without bound before, use more steps",
            ),
            "state": ("the state", "the step overflows: use more steps, a wider dtype or another method"),
        }[where]
        which = f" of sample {sample}" if solution.stats.batch > 1 else ""
        super().__init__(
            f"{what} must be finite; it is not at step {step} (time {time:g}){which}, in round {round_number}: {advice}"
        )
        self.round, self.step, self.time, self.sample, self.where = round_number, step, time, sample, where
        self.solution = solution


def describe(value: object) -> str:
    """Describe a value for a message: shapes and dtypes of tensors, never their numbers."""
    if isinstance(value, torch.Tensor):
        layout = "" if value.layout == torch.strided else f", {value.layout}"
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}, on {value.device}{layout}"
    if holds_tensors(value):
        return f"a {type(value).__name__} of tensors"
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits
        return f"a {type(value).__name__}"
    return f"{text} ({type(value).__name__})" if len(text) <= _MOST else f"a {type(value).__name__}"


def holds_tensors(value: object) -> bool:
    """Say whether a mapping, list or tuple has tensors in it."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return any(isinstance(item, torch.Tensor) for item in inside)


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Check that an option is one of some words.

    Raises:
        InvalidProblemError: with the word that was probably meant.
    """
    if not isinstance(value, str) or value not in known:
        given = repr(value) if isinstance(value, str) else describe(value)
        msg = f"unknown {name} {given}: {close_match(value, known)}"
        raise InvalidProblemError(msg)


def check_names(name: str, given: object, fix: str) -> dict[str, Any]:
    """Check that something maps names to values, and copy it.

    Args:
        name: what it is called.
        given: the mapping.
        fix: what to write instead.

    Raises:
        InvalidProblemError: if it is no mapping, or has other keys.
    """
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        msg = f"{name} must map names to values; given {describe(given)}: write {fix}"
        raise InvalidProblemError(msg)
    return dict(given)


def close_match(name: object, choices: Iterable[str]) -> str:
    """Say which name was probably meant, and list all of them."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if isinstance(name, str) else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known)}"
