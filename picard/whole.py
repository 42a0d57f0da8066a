"""A round and the slide after it in one function of tensors, for a compiler to take whole."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from picard.advance import Evaluated, Rules, advance
from picard.entering import Guess, Places
from picard.guess import Copy
from picard.hold import Hold
from picard.ring import noise_at
from picard.shapes import Float, Int
from picard.slide import slide
from picard.tables import Tables
from picard.window import State

_NOWHERE = Places((), (), (), (), ())  # the host is not asked where the windows are


class Whole(NamedTuple):
    """What a round found, and the windows after it; see `Advance` for the other attributes.

    Attributes:
        counts: nodes accepted, and leading nodes whose new state is finite, shape (batch, 2).
        state: the windows slid on.
        nodes: node in every slot of these, none past the plan's last, shape (batch, nodes).
        limit: most nodes a window may hold, shape (batch,).
    """

    states: Float[Tensor, "batch nodes dims"]
    change: Float[Tensor, "batch nodes"]
    residual: Float[Tensor, " batch"]
    counts: Int[Tensor, "batch 2"]
    state: State
    nodes: Int[Tensor, "batch nodes"]
    limit: Int[Tensor, " batch"]


def takes(guess: Guess) -> bool:
    """Say whether a guess needs nothing from the host."""
    return type(guess) in (Hold, Copy)


def whole_round(
    rules: Rules,
    shape: tuple[int, ...] | None,
    tables: Tables,
    state: State,
    limit: Int[Tensor, " batch"],
    found: Evaluated,
    ring: Tensor | None,
    *,
    most: int,
) -> Whole:
    """Propagate evaluated nodes, accept, and slide on, as `advance` and `slide` do with the host between them.

    Args:
        rules: how states are corrected and accepted.
        shape: shape of one state if new nodes start from held values; `None` if they start from copies.
        tables: the plan's coefficients.
        state: the windows; they hold as many nodes as the plan has left, or as many as they may.
        limit: most nodes a window may hold: halved where states were not finite, doubled after.
        found: the field at the nodes, all in the windows evaluated, without the noise.
        ring: noise of all nodes that may be reached, see `Ring`.
        most: largest limit.
    """
    total = tables.a.shape[0]
    index = state.ahead().clamp_max(total - 1)
    at, noise = tables.at(index), None if ring is None else partial(noise_at, ring)
    if noise is not None and found.kick is None:
        found = found._replace(noise=noise(index).flatten(2))
    found = found._replace(asked=state.inside())
    step = advance(rules, at, state, found, full=False)
    halved = (torch.minimum(limit, state.width) // 2).clamp_min(1)
    limit = torch.where(step.usable == state.width, (2 * limit).clamp_max(most), halved)
    following = slide(
        state,
        found,
        step,
        step.stride,
        torch.minimum(limit, total - state.begin - step.stride).clamp(0, state.nodes),
        Copy() if shape is None else Hold(tables, shape),
        nodes=state.nodes,
        count=state.nodes,
        unsound=True,
        noise=noise,
        places=_NOWHERE,
    )
    counts = torch.stack([step.stride, step.usable], 1)
    index = following.ahead().clamp_max(total - 1)
    return Whole(step.states, step.change, step.residual, counts, following, index, limit)
