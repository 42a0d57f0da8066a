"""Propagation: the recurrence over a window, linearized around stale states and solved as one banded system."""

from __future__ import annotations

import torch
from torch import Tensor

from picard.shapes import Float

_WRITTEN = 1 << 21  # numbers up to which the systems of all samples are written out; node after node is sooner beyond


def step_map(
    a: Float[Tensor, "batch nodes order"],
    b: Float[Tensor, "batch nodes order"],
    z: Float[Tensor, "batch states dims"],
    values: Float[Tensor, "batch evaluated dims"],
    c: Float[Tensor, "batch nodes"] | None,
    noise: Float[Tensor, "batch nodes dims"] | None,
) -> Float[Tensor, "batch nodes dims"]:
    """Apply the recurrence once at every node, from the states as they are: `sum_p a z + sum_p b F + c xi`.

    Args:
        a: weights of the states, newest first.
        b: weights of the field values, newest first.
        z: states from `order - 1` nodes before the first one on, at least nodes + order - 1 of them.
        values: field values at the same nodes, at least nodes + order - 1.
        c: scale of the noise, if any.
        noise: the noise xi of every node.

    Returns:
        The state after every node.
    """
    nodes, order = a.shape[1:]
    newest = slice(order - 1, order - 1 + nodes)
    of_states, of_values = (table[:, :, None].unbind(3) for table in (a, b))
    after = of_states[0] * z[:, newest]
    for p in range(order):
        past = slice(order - 1 - p, order - 1 - p + nodes)
        if p > 0:
            after.addcmul_(of_states[p], z[:, past])
        after.addcmul_(of_values[p], values[:, past])
    return after if c is None or noise is None else after.addcmul_(c[:, :, None], noise)


def argument(
    inputs: Tensor | None, z: Float[Tensor, "batch states dims"], history: int
) -> Float[Tensor, "batch nodes dims"]:
    """Return what the field is evaluated at: the states after the history, or their weighted sums."""
    nodes = z.shape[1] - history
    if inputs is None:
        return z[:, history:]
    total = inputs[:, :, 0, None] * z[:, history:]
    for p in range(1, history + 1):
        total.addcmul_(inputs[:, :, p, None], z[:, history - p : history - p + nodes])
    return total


def weights(
    a: Tensor, b: Tensor, inputs: Tensor | None, slope: Tensor, history: int
) -> Float[Tensor, "batch nodes order"]:
    """Derivative of every new state by the `order` states before it; those before the window do not move."""
    if inputs is not None:
        return a + (b[:, :, 0] * slope)[..., None] * inputs
    if history == 0:
        return torch.addcmul(a, b, slope[..., None])
    slope = torch.cat([slope.new_zeros(len(slope), history), slope], 1)
    return torch.addcmul(a, b, slope.unfold(1, history + 1, 1).flip(2))


def solve_blocks(
    blocks: Float[Tensor, "batch nodes dims order dims"], right: Float[Tensor, "*#batch unknowns columns"]
) -> Float[Tensor, "batch unknowns columns"]:
    """Solve `y[m] - sum_p blocks[m, p] y[m-1-p] = r[m]` as one triangular system.

    Args:
        blocks: `blocks[:, m, i, p, j]` is what number j of the unknown p + 1 places before m, of `dims` numbers, adds
            to its number i; those of unknowns before place 0 are dropped.
        right: r, the numbers of all nodes below each other.

    Returns:
        The unknowns, likewise.
    """
    batch, nodes, dims = blocks.shape[:3]
    size, order = nodes * dims, min(blocks.shape[3], nodes - 1)
    system = blocks.new_zeros(batch, size, size)
    # From node to node a band moves down and right alike. What of it lies left of the first column falls to the end of
    # the row above, right of the diagonal.
    strides, first = (size**2, (size + 1) * dims, size, dims, 1), (size + 1 - order) * dims
    band = system.as_strided((batch, nodes - 1, dims, order, dims), strides, first)
    band.copy_(-blocks[:, 1:, :, :order].flip(3))  # oldest first; what is not below the diagonal is never read
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)


def _few(columns: int, nodes: int) -> bool:
    """Say whether so many columns are solved for faster than the inverse is made; measured, up to fifty times."""
    return columns <= nodes


def _solved(
    weights: Float[Tensor, "batch nodes order"], right: Float[Tensor, "batch nodes columns"]
) -> Float[Tensor, "batch nodes columns"]:
    """Solve `y[m] - sum_p weights[m, p] y[m-1-p] = r[m]` for few columns."""
    nodes, order = weights.shape[1:]
    if torch.compiler.is_compiling() or len(right) * nodes**2 <= _WRITTEN:
        return solve_blocks(weights[:, :, None, :, None], right)
    right = right.clone()
    for node in range(1, nodes):
        for p in range(min(order, node)):
            right[:, node].addcmul_(weights[:, node, p, None], right[:, node - 1 - p])
    return right


def response(weights: Float[Tensor, "batch nodes order"]) -> Float[Tensor, "batch nodes nodes"]:
    """Invert the unit lower-banded system `y[m] - sum_p weights[m, p] y[m-1-p] = r[m]`.

    Args:
        weights: `weights[:, m, p]` multiplies the unknown p + 1 places before m; those before place 0 are dropped.

    Returns:
        The inverse, unit lower triangular: column j says how all unknowns answer to r[j].
    """
    identity = torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)
    return solve_blocks(weights[:, :, None, :, None], identity)


def correct(
    z: Float[Tensor, "batch nodes dims"],
    mapped: Float[Tensor, "batch nodes dims"],
    weights: Float[Tensor, "batch nodes order"],
) -> Float[Tensor, "batch nodes dims"]:
    """Solve the linearized recurrence for new states.

    Written as `mapped + (inverse - I) residual`: the first new state is exactly the step map of an exact state, and at
    a fixed point every state is. With many columns the inverse, which is small (nodes x nodes), meets the states in one
    matrix product.

    Args:
        z: stale state after every node; the last one moves nothing.
        mapped: step map at the stale states, see `step_map`; it may be overwritten.
        weights: derivative of every new state by the states before it, `a + b * slope`.

    Returns:
        The new state after every node.
    """
    nodes = mapped.shape[1]
    if nodes == 1:
        return mapped
    # Of all nodes, for a compiler to make it along with `mapped`; a zero in the matrix must not meet an infinity.
    residual = zeroed(mapped - z)
    if not _few(mapped.shape[2], nodes):
        return mapped.baddbmm_(response(weights).tril(-1), residual)  # in place: see `product`
    residual[:, -1] = 0
    return mapped + (_solved(weights, residual) - residual)


def product(
    left: Float[Tensor, "batch rows inner"], right: Float[Tensor, "batch inner columns"]
) -> Float[Tensor, "batch rows columns"]:
    """Multiply matrices in their own dtype, also under autocast, which leaves alone what works in place."""
    return right.new_empty(len(right), left.shape[1], right.shape[2]).baddbmm_(left, right, beta=0)


def hold(
    a: Float[Tensor, "batch nodes order"],
    b: Float[Tensor, "batch nodes order"],
    z: Float[Tensor, "batch order dims"],
    values: Float[Tensor, "batch history dims"],
    held: Float[Tensor, "batch held dims"],
    c: Float[Tensor, "batch nodes"] | None,
    noise: Float[Tensor, "batch nodes dims"] | None,
) -> Float[Tensor, "batch nodes dims"]:
    """Run the recurrence on with held field values: the guess for nodes never evaluated.

    Args:
        a: weights of the states at the new nodes.
        b: weights of the field values.
        z: the last `order` states, the newest being the first new node's.
        values: the `order - 1` field values before the first new node.
        held: field values assumed at the new nodes, or the one assumed at all of them.
        c: scale of the noise of the new nodes, if any.
        noise: the noise of the new nodes.

    Returns:
        The state after every new node.
    """
    nodes, order = a.shape[1:]
    compiling = torch.compiler.is_compiling()
    # Without a product to save, it pays for longer; a compiler would make code for sizes between the two bounds, too.
    few = _few(z.shape[2], nodes if compiling else 4 * nodes)
    if held.shape[1] < nodes and not few:  # then what follows is a combination of a few vectors, and of the noise
        unit = torch.eye(2 * order, dtype=z.dtype, device=z.device).expand(len(z), -1, -1)
        shares = hold(a, b, unit[:, :order], unit[:, order:-1], unit[:, -1:].expand(-1, nodes, -1), None, None)
        given = torch.cat([z, values, held], 1)
        after = product(shares, given) if not compiling else (shares[..., None] * given[:, None]).sum(2)  # where used
        return after if c is None or noise is None else after.baddbmm_(response(a), c[..., None] * noise)
    held = held.expand(-1, nodes, -1)
    known = torch.cat([z, z.new_zeros(len(z), nodes - 1, z.shape[2])], 1)
    right = step_map(a, b, known, torch.cat([values, held], 1) if values.shape[1] else held, c, noise)
    if few:
        return _solved(a, right)
    return product(response(a), right)


def rms(
    x: Float[Tensor, "batch nodes dims"], top: Float[Tensor, "batch nodes"] | None = None
) -> Float[Tensor, "batch nodes"]:
    """Root mean square over the state, scaled by the largest entry `top` so that no square leaves the dtype's range."""
    numbers = torch.finfo(x.dtype)
    scale = (largest(x) if top is None else top).clamp(numbers.tiny, numbers.max)
    return scale * torch.linalg.vector_norm(x / scale[..., None], dim=2) / x.shape[2] ** 0.5


def largest(x: Float[Tensor, "batch nodes dims"]) -> Float[Tensor, "batch nodes"]:
    """Largest absolute entry of every state; not finite if one entry is not."""
    return torch.maximum(x.amax(2), -x.amin(2))  # on a CPU, over ten times as fast as the norm of this name


def finite(x: Tensor) -> Tensor:
    """Say which entries are finite, in half the passes of the function of this name."""
    return x.abs() < torch.inf


def zeroed(x: Tensor) -> Tensor:
    """Put zeros where entries are not finite, in place."""
    if torch.compiler.is_compiling():  # which would look at one entry after the other for the function below
        return torch.where(finite(x), x, 0)
    return x.nan_to_num_(0.0, 0.0, 0.0)


def squared(x: Float[Tensor, "batch nodes dims"]) -> Float[Tensor, "batch nodes"]:
    """Squared norm of every state, in one pass."""
    return torch.linalg.vector_norm(x, dim=2).square()
