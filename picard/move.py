"""Moving: the host's side of a slide, which drops samples that are through and draws the noise of nodes that enter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from picard.advance import Advance, Evaluated
from picard.device import send
from picard.engine import Outcome, Setup
from picard.entering import Linearized, Places
from picard.slide import slide
from picard.whole import Whole
from picard.window import Window


def start(setup: Setup, window: Window) -> None:
    """Open windows of more than their first node with guesses alone."""
    state = window.state
    never = torch.zeros_like(state.begin)
    values = torch.cat([state.past, state.values], 1)
    field = Linearized(values, state.slope, None)
    states = state.z[:, state.history + 1 :]
    step = Advance(states, field, state.slope, state.slope[:, 0], never, never, state.known, state.age)
    zeros, most = [0] * len(window.samples), window.limit
    if setup.thinning is not None:
        most = setup.thinning.slide(zeros, zeros, most)
    move(setup, window, Outcome(Evaluated(state.argument, values), step, zeros, zeros, 0), zeros, zeros, most)


def move(
    setup: Setup,
    window: Window,
    outcome: Outcome,
    stride: Sequence[int],
    end: Sequence[int],
    most: Sequence[int],
) -> list[int] | None:
    """Slide every window on, drop samples that are through, and guess the nodes that enter.

    Args:
        setup: the solve.
        window: the windows; those of the next round afterwards.
        outcome: what the round found.
        stride: nodes to pass, per sample.
        end: last node whose new state is usable, per sample; later ones are guessed again.
        most: nodes the next window may hold, per sample.

    Returns:
        Rows of the samples that go on; `None` if all do.
    """
    total, found, step = setup.plan.nodes, outcome.found, outcome.step
    unsound = any(usable < width for usable, width in zip(outcome.usable, window.width, strict=True))
    keep = [i for i, (first, passed) in enumerate(zip(window.begin, stride, strict=True)) if first + passed < total]
    if not keep:
        window.samples, window.begin, window.width = [], [], []
        return keep
    dropped = len(keep) < len(stride)
    if dropped:
        found, step, *_ = only(outcome, keep)
        window.keep(keep)
        if setup.thinning is not None:
            setup.thinning.keep(keep)
        stride, end, most = ([one[i] for i in keep] for one in (stride, end, most))
    old = window.begin
    window.begin = [first + passed for first, passed in zip(old, stride, strict=True)]
    window.width = [min(nodes, total - first) for nodes, first in zip(most, window.begin, strict=True)]
    if isinstance(step, Whole):
        window.move(step.state, step.nodes)
        return keep if dropped else None
    window.draw()
    count = max(first + width - 1 - last for first, width, last in zip(window.begin, window.width, end, strict=True))
    state = slide(
        window.state,
        found,
        step,
        step.stride if setup.thinning is None else send(stride, step.stride),
        send(window.width, step.stride),
        setup.guess,
        nodes=max(window.width),
        count=max(0, count),
        unsound=unsound,
        noise=None if window.ring is None else window.ring.at,
        places=Places(old, end, window.begin, window.width, window.samples),
    )
    window.move(state)
    return keep if dropped else None


def only(outcome: Outcome, rows: Sequence[int]) -> Outcome:
    """Return what a round found of some of its samples."""
    chosen = send(rows, outcome.step.states)
    stride, usable = ([one[i] for i in rows] for one in (outcome.stride, outcome.usable))
    return Outcome(_some(outcome.found, chosen), _some(outcome.step, chosen), stride, usable, outcome.rows)


def _some(value: Any, rows: Tensor) -> Any:
    """Take rows of all tensors in nested named tuples."""
    if isinstance(value, tuple):
        return type(value)(*[_some(one, rows) for one in value])
    return None if value is None else value[rows]
