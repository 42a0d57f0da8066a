"""Numbers that are given as options, NumPy's too, and their checks."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, TypeGuard

from torch import Tensor

from picard.errors import InvalidProblemError, describe


def whole(value: object) -> int | None:
    """Return a whole number as Python's own, and `None` for anything else, True and False among it."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def check_count(name: str, value: Any, otherwise: str = "") -> int:
    """Check that an option is a whole number of at least 1, and return it.

    Args:
        name: what it is called.
        value: the option.
        otherwise: what else it may be, for the message, such as ", or None".

    Raises:
        InvalidProblemError: if it is not.
    """
    count = whole(value)
    if count is None or count < 1:
        msg = f"{name} must be an integer of at least 1{otherwise}; given {describe(value)}"
        raise InvalidProblemError(msg)
    return count


def one_number(value: object) -> TypeGuard[Real | Tensor]:
    """Say whether something stands for one real number."""
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex())


def number(name: str, value: object, write: str = "") -> float:
    """Turn what stands for one number into that.

    Args:
        name: what it is called.
        value: the number.
        write: an example for the message; 1e-3 if not given.

    Raises:
        InvalidProblemError: if it is none.
    """
    if one_number(value):
        return float(value)
    msg = f"{name} must be one number; given {describe(value)}: write e.g. {write or f'{name}=1e-3'}"
    raise InvalidProblemError(msg)
