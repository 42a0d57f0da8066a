"""A round and the slide after it in one function of tensors, for a compiler to take whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from picard.advance import Evaluated, Rules, advance
from picard.convert import Conversion
from picard.entering import Guess, Linearized, Places
from picard.extrapolate import Extrapolate
from picard.guess import Copy
from picard.hold import Hold
from picard.problem import Problem
from picard.propagate import argument
from picard.ring import Ring, noise_at
from picard.shapes import Bool, Float, Int
from picard.slide import slide
from picard.tables import Tables
from picard.window import Asks, State

_NOWHERE = Places((), ())  # the host is not asked where the windows are


@dataclass(frozen=True)
class Form:
    """What the code of a round depends on; solves whose forms are equal share it.

    Attributes:
        rules: how states are corrected and accepted.
        shape: shape of one state.
        guess: kind of the guess that new nodes start from.
        stages: number of nodes of a step.
        tells: whether somebody wants to know the field.
        convert: how the field follows from the network's output, if that is what a round is given.
    """

    rules: Rules
    shape: tuple[int, ...]
    guess: type
    stages: int
    tells: bool
    convert: Conversion | None

    @property
    def slides(self) -> bool:
        """Whether the guess needs nothing from the host."""
        return self.guess in (Extrapolate, Hold, Copy)

    def begin(self, tables: Tables) -> Guess:
        """Make the guess."""
        if self.guess is Extrapolate:
            return Extrapolate(tables, self.shape, self.stages)
        return Hold(tables, self.shape) if self.guess is Hold else Copy()


class Given(NamedTuple):
    """Tensors that stay the same while a solve runs.

    Attributes:
        tables: the plan's coefficients.
        ring: noise of all nodes that may be reached, see `Ring`.
        numbers: see `Problem.numbers`.
        clock: what the network is given for a time, if it is asked for its output, see `Problem.clock`.
    """

    tables: Tables
    ring: Tensor | None
    numbers: Tensor | None
    clock: Tensor | None

    @staticmethod
    def of(problem: Problem, tables: Tables, ring: Ring | None, form: Form) -> Given:
        """Collect what a solve has."""
        clock = None if form.convert is None else problem.clock
        return Given(tables, None if ring is None else ring.noise, problem.numbers, clock)


class Whole(NamedTuple):
    """What a round found, and the windows after it.

    Attributes:
        states: see `Advance`.
        change: see `Advance`.
        sound: whether the field at the first node is finite, shape (batch,).
        read: what the host reads, see `Advance.read`.
        state: the windows slid on.
        field: the field at the new states, if somebody wants to know.
    """

    states: Float[Tensor, "batch nodes dims"]
    change: Float[Tensor, "batch nodes"]
    sound: Bool[Tensor, " batch"]
    read: Float[Tensor, "batch 3"]
    state: State
    field: Linearized | None


def asks_of(form: Form, given: Given, state: State, limit: Int[Tensor, " batch"]) -> Asks:
    """Say what the network is asked in the next round."""
    tables = given.tables
    nodes = state.ahead().clamp_max(len(tables.a) - 1)
    t = tables.times[nodes].flatten()
    x = arguments(tables, state, nodes).to(form.rules.dtype).reshape(-1, *form.shape)
    return Asks(nodes, t if given.clock is None else given.clock[t], x, limit)


def whole_round(
    form: Form,
    given: Given,
    state: State,
    limit: Int[Tensor, " batch"],
    value: Tensor,
    diffusion: Tensor | None,
    jacobian: Tensor | None,
    *,
    most: int,
) -> tuple[Whole, Asks]:
    """Propagate evaluated nodes, accept, and slide on, as `advance` and `slide` do with the host between them.

    Args:
        form: what the code depends on.
        given: tensors that stay the same.
        state: the windows; they hold as many nodes as the plan has left, or as many as they may.
        limit: most nodes a window may hold: halved where states were not finite, doubled after.
        value: the field or the network's output at every slot, shape (rows, *state), finite in those past the windows.
        diffusion: diffusion there, if noise enters through the field, shape (rows, *state[, channels]).
        jacobian: derivative of the field there, if it is known, shape (rows, dims, dims).
        most: largest limit.

    Returns:
        What was found, and what the network is asked next.
    """
    tables = given.tables
    total = len(tables.a)
    index = state.ahead().clamp_max(total - 1)
    noise = None if given.ring is None else partial(noise_at, given.ring)
    found = _found(form, given, state, index, value, diffusion)
    if jacobian is not None:
        found = found._replace(jacobian=jacobian.to(found.values.dtype).unflatten(0, tuple(index.shape)))
    step = advance(form.rules, tables.at(index), state, found, full=False)
    halved = (torch.minimum(limit, state.width) // 2).clamp_min(1)
    limit = torch.where(step.usable == state.width, (2 * limit).clamp_max(most), halved)
    following = slide(
        state,
        found,
        step,
        step.stride,
        torch.minimum(limit, total - state.begin - step.stride).clamp(0, state.nodes()),
        form.begin(tables),
        nodes=state.nodes(),
        count=state.nodes(),
        unsound=True,
        noise=noise,
        places=_NOWHERE,
    )
    sound = torch.isfinite(found.values[:, state.history()]).all(1)
    after = Whole(step.states, step.change, sound, step.read(), following, step.field if form.tells else None)
    return after, asks_of(form, given, following, limit)


def _found(
    form: Form, given: Given, state: State, index: Int[Tensor, "batch nodes"], value: Tensor, diffusion: Tensor | None
) -> Evaluated:
    """Put together what was found at the nodes of the windows."""
    tables, ring, numbers, _ = given
    x, shape = arguments(tables, state, index), tuple(index.shape)
    field = value.to(x.dtype)
    if form.convert is not None:
        node = index.flatten()
        scales = None if tables.scales is None else tables.scales[node]
        flat = field.flatten(1)
        field = form.convert(x.flatten(0, 1), flat, tables.times[node], scales, numbers)
    field = field.unflatten(0, shape)
    if diffusion is not None:
        diffusion = diffusion.to(x.dtype).unflatten(0, shape)
    noise = None if ring is None else noise_at(ring, index)
    return Evaluated.of(field, diffusion, noise, tables, index, state.past, state.inside())


def arguments(tables: Tables, state: State, index: Int[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes dims"]:
    """Return what the field is evaluated at in every slot."""
    inputs = None if tables.inputs is None else tables.inputs[index]
    return argument(inputs, state.z[:, : state.history() + state.nodes()], state.history())
