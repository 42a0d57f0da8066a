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
from picard.conditioning import Conditioning
from picard.device import fetch, send
from picard.entering import Guess
from picard.functions import Functions
from picard.graphs import CudaGraphs
from picard.jacobian import differentiate
from picard.linearize import Linearization, Newton
from picard.newton import whole
from picard.plan import Plan
from picard.problem import Problem
from picard.propagate import finite
from picard.rows import Rows, evaluate
from picard.shapes import Float, Int
from picard.tables import Tables
from picard.thin import Thinning
from picard.tolerance import Tolerance
from picard.whole import Form, Whole, arguments
from picard.window import Asks, Window

TINY = 4  # slots that a compiled round has at least: for one or two, compilers make other code


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
    functions: Functions | None = None  # only where it is pure
    sync_every: int = 1
    graphs: CudaGraphs | None = None  # only with functions that slide
    tells: bool = False  # whether a callback may ask for the field

    @property
    def rules(self) -> Rules:
        """How states are corrected and accepted."""
        return Rules(self.linearization, self.tolerance, self.problem.x0.dtype)

    @property
    def pure(self) -> bool:
        """Whether a round, but for the model's call, is made of functions of tensors that could be compiled."""
        return self.certifier is None and self.thinning is None

    @property
    def newton(self) -> bool:
        """Whether the model is differentiated."""
        return isinstance(self.linearization, Newton)

    @property
    def columns(self) -> int:
        """Rows of a model call for every node: Newton's method asks for every number of the state."""
        return self.problem.x0[0].numel() if self.newton else 1

    def compiles(self, window: int) -> bool:
        """Say whether compiling rounds of such windows pays: not where Newton's systems are solved node after node."""
        return not self.newton or whole(len(self.problem.x0), window, self.columns)

    @property
    def form(self) -> Form:
        """What the code of a whole round depends on."""
        x0 = self.problem.x0
        # In half precision, a field is rounded like its states; and Newton's method differentiates the whole of it.
        apart = x0.dtype == self.tables.a.dtype and not self.newton
        convert = self.problem.conversion if apart else None
        return Form(self.rules, tuple(x0.shape[1:]), type(self.guess), self.plan.stages, self.tells, convert)

    def asked(self, window: Window) -> NDArray[np.bool_] | None:
        """Say which slots every sample of the window evaluates, shape (batch, nodes); `None` if it is all of them."""
        if self.thinning is None:
            return None if window.full else np.arange(window.nodes) < np.array(window.width)[:, None]
        return None if self.thinning.asked.all() else self.thinning.asked


class Outcome(NamedTuple):
    """What a round found.

    Attributes:
        found: the field at the nodes of the windows; `None` if the round has slid them on.
        step: new states, and the windows slid on already if the round did that too.
        stride: nodes accepted, of every unfinished sample.
        usable: leading nodes whose new state is finite.
        residual: largest change that passed the test.
        rows: rows evaluated.
        asks: what the network is asked next, if the round has slid the windows on.
    """

    found: Evaluated | None
    step: Advance | Whole
    stride: list[int]
    usable: list[int]
    residual: list[float]
    rows: int
    asks: Asks | None = None

    @staticmethod
    def of(
        found: Evaluated | None, step: Advance | Whole, read: list[list[float]], rows: int, asks: Asks | None = None
    ) -> Outcome:
        """Put together what a round found; `read` is what the host has read of it, see `Advance.read`."""
        stride, usable = ([int(one[place]) for one in read] for place in range(2))
        return Outcome(found, step, stride, usable, [one[2] for one in read], rows, asks)

    def sound(self, sample: int) -> bool:
        """Say whether the field of one of the samples is finite at its first node."""
        if self.found is None:
            return bool(self.step.sound[sample])  # type: ignore[union-attr]  # a whole round
        history = self.found.values.shape[1] - self.step.states.shape[1]
        return bool(finite(self.found.values[sample, history]).all())


def run_round(setup: Setup, window: Window) -> Outcome:
    """Evaluate the window in one model call, propagate, and find what can be accepted."""
    index, functions, asked = window.index(), setup.functions, setup.asked(window)
    rows = rows_of(index, asked) + (0 if setup.certifier is None else setup.certifier.claims)
    rows *= setup.columns
    found = _evaluate(setup, window, index, asked)
    aside = None
    if setup.certifier is not None or setup.thinning is not None:
        carries = setup.guess.carries_noise
        aside = Aside(window, index, setup.thinning, setup.certifier, setup.tolerance, carries)
    at = setup.tables.at(index)
    if functions is None or functions.slides or window.nodes < TINY:
        step = advance(setup.rules, at, window.state, found, full=window.full, aside=aside)
    else:
        step = functions.advance(at, window.state, found._replace(asked=None))
    spread = None if aside is None else aside.spread
    if setup.thinning is None or spread is None:
        return Outcome.of(found, step, step.read().tolist(), rows)  # the one wait
    read = fetch(torch.cat([step.read(), spread], 1)).numpy()  # the one wait
    read[:, 0] = np.minimum(read[:, 0], setup.thinning.check(read[:, 3:]))
    return Outcome.of(found, step, read[:, :3].tolist(), rows)


def rows_of(index: Int[Tensor, "batch nodes"], asked: NDArray[np.bool_] | None) -> int:
    """Count the slots that are asked for."""
    return index.numel() if asked is None else int(asked.sum())


def _evaluate(
    setup: Setup, window: Window, index: Int[Tensor, "batch nodes"], asked: NDArray[np.bool_] | None
) -> Evaluated:
    """Call the model on the slots of every window that are `asked`, or all; `index` names their nodes.

    States that wait for their certificate are evaluated in the same call.
    """
    given = arguments(setup.tables, window.state, index)
    place, sample, arrangement = window.rows(asked)
    z, node = picked(given.flatten(0, 1), place), picked(index.flatten(), place)
    count = len(z)
    claim = None if setup.certifier is None else setup.certifier.claim
    if claim is not None:
        z, node = torch.cat([z, claim.states]), torch.cat([node, claim.nodes])
        sample, arrangement = torch.cat([sample, claim.samples]), (arrangement, claim)
    noise = None if window.ring is None else window.ring.at(index)
    jacobian = None
    if setup.newton:
        state, kick = z.to(setup.problem.x0.dtype), kicks_of(setup, index, noise, place)
        value, diffusion, jacobian = differentiate_rows(setup, state, node, sample, arrangement, kick)
    else:
        value, diffusion = call_model(setup, z, node, sample, arrangement)
    if setup.certifier is not None and claim is not None:
        setup.certifier.check(value[count:].flatten(1).to(z.dtype))

    def spread(found: Tensor) -> Tensor:
        return scattered(found[:count].to(z.dtype), place, index.numel()).unflatten(0, tuple(index.shape))

    diffusion, jacobian = (None if one is None else spread(one) for one in (diffusion, jacobian))
    among = None if asked is None else send(asked, z)
    found = Evaluated.of(spread(value), diffusion, noise, setup.tables, index, window.state.past, among)
    return found._replace(jacobian=jacobian)


def picked(values: Tensor, place: Int[Tensor, " rows"] | None) -> Tensor:
    """Take rows from their places, or all of them."""
    return values if place is None else values[place]


def scattered(found: Tensor, place: Int[Tensor, " rows"] | None, count: int) -> Tensor:
    """Put rows where they belong among so many; the others are zero. They are all there if `place` is `None`."""
    return found if place is None else found.new_zeros(count, *found.shape[1:]).index_copy(0, place, found)


def call_model(
    setup: Setup,
    z: Float[Tensor, "rows dims"],
    node: Int[Tensor, " rows"],
    sample: Int[Tensor, " rows"],
    arrangement: object,
) -> tuple[Tensor, Tensor | None]:
    """Evaluate the field at rows given by state, node and sample; `arrangement` names the tensor of samples."""
    return evaluate(setup.problem, _rows(setup, z, node, sample, arrangement), setup.max_rows)


def kicks_of(
    setup: Setup, index: Int[Tensor, "batch nodes"], noise: Tensor | None, place: Int[Tensor, " rows"] | None
) -> Tensor | None:
    """Return the scaled noise of rows, in the state's dtype, where it enters through the field."""
    if noise is None or not setup.problem.noise_in_field:
        return None
    return picked(setup.tables.kicks(index, noise).flatten(0, 1), place).to(setup.problem.x0.dtype)


def differentiate_rows(
    setup: Setup, x: Tensor, node: Tensor, sample: Tensor, arrangement: object, kick: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Evaluate the field with its derivatives at rows, each asked for once for every number of the state.

    Args:
        setup: the solve.
        x: states, the first dimension that of the rows.
        node: their nodes.
        sample: their samples.
        arrangement: names the tensor of samples.
        kick: see `kicks_of`.
    """
    dims = setup.columns
    x, node, sample = (one.repeat_interleave(dims, 0) for one in (x.flatten(1), node, sample))
    kick = None if kick is None else kick.repeat_interleave(dims, 0)
    rows = _rows(setup, x, node, sample, (arrangement, dims))
    return differentiate(setup.problem, rows, kick, setup.max_rows)


def _rows(setup: Setup, z: Tensor, node: Tensor, sample: Tensor, arrangement: object) -> Rows:
    x0, scales = setup.problem.x0, setup.tables.scales
    state, cond = z.to(x0.dtype).unflatten(1, x0.shape[1:]), setup.conditioning.of(arrangement, sample)
    return Rows(setup.tables.times[node], state, cond, None if scales is None else scales[node])
