"""Shape annotations: jaxtyping's where it is installed, which the tests check with beartype; otherwise names only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:  # annotations are never evaluated then

        class Bool:
            """Stand-in for jaxtyping's `Bool`."""

        class Float:
            """Stand-in for jaxtyping's `Float`."""

        class Int:
            """Stand-in for jaxtyping's `Int`."""


__all__ = ["Bool", "Float", "Int"]
