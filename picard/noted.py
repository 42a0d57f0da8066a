"""Notes on the errors of models: PyTorch's words say which sizes do not fit, a note says what the model was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from picard.errors import PicardError, holds_tensors
from picard.memory import out_of_memory

_START = "picard called this"
_KINDS = (RuntimeError, IndexError, ValueError, TypeError)  # what a function raises that expects other shapes


def called(function: Callable[..., Any], given: Mapping[str, Any], cond: Mapping[str, Any] | None = None) -> Any:
    """Call a model; note on an error of its own what it was called with and what to write.

    The error itself stays as it is.

    Args:
        function: the model.
        given: time and state, by name, in the order of the arguments; t says by its shape whether they are many rows.
        cond: further arguments, by name.
    """
    further = {} if cond is None else cond
    try:
        return function(*given.values(), **further)
    except _KINDS as error:
        known = any(one.startswith(_START) for one in getattr(error, "__notes__", ()))
        if not known and not isinstance(error, PicardError) and not out_of_memory(error):
            with suppress(Exception):  # the model's error comes first, whatever its class makes of notes
                error.add_note(_note(given, further))
        raise


def _note(called: Mapping[str, Any], cond: Mapping[str, Any]) -> str:
    given, t = {**called, **cond, **called}, called["t"]
    shapes = {name: _shape(one) for name, one in given.items() if holds_tensors([one]) or holds_tensors(one)}
    words = ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
    if t.ndim == 0:
        return (
            f"{_START} with one time and one state, {words}: write it for these shapes; or for many rows at once, t "
            '(rows,), and say so: options={"rows": True} in odeint and sdeint, no picard.rowwise in solve'
        )
    state = "x" if "x" in called else "y"
    fix, more = "give every row its own result", getattr(given[state], "ndim", 1) - 1
    if more > 0:
        flat = [name for name in shapes if getattr(given[name], "shape", None) == t.shape]
        columns = [f"{name}[:{', None' * more}] where {name} meets {state}" for name in flat]
        fix = f"write {', '.join(columns)}, and {state}[:, i] for {state}[i]"
    # A network is called with the state first, which rowwise does not lift.
    lift = "" if next(iter(called)) == "x" else "; or wrap a function of one time and one state in picard.rowwise"
    return f"{_START} with one row for every time and state, {words}: {fix}{lift}"


def _shape(given: Any) -> str:
    if isinstance(given, Tensor):
        return str(tuple(given.shape))
    inside = given.values() if isinstance(given, Mapping) else given
    return f"[{', '.join(_shape(one) if isinstance(one, Tensor) else type(one).__name__ for one in inside)}]"
