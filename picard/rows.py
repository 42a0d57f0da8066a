"""Rows: the batched model call, one row for every window node of every sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from picard.conditioning import RowCond, version
from picard.errors import InvalidProblemError, describe
from picard.memory import RowLimit, out_of_memory
from picard.shapes import Float


@dataclass(frozen=True, eq=False)
class Rows:
    """The input of one model call, every tensor with a leading `rows` dimension.

    Attributes:
        t: model time, shape (rows,).
        x: states, shape (rows, *state).
        cond: conditioning, repeated per row when asked for.
        scales: (alpha, sigma) per row, for denoisers, shape (rows, 2).
    """

    t: Tensor
    x: Tensor
    cond: RowCond
    scales: Tensor | None = None

    def part(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` to `stop`."""
        if stop - start == self.x.shape[0]:
            return self
        scales = None if self.scales is None else self.scales[start:stop]
        return Rows(self.t[start:stop], self.x[start:stop], self.cond.part(start, stop), scales)


@runtime_checkable
class Evaluable(Protocol):
    """What has a field: every problem."""

    @property
    def callee(self) -> object:
        """What the field calls."""
        ...

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the value at every row, and the diffusion there if noise enters through the field."""
        ...

    def output(self, rows: Rows) -> Tensor:
        """Return what the network alone says at every row."""
        ...


def evaluate(
    problem: Evaluable, rows: Rows, max_rows: int | None, *, output: bool = False
) -> tuple[Float[Tensor, "rows *state"], Tensor | None]:
    """Call the model on all rows, in pieces of at most `max_rows`.

    A call that runs out of memory is tried again with half its rows, and the model is given no more from then on.

    Args:
        problem: the problem.
        rows: the input.
        max_rows: rows a call may hold; `None` for no limit. It changes memory, never the result.
        output: whether the network is asked alone; otherwise for the field.

    Returns:
        The field without noise or the output at every row, shape (rows, *state), and its diffusion, if any.

    Raises:
        InvalidProblemError: if the model's output has another shape, dtype or device than its input, or the model
            changes its input in place.
    """
    count, start = rows.x.shape[0], 0
    limit = RowLimit(problem, rows.x)
    size = limit.rows(max_rows) or count
    parts: list[tuple[Tensor, Tensor | None]] = []
    while start < count:
        stop = min(start + size, count)
        piece = rows.part(start, stop)
        if piece.x.is_inference():  # which does not count its changes
            with torch.inference_mode(mode=False), torch.no_grad():
                piece = replace(piece, x=piece.x.clone())
        before = version(piece.x), version(piece.t)
        try:
            found: tuple[Tensor, Tensor | None]
            found = (problem.output(piece), None) if output else problem.field(piece)
            value, diffusion = checked(*found, piece.x)
            if stop - start < count:  # the next call may return the same memory, as a captured CUDA graph does
                value, diffusion = value.clone(), None if diffusion is None else diffusion.clone()
            parts.append((value, diffusion))
        except Exception as error:
            if stop - start == 1 or not out_of_memory(error) or before != (version(piece.x), version(piece.t)):
                raise
            if piece.x.is_cuda and torch.cuda.is_current_stream_capturing():
                raise  # here it is the graph that needs more, not the call
            size = limit.halve(stop - start)
        else:
            start = stop
        if version(piece.x) != before[0]:
            raise _changed("the states, which are", "x")
        if not piece.cond.intact():
            raise _changed("the conditioning, which is", "c")
    if len(parts) == 1:
        return parts[0]
    diffusions = [diffusion for _, diffusion in parts if diffusion is not None]
    return torch.cat([value for value, _ in parts]), torch.cat(diffusions) if diffusions else None


def _changed(what: str, name: str) -> InvalidProblemError:
    return InvalidProblemError(
        f"the model must leave its input as it is; it changed in place {what} still needed: "
        f"write -{name} for {name}.neg_(), or begin with {name} = {name}.clone()"
    )


def kicked(value: Tensor, diffusion: Tensor | None, noise: Tensor | None) -> Tensor:
    """Add diffusion times noise to a field's value.

    Args:
        value: shape (..., *state).
        diffusion: shape (..., *state) for diagonal noise, else (..., *state, channels); `None` for no noise.
        noise: increment over the step size, shape (..., *state) or (..., channels).
    """
    if diffusion is None or noise is None:
        return value
    if diffusion.ndim == value.ndim:
        return value + diffusion * noise
    lead = noise.ndim - 1
    spread = noise.reshape(*noise.shape[:lead], *[1] * (value.ndim - lead), noise.shape[-1])
    return value + (diffusion * spread).sum(-1)


def _form(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.dtype, x.device, x.layout


def checked(value: object, diffusion: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Check that a field's value is shaped, typed and placed as its input.

    Raises:
        InvalidProblemError: if it is not.
    """
    if not isinstance(value, Tensor) or _form(value) != _form(x):
        fix = ""
        if isinstance(value, Tensor) and value.device == x.device:
            column = f"t[:{', None' * (x.ndim - 1)}]"
            fix = ": write .to(x.dtype)" if value.shape == x.shape else f": write {column} where t, (rows,), meets x"
        shape = ", ".join(["rows", *map(str, x.shape[1:])])
        given = f"a tensor of shape ({shape}), {x.dtype}, on {x.device}"
        msg = f"the model must return what it is given: {given}; for {len(x)} rows it returned {describe(value)}{fix}"
        raise InvalidProblemError(msg)
    return value, diffusion
