"""CHORDS (Han et al., 2025): cores that start along the path and hand corrections on, the fastest done first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.baselines.chain import Chain, rms

STARTS = (0, 0.04, 0.08, 0.16, 0.32, 0.48, 0.64, 0.8)  # eight cores, as published


def chords(chain: Chain, tolerance: float, starts: Sequence[float] = STARTS) -> Tensor:
    """Solve with one core a start; each steps finely, and is corrected by the core behind it.

    When core k - 1 comes to where core k stood at its last correction, core k moves by the difference of two coarse
    jumps from there to where it stands now: from core k - 1's state, and from its own then. A coarse jump holds the
    data prediction and carries the noise. Core 0 starts at the beginning and is exact; the last core ends first.

    Args:
        chain: the recurrence.
        tolerance: root mean square difference of two successive cores' results at which to stop.
        starts: where the cores start, as shares of the path.

    Returns:
        The result of the last core that was waited for.
    """
    begin = [round(start * chain.steps) for start in starts]
    gap = [begin[0], *(after - before for before, after in pairwise(begin))]
    first = chain.data(chain.start[None], [0])[0]
    state = [chain.jump(chain.start, first, 0, start) for start in begin]
    marks: list[tuple[Tensor, Tensor]] = []
    result: Tensor | None = None
    cores = len(begin)
    for done in range(chain.steps):
        nodes = [start + done for start in begin[:cores]]
        data = chain.data(torch.stack(state[:cores]), nodes)
        if done == 0:
            marks = list(zip(state, data, strict=True))
        moved = list(state)
        for k in range(1, cores):
            if done and done % gap[k] == 0:
                place = nodes[k] - gap[k]
                right = chain.jump(state[k - 1], data[k - 1], place, nodes[k])
                moved[k] = state[k] + right - chain.jump(*marks[k], place, nodes[k])
                marks[k] = (moved[k], data[k])
        state = list(chain.step(torch.stack(moved[:cores]), data, nodes))
        if nodes[-1] + 1 == chain.steps:  # the last core is done
            last = state.pop()
            cores -= 1
            if cores == 0 or (result is not None and float(rms(last - result)) <= tolerance):
                return last
            result = last
    msg = "core 0 ends after as many rounds as there are steps"
    raise AssertionError(msg)
