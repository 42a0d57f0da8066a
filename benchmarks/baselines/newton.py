"""Quasi-Newton with the exact diagonal of the Jacobian: a bound on what any diagonal linearization can do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines.chain import Chain, rms

Diagonal = Callable[[Tensor, Tensor], Tensor]
"""Diagonal of the data prediction's Jacobian at states (rows, dims) of nodes (rows,)."""


def diagonal_newton(chain: Chain, tolerance: float, window: int, diagonal: Diagonal) -> Tensor:
    """Solve in a sliding window with `D(x) ~ D_k + diag(J) (x - x_k)`, new nodes held at the last data prediction.

    Quasi-DEER (Gonzalez et al., 2024) in a window, with ParaDiGMS' rule for sliding on. The diagonals are not counted
    as evaluations: without the exact score they would cost many.

    Args:
        chain: the recurrence.
        tolerance: the ratio of change and step noise at which a state is accepted.
        window: nodes in flight.
        diagonal: the exact diagonal.

    Returns:
        The final state.
    """
    begin, end = 0, 1
    x = chain.start.repeat(chain.steps + 1, 1)
    while begin < chain.steps:
        nodes = torch.arange(begin, end)
        data, slope = chain.data(x[nodes], nodes), diagonal(x[nodes], nodes)
        factor = chain.a[nodes, None] + chain.b[nodes, None] * slope
        mapped, old, moved = chain.step(x[nodes], data, nodes), x[nodes + 1], torch.zeros_like(chain.start)
        for j, node in enumerate(nodes.tolist()):
            x[node + 1] = mapped[j] + factor[j] * moved
            moved = x[node + 1] - old[j]
        close = rms(x[nodes + 1] - old) <= tolerance * chain.yardstick[nodes]
        passed = int(close[:-1].long().cumprod(0).sum())
        held = data[-1] + slope[-1] * (x[end - 1] - x[nodes[-1]])
        begin, before = begin + 1 + passed, end
        end = min(begin + window, chain.steps)
        for node in range(before, end):
            x[node + 1] = chain.a[node] * x[node] + chain.b[node] * held + chain.forcing[node]
    return x[-1]
