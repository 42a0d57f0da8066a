"""The engine: one round of a solve, for all unfinished samples at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picard.certify import Certifier
from picard.device import send
from picard.linearize import Evidence, Linearization
from picard.plan import Plan
from picard.problem import Problem
from picard.propagate import argument, correct, finite, largest, rms, squared, step_map, weights
from picard.rows import Conditioning, Rows, evaluate, kicked
from picard.shapes import Bool, Float, Int
from picard.tables import Tables
from picard.thin import Thinning
from picard.tolerance import Candidates, Tolerance, TotalVariation
from picard.window import Guess, Window

_FLOOR = 4  # a change of so many units in the last place is rounding: asking for less would crawl a node a round


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

    def slots(self, window: Window) -> list[Sequence[int]]:
        """Return the slots that every sample of the window evaluates."""
        thinning = self.thinning
        if thinning is None:
            return [range(width) for width in window.width]
        return [thinning.slots(sample) for sample in window.samples]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a round found, for every unfinished sample.

    Attributes:
        states: new state after every node, shape (batch, nodes, dims).
        values: linearized field values at the new states, the history in front, shape (batch, slots, dims).
        change: root mean square change of every state, shape (batch, nodes).
        residual: largest change that passed the test, shape (batch,).
        stride: nodes accepted.
        usable: leading nodes whose new state is finite.
        sound: whether the field at the first node, whose state is exact, is finite.
    """

    states: Tensor
    values: Tensor
    change: Tensor
    residual: Tensor
    stride: list[int]
    usable: list[int]
    sound: list[bool]


def run_round(setup: Setup, window: Window) -> Outcome:
    """Evaluate the window in one model call, propagate, and find what can be accepted; the host waits once."""
    tables, history = setup.tables, window.history
    index, inside = window.index(), window.inside()
    inputs = None if tables.inputs is None else tables.inputs[index]
    _evaluate(setup, window, index, inputs)
    at = tables.at(index)
    window.slope = _slopes(setup, window, at.factor)
    spread = setup.thinning.fill(window) if setup.thinning else None
    a, b, c = at.a, at.b, at.c
    if not window.full:
        a, b, c = a * inside[..., None], b * inside[..., None], c * inside
    forcing = None
    if window.noise is not None and window.diffusion is None:
        forcing = c[..., None] * window.noise.flatten(2)
    mapped = step_map(a, b, window.z, window.values, forcing)
    stale = window.z[:, history + 1 :]
    tested = _tested(setup, window, index)
    settled = _settled(setup, window, index, tested, mapped, stale)
    factors = weights(a, b, inputs, window.slope, history)
    if settled is None:
        states = correct(stale, mapped, factors)
    else:  # settled states stay as they are, and their residual moves nothing after them
        kept = settled[..., None]
        states = torch.where(kept, stale, correct(torch.where(kept, mapped, stale), mapped, factors))
    moved = torch.cat([torch.zeros_like(window.z[:, : history + 1]), states - stale], 1)  # of every state, from z on
    seen = setup.tolerance.watched(moved[:, history + 1 :])
    change = rms(seen, largest(seen))
    values = window.values.clone()
    values[:, history:].addcmul_(window.slope[..., None], argument(inputs, moved[:, :-1], history))
    residual, stride, usable, sound = _accept(
        setup, window, at.yardstick, inside, tested, states, change, settled, spread
    )
    return Outcome(states, values, change, residual, stride, usable, sound)


def _evaluate(setup: Setup, window: Window, index: Int[Tensor, "batch nodes"], inputs: Tensor | None) -> None:
    """Call the model on the nodes inside their windows and store the field values.

    States that wait for their certificate are evaluated in the same call.
    """
    tables, nodes = setup.tables, window.nodes
    window.argument = argument(inputs, window.z[:, : window.history + nodes], window.history)
    z, sample = window.argument.flatten(0, 1), send(np.repeat(window.samples, nodes), index)
    node, place = index.flatten(), None
    slots = setup.slots(window)
    if sum(map(len, slots)) < index.numel():
        chosen = torch.tensor([i * nodes + j for i, wanted in enumerate(slots) for j in wanted])
        place = send(chosen, z)
        z, node, sample = z[place], node[place], sample[place]
    every = torch.full(index.shape, place is None, dtype=torch.bool, device=index.device)
    window.asked = every if place is None else every.flatten().index_fill(0, place, value=True).view_as(index)
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

    def spread(given: Tensor) -> Tensor:
        given = given.to(z.dtype)
        if place is not None:
            given = given.new_zeros(index.numel(), *given.shape[1:]).index_copy(0, place, given)
        return given.unflatten(0, tuple(index.shape))

    drift = spread(value)
    if diffusion is not None and window.noise is not None:
        window.diffusion = spread(diffusion)
        scale = tables.kick[index].reshape(*index.shape, *[1] * (window.noise.ndim - 2))
        field = kicked(drift, window.diffusion, scale * window.noise)
        window.kick, drift = (field - drift).flatten(2), field
    window.values[:, window.current()] = drift.flatten(2)


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


def _slopes(setup: Setup, window: Window, factor: Float[Tensor, "batch nodes 2"]) -> Float[Tensor, "batch nodes"]:
    """Choose the slope of every node from its last two evaluations."""
    product = square = torch.zeros_like(window.slope)
    measured = torch.zeros_like(window.known)
    path = setup.certifier is not None and not setup.certifier.law
    if setup.linearization.measures or path:
        z = window.argument
        moved, answered = z - window.z_before, window.values[:, window.current()] - window.values_before
        product, square = torch.linalg.vecdot(moved, answered), squared(moved)
        noticeable = square > (_FLOOR * torch.finfo(z.dtype).eps) ** 2 * squared(z)
        measured = window.evaluated & window.asked & noticeable & finite(product) & (square < math.inf)
        if path and setup.certifier is not None:
            setup.certifier.measure(torch.where(measured, squared(answered) / square, 0))
    window.known = window.known | measured
    evidence = Evidence(factor[..., 0], factor[..., 1], product, square, measured, window.slope, window.known)
    return setup.linearization.slopes(evidence)


def _accept(
    setup: Setup,
    window: Window,
    yardstick: Float[Tensor, "batch nodes"] | None,
    inside: Bool[Tensor, "batch nodes"],
    tested: Bool[Tensor, "batch nodes"],
    states: Float[Tensor, "batch nodes dims"],
    change: Float[Tensor, "batch nodes"],
    settled: Bool[Tensor, "batch nodes"] | None,
    spread: Float[Tensor, "batch nodes"] | None,
) -> tuple[Tensor, list[int], list[int], list[bool]]:
    """Find the longest prefix within the tolerance. The first state is exact; the last may be accepted untested."""
    window.age = window.age + 1
    top = largest(states)
    size = rms(states, top)
    bound = setup.tolerance.bound(Candidates(size, window.age_after(), yardstick))
    bound = setup.linearization.share * bound + _FLOOR * torch.finfo(states.dtype).eps * size
    close = (change <= bound) & (change < math.inf) & tested
    passed = close.cumprod(1).bool() if settled is None else settled
    usable = ((top.to(setup.problem.x0.dtype) < math.inf) & inside).cumprod(1).sum(1)
    stride = torch.minimum(1 + passed.sum(1), usable)
    sound = finite(window.values[:, window.history].sum(1))
    residual = torch.where(passed, change, 0).amax(1)
    counts = torch.stack([stride, usable, sound.long()], 1)
    found = (counts if spread is None else torch.cat([counts.to(spread.dtype), spread], 1)).tolist()  # the one wait
    strides, usables, sounds = ([int(row[place]) for row in found] for place in range(3))
    if setup.thinning is not None:
        for i, (sample, begin) in enumerate(zip(window.samples, window.begin, strict=True)):
            strides[i] = min(strides[i], setup.thinning.check(sample, begin, found[i][3:]))
    return residual, strides, usables, [flag > 0 for flag in sounds]


def _tested(setup: Setup, window: Window, index: Int[Tensor, "batch nodes"]) -> Bool[Tensor, "batch nodes"]:
    """Say after which nodes the state is one that can be tested, and passed: it is in the window, and not the last."""
    tested = window.inside(after=1)
    if setup.certifier is None:
        return tested
    return tested & ~setup.certifier.exact_only((index + 1).clamp_max(setup.plan.nodes - 1))


def _settled(
    setup: Setup,
    window: Window,
    index: Int[Tensor, "batch nodes"],
    tested: Bool[Tensor, "batch nodes"],
    mapped: Float[Tensor, "batch nodes dims"],
    stale: Float[Tensor, "batch nodes dims"],
) -> Bool[Tensor, "batch nodes"] | None:
    """Say which states are accepted as they stand, if the tolerance looks at the residual and not at the change.

    The residual of a state is minus the defect of the increment that leads to it, so it is certified for nothing. That
    of a guess without noise holds the step's own, which no acceptance may depend on: such a state waits for a round.
    """
    certifier = setup.certifier
    if not isinstance(setup.tolerance, TotalVariation) or certifier is None:
        return None
    samples = send(window.samples, index)
    square = squared(mapped - stale)
    share = (index + 1).to(square.dtype) / setup.plan.nodes
    spent = certifier.kl[samples, None] + certifier.divergence(index, square).cumsum(1)
    within = (spent <= setup.tolerance.budget * share) & tested
    settled = (within & ((window.age_after() > 0) | setup.guess.carries_noise)).cumprod(1).bool()
    certifier.add(samples, index, settled, square)
    return settled
