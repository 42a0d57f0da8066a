"""Packing: a state of any shape, or a tuple of states, as one real vector, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, describe
from picard.problem import check_finite, floating


class Pack:
    """The layout of a state: shapes and dtypes of its parts, which become one real vector.

    Complex numbers are packed as pairs. Parts of different precision are packed in the widest.

    Attributes:
        dtype: dtype of the vector.
    """

    def __init__(self, y0: Tensor | Sequence[Tensor], *, lead: int = 0) -> None:
        """Read the layout of a state.

        Args:
            y0: a floating or complex tensor, or a tuple of them.
            lead: leading dimensions, shared by all parts, that are kept.

        Raises:
            InvalidProblemError: if it is anything else.
        """
        self._single = isinstance(y0, Tensor)
        parts = [y0] if isinstance(y0, Tensor) else list(y0) if isinstance(y0, (tuple, list)) else []
        good = all(isinstance(part, Tensor) and (part.is_floating_point() or part.is_complex()) for part in parts)
        if not parts or not good:
            given = [describe(part) for part in parts] or describe(y0)
            fix = next(filter(None, (floating("y0", part) for part in parts)), floating("y0", y0))
            msg = f"y0 must be a floating tensor, or a tuple of such; given {given}: write {fix}"
            raise InvalidProblemError(msg)
        if any(part.shape[:lead] != parts[0].shape[:lead] or part.ndim < lead for part in parts):
            msg = f"all parts of y0 must have the same batch dimension; given {[describe(part) for part in parts]}"
            raise InvalidProblemError(msg)
        if len({part.device for part in parts}) > 1:
            msg = f"all parts of y0 must be on the same device; given {[describe(part) for part in parts]}"
            raise InvalidProblemError(msg)
        for part in parts:
            check_finite("y0", part)
        self._lead = lead
        self._shapes = [part.shape[lead:] for part in parts]
        self._numbers = [shape.numel() for shape in self._shapes]
        self._dtypes = [part.dtype for part in parts]
        self._sizes = [count * (1 + dtype.is_complex) for count, dtype in zip(self._numbers, self._dtypes, strict=True)]
        self.dtype = reduce(
            torch.promote_types, [part.abs().dtype if part.is_complex() else part.dtype for part in parts]
        )

    def pack(self, y: Any) -> Tensor:
        """Pack a state, or the slope of one, into one tensor (*lead, numbers); every part is (*lead, *shape).

        A slope may be what torchdiffeq can add to the state: what broadcasts to a single tensor, as many numbers for a
        part of a tuple, real ones for a complex state.

        Raises:
            InvalidProblemError: if it is anything else.
        """
        several = isinstance(y, (tuple, list)) or (isinstance(y, Tensor) and y.ndim > 0)
        parts: list[Any] = [y] if self._single else list(y) if several else []
        whole = isinstance(y, Tensor) and not self._single  # which torchdiffeq splits, too, where the sizes fit
        sizes = [part.shape[self._lead :].numel() for part in parts] if whole else self._numbers
        if len(parts) != len(self._shapes) or sizes != self._numbers:
            msg = f"func must return a tuple of {len(self._shapes)} tensors, as it is given; it returned {describe(y)}"
            raise InvalidProblemError(msg)
        return torch.cat([self._flat(*part) for part in zip(parts, self._shapes, self._dtypes, strict=True)], -1)

    def _flat(self, part: Any, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        lead, given = self._lead, f"(rows, {', '.join(map(str, shape))})" if self._lead else tuple(shape)
        msg = f"func must return what it is given, shape {given} and {dtype}; it returned "
        if not isinstance(part, Tensor) or part.ndim < lead or (part.is_complex() and not dtype.is_complex):
            raise InvalidProblemError(msg + describe(part))
        outer, inner = part.shape[:lead], part.shape[lead:]
        padded = (*[1] * (len(shape) - len(inner)), *inner)
        if self._single and len(padded) == len(shape) and all(n in (1, m) for n, m in zip(padded, shape, strict=True)):
            part = part.reshape((*outer, *padded)).expand((*outer, *shape))
        elif (_dense(inner) != _dense(shape)) if self._single else inner.numel() != shape.numel():
            raise InvalidProblemError(msg + describe(part))
        real = torch.view_as_real(part.to(dtype).resolve_conj()) if dtype.is_complex else part
        return real.reshape((*outer, math.prod(real.shape[lead:]))).to(self.dtype)

    def unpack(self, x: Tensor) -> Any:
        """Unpack a tensor (..., numbers) into parts (..., *shape), in their own dtypes."""
        parts = []
        for part, shape, dtype in zip(x.split(self._sizes, -1), self._shapes, self._dtypes, strict=True):
            if dtype.is_complex:
                pairs = part.to(dtype.to_real()).reshape((*x.shape[:-1], *shape, 2))
                parts.append(torch.complex(*pairs.unbind(-1)))  # a view needs an even offset, and may not have one
            else:
                parts.append(part.reshape((*x.shape[:-1], *shape)).to(dtype))
        return parts[0] if self._single else tuple(parts)


def _dense(shape: torch.Size) -> list[int]:
    """Leave out the dimensions of one."""
    return [size for size in shape if size != 1]
