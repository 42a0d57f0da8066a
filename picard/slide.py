"""Sliding: every window moves on past what was accepted, and its new nodes are guessed. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from picard.advance import Advance, Evaluated
from picard.device import take
from picard.entering import Entering, Guess, Places
from picard.propagate import zeroed
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
    states = step.states
    if unsound:  # a sample without a usable node is given up, and may slide on with the others
        stride, usable, states = stride.clamp_min(1), usable.clamp_min(1), zeroed(states.clone())
    known = torch.cat([state.z[:, 1 : history + 1], states], 1) if history else states  # every window leaves slot 0
    before = torch.arange(-1, history + nodes, device=stride.device) + stride[:, None]
    last = usable + history - 1
    if count:
        begin, final = state.begin[:, None], (state.begin + stride + width)[:, None] - 1
        field, diffusion, kick = step.field, found.diffusion, found.kick
        entering = Entering(
            count, history, begin, final, begin + usable, last, known, field, noise, diffusion, kick, places
        )
        z = _followed(known, guess(entering), before, last)
    else:
        z = take(known, before.clamp_max(known.shape[1] - 1))
    past = step.field.at(before[:, :history] + 1) if history else state.past
    before, most = before[:, :nodes], state.nodes() - 1
    slots = before + 1
    seen, before, slots = slots < usable, before.clamp_max(most), slots.clamp_max(most)
    asked = seen if found.asked is None else seen & found.asked.gather(1, slots)
    return State(
        begin=state.begin + stride,
        width=width,
        z=z,
        past=past,
        moved=take(step.moved, before),
        values=take(found.values[:, history:], slots),
        distance=step.distance.gather(1, before) * asked,
        slope=step.field.slope.gather(1, slots),
        known=step.known.gather(1, slots) & seen,
        age=step.age.gather(1, slots) * seen,
    )


def _followed(known: Tensor, new: Tensor, slots: Int[Tensor, "batch slots"], last: Int[Tensor, "batch 1"]) -> Tensor:
    """Take slots of every sample, in which what is known up to the slot `last` is followed by what is new."""
    after, most = slots > last, known.shape[1] - 1
    if new.shape[1] < slots.shape[1] - 1:
        source = slots + after * (most - last)
        return take(torch.cat([known, new], 1), source.clamp_max(most + new.shape[1]))
    # All may be new in rounds that slide by themselves; a compiler makes no more of this than what it returns.
    there = (slots - 1 - last).clamp(0, new.shape[1] - 1)
    return torch.where(after[..., None], take(new, there), take(known, slots.clamp_max(most)))
