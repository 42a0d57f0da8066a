"""Types are checked at run time in every test, once for each kind of call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

import picard
from tests.type_checks import jaxtyped

ROWS = torch.zeros(3, 2)


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
    picard.Noise.from_seed(0)
    assert is_checked()


def test_types_are_not_checked_where_a_test_hands_over_wrong_ones(unchecked: None) -> None:
    assert not is_checked()


def echo(result: Any) -> Any:
    """Make a function that returns the given thing, anew each time."""

    def inner(x: Float[Tensor, "rows two"], *many: list[int], word: Literal["a"] = "a") -> Float[Tensor, "rows"]:
        return result

    return jaxtyped(typechecker=beartype)(inner)


@pytest.mark.parametrize(
    "call",
    [
        lambda echo: echo(ROWS[0]),
        lambda echo: echo(ROWS.long()),
        lambda echo: echo(ROWS[:2]),  # fits by itself, but not the result
        lambda echo: echo(0),
        lambda echo: echo(ROWS, ["1"]),
        lambda echo: echo(ROWS, (1,)),
        lambda echo: echo(ROWS, word="b"),
    ],
)
def test_a_call_unlike_those_that_passed_is_checked(call: Callable[[Any], Any]) -> None:
    inner = echo(ROWS[:, 0])
    for _ in range(2):
        inner(ROWS, [1], word="a")
        inner(ROWS)
        with pytest.raises(TypeCheckError):
            call(inner)


@pytest.mark.parametrize("wrong", [ROWS, ROWS[:2, 0], ROWS[:, 0].long(), None])
def test_a_result_unlike_those_that_passed_is_checked(wrong: Any) -> None:
    for _ in range(2):
        assert echo(ROWS[:, 0])(ROWS).shape == (3,)
        with pytest.raises(TypeCheckError):
            echo(wrong)(ROWS)


def test_dataclasses_are_checked() -> None:
    untyped: Any = picard.NoiseRatio
    untyped(0.1)
    with pytest.raises(TypeCheckError):
        untyped("0.1")
