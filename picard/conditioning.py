"""Conditioning: what a model is given besides time and state, repeated for the rows of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from picard.device import check_data, send
from picard.shapes import Int


class Conditioning:
    """Conditioning tensors of a batch, repeated per row for the model call.

    Tensors whose first dimension is the batch are repeated, also inside dicts, lists and tuples; everything else is
    passed on as it is. The repeated tensors of the last arrangement of rows are kept and used again.

    Attributes:
        cond: the tensors.
        batch: number of samples.
    """

    def __init__(self, cond: Mapping[str, Any], batch: int) -> None:
        self.cond, self.batch = cond, batch
        self._arrangement: object = None
        self._kept: dict[tuple[int, int], Mapping[str, Any]] = {}
        self._versions: dict[tuple[int, int], tuple[int, ...]] = {}

    def of(self, arrangement: object, samples: Int[Tensor, " rows"]) -> RowCond:
        """Return the conditioning of rows that belong to the given samples; `arrangement` names that tensor."""
        return RowCond(self, arrangement, samples, 0, len(samples))

    def repeated(self, rows: RowCond) -> Mapping[str, Any]:
        """Repeat the conditioning for some rows, or find it again."""
        if not self.cond:
            return self.cond
        if rows.arrangement != self._arrangement:
            self._arrangement, self._kept = rows.arrangement, {}
        span = (rows.start, rows.stop)
        if span not in self._kept:
            samples = rows.samples[rows.start : rows.stop]
            self._kept[span] = map_tensors(self.cond, lambda value: self._repeat(value, samples))
            self._versions[span] = versions(self._kept[span])
        return self._kept[span]

    def intact(self, rows: RowCond) -> bool:
        """Say whether what was repeated for some rows, if anything was, is as it was."""
        span = (rows.start, rows.stop)
        if rows.arrangement != self._arrangement or span not in self._kept:
            return True
        return versions(self._kept[span]) == self._versions[span]

    def renew(self, samples: Int[Tensor, " rows"]) -> None:
        """Repeat the conditioning anew, which has other values now, into the tensors kept for these rows."""
        for (start, stop), kept in self._kept.items():

            def write(old: Tensor, value: Tensor, span: Tensor = samples[start:stop]) -> None:
                new = self._repeat(value, span)
                if new.data_ptr() != old.data_ptr():  # it may be repeated without a copy
                    old.copy_(new)

            map_tensors(kept, write, self.cond)
            self._versions[start, stop] = versions(kept)

    def _repeat(self, value: Tensor, samples: Tensor) -> Tensor:
        if value.ndim == 0 or len(value) != self.batch:
            return value
        check_data("conditioning with one row a sample", value)
        if self.batch == 1:
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


def version(x: Tensor) -> int:
    """Count the changes of a tensor in place; inference tensors do not count them."""
    return 0 if x.is_inference() else x._version


def versions(values: Any) -> tuple[int, ...]:
    """Count the changes in place of every tensor in dicts, lists and tuples."""
    if isinstance(values, Tensor):
        return (version(values),)
    inside = values.values() if isinstance(values, Mapping) else values if isinstance(values, (list, tuple)) else ()
    return tuple(count for value in inside for count in versions(value))
