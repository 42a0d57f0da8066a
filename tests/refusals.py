"""What must be refused, and how: shared by the tests of bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from picard import PicardError

Make = Callable[[], Any]
Refusal = tuple[Make, type[Exception], Sequence[str]]
"""What is tried, the error's exact class, and parts of its message."""


def refuses(make: Make, error: type[Exception], says: Sequence[str]) -> None:
    """Check that it raises just this error, and that the message has all parts."""
    with pytest.raises(error) as caught:
        make()
    assert type(caught.value) is error
    assert isinstance(caught.value, (PicardError, TypeError))
    for part in says:
        assert part in str(caught.value)
