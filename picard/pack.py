"""Packing: a state of any shape, or a tuple of states, as one real vector, and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, describe


class Pack:
    """The layout of a state: shapes and dtypes of its parts, which become one real vector.

    Complex numbers are packed as pairs. Parts of different precision are packed in the widest.

    Attributes:
        dtype: dtype of the vector.
        device: its device.
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
            msg = f"y0 must be a floating tensor, or a tuple of such; given {given}: write y0.float() for integers"
            raise InvalidProblemError(msg)
        if any(part.shape[:lead] != parts[0].shape[:lead] or part.ndim < lead for part in parts):
            msg = f"all parts of y0 must have the same batch dimension; given {[describe(part) for part in parts]}"
            raise InvalidProblemError(msg)
        if len({part.device for part in parts}) > 1:
            msg = f"all parts of y0 must be on the same device; given {[describe(part) for part in parts]}"
            raise InvalidProblemError(msg)
        self._lead = lead
        self._shapes = [part.shape[lead:] for part in parts]
        self._dtypes = [part.dtype for part in parts]
        self._sizes = [part.shape[lead:].numel() * (1 + part.is_complex()) for part in parts]
        self.dtype = reduce(
            torch.promote_types, [part.abs().dtype if part.is_complex() else part.dtype for part in parts]
        )
        self.device = parts[0].device

    def pack(self, y: Any) -> Tensor:
        """Pack a state, (*lead, *shape) each part, into one tensor (*lead, numbers).

        Raises:
            InvalidProblemError: if it is not laid out like y0.
        """
        parts = [y] if self._single else list(y) if isinstance(y, (tuple, list)) else []
        lead = self._lead
        if len(parts) != len(self._shapes) or not all(map(self._fits, parts, self._shapes, self._dtypes)):
            wanted = [f"{tuple(shape)} {dtype}" for shape, dtype in zip(self._shapes, self._dtypes, strict=True)]
            given = [describe(part) for part in parts] or describe(y)
            msg = f"func must return what it is given, {', '.join(wanted)}; it returned {given}"
            raise InvalidProblemError(msg)
        flat = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
        sized = zip(flat, self._sizes, strict=True)
        return torch.cat([part.reshape((*part.shape[:lead], size)).to(self.dtype) for part, size in sized], -1)

    def _fits(self, part: object, shape: torch.Size, dtype: torch.dtype) -> bool:
        same = isinstance(part, Tensor) and part.shape[self._lead :] == shape
        return same and isinstance(part, Tensor) and part.is_complex() == dtype.is_complex

    def unpack(self, x: Tensor) -> Any:
        """Unpack a tensor (..., numbers) into parts (..., *shape), in their own dtypes."""
        parts = []
        for part, shape, dtype in zip(x.split(self._sizes, -1), self._shapes, self._dtypes, strict=True):
            if dtype.is_complex:
                pairs = part.to(dtype.to_real()).reshape((*x.shape[:-1], *shape, 2))
                parts.append(torch.view_as_complex(pairs.contiguous()))
            else:
                parts.append(part.reshape((*x.shape[:-1], *shape)).to(dtype))
        return parts[0] if self._single else tuple(parts)
