"""Lifting: a function of one time and one state becomes a function of rows, many times and states in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import map_tensors
from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.memory import out_of_memory
from picard.noted import called


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
        given: list[Tensor] = []
        map_tensors(cond, given.append)
        for tensor in given:
            if tensor.shape[:1] != t.shape:
                msg = (
                    f"every tensor in cond must have one entry a row, {len(t)} here; given {describe(tensor)}: bind "
                    "one that all rows share to the function, with functools.partial"
                )
                raise InvalidProblemError(msg)
        if len(t) == 1:  # nothing to lift: functions that cannot be lifted still run with window=1
            return map_tensors(self._first(t, x, cond), lambda value: value[None])

        def one(t: Tensor, x: Any, given: list[Tensor]) -> Any:
            each = iter(given)
            return self.func(t, x, **map_tensors(cond, lambda _: next(each)))

        try:
            return torch.func.vmap(one)(t, x, given)
        except Exception as error:
            if out_of_memory(error):  # fewer rows will do, and the solver takes fewer
                raise
            # The function itself is at fault if it fails on a single row too; then its own error says most.
            self._first(t, x, cond)
            reason = str(error).strip().split("\n")[0].split(". ")[0]
            msg = (
                f"func must run on many rows at once, by torch.func.vmap; it runs on one row but not on {len(t)} "
                f"({type(error).__name__}: {reason}). Call .eval() on a network with dropout or batch "
                "normalization. Build new tensors from y (torch.zeros_like(y), torch.stack) instead of writing into "
                "torch.zeros(...), write torch.where instead of `if`, torch.func.grad instead of torch.autograd.grad, "
                "use no .item(), no float(t) and no random numbers. "
                "Or write it for rows, func(t, y) with t (rows,) and y (rows, *state), "
                'and say so: options={"rows": True} in odeint and sdeint, picard.ODE(func, y0) in solve. '
                'As it is, options={"window": 1} runs it one state after the other'
            )
            raise NotSupportedError(msg) from error

    def _first(self, t: Tensor, x: Any, cond: Mapping[str, Any]) -> Any:
        x, cond = map_tensors((x, cond), lambda value: value[0])
        return called(self.func, {"t": t[0], "y": x}, cond)

    def __repr__(self) -> str:
        """Name the function."""
        return f"rowwise({getattr(self.func, '__name__', type(self.func).__name__)})"


def rowwise(func: Callable[..., Any]) -> Rowwise:
    """Lift a function of one time and one state to rows, for `ODE` and `SDE`.

    Args:
        func: called as `func(t, y, **cond)` with a scalar tensor t and one state y; a module or a plain function.
            `torch.func.vmap` must be able to run it: no writing into captured tensors, no `.item()`, no control flow
            that depends on values, no `torch.autograd.grad`.

    Returns:
        A function called as `f(t, x, **cond)` with t (rows,), x (rows, *state) and one entry a row in every tensor of
        `cond`, also inside dicts, lists and tuples; it returns (rows, *state). It raises `NotSupportedError` when
        called, if the function cannot be lifted.

    Raises:
        InvalidProblemError: if `func` is not callable.
    """
    return Rowwise(func)
