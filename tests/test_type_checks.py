"""Types are checked at run time in every test, but not in a case whose parameters all were in cases before."""

from __future__ import annotations

import os
from typing import Any

import pytest
from jaxtyping import TypeCheckError

import picard


def is_checked() -> bool:
    """Hand over a wrong type, and see who complains."""
    untyped: Any = picard.Noise.from_seed
    try:
        untyped(0.5)
    except (TypeCheckError, TypeError, picard.PicardError) as error:
        return isinstance(error, TypeCheckError)
    return False


def test_types_are_checked() -> None:
    assert is_checked()


def test_types_are_not_checked_where_a_test_hands_over_wrong_ones(unchecked: None) -> None:
    assert not is_checked()


@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") == "nightly", reason="checks the types in all cases")
@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("second", ["a", "b"])
def test_types_are_checked_where_a_value_is_new(first: str, second: str) -> None:
    assert is_checked() == ((first, second) != ("b", "b"))
