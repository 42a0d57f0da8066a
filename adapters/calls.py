"""Calls of a denoiser, recorded while a pipeline runs and evaluated many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError

Path = tuple[Any, ...]

_STATE = ("hidden_states", "sample", "x")
_TIME = ("timestep", "timesteps", "t", "sigma", "r")
_TEXT = "encoder_hidden_states"
_UNBATCHED = ("txt_ids", "img_ids", "image_rotary_emb", "freqs_cis")  # tokens' positions: no batch dimension


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded call.

    Attributes:
        module: which denoiser of the pipeline.
        phase: how many calls went before in the same step of the scheduler.
        step: how many steps the scheduler had made.
        args: positional arguments.
        kwargs: keyword arguments.
        state: where the noisy state is among them.
        x: the noisy state, shape (rows, ...).
        autocast: dtype of autocast for the state's device, if it was on.
    """

    module: int
    phase: int
    step: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state: Path
    x: Tensor
    autocast: torch.dtype | None

    @property
    def rows(self) -> int:
        """Number of rows of this call: samples, times two with guidance."""
        return len(self.x)


def record(module: int, phase: int, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Record a call, with its own copy of the noisy state.

    Raises:
        NotSupportedError: if no argument looks like a noisy state.
    """
    state = _find_state(args, kwargs)
    x = _get((args, kwargs), state).detach().clone()
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    held_args, held_kwargs = map_leaves((args, dict(kwargs)), lambda path, leaf: x if path == state else leaf)
    return Call(module, phase, step, held_args, held_kwargs, state, x, autocast)


def evaluate(modules: Sequence[Callable[..., Any]], calls: Sequence[Call], max_rows: int | None) -> list[Any]:
    """Evaluate calls, as many at a time as their arguments and `max_rows` allow.

    Args:
        modules: the denoisers.
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
            for i, output in zip(part, _evaluate([calls[i] for i in part], modules), strict=True):
                outputs[i] = output
    return outputs


def main_tensor(output: Any) -> Tensor:
    """Return the prediction in a denoiser's output: the tensor itself, or the first one in it."""
    for _, leaf in leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    msg = f"the denoiser must return a tensor, or a tuple or mapping with one; it returned a {type(output).__name__}"
    raise InvalidProblemError(msg)


def with_main_tensor(output: Any, value: Tensor) -> Any:
    """Return the same output with another prediction in it."""
    place = next(path for path, leaf in leaves(output) if isinstance(leaf, Tensor))
    return map_leaves(output, lambda path, leaf: value if path == place else leaf)


def copied(output: Any) -> Any:
    """Copy an output: pipelines may write into what they are given."""
    return map_leaves(output, lambda _, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def predictions(output: Any, rows: int) -> list[Tensor]:
    """List what a denoiser has predicted: some have a second state, such as sound beside a video."""
    found = [leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor)]
    return [one for one in found if one.is_floating_point() and one.ndim > 0 and len(one) == rows]


def _evaluate(calls: list[Call], modules: Sequence[Callable[..., Any]]) -> list[Any]:
    first = calls[0]
    module = modules[first.module]
    merged = _merge(calls)
    if merged is None:  # something without a batch dimension differs between the calls
        return [output for call in calls for output in _evaluate([call], modules)]
    args, kwargs = merged
    kind = first.x.device.type
    with torch.no_grad(), torch.autocast(kind, dtype=first.autocast, enabled=first.autocast is not None):
        output = module(*args, **kwargs)
    rows = first.rows
    if len(main_tensor(output)) != rows * len(calls):
        msg = (
            f"the denoiser {type(module).__name__} must return one row for every row it is given; it returned "
            f"{len(main_tensor(output))} for {rows * len(calls)}"
        )
        raise InvalidProblemError(msg)

    def part(i: int) -> Any:
        def cut(_: Path, leaf: Any) -> Any:
            own = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows * len(calls)
            return leaf[i * rows : (i + 1) * rows].clone() if own else leaf

        return map_leaves(output, cut)

    return [part(i) for i in range(len(calls))]


def _merge(calls: list[Call]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Join the arguments of several calls, row after row; `None` if they do not fit together."""
    given = [dict(leaves((call.args, call.kwargs))) for call in calls]
    rows, device, fits = calls[0].rows, calls[0].x.device, True

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
        if has_rows(path, leaf, rows):
            if same and len(leaf) == 1:
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
        try:
            hash(leaf)
        except TypeError:
            return id(leaf)
        return leaf

    return (
        call.module,
        call.autocast,
        tuple((path, sign(path, leaf)) for path, leaf in leaves((call.args, call.kwargs))),
    )


def is_time(path: Path, leaf: Any) -> bool:
    """Whether an argument is the model's time."""
    second = path == (0, 1) and not (isinstance(leaf, Tensor) and leaf.ndim > 1)  # that might be another state
    return second or path in ((1, name) for name in _TIME)


def has_rows(path: Path, leaf: Tensor, rows: int) -> bool:
    """Whether an argument has one entry for every row of a call, or a text for every frame of every row's video."""
    if leaf.ndim > 2 and _TEXT in path:
        return len(leaf) > 0 and len(leaf) % rows == 0
    return leaf.ndim > 0 and len(leaf) == rows and not any(part in _UNBATCHED for part in path)


def _find_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Path:
    named: list[tuple[Path, Any]] = [((1, name), kwargs.get(name)) for name in _STATE]
    for path, value in [*named, ((0, 0), args[0] if args else None)]:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return path
    msg = (
        "the denoiser must be given the noisy state as a floating tensor (rows, ...), its first argument or "
        f"one of {', '.join(_STATE)}; this pipeline calls it in another way, so it cannot be parallelized"
    )
    raise NotSupportedError(msg)


def _get(tree: Any, path: Path) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """List what is inside nested dicts, lists and tuples, with its place."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, (*path, name))
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from leaves(value, (*path, i))
    else:
        yield path, tree


def map_leaves(tree: Any, apply: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Apply a function to everything inside nested dicts, lists and tuples."""
    if isinstance(tree, Mapping):
        items = {name: map_leaves(value, apply, (*path, name)) for name, value in tree.items()}
        return items if type(tree) is dict else type(tree)(**items)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(value, apply, (*path, i)) for i, value in enumerate(tree)))
    if isinstance(tree, (list, tuple)):
        return type(tree)([map_leaves(value, apply, (*path, i)) for i, value in enumerate(tree)])
    return apply(path, tree)
