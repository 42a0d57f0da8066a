"""Rounds: one after the other as the host decides, or several in which the device does."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picard.device import send
from picard.engine import TINY, Outcome, Setup, picked, rows_of, run_round, scattered
from picard.functions import Functions
from picard.rows import Rows, evaluate
from picard.whole import Form, Given, Whole, asks_of
from picard.window import Asks, Window


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
    return _run_whole(setup, functions, window, setup.sync_every if most is None else min(setup.sync_every, most))


def _run_whole(setup: Setup, functions: Functions, window: Window, rounds: int) -> list[Outcome]:
    """Run rounds that slide the windows on by themselves."""
    state, asked = window.state, setup.asked(window)
    window.draw(rounds * window.nodes)
    given = Given.of(setup.problem, setup.tables, window.ring, functions.form)
    asks = window.asks or asks_of(functions.form, given, state, send(window.limit, state.begin))
    steps, found = list[Whole](), list[tuple[Asks, int]]()
    for _ in range(rounds):
        rows = rows_of(asks.nodes, asked)
        value, diffusion = _ask(setup, functions.form, window, asks, asked)
        step, asks = functions.whole(given, state, asks.limit, value, diffusion, most=setup.window)
        steps.append(step)
        found.append((asks, rows))
        state, asked = step.state, None  # how many of them count is not known here
    read = [steps[0].read.tolist()] if rounds == 1 else torch.stack([step.read for step in steps]).tolist()  # the wait
    together = zip(steps, read, found, strict=True)
    return [Outcome.of(None, step, numbers, rows, after) for step, numbers, (after, rows) in together]


def _ask(
    setup: Setup, form: Form, window: Window, asks: Asks, asked: NDArray[np.bool_] | None
) -> tuple[Tensor, Tensor | None]:
    """Call the model on the slots that are `asked`, or all; the others are zero."""
    scales, apart = setup.tables.scales, form.convert is not None
    place, sample, arrangement = window.rows(asked)
    x, t = picked(asks.x, place), picked(asks.t, place)
    cond = setup.conditioning.of(arrangement, sample)
    scaled = None if scales is None or apart else scales[picked(asks.nodes.flatten(), place)]
    value, diffusion = evaluate(setup.problem, Rows(t, x, cond, scaled), setup.max_rows, output=apart)
    count = asks.nodes.numel()
    value = value.contiguous()  # outputs of other strides would be compiled for once more
    return scattered(value, place, count), None if diffusion is None else scattered(diffusion, place, count)
