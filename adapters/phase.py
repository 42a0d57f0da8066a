"""Phases: the denoiser calls that every step of a pipeline makes, with arguments for any row of any step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .calls import Call, Path, is_time, leaves, map_leaves
from .guidance import Unplanned


class Phase:
    """One of a step's denoiser calls.

    The state is repeated `copies` times, one block of rows after the other, and may have more channels behind its own;
    everything else but the time is the same in every step.

    Args:
        call: the call in the first step.
        y: what the denoiser is given of the state there, shape (samples, *state).
    """

    def __init__(self, call: Call, y: Tensor) -> None:
        self.call, self.samples = call, len(y)
        self.copies = call.rows // self.samples
        self.more: Tensor | None = None
        if call.x.ndim > 2 and call.x.shape[1] > y.shape[1]:
            self.more = call.x[:, y.shape[1] :]
        self._first = dict(leaves((call.args, call.kwargs)))
        self._times: dict[Path, list[Any]] = {}
        self.add(call, y)

    def add(self, call: Call, y: Tensor) -> None:
        """Take note of this call in one more step.

        Raises:
            Unplanned: if it differs from the first step's in more than state and time.
        """
        given = dict(leaves((call.args, call.kwargs)))
        if call.module != self.call.module or given.keys() != self._first.keys() or call.autocast != self.call.autocast:
            msg = "its steps call the denoiser in different ways"
            raise Unplanned(msg)
        if not self._state_fits(call.x, y):
            msg = "what it gives the denoiser is not the scheduler's state, scaled"
            raise Unplanned(msg)
        for path, leaf in given.items():
            if path == self.call.state:
                continue
            if is_time(path, leaf) and leaf is not None:
                self._times.setdefault(path, []).append(leaf)
            elif not _same(leaf, self._first[path]):
                msg = f"the denoiser's argument {_name(path)} changes from step to step"
                raise Unplanned(msg)

    def _state_fits(self, x: Tensor, y: Tensor) -> bool:
        """Whether a call's state is a step's state, repeated, with the channels of the first step behind it."""
        if x.ndim != y.ndim or len(x) != self.copies * len(y) or x.shape[2:] != y.shape[2:]:
            return False
        own, more = x[:, : y.shape[1]], x[:, y.shape[1] :]
        close = (own - torch.cat([y] * self.copies)).abs().amax() <= 8 * torch.finfo(x.dtype).eps * y.abs().amax()
        return bool(close) and (self.more is None or _same(more, self.more))

    def freeze(self) -> None:
        """Write the times of all steps as tensors."""
        for path, values in self._times.items():
            tensors = [value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu") for value in values]
            table = torch.stack([one.reshape(()) if one.numel() == 1 else one for one in tensors])
            self._times[path] = [table.to(self.call.x.device)]  # scalars may be on the host

    def rows(self, y: Tensor, step: Tensor, sample: Tensor) -> Call:
        """Make the call for rows: states y of the given steps and samples, repeated for every copy.

        Args:
            y: shape (rows, *state).
            step: shape (rows,).
            sample: shape (rows,).
        """
        place = torch.cat([sample + j * self.samples for j in range(self.copies)])
        steps = step.repeat(self.copies)
        x = torch.cat([y.to(self.call.x.dtype)] * self.copies)
        if self.more is not None:
            x = torch.cat([x, self.more.index_select(0, place)], 1)

        def argument(path: Path, leaf: Any) -> Any:
            if path == self.call.state:
                return x
            if path in self._times:
                times = self._times[path][0]
                return times[steps] if times.ndim == 1 else times[steps, place]
            if path in self.call.batched:
                if len(leaf) == self.call.rows == 1:
                    return leaf.expand(len(x), *leaf.shape[1:])  # no copy
                return leaf.unflatten(0, (self.call.rows, -1)).index_select(0, place).flatten(0, 1)
            return leaf

        args, kwargs = map_leaves((self.call.args, dict(self.call.kwargs)), argument)
        return replace(self.call, step=0, args=args, kwargs=kwargs, x=x)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    return type(one) is type(other) and bool(one is other or one == other)


def _name(path: Path) -> str:
    """Name an argument by its place."""
    return repr(next((part for part in path[1:] if isinstance(part, str)), path[-1]))
