"""Sliding: every window moves on past what was accepted, and its new nodes are guessed. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from picard.advance import Advance, Evaluated
from picard.device import take
from picard.entering import Entering, Guess, Places
from picard.shapes import Int
from picard.window import State


def slide(
    state: State,
    found: Evaluated,
    step: Advance,
    stride: Int[Tensor, " batch"],
    width: Int[Tensor, " batch"],
    guess: Guess,
    *,
    nodes: int,
    count: int,
    unsound: bool,
    noise: Callable[[Tensor], Tensor] | None,
    places: Places,
) -> State:
    """Accept nodes of every sample, and guess those that enter.

    Args:
        state: the windows.
        found: the field there.
        step: new states.
        stride: nodes accepted.
        width: nodes the next windows hold.
        guess: supplies states for the nodes after the last usable one.
        nodes: slots of the next windows.
        count: most nodes that enter a window.
        unsound: whether states past the usable ones may be non-finite.
        noise: see `Entering`.
        places: see `Entering`.
    """
    history, usable = state.history(), step.usable[:, None]
    states = torch.nan_to_num(step.states, posinf=0.0, neginf=0.0) if unsound else step.states
    known = torch.cat([state.z[:, : history + 1], states], 1)
    slots = torch.arange(history + nodes + 1, device=stride.device) + stride[:, None]
    source = slots
    if count:
        slot = usable + history
        end = state.begin[:, None] + usable
        entering = Entering(count, history, end, slot, known, step.field, noise, found.diffusion, found.kick, places)
        known = torch.cat([known, guess(entering)], 1)
        source = slots + (slots > slot) * (state.nodes() - usable)
    past = step.field.at(slots[:, :history]) if history else state.past
    slots = slots[:, :nodes]
    before, seen = slots.clamp_max(state.nodes() - 1), slots < usable
    return State(
        begin=state.begin + stride,
        width=width,
        z=take(known, source.clamp_max(known.shape[1] - 1)),
        past=past,
        argument=take(found.argument, before),
        values=take(found.values[:, history:], before),
        evaluated=seen if found.asked is None else seen & found.asked.gather(1, before),
        slope=step.field.slope.gather(1, before),
        known=step.known.gather(1, before) & seen,
        age=step.age.gather(1, before) * seen,
    )
