"""The engine: one round of a solve, for all unfinished samples at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from picard.linearize import Evidence, Linearization
from picard.plan import Plan
from picard.problem import Problem
from picard.propagate import correct, step_map
from picard.rows import Conditioning, Rows, evaluate, kicked
from picard.shapes import Bool, Float, Int
from picard.tolerance import Candidates, Tolerance
from picard.window import Guess, Tables, Window

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
    index, inside = window.index()
    _evaluate(setup, window, index)
    window.slope = _slopes(setup, window, index)
    a, b = tables.a[index] * inside[..., None], tables.b[index] * inside[..., None]
    forcing = None
    if window.noise is not None and window.diffusion is None:
        forcing = (tables.c[index] * inside)[..., None] * window.noise.flatten(2)
    mapped = step_map(a, b, window.z, window.values, forcing)
    stale = window.z[:, history + 1 :]
    states = correct(stale, mapped, _weights(a, b, window.slope, history))
    moved = states - stale
    change = moved.square().mean(2).sqrt()
    later = window.values[:, history + 1 :] + window.slope[:, 1:, None] * moved[:, :-1]
    values = torch.cat([window.values[:, : history + 1], later], 1)
    residual, stride, usable, sound = _accept(setup, window, index, inside, states, change)
    return Outcome(states, values, change, residual, stride, usable, sound)


def _evaluate(setup: Setup, window: Window, index: Int[Tensor, "batch nodes"]) -> None:
    """Call the model on the nodes inside their windows and store the field values."""
    tables, x0, nodes = setup.tables, setup.problem.x0, window.nodes
    state = tuple(x0.shape[1:])
    z, sample = window.z[:, window.current()].flatten(0, 1), torch.tensor(window.samples).repeat_interleave(nodes)
    node, place = index.flatten(), None
    if window.width.count(nodes) < len(window.width):
        chosen = torch.tensor([i * nodes + j for i, width in enumerate(window.width) for j in range(width)])
        place = chosen.to(z.device, non_blocking=True)
        z, node, sample = z[place], node[place], sample[chosen]
    rows = Rows(
        tables.times[node],
        z.to(x0.dtype).unflatten(1, state),
        setup.conditioning.of((tuple(window.samples), tuple(window.width)), sample),
        None if tables.scales is None else tables.scales[node],
    )
    value, diffusion = evaluate(setup.problem.field, rows, setup.max_rows)

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


def _slopes(setup: Setup, window: Window, index: Int[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes"]:
    """Choose the slope of every node from its last two evaluations."""
    factor = setup.tables.factor[index]
    product = square = torch.zeros_like(window.slope)
    measured = torch.zeros_like(window.known)
    if setup.linearization.measures:
        z = window.z[:, window.current()]
        moved, answered = z - window.z_before, window.values[:, window.current()] - window.values_before
        product, square = (moved * answered).sum(2), moved.square().sum(2)
        noticeable = square > (_FLOOR * torch.finfo(z.dtype).eps) ** 2 * z.square().sum(2)
        measured = window.evaluated & noticeable & torch.isfinite(product) & torch.isfinite(square)
    window.known = window.known | measured
    evidence = Evidence(factor[..., 0], factor[..., 1], product, square, measured, window.slope, window.known)
    return setup.linearization.slopes(evidence)


def _weights(a: Tensor, b: Tensor, slope: Tensor, history: int) -> Float[Tensor, "batch nodes order"]:
    """Derivative of every new state by the `order` states before it; those before the window do not move."""
    nodes = a.shape[1]
    slope = torch.cat([slope.new_zeros(len(slope), history), slope], 1)
    return torch.stack(
        [a[:, :, p] + b[:, :, p] * slope[:, history - p : history - p + nodes] for p in range(history + 1)], 2
    )


def _accept(
    setup: Setup,
    window: Window,
    index: Int[Tensor, "batch nodes"],
    inside: Bool[Tensor, "batch nodes"],
    states: Float[Tensor, "batch nodes dims"],
    change: Float[Tensor, "batch nodes"],
) -> tuple[Tensor, list[int], list[int], list[bool]]:
    """Find the longest prefix within the tolerance. The first state is exact; the last may be accepted untested."""
    yardstick = setup.tables.yardstick
    window.age = window.age + 1
    size = states.square().mean(2).sqrt()
    age = torch.cat([window.age[:, 1:], torch.zeros_like(window.age[:, :1])], 1)
    after = (index + 1).clamp_max(setup.plan.nodes - 1)
    bound = setup.tolerance.bound(Candidates(size, age, None if yardstick is None else yardstick[after]))
    bound = bound + _FLOOR * torch.finfo(states.dtype).eps * size
    tested = torch.cat([inside[:, 1:], torch.zeros_like(inside[:, :1])], 1)
    passed = ((change <= bound) & tested).cumprod(1)
    usable = (torch.isfinite(size) & inside).cumprod(1).sum(1)
    stride = torch.minimum(1 + passed.sum(1), usable)
    sound = torch.isfinite(window.values[:, window.history].sum(1))
    residual = torch.where(passed.bool(), change, 0).amax(1)
    host = torch.stack([stride, usable, sound.long()]).tolist()  # the round's one wait for the device
    return residual, host[0], host[1], [bool(flag) for flag in host[2]]
