"""The functions a round is made of, plain or compiled: all but the model's call, without a break for the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from picard.advance import Advance, Evaluated, Rules, advance
from picard.entering import Guess
from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.hold import Hold
from picard.tables import Coefficients
from picard.whole import Whole, takes, whole_round
from picard.window import State


class Functions:
    """The functions of tensors that a round is made of, compiled or plain, for any sizes of batch, window and state.

    Attributes:
        advance: `advance` for windows of which all nodes were evaluated, with nothing done aside.
        whole: `whole_round`, if the guess needs nothing from the host.
    """

    def __init__(self, rules: Rules, guess: Guess, options: Mapping[str, Any] | None) -> None:
        """Prepare; nothing is compiled before the first call.

        Args:
            rules: how states are corrected and accepted.
            guess: what new nodes start from.
            options: keyword arguments of `torch.compile`; `None` for plain functions.
        """
        shape = guess.state if isinstance(guess, Hold) else None
        part, whole = partial(_advance, rules), partial(whole_round, rules, shape)
        self.advance = part if options is None else _compile(part, {"dynamic": True, **options})
        self.whole: Callable[..., Whole] | None = None
        if takes(guess):
            self.whole = whole if options is None else _compile(whole, options)


def _advance(rules: Rules, at: Coefficients, state: State, found: Evaluated) -> Advance:
    """Advance windows of which all nodes were evaluated; one code for full windows and others."""
    return advance(rules, at, state, found._replace(asked=state.inside()), full=False)


def functions_of(
    rules: Rules, guess: Guess, options: bool | Mapping[str, Any], *, plain: bool = False
) -> Functions | None:
    """Return the functions of a solve, those compiled before if there was one like it.

    Args:
        rules: how states are corrected and accepted.
        guess: what new nodes start from.
        options: whether to compile, or keyword arguments of `torch.compile`.
        plain: whether plain functions are wanted where nothing is compiled; otherwise `None` is returned.

    Raises:
        InvalidProblemError: if the options are neither.
    """
    if options is False:
        return Functions(rules, guess, None) if plain else None
    options = {} if options is True else options
    if not isinstance(options, Mapping):
        msg = f"compile must be True, False or keyword arguments of torch.compile; given {describe(options)}"
        raise InvalidProblemError(msg)
    shape = guess.state if isinstance(guess, Hold) else None
    key = (rules, type(guess), shape, repr(sorted(options.items())))
    try:
        known = _MADE.get(key)
    except TypeError:  # a rule of the user's that has no hash
        return Functions(rules, guess, options)
    if known is None:
        known = _MADE[key] = Functions(rules, guess, options)
    return known


_MADE: dict[Any, Functions] = {}


def _compile(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    given = {"fullgraph": True, **options}
    skip = getattr(torch.compiler, "skip_guard_on_globals_unsafe", None)  # from torch 2.8 on
    if skip is not None and "mode" not in given:
        # This package's functions do not change, and sizes are checked once: checking both again at every call, and
        # sizes again inside it, would take more than half of its time.
        checks = {} if "backend" in given else {"size_asserts": False}
        given["options"] = {"guard_filter_fn": skip, **checks, **given.get("options", {})}
    made = torch.compile(function, **given)
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return made(*args, **keywords)
        except (TorchDynamoException, InductorError) as error:
            msg = (
                f"this solve's rounds cannot be compiled: {str(error).splitlines()[0]}; compile=True needs a compiler "
                "for C++ (on a CPU) or Triton (on a GPU), and rules made of tensor operations: leave it out, or "
                "write compile={'backend': 'aot_eager'} to see whether the compiler is at fault"
            )
            raise NotSupportedError(msg) from error

    return call
