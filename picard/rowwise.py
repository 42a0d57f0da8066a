"""Lifting: a function of one time and one state becomes a function of rows, many times and states in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError, describe


class Rowwise:
    """A function of rows made from a function of one row; see `rowwise`.

    Attributes:
        func: the function of one row.
    """

    def __init__(self, func: Callable[..., Any]) -> None:
        """Keep the function."""
        if not callable(func):
            msg = f"func must be callable as func(t, y); given {describe(func)}"
            raise InvalidProblemError(msg)
        self.func = func

    def __call__(self, t: Tensor, x: Any, **cond: Any) -> Any:
        """Evaluate every row: t (rows,), tensors in x and cond (rows, ...); returns (rows, ...)."""
        if len(t) == 1:  # nothing to lift: functions that cannot be lifted still run with window=1
            return _restack(self.func(t[0], *_row(x), **_row(cond)[0]))
        mapped = {name: value for name, value in cond.items() if isinstance(value, Tensor)}
        fixed = {name: value for name, value in cond.items() if name not in mapped}
        lifted = torch.func.vmap(lambda t, x, mapped: self.func(t, x, **mapped, **fixed))
        try:
            return lifted(t, x, mapped)
        except Exception as error:
            # The function itself is at fault if it fails on a single row too; then its own error says most.
            self.func(t[0], *_row(x), **_row(cond)[0])
            reason = str(error).strip().split("\n")[0].split(". ")[0]
            msg = (
                f"func must run on many rows at once, by torch.func.vmap; it runs on one row but not on {len(t)} "
                f"({type(error).__name__}: {reason}). Build new tensors from y (torch.zeros_like(y), torch.stack) "
                "instead of writing into torch.zeros(...), write torch.where instead of `if`, use no .item(), no "
                "float(t) and no random numbers. Or write it for rows, func(t, y) with t (rows,) and y (rows, *state), "
                'and say so: options={"rows": True} in odeint and sdeint, picard.ODE(func, y0) in solve. '
                'As it is, options={"window": 1} runs it one state after the other'
            )
            raise NotSupportedError(msg) from error

    def __repr__(self) -> str:
        """Name the function."""
        return f"rowwise({getattr(self.func, '__name__', type(self.func).__name__)})"


def rowwise(func: Callable[..., Any]) -> Rowwise:
    """Lift a function of one time and one state to rows, for `ODE` and `SDE`.

    Args:
        func: called as `func(t, y, **cond)` with a scalar tensor t and one state y; a module or a plain function.
            `torch.func.vmap` must be able to run it: no writing into captured tensors, no `.item()`, no control flow
            that depends on values.

    Returns:
        A function called as `f(t, x, **cond)` with t (rows,), x (rows, *state) and one entry a row in every tensor of
        `cond`; it returns (rows, *state). It raises `NotSupportedError` when called, if the function cannot be lifted.

    Raises:
        InvalidProblemError: if `func` is not callable.
    """
    return Rowwise(func)


def _row(value: Any) -> tuple[Any]:
    """Take the first row of all tensors, one level deep."""
    if isinstance(value, Tensor):
        return (value[0],)
    if isinstance(value, dict):
        return ({name: _row(item)[0] for name, item in value.items()},)
    if isinstance(value, (tuple, list)):
        return (type(value)(_row(item)[0] for item in value),)
    return (value,)


def _restack(value: Any) -> Any:
    """Give every tensor a rows dimension of one."""
    if isinstance(value, (tuple, list)):
        return type(value)(_restack(item) for item in value)
    return value[None] if isinstance(value, Tensor) else value
