"""Numbers, flags and what draws numbers, given as options, NumPy's too, and their checks."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from picard.errors import InvalidProblemError, describe

MANY = 10**9
"""The largest size of what is made: more numbers are a mistake, or more than a machine holds."""
_LARGEST = 2**63 - 1  # of PyTorch's whole numbers


def whole(value: Any) -> int | None:
    """Return a whole number as Python's own, and `None` for anything else, True, False and lists of one among it."""
    listed = isinstance(value, Tensor) and (value.ndim > 0 or value.is_meta or value.dtype == torch.bool)
    if listed or isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def wholes(values: object) -> list[int | None]:
    """Return what is listed as `whole` does, of NumPy or in a tensor, too; nothing if that is no list."""
    if isinstance(values, (Tensor, np.ndarray)):
        readable = isinstance(values, np.ndarray) or not (values.is_meta or values.layout != torch.strided)
        values = values.tolist() if readable else None
    return [whole(value) for value in values] if isinstance(values, Sequence) and not isinstance(values, bytes) else []


def check_count(name: str, value: Any, otherwise: str = "", least: int = 1, most: int = _LARGEST) -> int:
    """Check that an option is a whole number of at least 1, or another number, and return it.

    Args:
        name: what it is called.
        value: the option.
        otherwise: what else it may be, for the message, such as ", or None".
        least: the smallest it may be.
        most: the largest it may be: `MANY` if as many numbers are made.

    Raises:
        InvalidProblemError: if it is not.
    """
    count = whole(value)
    if count is None or not least <= count <= most:
        limit = f" and at most {most}" if count is not None and count > most else ""
        msg = f"{name} must be an integer of at least {least}{limit}{otherwise}; given {describe(value)}"
        raise InvalidProblemError(msg)
    return count


def check_limit(name: str, value: Any, *words: str) -> int | None:
    """Check an option that may be a count, one of some words, or `None`; return the count, `None` for the others.

    Raises:
        InvalidProblemError: if it is none of these.
    """
    if value is None or (isinstance(value, str) and value in words):
        return None
    return check_count(name, value, "".join(f', "{word}"' for word in words) + (" or None" if words else ", or None"))


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
        with suppress(OverflowError):  # an integer of more than 308 digits
            return float(value.item() if isinstance(value, np.ndarray) else value)
    msg = f"{name} must be one number; given {describe(value)}: write e.g. {name}=1e-3"
    raise InvalidProblemError(msg)


def not_negative(name: str, value: object) -> float:
    """Turn what stands for one number into that, which must be finite and not negative.

    Raises:
        InvalidProblemError: if it is not.
    """
    found = number(name, value)
    if not 0 <= found < math.inf:
        msg = f"{name} must be finite and not negative; given {found:g}"
        raise InvalidProblemError(msg)
    return found


def share(name: str, value: object) -> float:
    """Turn what stands for one number into that, which must be between 0 and 1.

    Raises:
        InvalidProblemError: if it is not.
    """
    found = number(name, value)
    if not 0 <= found <= 1:
        msg = f"{name} must be between 0 and 1; given {found:g}"
        raise InvalidProblemError(msg)
    return found


def keep_numbers(owner: object, *names: str, of: Callable[[str, object], float] = number) -> None:
    """Make fields of a frozen dataclass that stand for numbers Python's own.

    Raises:
        InvalidProblemError: if one stands for none, or for another one than asked for.
    """
    for name in names:
        object.__setattr__(owner, name, of(name, getattr(owner, name)))


def check_flags(**given: object) -> None:
    """Check that options are true or false: any other value counts as one of them, but was meant as something else.

    Raises:
        InvalidProblemError: if one is not.
    """
    for name, value in given.items():
        if not isinstance(value, (bool, np.bool_)):
            msg = f"{name} must be True or False; given {describe(value)}: write e.g. {name}=True"
            raise InvalidProblemError(msg)


def check_generator(given: object) -> None:
    """Check what draws random numbers: a generator, or a list with one a sample.

    Raises:
        InvalidProblemError: if it is neither.
    """
    several = given if isinstance(given, (list, tuple)) else [given]
    if not several or not all(isinstance(one, torch.Generator) for one in several):
        msg = (
            f"generator must be a torch.Generator, or a list of them; given {describe(given)}: "
            "write e.g. torch.Generator().manual_seed(0)"
        )
        raise InvalidProblemError(msg)


def check_samples(samples: object, batch: int | None = None) -> list[int]:
    """Return the indices of samples, of NumPy or in a tensor, too, as a list.

    Args:
        samples: the indices, at least one.
        batch: how many samples there are, if that is known.

    Raises:
        InvalidProblemError: if they are no such indices.
    """
    found, most = wholes(samples), _LARGEST if batch is None else batch - 1
    kept = [sample for sample in found if sample is not None and 0 <= sample <= most]
    if not kept or len(kept) < len(found):
        of = "" if batch is None else f" of {batch}"
        msg = f"samples must be indices in the batch{of}, from 0, in a list; given {describe(samples)}: write e.g. [0]"
        raise InvalidProblemError(msg)
    return kept
