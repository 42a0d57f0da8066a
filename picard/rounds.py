"""Rounds: one after the other as the host decides, or several in which the device does."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.captured import Captured
from picard.conditioning import Conditioning, RowCond, map_tensors
from picard.device import send
from picard.engine import TINY, Outcome, Setup, differentiate_rows, kicks_of, picked, rows_of, run_round, scattered
from picard.functions import Functions
from picard.graphs import CudaGraphs, fingerprint
from picard.memory import RowLimit
from picard.rows import Rows, evaluate
from picard.tables import Tables
from picard.whole import Form, Given, Whole, asks_of
from picard.window import Asks, State, Window


def run_rounds(setup: Setup, window: Window, most: int | None) -> list[Outcome]:
    """Run a round, or several if the device decides how the windows slide; the host waits once.

    Args:
        setup: the solve.
        window: the windows; they stay as they are.
        most: rounds left.
    """
    functions = setup.functions
    if functions is None or not functions.slides or setup.window < TINY:
        return [run_round(setup, window)]
    rounds = setup.sync_every if most is None else min(setup.sync_every, most)
    run = _run_whole if setup.graphs is None else _run_captured
    return run(setup, functions, window, rounds)


def _run_whole(setup: Setup, functions: Functions, window: Window, rounds: int) -> list[Outcome]:
    """Run rounds that slide the windows on by themselves."""
    state, asked = window.state, setup.asked(window)
    window.draw(rounds * window.nodes)
    given = Given.of(setup.problem, setup.tables, window.ring, functions.form)
    asks = window.asks or asks_of(functions.form, given, state, send(window.limit, state.begin))
    steps, rows, following = list[Whole](), list[int](), list[Asks | None]()
    for _ in range(rounds):
        rows.append(rows_of(asks.nodes, asked) * setup.columns)
        step, asks = functions.whole(
            given, state, asks.limit, *_ask(setup, functions.form, window, asks, asked), most=setup.window
        )
        steps.append(step)
        following.append(asks)
        state, asked = step.state, None  # how many of them count is not known here
    return _outcomes(steps, rows, following)


def _outcomes(steps: list[Whole], rows: list[int], following: list[Asks | None]) -> list[Outcome]:
    """Wait for what rounds have found, and put it together with the rows they evaluated and what is asked next."""
    read = [steps[0].read.tolist()] if len(steps) == 1 else torch.stack([step.read for step in steps]).tolist()
    together = zip(steps, read, rows, following, strict=True)
    return [Outcome.of(None, step, numbers, count, after) for step, numbers, count, after in together]


def _ask(
    setup: Setup, form: Form, window: Window, asks: Asks, asked: NDArray[np.bool_] | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Call the model on the slots that are `asked`, or all; the others are zero. Return what it says, see `whole`."""
    place, sample, arrangement = window.rows(asked)
    x, t, nodes = (picked(one, place) for one in (asks.x, asks.t, asks.nodes.flatten()))
    count = asks.nodes.numel()
    jacobian = None
    if setup.newton:
        kick = kicks_of(setup, asks.nodes, None if window.ring is None else window.ring.at(asks.nodes), place)
        value, diffusion, jacobian = differentiate_rows(setup, x, nodes, sample, arrangement, kick)
    else:
        cond = setup.conditioning.of(arrangement, sample)
        value, diffusion = _answer(setup, form, setup.tables, x, t, nodes, cond)
    diffusion, jacobian = (None if one is None else scattered(one, place, count) for one in (diffusion, jacobian))
    return scattered(value, place, count), diffusion, jacobian


def _answer(
    setup: Setup, form: Form, tables: Tables, x: Tensor, t: Tensor, nodes: Tensor, cond: RowCond
) -> tuple[Tensor, Tensor | None]:
    """Call the model on rows: the network alone if the round converts its output, otherwise for the field."""
    apart = form.convert is not None
    scales = None if tables.scales is None or apart else tables.scales[nodes]
    value, diffusion = evaluate(setup.problem, Rows(t, x, cond, scales), setup.max_rows, output=apart)
    return value.contiguous(), diffusion  # outputs of other strides would be compiled for once more


def _run_captured(setup: Setup, functions: Functions, window: Window, rounds: int) -> list[Outcome]:
    """Run rounds as `_run_whole` does, the model's call among what is captured; it is asked for every slot."""
    window.draw(rounds * window.nodes)
    if window.captured is None:
        window.captured = _captured(setup, functions, window)
    captured = window.captured
    steps = [captured.apply() for _ in range(rounds)]
    _, asks = captured.carried
    return _outcomes(steps, [asks.nodes.numel()] * rounds, [*[None] * (rounds - 1), asks])


def _captured(setup: Setup, functions: Functions, window: Window) -> Captured:
    """Find the captured round of windows like these and take over their tensors, or prepare to capture it."""
    problem, state, graphs = setup.problem, window.state, cast("CudaGraphs", setup.graphs)
    given = Given.of(problem, setup.tables, window.ring, functions.form)
    asks = window.asks or asks_of(functions.form, given, state, send(window.limit, state.begin))
    tables = tuple(vars(setup.tables).values())
    cond = map_tensors(setup.conditioning.cond, lambda tensor: tensor)  # in plain dicts
    constants = (tables, *given[1:], cond, window.sample())
    most = RowLimit(problem, problem.x0).rows(setup.max_rows)
    code = (type(problem), problem.parts, functions.key, setup.window, most)
    modes = (torch.is_autocast_enabled(problem.x0.device.type), torch.get_float32_matmul_precision())
    memory = [fingerprint(part) for part in problem.parts]

    def make(constants: Any) -> CapturedRound:
        return CapturedRound(setup, functions, constants)

    if any(part is problem for part in problem.parts):  # no other problem has its field: nothing is worth keeping
        graphs = CudaGraphs()
    captured = graphs.find((code, modes, memory), constants, (state, asks), setup.sync_every + 1, make)
    if window.ring is not None:
        window.ring.noise = captured.constants[1]  # where further noise is drawn to
    return captured


class CapturedRound:
    """A round, the model's call in it, as a function of the windows and what is asked there."""

    def __init__(self, setup: Setup, functions: Functions, constants: Any) -> None:
        """Prepare.

        Args:
            setup: the solve, or a later one of the same kind.
            functions: what a round is made of.
            constants: the tables' tensors, what else is given, the conditioning and the sample of every row.
        """
        tables, ring, numbers, clock, cond, self._sample = constants
        self._setup, self._functions = setup, functions
        self._given = Given(Tables(*tables), ring, numbers, clock)
        self._conditioning = Conditioning(cond, setup.conditioning.batch)

    def __call__(self, carried: tuple[State, Asks]) -> tuple[tuple[State, Asks], Whole]:
        """Ask the model and slide on; return the next windows with what is asked there, and what was found."""
        (state, asks), setup, functions = carried, self._setup, self._functions
        cond = self._conditioning.of(None, self._sample)
        nodes = asks.nodes.flatten()
        value, diffusion = _answer(setup, functions.form, self._given.tables, asks.x, asks.t, nodes, cond)
        step, following = functions.whole(self._given, state, asks.limit, value, diffusion, None, most=setup.window)
        return (step.state, following), step

    def renew(self) -> None:
        """Repeat the conditioning anew."""
        self._conditioning.renew(self._sample)
