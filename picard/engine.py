"""The engine: one round of a solve, for all unfinished samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from picard.advance import Advance, Evaluated, Rules, advance
from picard.aside import Aside
from picard.certify import Certifier
from picard.compiled import Compiled
from picard.device import send
from picard.entering import Guess, Linearized, Places
from picard.linearize import Linearization
from picard.plan import Plan
from picard.problem import Problem
from picard.propagate import argument
from picard.rows import Conditioning, Rows, evaluate, kicked
from picard.shapes import Float, Int
from picard.slide import slide
from picard.tables import Tables
from picard.thin import Thinning
from picard.tolerance import Tolerance
from picard.window import State, Window

_TINY = 4  # compilers make other code for sizes of one and two


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything a solve needs that does not change while it runs."""

    problem: Problem
    plan: Plan
    tables: Tables
    conditioning: Conditioning
    linearization: Linearization
    tolerance: Tolerance
    guess: Guess
    window: int
    max_rows: int | None
    certifier: Certifier | None
    thinning: Thinning | None
    compiled: Compiled | None = None

    @property
    def rules(self) -> Rules:
        """How states are corrected and accepted."""
        return Rules(self.linearization, self.tolerance, self.problem.x0.dtype)

    def slots(self, window: Window) -> list[Sequence[int]]:
        """Return the slots that every sample of the window evaluates."""
        thinning = self.thinning
        if thinning is None:
            return [range(width) for width in window.width]
        return [thinning.slots(sample) for sample in window.samples]


class Outcome(NamedTuple):
    """What a round found.

    Attributes:
        found: the field at the nodes of the windows.
        step: new states.
        stride: nodes accepted, of every unfinished sample.
        usable: leading nodes whose new state is finite.
        following: the windows slid on already, if the round did that too.
    """

    found: Evaluated
    step: Advance
    stride: list[int]
    usable: list[int]
    following: State | None = None


def run_round(setup: Setup, window: Window) -> Outcome:
    """Evaluate the window in one model call, propagate, and find what can be accepted; the host waits once."""
    index = window.state.ahead().clamp_max(setup.plan.nodes - 1)
    at = setup.tables.at(index)
    found = _evaluate(setup, window, index, at.inputs)
    aside, compiled, following = None, setup.compiled, None
    if setup.certifier is not None or setup.thinning is not None:
        carries = setup.guess.carries_noise
        aside = Aside(window, index, setup.thinning, setup.certifier, setup.tolerance, carries)
    if compiled is None or aside is not None or (compiled.whole is not None and not _fits(setup, window)):
        step = advance(setup.rules, at, window.state, found, full=window.full, aside=aside)
    elif compiled.whole is None:
        step = compiled.advance(at, window.state, found, full=window.full)
    else:
        window.draw(window.nodes)
        limit, ring = send(window.limit, index), None if window.ring is None else window.ring.noise
        arguments = (setup.tables, window.state, limit, found, ring)
        step, (following, _) = compiled.whole(*arguments, most=setup.window, full=window.full)
    counts = torch.stack([step.stride, step.usable], 1)
    spread = None if aside is None else aside.spread
    read = (counts if spread is None else torch.cat([counts.to(spread.dtype), spread], 1)).tolist()  # the one wait
    stride, usable = ([int(row[place]) for row in read] for place in range(2))
    if setup.thinning is not None:
        for i, (sample, begin) in enumerate(zip(window.samples, window.begin, strict=True)):
            stride[i] = min(stride[i], setup.thinning.check(sample, begin, read[i][2:]))
    return Outcome(found, step, stride, usable, following)


def _fits(setup: Setup, window: Window) -> bool:
    """Say whether a round can slide on by itself: no window gets wider than the widest is now, nor is that tiny."""
    left = setup.plan.nodes - min(window.begin)
    return window.nodes == min(setup.window, left) and window.nodes >= _TINY


def start(setup: Setup, window: Window) -> None:
    """Open windows of more than their first node with guesses alone."""
    state = window.state
    never = torch.zeros_like(state.begin)
    values = torch.cat([state.past, state.values], 1)
    field = Linearized(values, state.slope, None)
    states = state.z[:, state.history + 1 :]
    step = Advance(states, field, state.slope, state.slope[:, 0], never, never, state.known, state.age)
    zeros = [0] * len(window.samples)
    move(setup, window, Outcome(Evaluated(state.argument, values), step, zeros, zeros), zeros, zeros, window.limit)


def move(
    setup: Setup,
    window: Window,
    outcome: Outcome,
    stride: Sequence[int],
    end: Sequence[int],
    most: Sequence[int],
) -> None:
    """Slide every window on, drop samples that are through, and guess the nodes that enter.

    Args:
        setup: the solve.
        window: the windows; those of the next round afterwards.
        outcome: what the round found.
        stride: nodes to pass, per sample.
        end: last node whose new state is usable, per sample; later ones are guessed again.
        most: nodes the next window may hold, per sample.
    """
    total, (found, step, *_, following) = setup.plan.nodes, outcome
    unsound = any(usable < width for usable, width in zip(outcome.usable, window.width, strict=True))
    keep = [i for i, (first, passed) in enumerate(zip(window.begin, stride, strict=True)) if first + passed < total]
    if not keep:
        window.samples, window.begin, window.width = [], [], []
        return
    if len(keep) < len(stride):
        rows = send(keep, step.states)
        found, step, following = (_some(one, rows) for one in (found, step, following))
        window.keep(keep)
        stride, end, most = ([one[i] for i in keep] for one in (stride, end, most))
    old = window.begin
    window.begin = [first + passed for first, passed in zip(old, stride, strict=True)]
    window.width = [min(nodes, total - first) for nodes, first in zip(most, window.begin, strict=True)]
    if following is not None:
        window.state = following
        window.narrow(max(window.width))
        return
    window.draw()
    count = max(first + width - 1 - last for first, width, last in zip(window.begin, window.width, end, strict=True))
    window.state = slide(
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


def _some(value: Any, rows: Tensor) -> Any:
    """Take rows of all tensors in nested named tuples."""
    if isinstance(value, tuple):
        return type(value)(*[_some(one, rows) for one in value])
    return None if value is None else value[rows]


def _evaluate(setup: Setup, window: Window, index: Int[Tensor, "batch nodes"], inputs: Tensor | None) -> Evaluated:
    """Call the model on the nodes inside their windows.

    States that wait for their certificate are evaluated in the same call.
    """
    state, nodes = window.state, window.nodes
    given = argument(inputs, state.z[:, : state.history + nodes], state.history)
    z, sample = given.flatten(0, 1), send(np.repeat(window.samples, nodes), index)
    node, place, asked = index.flatten(), None, None
    slots = setup.slots(window)
    if sum(map(len, slots)) < index.numel():
        chosen = torch.tensor([i * nodes + j for i, wanted in enumerate(slots) for j in wanted])
        place = send(chosen, z)
        z, node, sample = z[place], node[place], sample[place]
        asked = torch.zeros_like(node, dtype=torch.bool).new_zeros(index.numel()).index_fill(0, place, 1).view_as(index)
    count, arrangement = len(z), (tuple(window.samples), tuple(map(len, slots)))
    certifier = setup.certifier
    if certifier is None or certifier.claim is None:
        value, diffusion = call_model(setup, z, node, sample, arrangement)
    else:
        claim = certifier.claim
        z, node = torch.cat([z, claim.states]), torch.cat([node, claim.nodes])
        sample = torch.cat([sample, claim.samples])
        value, diffusion = call_model(setup, z, node, sample, (*arrangement, claim))
        certifier.check(value[count:].flatten(1).to(z.dtype))
        value = value[:count]

    def spread(found: Tensor) -> Tensor:
        found = found.to(z.dtype)
        if place is not None:
            found = found.new_zeros(index.numel(), *found.shape[1:]).index_copy(0, place, found)
        return found.unflatten(0, tuple(index.shape))

    drift = spread(value)
    noise = None if window.ring is None else window.ring.at(index)
    kick = None
    if diffusion is not None and noise is not None:
        diffusion = spread(diffusion)
        scale = setup.tables.kick[index].reshape(*index.shape, *[1] * (noise.ndim - 2))
        field = kicked(drift, diffusion, scale * noise)
        kick, drift, noise = (field - drift).flatten(2), field, None
    else:
        diffusion = None
    values = drift.flatten(2)
    if state.history:
        values = torch.cat([state.past, values], 1)
    return Evaluated(given, values, None if noise is None else noise.flatten(2), asked, diffusion, kick)


def call_model(
    setup: Setup,
    z: Float[Tensor, "rows dims"],
    node: Int[Tensor, " rows"],
    sample: Int[Tensor, " rows"],
    arrangement: object,
) -> tuple[Tensor, Tensor | None]:
    """Evaluate the field at rows given by state, node and sample; `arrangement` names the tensor of samples."""
    x0, scales = setup.problem.x0, setup.tables.scales
    state, cond = z.to(x0.dtype).unflatten(1, x0.shape[1:]), setup.conditioning.of(arrangement, sample)
    rows = Rows(setup.tables.times[node], state, cond, None if scales is None else scales[node])
    return evaluate(setup.problem, rows, setup.max_rows)
