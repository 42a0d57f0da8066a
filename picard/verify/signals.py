"""Signals: what a property raises that does not hold, or cannot be measured."""

from __future__ import annotations


class Skip(Exception):  # noqa: N818  # not an error: a property that means nothing here
    """A property cannot be measured; the message says what is missing."""


class Failure(Exception):  # noqa: N818  # not an error of this library: a property that does not hold
    """A property does not hold; the message says what was measured."""
