"""Rows: the batched model call, one row for every window node of every sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from picard.device import send
from picard.errors import InvalidProblemError, describe
from picard.memory import RowLimit, out_of_memory
from picard.shapes import Float, Int


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
        if (start, stop) == (0, len(self.x)):
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
    count, start = len(rows.x), 0
    limit = RowLimit(problem, rows.x)
    size = limit.rows(max_rows) or count
    parts: list[tuple[Tensor, Tensor | None]] = []
    while start < count:
        piece = rows.part(start, min(start + size, count))
        if piece.x.is_inference():  # which does not count its changes
            with torch.inference_mode(mode=False), torch.no_grad():
                piece = replace(piece, x=piece.x.clone())
        before = _version(piece.x), _version(piece.t)
        try:
            found: tuple[Tensor, Tensor | None]
            found = (problem.output(piece), None) if output else problem.field(piece)
            value, diffusion = checked(*found, piece.x)
            if len(piece.x) < count:  # the next call may return the same memory, as a captured CUDA graph does
                value, diffusion = value.clone(), None if diffusion is None else diffusion.clone()
            parts.append((value, diffusion))
        except Exception as error:
            if len(piece.x) == 1 or not out_of_memory(error) or before != (_version(piece.x), _version(piece.t)):
                raise
            size = limit.halve(len(piece.x))
        else:
            start += len(piece.x)
        if _version(piece.x) != before[0]:
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


def _version(x: Tensor) -> int:
    """Count the changes of a tensor in place; inference tensors do not count them."""
    return 0 if x.is_inference() else x._version


def _versions(values: Any) -> int:
    """Count the changes in place of all tensors in dicts, lists and tuples."""
    if isinstance(values, Tensor):
        return _version(values)
    inside = values.values() if isinstance(values, Mapping) else values if isinstance(values, (list, tuple)) else ()
    return sum(map(_versions, inside))


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


def checked(value: object, diffusion: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Check that a field's value is shaped, typed and placed as its input.

    Raises:
        InvalidProblemError: if it is not.
    """
    same = isinstance(value, Tensor) and (value.shape, value.dtype, value.device) == (x.shape, x.dtype, x.device)
    if not same or not isinstance(value, Tensor):
        fix = ": write .to(x.dtype)" if isinstance(value, Tensor) and value.shape == x.shape else ""
        shape = ", ".join(["rows", *map(str, x.shape[1:])])
        given = f"a tensor of shape ({shape}), {x.dtype}, on {x.device}"
        msg = f"the model must return what it is given: {given}; for {len(x)} rows it returned {describe(value)}{fix}"
        raise InvalidProblemError(msg)
    return value, diffusion


class Conditioning:
    """Conditioning tensors of a batch, repeated per row for the model call.

    Tensors whose first dimension is the batch are repeated, also inside dicts, lists and tuples; everything else is
    passed on as it is. The repeated tensors of the last arrangement of rows are kept and used again.
    """

    def __init__(self, cond: Mapping[str, Any], batch: int) -> None:
        self._cond = cond
        self._batch = batch
        self._arrangement: object = None
        self._kept: dict[tuple[int, int], Mapping[str, Any]] = {}
        self._versions: dict[tuple[int, int], int] = {}

    def of(self, arrangement: object, samples: Int[Tensor, " rows"]) -> RowCond:
        """Return the conditioning of rows that belong to the given samples; `arrangement` names that tensor."""
        return RowCond(self, arrangement, samples, 0, len(samples))

    def repeated(self, rows: RowCond) -> Mapping[str, Any]:
        """Repeat the conditioning for some rows, or find it again."""
        if not self._cond:
            return self._cond
        if rows.arrangement != self._arrangement:
            self._arrangement, self._kept = rows.arrangement, {}
        span = (rows.start, rows.stop)
        if span not in self._kept:
            samples = rows.samples[rows.start : rows.stop]
            self._kept[span] = map_tensors(self._cond, lambda value: self._repeat(value, samples))
            self._versions[span] = _versions(self._kept[span])
        return self._kept[span]

    def intact(self, rows: RowCond) -> bool:
        """Say whether what was repeated for some rows, if anything was, is as it was."""
        span = (rows.start, rows.stop)
        if rows.arrangement != self._arrangement or span not in self._kept:
            return True
        return _versions(self._kept[span]) == self._versions[span]

    def _repeat(self, value: Tensor, samples: Tensor) -> Tensor:
        if value.ndim == 0 or len(value) != self._batch:
            return value
        if self._batch == 1:
            return value.expand(len(samples), *value.shape[1:])  # no copy
        return value.index_select(0, send(samples, value))


@dataclass(frozen=True, eq=False)
class RowCond:
    """The conditioning of a run of rows, repeated only when a model asks for it."""

    source: Conditioning
    arrangement: object
    samples: Tensor
    start: int
    stop: int

    def part(self, start: int, stop: int) -> RowCond:
        """Return the conditioning of a part of these rows."""
        return replace(self, start=self.start + start, stop=self.start + stop)

    def tensors(self) -> Mapping[str, Any]:
        """Return the keyword arguments of the model, every batch tensor repeated per row."""
        return self.source.repeated(self)

    def intact(self) -> bool:
        """Say whether they are as they were, if they were asked for."""
        return self.source.intact(self)


def map_tensors(value: Any, apply: Callable[..., Any], *others: Any) -> Any:
    """Apply a function to every tensor inside nested dicts, lists and tuples, and to what others have in its place."""
    if isinstance(value, Tensor):
        return apply(value, *others)
    if isinstance(value, Mapping):
        return {name: map_tensors(item, apply, *(one[name] for one in others)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [map_tensors(item, apply, *rest) for item, *rest in zip(value, *others, strict=True)]
        made: Any = getattr(value, "_make", type(value))  # a named tuple takes its items one by one
        return made(items)
    return value
