"""The verification suite runs thousands of small solves: without the run-time type checks, which other tests make."""

import pytest


@pytest.fixture(autouse=True)
def _without_type_checks(unchecked: None) -> None:
    """Switch them off."""
