"""The linearized recurrence of a window: solved in one piece, node by node or by its inverse, it is the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from picard import propagate
from tests.problems import F64

sizes = pytest.mark.parametrize(("nodes", "order"), [(1, 1), (1, 4), (2, 3), (3, 4), (4, 4), (16, 1), (17, 4)])
each_width = pytest.mark.parametrize("columns", [2, 40])


def band(nodes: int, order: int) -> Tensor:
    """Make weights, (batch, nodes, order); those of unknowns before place 0, which mean nothing, are infinite."""
    weights = torch.randn(3, nodes, order, dtype=F64, generator=torch.Generator().manual_seed(0))
    before = torch.arange(order) >= torch.arange(nodes)[:, None]
    return weights.masked_fill(before, math.inf)


def solved(weights: Tensor, right: Tensor) -> Tensor:
    """Solve `y[m] - sum_p weights[m, p] y[m-1-p] = r[m]` number by number."""
    found = right.clone()
    for node in range(weights.shape[1]):
        for p in range(min(weights.shape[2], node)):
            found[:, node] += weights[:, node, p, None] * found[:, node - 1 - p]
    return found


@sizes
def test_the_response_is_the_inverse(nodes: int, order: int) -> None:
    weights = band(nodes, order)
    identity = torch.eye(nodes, dtype=F64).expand(3, -1, -1)
    torch.testing.assert_close(propagate.response(weights), solved(weights, identity))


@sizes
@each_width
@pytest.mark.parametrize("written", [0, 1 << 21])
def test_states_move_as_the_residuals_before_them_say(
    nodes: int, order: int, columns: int, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagate, "_WRITTEN", written)
    weights, draw = band(nodes, order), torch.Generator().manual_seed(1)
    z, mapped = torch.randn(2, 3, nodes, columns, dtype=F64, generator=draw)
    residual = mapped - z
    expected = mapped + solved(weights, residual) - residual
    torch.testing.assert_close(propagate.correct(z, mapped.clone(), weights), expected)


@sizes
@each_width
def test_where_nothing_before_moved_a_state_is_the_step_map_to_the_last_bit(
    nodes: int, order: int, columns: int
) -> None:
    weights, draw = band(nodes, order), torch.Generator().manual_seed(1)
    z, mapped = torch.randn(2, 3, nodes, columns, dtype=F64, generator=draw)
    z[:, : nodes // 2] = mapped[:, : nodes // 2]
    z[:, -1] = 1e300  # which moves nothing
    found = propagate.correct(z, mapped.clone(), weights)
    assert torch.equal(found[:, : nodes // 2 + 1], mapped[:, : nodes // 2 + 1])
    assert float(found.abs().max()) < 1e200
