"""The tensor part of a round: from evaluated nodes to new states and how many of them are accepted.

Pure functions of tensors: no host numbers but shapes, so that a compiler can take the whole of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from picard import newton
from picard.aside import Aside
from picard.entering import Linearized
from picard.linearize import Evidence, Linearization
from picard.propagate import argument, correct, finite, largest, rms, squared, step_map, weights
from picard.returned import bound_of, slopes_of, watched_by
from picard.rows import kicked
from picard.shapes import Bool, Float, Int
from picard.tables import Coefficients, Tables
from picard.tolerance import Candidates, FixedRounds, Tolerance
from picard.window import State

_FLOOR = 4  # a change of so many units in the last place is rounding: asking for less would crawl a node a round


@dataclass(frozen=True)
class Rules:
    """How states are corrected and accepted.

    Attributes:
        linearization: chooses the slopes.
        tolerance: bounds the change of an accepted state.
        dtype: that of the problem, in whose range accepted states must be.
    """

    linearization: Linearization
    tolerance: Tolerance
    dtype: torch.dtype


class Evaluated(NamedTuple):
    """The field at the nodes of a window.

    Attributes:
        values: its values, the history in front, shape (batch, history + nodes, dims).
        noise: noise of every node that enters the state directly, shape (batch, nodes, dims), if there is any.
        asked: whether the node was evaluated, shape (batch, nodes); `None` if all in the windows were.
        diffusion: diffusion at every node, where noise enters through the field.
        kick: what that noise added to the values, shape (batch, nodes, dims).
        jacobian: derivative of the values by what the field is evaluated at, if known, all of it finite, shape
            (batch, nodes, dims, dims).
    """

    values: Float[Tensor, "batch slots dims"]
    noise: Float[Tensor, "batch nodes dims"] | None = None
    asked: Bool[Tensor, "batch nodes"] | None = None
    diffusion: Tensor | None = None
    kick: Tensor | None = None
    jacobian: Float[Tensor, "batch nodes dims dims"] | None = None

    @staticmethod
    def of(
        field: Float[Tensor, "batch nodes *state"],
        diffusion: Tensor | None,
        noise: Tensor | None,
        tables: Tables,
        index: Int[Tensor, "batch nodes"],
        past: Float[Tensor, "batch history dims"],
        asked: Bool[Tensor, "batch nodes"] | None,
    ) -> Evaluated:
        """Put together what the model returned, the noise and the history.

        Args:
            field: the model's values.
            diffusion: diffusion, if noise enters through the field.
            noise: noise of every node, if there is any.
            tables: the plan's coefficients.
            index: the nodes.
            past: field values of the history.
            asked: see above.
        """
        kick = None
        if diffusion is not None and noise is not None:
            drift, field = field, kicked(field, diffusion, tables.kicks(index, noise))
            kick, noise = (field - drift).flatten(2), None
        else:
            diffusion = None
        values = field.flatten(2)
        if past.shape[1]:
            values = torch.cat([past, values], 1)
        return Evaluated(values, None if noise is None else noise.flatten(2), asked, diffusion, kick)


class Advance(NamedTuple):
    """What a round found, for every unfinished sample.

    Attributes:
        states: new state after every node, shape (batch, nodes, dims).
        field: the field at the new states.
        moved: change of what the field is evaluated at, at the node after every node, shape (batch, nodes, dims).
        distance: root mean square of that, shape (batch, nodes); zero where it is rounding.
        change: root mean square change of every state, as far as the tolerance watches it, shape (batch, nodes).
        residual: largest change that passed the test, shape (batch,).
        stride: nodes accepted, shape (batch,).
        usable: leading nodes whose new state is finite, shape (batch,).
        known: whether the node's slope is measured, shape (batch, nodes).
        age: rounds every node has been in the window, this one included, shape (batch, nodes).
    """

    states: Float[Tensor, "batch nodes dims"]
    field: Linearized
    moved: Float[Tensor, "batch nodes dims"]
    distance: Float[Tensor, "batch nodes"]
    change: Float[Tensor, "batch nodes"]
    residual: Float[Tensor, " batch"]
    stride: Int[Tensor, " batch"]
    usable: Int[Tensor, " batch"]
    known: Bool[Tensor, "batch nodes"]
    age: Int[Tensor, "batch nodes"]

    def read(self) -> Float[Tensor, "batch 3"]:
        """Return what the host reads: nodes accepted, leading nodes whose new state is finite, and the residual."""
        kind = self.residual.dtype  # counts of nodes are exact in it
        return torch.stack([self.stride.to(kind), self.usable.to(kind), self.residual], 1)


def advance(
    rules: Rules, at: Coefficients, state: State, found: Evaluated, *, full: bool, aside: Aside | None = None
) -> Advance:
    """Propagate evaluated nodes and find the longest prefix within the tolerance.

    The first state is exact, so at least one new one is accepted; the last may be accepted untested.

    Args:
        rules: how.
        at: coefficients of the nodes.
        state: the window.
        found: the field there.
        full: whether all windows are as wide as the widest.
        aside: what only some solves do, with a state of its own.
    """
    history = state.history()
    slope, known = _slopes(rules, at, state, found, aside)
    if aside is not None:
        found = aside.fill(found, slope)
    inside = None if full else state.inside()
    if inside is not None:
        at = at._replace(a=at.a * inside[..., None], b=at.b * inside[..., None], c=at.c * inside)
    mapped = step_map(at.a, at.b, state.z, found.values, at.c, found.noise)
    stale, age = state.z[:, history + 1 :], state.age + 1
    settled = None if aside is None else aside.settled(mapped, stale, age)
    # Settled states stay as they are, and their residual moves nothing after them.
    kept = None if settled is None else settled[..., None]
    given = stale if kept is None else torch.where(kept, mapped, stale)
    jacobian = found.jacobian
    if jacobian is None:
        states = correct(given, mapped, weights(at.a, at.b, at.inputs, slope, history))
    else:
        states = newton.correct(given, mapped, at, jacobian)
    states = states if kept is None else torch.where(kept, stale, states)
    moved = states - stale
    seen = watched_by(rules.tolerance, moved)
    change = rms(seen)
    field = Linearized(found.values, slope, moved)
    if at.inputs is not None or jacobian is not None:
        before = torch.cat([torch.zeros_like(state.z[:, : history + 1]), moved[:, :-1]], 1)
        shift = argument(at.inputs, before, history)
        own = found.values[:, history:]
        shifted = (
            torch.addcmul(own, slope[..., None], shift) if jacobian is None else own + newton.along(jacobian, shift)
        )
        field = Linearized(torch.cat([found.values[:, :history], shifted], 1), slope, None)
        moved = shift.roll(-1, 1)
    distance = change if seen is moved else rms(moved)

    top = largest(states)
    size = rms(states, top)
    rounding = _FLOOR * torch.finfo(states.dtype).eps * size
    bound = bound_of(rules.tolerance, Candidates(size, age, at.yardstick))
    bound = torch.add(rounding, bound, alpha=rules.linearization.share)
    close = change <= bound.clamp_max(torch.finfo(states.dtype).max)
    if not full:
        close = close & state.inside(after=1)
    if aside is not None:
        close = close & ~aside.exact_only()
    slots = torch.arange(change.shape[1], device=change.device)
    passed = _leading(close if settled is None else settled, slots, most=change.shape[1] - 1)
    fits = top.to(rules.dtype) < math.inf
    # Windows must not be cut short by values if rounds are fixed, nor by later noise if a law is certified.
    if jacobian is not None and (aside is None or aside.path) and not isinstance(rules.tolerance, FixedRounds):
        fits = fits & newton.trusted(jacobian, state, found.values[:, history:], rules.dtype)
    usable = _leading(fits if inside is None else fits & inside, slots, most=change.shape[1])
    stride = torch.minimum(passed + 1, usable)
    residual = change.masked_fill(slots >= passed[:, None], 0).amax(1)
    distance = distance.masked_fill(distance <= rounding, 0)
    return Advance(states, field, moved, distance, change, residual, stride, usable, known, age)


def _leading(holds: Bool[Tensor, "batch nodes"], slots: Int[Tensor, " nodes"], *, most: int) -> Int[Tensor, " batch"]:
    """Count the slots before the first one where something does not hold; there are at least `most` of them."""
    return slots.masked_fill(holds, most).amin(1)


def _slopes(
    rules: Rules, at: Coefficients, state: State, found: Evaluated, aside: Aside | None
) -> tuple[Float[Tensor, "batch nodes"], Bool[Tensor, "batch nodes"]]:
    """Choose the slope of every node from its last two evaluations, and say which have ever been measured."""
    path = aside is not None and aside.path
    if rules.linearization.measures or path:
        answered = found.values[:, state.history() :] - state.values
        square = state.distance.square() * answered.shape[2]
        ratio = (state.moved * answered).sum(2) / square  # autocast would round a product of vectors
        measured = (state.distance > 0) & finite(ratio)
        if found.asked is not None:
            measured = measured & found.asked
        if path and aside is not None:
            aside.measure(torch.where(measured, squared(answered) / square, 0))
    else:
        ratio, measured = torch.zeros_like(state.slope), torch.zeros_like(state.known)
    known = state.known | measured
    u, w, inverse = at.factor.unbind(-1)
    return slopes_of(rules.linearization, Evidence(u, w, inverse, ratio, measured, state.slope, known)), known
