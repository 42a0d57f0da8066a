"""Moving: the host's side of a slide, which drops samples that are through and draws the noise of nodes that enter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from picard.advance import Evaluated
from picard.device import send
from picard.engine import Outcome, Setup
from picard.entering import Entering, Linearized, Places
from picard.ring import Ring
from picard.shapes import Float
from picard.slide import slide
from picard.whole import Whole
from picard.window import Window


def open_windows(setup: Setup, x: Float[Tensor, "batch dims"], ring: Ring | None, slots: int) -> Window:
    """Make the first windows: one node wide, or full of guesses if the guess can tell without a value of the field.

    Args:
        setup: the solve.
        x: initial states.
        ring: the noise, if the problem has any.
        slots: slots for nodes, at least.
    """
    zeros, width = [0] * len(x), [1] * len(x)
    if setup.window > 1 and setup.guess.opens:
        most = [setup.window] * len(x)
        width = most if setup.thinning is None else setup.thinning.slide(zeros, zeros, most)
        width = [min(nodes, setup.plan.nodes) for nodes in width]
    window = Window(setup.plan, x, ring, setup.window, width, max(slots, *width))
    if max(width) == 1:
        return window
    state = window.state
    known, first = state.z[:, : state.history() + 1], state.begin[:, None]
    entering = Entering(
        state.nodes(),
        state.history(),
        first,
        first + state.nodes() - 1,
        first,
        first + state.history(),
        known,
        Linearized(torch.cat([state.past, state.values], 1), state.slope, None),
        None if ring is None or setup.problem.noise_in_field else ring.at,  # there is no diffusion yet to scale it
        None,
        None,
        Places(zeros, window.samples),
    )
    window.state = state._replace(z=torch.cat([known, setup.guess(entering)], 1))
    return window


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
        outcome = only(outcome, keep)
        found, step = outcome.found, outcome.step
        window.keep(keep)
        if setup.thinning is not None:
            setup.thinning.keep(keep)
        stride, end, most = ([one[i] for i in keep] for one in (stride, end, most))
    window.begin = [first + passed for first, passed in zip(window.begin, stride, strict=True)]
    window.width = [min(nodes, total - first) for nodes, first in zip(most, window.begin, strict=True)]
    if isinstance(step, Whole):
        window.move(step.state, outcome.asks)
        return keep if dropped else None
    window.draw()
    count = max(first + width - 1 - last for first, width, last in zip(window.begin, window.width, end, strict=True))
    state = slide(
        window.state,
        cast("Evaluated", found),  # which only rounds that slide on by themselves keep to themselves
        step,
        step.stride if setup.thinning is None else send(stride, step.stride),
        send(window.width, step.stride),
        setup.guess,
        nodes=max(window.width),
        count=max(0, count),
        unsound=unsound,
        noise=None if window.ring is None else window.ring.at,
        places=Places(end, window.samples),
    )
    window.move(state)
    return keep if dropped else None


def only(outcome: Outcome, rows: Sequence[int]) -> Outcome:
    """Return what a round found of some of its samples."""
    chosen = send(rows, outcome.step.states)
    stride, usable = ([one[i] for i in rows] for one in (outcome.stride, outcome.usable))
    found, step = _some(outcome.found, chosen), _some(outcome.step, chosen)
    return Outcome(found, step, stride, usable, [outcome.residual[i] for i in rows], outcome.rows)


def _some(value: Any, rows: Tensor) -> Any:
    """Take rows of all tensors in nested named tuples."""
    if isinstance(value, tuple):
        return type(value)(*[_some(one, rows) for one in value])
    return None if value is None else value[rows]
