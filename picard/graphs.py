"""CUDA graphs: captured rounds, kept from solve to solve."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from picard.captured import Captured, Repeatable, has_graphs, tensors_in
from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.number import check_count
from picard.problem import Problem


class CudaGraphs:
    """Rounds captured as CUDA graphs, kept from solve to solve: `solve(..., cuda_graph=CudaGraphs())`.

    With `cuda_graph=True` every solve captures rounds of its own, which takes about the time of two. Solves that are
    given the same object find again what an earlier one captured, if their model is the same object and their shapes,
    options, and the numbers and words of their conditioning are equal. Grids of as many nodes, initial states, noise
    and conditioning tensors may be new.

    A captured model is run as it was, whatever becomes of its Python code and attributes: call `clear()` after
    changing these. That parameters have moved to other memory or modules to another mode is noticed. One object
    serves one solve at a time.

    Args:
        most: captured rounds to keep, each with the memory of one call; the oldest goes first.

    Raises:
        InvalidProblemError: if that is no count.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = check_count("most", most)
        self._kept: list[tuple[object, Captured]] = []

    def __reduce__(self) -> tuple[object, ...]:
        """Copy without what was captured, which belongs to a model and its memory."""
        return CudaGraphs, (self._most,)

    def __len__(self) -> int:
        """Count the captured rounds."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget what was captured, and free its memory."""
        self._kept.clear()

    def find(
        self, key: Sequence[Any], constants: Any, carried: Any, slots: int, make: Callable[[Any], Repeatable]
    ) -> Captured:
        """Return what was captured for a key and tensors like these, with the values of these, or room for it.

        Args:
            key: what the function depends on besides tensors.
            constants: see `Captured`, as what follows.
            carried: what it is given first.
            slots: applications whose results must be there at once.
            make: builds the function around the copied constants.
        """
        device = tensors_in(carried)[0].device
        leaves, structure = tree_flatten((constants, carried))
        whole = (*key, slots, structure, [_kind(leaf, device) for leaf in leaves])
        for known, captured in self._kept:
            if _equal(known, whole):
                captured.renew(constants, carried)
                return captured
        made = Captured(constants, carried, slots, make)
        self._kept = [*self._kept, (whole, made)][-self._most :]
        return made


def resolve_graphs(given: bool | CudaGraphs, problem: Problem, window: object, max_rows: object) -> CudaGraphs | None:
    """Turn the option into the object that keeps what is captured, or `None`.

    Raises:
        InvalidProblemError: if it is neither true, false nor such an object.
        NotSupportedError: if rounds of this solve cannot be captured.
    """
    if not isinstance(given, (bool, CudaGraphs)):
        msg = f"cuda_graph must be True, False or a picard.CudaGraphs(); given {describe(given)}"
        raise InvalidProblemError(msg)
    if given is False:
        return None
    device, lacks = problem.x0.device, ""
    if not has_graphs(device):
        lacks = f"needs states on a CUDA device; they are on {device}: move the model and the states there"
    elif "auto" in (window, max_rows):
        lacks = "and 'auto' do not go together, which times calls that are not captured: give the window as a number"
    elif problem.alone is not problem:
        lacks = "is for one process, not for rows spread over several: solve the problem itself"
    if lacks:
        msg = f"cuda_graph=True {lacks}, or leave cuda_graph out"
        raise NotSupportedError(msg)
    return CudaGraphs() if given is True else given


def _kind(leaf: Any, device: torch.device) -> Any:
    """Return what a graph depends on of a value: of a tensor elsewhere, read while recording, its numbers too."""
    if not isinstance(leaf, Tensor):
        return type(leaf), leaf
    kind = (leaf.shape, leaf.dtype, leaf.device)
    return kind if leaf.device == device else (*kind, leaf.tolist())


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # arrays have no single answer
        return False


def fingerprint(part: Any) -> Any:
    """Return where parameters are, and the modes of modules: of a module, or those that a function or object holds."""
    if isinstance(part, torch.nn.Module):
        tensors = itertools.chain(part.parameters(), part.buffers())
        return tuple((one.data_ptr(), one.dtype) for one in tensors), tuple(one.training for one in part.modules())
    held = [getattr(part, "__self__", None), *getattr(part, "__dict__", {}).values()]
    held += [cell.cell_contents for cell in getattr(part, "__closure__", None) or ()]
    if isinstance(part, partial):
        held += [part.func, *part.args, *part.keywords.values()]
    return tuple(fingerprint(one) for one in held if isinstance(one, torch.nn.Module))
