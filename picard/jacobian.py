"""Jacobians of fields, by forward differentiation along every number of the state."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from picard.errors import NotSupportedError
from picard.problem import Problem
from picard.propagate import product, zeroed
from picard.rows import Rows, evaluate, kicked
from picard.shapes import Float

_ALONE = threading.RLock()  # PyTorch differentiates forwards one at a time in a process, whatever its threads


def differentiate(
    problem: Problem, rows: Rows, kick: Tensor | None, max_rows: int | None
) -> tuple[Float[Tensor, "places *state"], Tensor | None, Float[Tensor, "places dims dims"]]:
    """Evaluate a problem's field and differentiate it by the state, in one call with a row for every number of a state.

    No transform of functions takes part: a model that can be evaluated at rows can be evaluated at more of them.

    Args:
        problem: the problem.
        rows: every place as often as a state has numbers, one after the other.
        kick: noise of every row, scaled, where it enters through the field.
        max_rows: see `evaluate`.

    Returns:
        The field and its diffusion, as `evaluate` does, and the derivatives of the field with its noise, zero where
        they are not finite and where the model hides from differentiation.

    Raises:
        NotSupportedError: if the model cannot be differentiated forwards.
        PicardError: as `evaluate` does.
    """
    x, dims = rows.x, rows.x[0].numel()
    along = torch.eye(dims, dtype=x.dtype, device=x.device).repeat(len(x) // dims, 1).view_as(x)
    if problem.linear:  # its columns are its values; a backward pass may be of operations without a derivative
        columns = evaluate(problem, replace(rows, x=along), max_rows)[0].reshape(-1, dims, dims)
        value = product(columns.mT, x[::dims].reshape(-1, dims, 1)).view_as(x[::dims])
        return value, None, zeroed(columns.mT.contiguous())
    with _ALONE, torch.inference_mode(mode=False), torch.no_grad(), _level():
        with warnings.catch_warnings():  # the first time, PyTorch loads code of its own that it has deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            x = make_dual(x.clone(), along.clone())  # tensors made in inference mode have no derivatives
        try:
            value, diffusion = evaluate(problem, replace(rows, x=x), max_rows)
            found, change = unpack_dual(kicked(value, diffusion, kick))
        except RuntimeError as error:
            if not any(words in str(error) for words in ("forward AD", "forward mode AD", "jvp")):
                raise
            msg = (
                "linearization='newton' needs a model of operations that PyTorch can differentiate forwards; given one "
                f"that failed with: {str(error).splitlines()[0]}: write linearization='secant'"
            )
            raise NotSupportedError(msg) from error
        columns = (torch.zeros_like(found) if change is None else change).reshape(-1, dims, dims)
        # Those of other strides would be compiled for once more.
        value = unpack_dual(value).primal[::dims].contiguous()
        diffusion = None if diffusion is None else unpack_dual(diffusion).primal[::dims].contiguous()
    return value, diffusion, zeroed(columns.mT.contiguous())


def _level() -> dual_level:
    """Begin to differentiate forwards.

    Raises:
        NotSupportedError: if that is going on around a solve.
    """
    if forward_ad._current_level >= 0:
        msg = (
            "linearization='newton' differentiates forwards, which PyTorch does not do within jvp, jacfwd or a "
            "dual_level: write linearization='secant', and picard.sequential for a derivative of the solve"
        )
        raise NotSupportedError(msg)
    return dual_level()
