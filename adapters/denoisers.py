"""Denoisers of a pipeline: their calls are recorded while it runs, and evaluated many at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError

from .calls import (
    Call,
    Path,
    batched_paths,
    doubtful_paths,
    find_state,
    identity,
    is_time,
    leaf_at,
    leaves,
    main_tensor,
    map_leaves,
)
from .copies import Copy
from .secant import check_rows

_MOST = 2  # arguments without a batch dimension that are looked for together


class Denoisers:
    """The denoisers of a pipeline, and what is known of their arguments.

    Args:
        modules: the denoisers, each ready to be called.
    """

    def __init__(self, modules: Sequence[Callable[..., Any]]) -> None:
        self._modules = modules
        self._checked: set[tuple[int, frozenset[Path]]] = set()
        self._single: set[tuple[int, Path]] = set()  # arguments found to have no batch dimension
        self.forget()

    def forget(self) -> None:
        """Forget the calls recorded so far."""
        self._failed = False
        self._examples: dict[int, Call] = {}
        self._copies: dict[tuple[int, int, Path], Copy] = {}

    def record(self, module: int, phase: int, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Record a call, with its own copies: the pipeline may write into what it gives before it is evaluated.

        Raises:
            NotSupportedError: if no argument looks like a noisy state, or the pipeline differentiates by it.
        """
        state = find_state(args, kwargs)
        given = leaf_at((args, kwargs), state)
        if given.requires_grad and torch.is_grad_enabled():
            msg = (
                "the pipeline differentiates through its denoiser, which is not supported: outputs in a pass carry no "
                "graph; write restore(pipe), or no_grad around the call if no gradient is needed"
            )
            raise NotSupportedError(msg)
        x = given.detach().clone()

        def own(path: Path, leaf: Any) -> Any:
            if path == state or not isinstance(leaf, Tensor):
                return x if path == state else leaf
            key = (module, phase, path)
            if key not in self._copies or not self._copies[key].holds(leaf):
                self._copies[key] = Copy(leaf)
            return self._copies[key].value

        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        held_args, held_kwargs = map_leaves((args, dict(kwargs)), own)
        batched = batched_paths(args, kwargs, len(x)) - {path for one, path in self._single if one == module}
        call = Call(module, phase, step, held_args, held_kwargs, state, x, autocast, batched)
        self._examples.setdefault(module, call)
        return call

    def evaluate(self, calls: Sequence[Call], max_rows: int | None) -> list[Any]:
        """Evaluate calls, as many at a time as their arguments and `max_rows` allow.

        Args:
            calls: the calls.
            max_rows: rows one evaluation may hold; at least one call is evaluated at a time.

        Returns:
            The output of every call, as the denoiser would have returned it.
        """
        groups: dict[Any, list[int]] = {}
        for i, call in enumerate(calls):
            groups.setdefault(_signature(call), []).append(i)
        outputs: list[Any] = [None] * len(calls)
        for members in groups.values():
            size = len(members) if max_rows is None else max(1, max_rows // calls[members[0]].rows)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                for i, output in zip(part, self._evaluate([calls[i] for i in part]), strict=True):
                    outputs[i] = output
        return outputs

    def eps(self, call: Call, output: Any) -> float:
        """Return the unit in the last place of the coarsest numbers among those of a call, its output and weights."""
        weights = getattr(self._modules[call.module], "dtype", None)
        kinds = [call.x.dtype, main_tensor(output).dtype, call.autocast, weights]
        known = [one for one in kinds if isinstance(one, torch.dtype) and one.is_floating_point]
        return max(torch.finfo(one).eps for one in known if one.itemsize > 1)  # weights of one byte are only kept so

    def unchecked(self, call: Call) -> bool:
        """Whether a call's rows are still to be compared with those of a batch."""
        return (call.module, call.batched) not in self._checked

    def check(self, call: Call, batched: Any, alone: Any) -> None:
        """Check that a row of a batch comes out as in a call of its own: the merged arguments were understood.

        Raises:
            NotSupportedError: if it does not.
        """
        training = getattr(self._modules[call.module], "training", False)
        self._failed = True
        check_rows(batched, alone, "pipe.unet.eval()" if training else None)
        self._failed = False
        self._checked.add((call.module, call.batched))

    def mend(self) -> bool:
        """Find arguments without a batch dimension that were taken for batched ones, once a batch came out wrong.

        Returns:
            Whether there are any; calls recorded from now on know of them.
        """
        if not self._failed:
            return False
        found = {
            (module, path) for module, call in self._examples.items() for path in self._find_single(call) if path
        } - self._single
        self._single |= found
        return bool(found)

    def _find_single(self, call: Call) -> tuple[Path, ...]:
        """Find the fewest arguments to leave as they are, so that a call beside itself comes out as alone."""
        doubtful = doubtful_paths(call)
        choices = (some for count in range(1 + _MOST) for some in itertools.combinations(doubtful, count))
        return next((some for some in choices if self._fits(replace(call, batched=call.batched - {*some}))), ())

    def _fits(self, call: Call) -> bool:
        try:
            alone = self._evaluate([call])[0]
            for output in self._evaluate([call, call]):
                check_rows(output, alone, None)
        except Exception:  # noqa: BLE001  # models raise what they like where shapes do not fit
            return False
        return True

    def _evaluate(self, calls: list[Call]) -> list[Any]:
        first = calls[0]
        module = self._modules[first.module]
        merged = _merge(calls)
        if merged is None:  # something without a batch dimension differs between the calls
            return [output for call in calls for output in self._evaluate([call])]
        args, kwargs = merged
        kind = first.x.device.type
        failed, self._failed = self._failed, True
        with torch.no_grad(), torch.autocast(kind, dtype=first.autocast, enabled=first.autocast is not None):
            output = module(*args, **kwargs)
        rows = first.rows
        if len(main_tensor(output)) != rows * len(calls):
            msg = (
                f"the denoiser {type(module).__name__} must return one row for every row it is given; it returned "
                f"{len(main_tensor(output))} for {rows * len(calls)}"
            )
            raise InvalidProblemError(msg)
        self._failed = failed

        def part(i: int) -> Any:
            def cut(_: Path, leaf: Any) -> Any:
                own = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows * len(calls)
                return leaf[i * rows : (i + 1) * rows].clone() if own else leaf

            return map_leaves(output, cut)

        return [part(i) for i in range(len(calls))]


def _merge(calls: list[Call]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Join the arguments of several calls, row after row; `None` if they do not fit together."""
    given = [dict(leaves((call.args, call.kwargs))) for call in calls]
    rows, device, batched, fits = calls[0].rows, calls[0].x.device, calls[0].batched, True

    def join(path: Path, leaf: Any) -> Any:
        nonlocal fits
        values = [one[path] for one in given]
        if is_time(path, leaf) and isinstance(leaf, (int, float)):
            values = list(torch.tensor(values, device="cpu").to(device))
            leaf = values[0]
        if not isinstance(leaf, Tensor) or len(calls) == 1:
            return leaf
        if is_time(path, leaf) and leaf.numel() == 1:
            times = torch.cat([value.reshape(1).expand(rows) for value in values])
            return times.to(device)  # a scalar may be on the host
        same = all(value is leaf for value in values)
        if path in batched:
            if same and len(leaf) == rows == 1:
                return leaf.expand(len(calls), *leaf.shape[1:])  # no copy
            return torch.cat(values)
        fits = fits and (same or all(torch.equal(value, leaf) for value in values))
        return leaf

    args, kwargs = map_leaves((calls[0].args, dict(calls[0].kwargs)), join)
    return (args, kwargs) if fits else None


def _signature(call: Call) -> Any:
    """What calls must share to be evaluated together."""

    def sign(path: Path, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.dtype, tuple(leaf.shape), leaf.device
        if is_time(path, leaf) and isinstance(leaf, (int, float)):
            return type(leaf)
        return identity(leaf)

    return (
        call.module,
        call.autocast,
        call.batched,
        tuple((path, sign(path, leaf)) for path, leaf in leaves((call.args, call.kwargs))),
    )
