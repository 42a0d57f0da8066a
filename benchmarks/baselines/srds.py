"""SRDS (Selvam, Merchant and Ermon, 2024): parareal over about sqrt(T) blocks."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.baselines.chain import Chain, rms


def srds(chain: Chain, tolerance: float) -> Tensor:
    """Solve by `x[i+1] <- fine(x[i]) + coarse(new x[i]) - coarse(x[i])` over the ends of blocks.

    The coarse solver is one evaluation a block: the data prediction is held over the block, with the block's own noise,
    so that the method extends from DDIM, for which it was published, to DDPM. The fine solves of all blocks advance
    together. Sweeps and fine solves are pipelined as in the paper: after k iterations over B blocks of M steps,
    `B - k + k M` calls have been made one after the other, and block i is exact after i + 1 iterations.

    Args:
        chain: the recurrence; its rounds are counted as above.
        tolerance: root mean square change of the final state at which to stop.

    Returns:
        The final state.
    """
    blocks = round(math.sqrt(chain.steps))
    ends = [round(i * chain.steps / blocks) for i in range(blocks + 1)]
    state = [chain.start]
    coarse = []
    for first, last in pairwise(ends):
        coarse.append(_coarse(chain, state[-1], first, last))
        state.append(coarse[-1])
    longest = max(last - first for first, last in pairwise(ends))
    for iteration in range(1, blocks + 1):
        live = range(iteration - 1, blocks)  # the blocks before are exact
        fine = _fine(chain, {i: state[i] for i in live}, ends)
        before = state[-1]
        for i in live:
            new = _coarse(chain, state[i], ends[i], ends[i + 1]) if i >= iteration else coarse[i]
            state[i + 1] = fine[i] + new - coarse[i]
            coarse[i] = new
        chain.rounds = blocks - iteration + iteration * longest
        if float(rms(state[-1] - before)) <= tolerance:
            break
    return state[-1]


def _coarse(chain: Chain, x: Tensor, first: int, last: int) -> Tensor:
    return chain.jump(x, chain.data(x[None], [first])[0], first, last)


def _fine(chain: Chain, starts: dict[int, Tensor], ends: list[int]) -> dict[int, Tensor]:
    """Solve every block step by step, all blocks in one call a step."""
    states, place = dict(starts), {i: ends[i] for i in starts}
    while moving := [i for i in states if place[i] < ends[i + 1]]:
        nodes = [place[i] for i in moving]
        x = torch.stack([states[i] for i in moving])
        after = chain.step(x, chain.data(x, nodes), nodes)
        for i, row in zip(moving, after, strict=True):
            states[i], place[i] = row, place[i] + 1
    return states
