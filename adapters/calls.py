"""Calls of a denoiser: where the state, the time and the rows are among their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError

Path = tuple[Any, ...]

_STATE = ("hidden_states", "sample", "x")
_TIME = ("timestep", "timesteps", "t", "sigma", "r")
_TEXT = "encoder_hidden_states"
_SEVERAL = (_TEXT, "encoder_hidden_states_image")  # perhaps several for a row, one after the other
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
        batched: the arguments with one or more entries for every row; found when recorded, where rows are fewest.
    """

    module: int
    phase: int
    step: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state: Path
    x: Tensor
    autocast: torch.dtype | None
    batched: frozenset[Path]

    @property
    def rows(self) -> int:
        """Number of rows of this call: samples, times two with guidance."""
        return len(self.x)


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


def identity(leaf: Any) -> Any:
    """Return something hashable by which arguments are told apart: the argument, or else which object it is."""
    try:
        hash(leaf)
    except TypeError:
        return id(leaf)
    return leaf


def is_time(path: Path, leaf: Any) -> bool:
    """Whether an argument is the model's time."""
    second = path == (0, 1) and not (isinstance(leaf, Tensor) and leaf.ndim > 1)  # that might be another state
    return second or path in ((1, name) for name in _TIME)


def batched_paths(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int) -> frozenset[Path]:
    """List the arguments that seem to have entries for every row: a mask, or several texts for frames of a video.

    With a single row, whatever has length one seems so; `Denoisers.mend` finds out.
    """

    def seems(path: Path, leaf: Tensor) -> bool:
        if leaf.ndim > 2 and any(name in path for name in _SEVERAL):
            return len(leaf) > 0 and len(leaf) % rows == 0
        return leaf.ndim > 0 and len(leaf) == rows and not any(part in _UNBATCHED for part in path)

    return frozenset(path for path, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor) and seems(path, leaf))


def doubtful_paths(call: Call) -> list[Path]:
    """List the arguments that have entries for every row by their length alone."""
    return sorted(
        (path for path in call.batched if path != call.state and not is_time(path, None) and _TEXT not in path), key=str
    )


def find_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Path:
    """Find the noisy state.

    Raises:
        NotSupportedError: if no argument looks like one.
    """
    named: list[tuple[Path, Any]] = [((1, name), kwargs.get(name)) for name in _STATE]
    for path, value in [*named, ((0, 0), args[0] if args else None)]:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return path
    msg = (
        "the denoiser must be given the noisy state as a floating tensor (rows, ...), its first argument or "
        f"one of {', '.join(_STATE)}; this pipeline calls it in another way, so it cannot be parallelized"
    )
    raise NotSupportedError(msg)


def leaf_at(tree: Any, path: Path) -> Any:
    """Return what is at a place."""
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
