"""The defects of a trajectory, computed anew: what every state lacks to follow from the states before it."""

from __future__ import annotations

import torch
from torch import Tensor

from picard.conditioning import Conditioning
from picard.prepare import Prepared
from picard.rows import Rows, evaluate
from picard.shapes import Float


@torch.no_grad()
def defects(prepared: Prepared, states: Float[Tensor, "points batch *state"]) -> Float[Tensor, "nodes batch"]:
    """Compute the Euclidean norm of `z[m+1] - sum_p a z[m-p] - sum_p b F(z[m-p]) - c xi[m]` at every node.

    Args:
        prepared: the problem as a plan with one node a step, its noise outside the field.
        states: the trajectory, one state a node and the final one.

    Returns:
        The norms, in the dtype of the computation.
    """
    plan, tables, z = prepared.plan, prepared.tables, states.to(prepared.wide)
    batch, samples = states.shape[1], list(range(states.shape[1]))
    conditioning = Conditioning(prepared.problem.conditioning(), batch)
    values, norms = [], []
    for node in range(plan.nodes):
        scales = None if tables.scales is None else tables.scales[node].expand(batch, 2)
        rows = Rows(
            tables.times[node].expand(batch),
            states[node],
            conditioning.of(None, torch.arange(batch, device="cpu")),
            scales,
        )
        values.append(evaluate(prepared.problem, rows, None)[0].to(prepared.wide))
        after = torch.zeros_like(z[0])
        for p in range(min(plan.order, node + 1)):
            after = after + tables.a[node, p] * z[node - p] + tables.b[node, p] * values[node - p]
        if prepared.draw is not None:
            after = after + tables.c[node] * prepared.draw(samples, [node] * batch)
        norms.append(torch.linalg.vector_norm((z[node + 1] - after).flatten(1), dim=1))
    return torch.stack(norms)
