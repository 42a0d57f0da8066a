"""Numbers and flags that are given as options, NumPy's too, and their checks."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

from picard.errors import InvalidProblemError, describe


def whole(value: object) -> int | None:
    """Return a whole number as Python's own, and `None` for anything else, True and False among it."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def check_count(name: str, value: Any, otherwise: str = "", least: int = 1) -> int:
    """Check that an option is a whole number of at least 1, or another number, and return it.

    Args:
        name: what it is called.
        value: the option.
        otherwise: what else it may be, for the message, such as ", or None".
        least: the smallest it may be.

    Raises:
        InvalidProblemError: if it is not.
    """
    count = whole(value)
    if count is None or count < least:
        msg = f"{name} must be an integer of at least {least}{otherwise}; given {describe(value)}"
        raise InvalidProblemError(msg)
    return count


def one_number(value: object) -> TypeGuard[Any]:
    """Say whether something stands for one real number, of NumPy or in a tensor, too."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and not value.is_meta
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "iuf"
    return isinstance(value, Real) and not isinstance(value, bool)


def number(name: str, value: object) -> float:
    """Turn what stands for one number into that.

    Raises:
        InvalidProblemError: if it is none.
    """
    if one_number(value):
        return float(value.item() if isinstance(value, np.ndarray) else value)
    msg = f"{name} must be one number; given {describe(value)}: write e.g. {name}=1e-3"
    raise InvalidProblemError(msg)


def keep_numbers(owner: object, *names: str) -> None:
    """Make fields of a frozen dataclass that stand for numbers Python's own.

    Raises:
        InvalidProblemError: if one stands for none.
    """
    for name in names:
        object.__setattr__(owner, name, number(name, getattr(owner, name)))


def check_flags(**given: object) -> None:
    """Check that options are true or false: any other value counts as one of them, but was meant as something else.

    Raises:
        InvalidProblemError: if one is not.
    """
    for name, value in given.items():
        if not isinstance(value, (bool, np.bool_)):
            msg = f"{name} must be True or False; given {describe(value)}: write e.g. {name}=True"
            raise InvalidProblemError(msg)


def check_samples(samples: Any) -> list[int]:
    """Return the indices of samples, of NumPy or in a tensor, too, as a list.

    Raises:
        InvalidProblemError: if they are no such indices.
    """
    given: Any = samples.tolist() if isinstance(samples, (Tensor, np.ndarray)) else samples
    found = [whole(sample) for sample in given] if isinstance(given, Iterable) else [None]
    kept = [sample for sample in found if sample is not None and sample >= 0]
    if len(kept) < len(found):
        msg = f"samples must be a list of indices in the batch, from 0; given {describe(samples)}: write e.g. [0, 2]"
        raise InvalidProblemError(msg)
    return kept
