"""The functions a round is made of, plain or compiled: all but the model's call, without a break for the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from picard.advance import Advance, Evaluated, Rules, advance
from picard.errors import InvalidProblemError, NotSupportedError, check_names, describe
from picard.tables import Coefficients
from picard.whole import Form, Whole, whole_round
from picard.window import Asks, State


class Functions:
    """The functions of tensors that a round is made of, compiled or plain, for any sizes of batch and state.

    Attributes:
        form: what their code depends on.
        advance: `advance` for windows of which all nodes were evaluated, with nothing done aside.
        slides: whether there is a whole round, as the guess needs nothing from the host.
        whole: `whole_round`.
        key: what their code depends on, and whether it is compiled.
    """

    def __init__(self, form: Form, options: Mapping[str, Any] | None, key: object) -> None:
        """Prepare; nothing is compiled before the first call.

        Args:
            form: what the code depends on.
            options: keyword arguments of `torch.compile`; `None` for plain functions.
            key: of all these.
        """
        self.form, self.slides, self.key = form, form.slides, key
        part, whole = partial(_advance, form.rules), partial(whole_round, form)
        self.advance = part if options is None else _compile(part, {"dynamic": True, **options})
        self.whole: Callable[..., tuple[Whole, Asks]] = whole if options is None else _compile(whole, options)


def _advance(rules: Rules, at: Coefficients, state: State, found: Evaluated) -> Advance:
    """Advance windows of which all nodes were evaluated; one code for full windows and others."""
    evaluated = Evaluated(found.values, found.noise, state.inside(), found.diffusion, found.kick, found.jacobian)
    return advance(rules, at, state, evaluated, full=False)


def functions_of(
    form: Form, options: bool | Mapping[str, Any], *, pays: bool = True, plain: bool = False
) -> Functions | None:
    """Return the functions of a solve, those compiled before if there was one like it.

    Args:
        form: what their code depends on.
        options: whether to compile, or keyword arguments of `torch.compile`.
        pays: whether compiling pays; otherwise nothing is.
        plain: whether plain functions are wanted where nothing is compiled; otherwise `None` is returned.

    Raises:
        InvalidProblemError: if the options are neither.
    """
    if not isinstance(options, (bool, Mapping)):
        msg = f"compile must be True, False or keyword arguments of torch.compile; given {describe(options)}"
        raise InvalidProblemError(msg)
    if isinstance(options, Mapping):
        options = check_names("compile", options, 'compile={"mode": "max-autotune"}')
    if options is False or not pays:
        return Functions(form, None, (form, None)) if plain else None
    options = {} if options is True else options
    key = form, repr(sorted(options.items()))
    try:
        known = _MADE.get(key)
    except TypeError:  # a rule of the user's that has no hash
        return Functions(form, options, key)
    if known is None:
        known = _MADE[key] = Functions(form, options, key)
    return known


_MADE: dict[Any, Functions] = {}


def _own(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function code of its own: by that a compiler counts how often it has made it, and gives up some time."""

    def own(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    own.__code__ = own.__code__.replace(co_name=f"own_{next(_COUNT)}")
    return own


_COUNT = itertools.count()


def _compile(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    given = {"fullgraph": True, **options}
    skip = getattr(torch.compiler, "skip_guard_on_globals_unsafe", None)  # from torch 2.8 on
    if skip is not None and "mode" not in given:
        # This package's functions do not change, and sizes are checked once: checking both again at every call, and
        # sizes again inside it, would take more than half of its time.
        checks = {} if "backend" in given else {"size_asserts": False}
        given["options"] = {"guard_filter_fn": skip, **checks, **given.get("options", {})}
    made = torch.compile(_own(function), **given)
    from torch._dynamo import exc
    from torch._inductor import exc as inductor

    # Missing before torch 2.6, and in it.
    too_many: Any = getattr(exc, "FailOnRecompileLimitHit", ())
    failed: Any = getattr(inductor, "InductorError", exc.TorchDynamoException)

    def call(*args: Any, **keywords: Any) -> Any:
        nonlocal made
        try:
            return made(*args, **keywords)
        except too_many:  # kinds of sizes, of which every one is made apart
            made = torch.compile(_own(function), **given)
            return made(*args, **keywords)
        except (exc.TorchDynamoException, failed) as error:
            function(*args, **keywords)  # where a rule is at fault, its own error says more
            msg = (
                f"this solve's rounds cannot be compiled: {str(error).splitlines()[0]}; compile=True needs a compiler "
                "for C++ (on a CPU) or Triton (on a GPU), and rules made of tensor operations: leave it out, or "
                "write compile={'backend': 'aot_eager'} to see whether the compiler is at fault"
            )
            raise NotSupportedError(msg) from error

    return call
