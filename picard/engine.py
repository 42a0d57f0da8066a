"""The engine: one round of a solve, for all unfinished samples at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.advance import Advance, Evaluated, Rules, advance
from picard.aside import Aside
from picard.certify import Certifier
from picard.device import fetch, send
from picard.entering import Guess
from picard.functions import Functions
from picard.linearize import Linearization
from picard.plan import Plan
from picard.problem import Problem
from picard.propagate import argument
from picard.rows import Conditioning, Rows, evaluate, kicked
from picard.shapes import Float, Int
from picard.tables import Tables
from picard.thin import Thinning
from picard.tolerance import Tolerance
from picard.whole import Whole
from picard.window import State, Window

_TINY = 4  # slots that a compiled round has at least: for one or two, compilers make other code


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
    functions: Functions | None = None  # never with a certifier or thinning, which keep a state of their own
    sync_every: int = 1

    @property
    def rules(self) -> Rules:
        """How states are corrected and accepted."""
        return Rules(self.linearization, self.tolerance, self.problem.x0.dtype)

    def asked(self, window: Window) -> NDArray[np.bool_] | None:
        """Say which slots every sample of the window evaluates, shape (batch, nodes); `None` if it is all of them."""
        if self.thinning is None:
            return None if window.full else np.arange(window.nodes) < np.array(window.width)[:, None]
        return None if self.thinning.asked.all() else self.thinning.asked


class Outcome(NamedTuple):
    """What a round found.

    Attributes:
        found: the field at the nodes of the windows.
        step: new states, and the windows slid on already if the round did that too.
        stride: nodes accepted, of every unfinished sample.
        usable: leading nodes whose new state is finite.
        rows: rows evaluated.
    """

    found: Evaluated
    step: Advance | Whole
    stride: list[int]
    usable: list[int]
    rows: int


def run_rounds(setup: Setup, window: Window, most: int | None) -> list[Outcome]:
    """Run a round, or several if the device decides how the windows slide; the host waits once.

    Args:
        setup: the solve.
        window: the windows; they stay as they are.
        most: rounds left.
    """
    whole = None if setup.functions is None else setup.functions.whole
    if whole is None or setup.window < _TINY:
        return [_round(setup, window)]
    rounds = setup.sync_every if most is None else min(setup.sync_every, most)
    window.draw(rounds * window.nodes)
    state, index, steps = window.state, window.index(), list[tuple[Evaluated, Whole, int]]()
    limit, ring = send(window.limit, index), None if window.ring is None else window.ring.noise
    asked = setup.asked(window)
    for _ in range(rounds):
        found = _evaluate(setup, window, state, index, asked, noisy=False)
        plain = found if asked is None else found._replace(asked=None)  # follows from the widths
        step = whole(setup.tables, state, limit, plain, ring, most=setup.window)
        steps.append((found, step, _rows(index, asked)))
        state, index, limit = step.state, step.nodes, step.limit
        asked = None  # how many of them count is not known here
    counts = [step.counts for _, step, _ in steps]
    read = [counts[0].tolist()] if rounds == 1 else torch.stack(counts).tolist()  # the one wait
    outcomes = []
    for (found, step, evaluated), counted in zip(steps, read, strict=True):
        stride, usable = ([one[place] for one in counted] for place in range(2))
        outcomes.append(Outcome(found, step, stride, usable, evaluated))
    return outcomes


def _round(setup: Setup, window: Window) -> Outcome:
    """Evaluate the window in one model call, propagate, and find what can be accepted."""
    index, functions, asked = window.index(), setup.functions, setup.asked(window)
    rows = _rows(index, asked) + (0 if setup.certifier is None else setup.certifier.claims)
    found = _evaluate(setup, window, window.state, index, asked)
    aside = None
    if setup.certifier is not None or setup.thinning is not None:
        carries = setup.guess.carries_noise
        aside = Aside(window, index, setup.thinning, setup.certifier, setup.tolerance, carries)
    at = setup.tables.at(index)
    if functions is None or functions.whole is not None or window.nodes < _TINY:
        step = advance(setup.rules, at, window.state, found, full=window.full, aside=aside)
    else:
        step = functions.advance(at, window.state, found._replace(asked=None))
    counts = torch.stack([step.stride, step.usable], 1)
    spread = None if aside is None else aside.spread
    if setup.thinning is None or spread is None:
        stride, usable = counts.T.tolist()  # the one wait
    else:
        read = fetch(torch.cat([counts.to(spread.dtype), spread], 1)).numpy()  # the one wait
        most = setup.thinning.check(read[:, 2:])
        stride, usable = np.minimum(read[:, 0], most).astype(int).tolist(), read[:, 1].astype(int).tolist()
    return Outcome(found, step, stride, usable, rows)


def _rows(index: Int[Tensor, "batch nodes"], asked: NDArray[np.bool_] | None) -> int:
    """Count the slots that are asked for."""
    return index.numel() if asked is None else int(asked.sum())


def _evaluate(
    setup: Setup,
    window: Window,
    state: State,
    index: Int[Tensor, "batch nodes"],
    asked: NDArray[np.bool_] | None,
    *,
    noisy: bool = True,
) -> Evaluated:
    """Call the model on the slots of every window that are `asked`, or all; `index` names their nodes.

    States that wait for their certificate are evaluated in the same call. Noise that enters the states directly is
    looked up only if `noisy`.
    """
    nodes = state.nodes
    inputs = None if setup.tables.inputs is None else setup.tables.inputs[index]
    given = argument(inputs, state.z[:, : state.history + nodes], state.history)
    z, sample = given.flatten(0, 1), window.sample()
    node, place, among = index.flatten(), None, None
    each: object = nodes
    if asked is not None:
        each = tuple(asked.sum(1).tolist())
        place, among = send(np.flatnonzero(asked), z), send(asked, z)
        z, node, sample = z[place], node[place], sample[place]
    count, arrangement = len(z), (tuple(window.samples), each)
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
    noise = kick = None
    if window.ring is not None and (noisy or diffusion is not None):
        noise = window.ring.at(index)
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
    return Evaluated(given, values, None if noise is None else noise.flatten(2), among, diffusion, kick)


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
