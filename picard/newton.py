"""Newton's method: the recurrence over a window solved with the field's whole derivative at every node."""

from __future__ import annotations

import torch
from torch import Tensor

from picard.propagate import product, solve_blocks, zeroed
from picard.shapes import Bool, Float
from picard.tables import Coefficients
from picard.window import State


def correct(
    stale: Float[Tensor, "batch nodes dims"],
    mapped: Float[Tensor, "batch nodes dims"],
    at: Coefficients,
    jacobian: Float[Tensor, "batch nodes dims dims"],
) -> Float[Tensor, "batch nodes dims"]:
    """Solve the recurrence with the field linearized at every node.

    DEER (Lim et al., ICLR 2024) in a window. As in `propagate.correct`, the first new state is the step map of an exact
    state, and at a fixed point every state is. Small systems are solved whole, others one node after the other.

    Args:
        stale: stale state after every node.
        mapped: step map at the stale states, see `step_map`.
        at: the plan's coefficients.
        jacobian: derivative of the field at every node, all of it finite.

    Returns:
        The new state after every node.
    """
    batch, nodes, dims = mapped.shape
    residual = zeroed(mapped - stale)
    residual[:, -1] = 0  # it moves nothing
    if nodes > 1 and whole(batch, nodes, dims):
        return mapped + _carried(residual, at, jacobian)
    order = at.a.shape[2]
    a, b = at.a.flip(2)[:, :, None], at.b.flip(2)[:, :, None]  # oldest first, as states are
    inputs = None if at.inputs is None else at.inputs.flip(2)[:, :, None]
    states = torch.empty_like(mapped)
    moved = mapped.new_zeros(batch, order + nodes, dims)  # those before the window and its first do not
    field = mapped.new_zeros(batch, order - 1 + nodes, dims)
    for node in range(nodes):
        before, here = slice(node, node + order), node + order - 1
        given = moved[:, here, None] if inputs is None else product(inputs[:, node], moved[:, before])
        field[:, here] = product(jacobian[:, node], given.mT)[:, :, 0]
        carried = (product(a[:, node], moved[:, before]) + product(b[:, node], field[:, before]))[:, 0]
        states[:, node] = mapped[:, node] + carried
        moved[:, here + 1] = residual[:, node] + carried
    return states


def _carried(
    residual: Float[Tensor, "batch nodes dims"], at: Coefficients, jacobian: Float[Tensor, "batch nodes dims dims"]
) -> Float[Tensor, "batch nodes dims"]:
    """Return what the residuals carry on to later nodes, from the whole system at once."""
    batch, dims, history = residual.shape[0], residual.shape[2], at.a.shape[2] - 1
    if at.inputs is None:
        before = torch.cat([jacobian.new_zeros(batch, history, dims, dims), jacobian], 1)
        blocks = at.b[:, :, None, :, None] * before.unfold(1, history + 1, 1).flip(4).transpose(3, 4)
    else:
        blocks = (at.b[:, :, :1] * at.inputs)[:, :, None, :, None] * jacobian[:, :, :, None]
    identity = torch.eye(dims, dtype=blocks.dtype, device=blocks.device)
    blocks.addcmul_(at.a[:, :, None, :, None], identity[:, None])
    right = residual.reshape(batch, -1, 1)
    return (solve_blocks(blocks, right) - right).view_as(residual)


def whole(batch: int, nodes: int, dims: int) -> bool:
    """Say whether systems are solved whole: that is up to 35 times faster on a CPU, if they are small."""
    return batch * (nodes * dims) ** 2 <= _WHOLE


def along(
    jacobian: Float[Tensor, "batch nodes dims dims"], moved: Float[Tensor, "batch nodes dims"]
) -> Float[Tensor, "batch nodes dims"]:
    """Return the change of the field that the derivative foretells."""
    batch, nodes, dims = moved.shape
    return product(jacobian.reshape(-1, dims, dims), moved.reshape(-1, dims, 1)).view(batch, nodes, dims)


def trusted(
    jacobian: Float[Tensor, "batch nodes dims dims"],
    state: State,
    values: Float[Tensor, "batch nodes dims"],
    dtype: torch.dtype,
) -> Bool[Tensor, "batch nodes"]:
    """Say where the derivative explains some of how the field has answered the round before.

    Where it does not, the states were too far off for it to mean anything, and those after them are worse than guesses.

    Args:
        jacobian: derivative of the field.
        state: the window, as it was evaluated.
        values: the field there.
        dtype: that of the model's values, to which they are rounded.
    """
    answer = values - state.values
    missed = answer - along(jacobian, state.moved)
    missed, answer, size = (torch.linalg.vector_norm(one, dim=2) for one in (missed, answer, values))
    rounding = _ROUNDING * torch.finfo(dtype).eps * size
    moved = state.distance != 0  # NaN too
    moved[:, 0] = False  # its state is exact
    return (missed <= answer + rounding) | ~moved


_WHOLE = 2**20  # numbers of all systems
_ROUNDING = 64  # a difference of so many units in the last place says nothing
