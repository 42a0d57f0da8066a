"""ParaTAA (Tang et al., 2024): triangular equations of order k, triangular Anderson acceleration, residual stop."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from benchmarks.baselines.chain import Chain, rms

_RIDGE = 1e-3  # of the published code


def parataa(chain: Chain, tolerance: float, window: int, order: int = 20, memory: int = 3) -> Tensor:
    """Solve in a sliding window by accelerated fixed-point iteration.

    The equations of order k lead to every state from the one k steps before it, or from the window's start, through the
    noise predictions in between. Row i of the acceleration mixes the last `memory` iterates by weights fitted to the
    residuals of the rows up to i, so that a state depends on earlier noise only. A state is done if the residual of the
    first-order equations up to it is within the tolerance times the step's noise.

    Args:
        chain: the recurrence.
        tolerance: the ratio of residual and step noise.
        window: nodes in flight.
        order: k.
        memory: iterates mixed, 1 for none.

    Returns:
        The final state.
    """
    alpha, sigma = chain.scales.unbind(1)
    a, b = chain.a + chain.b / alpha, -chain.b * sigma / alpha  # of the noise prediction (x - alpha D) / sigma
    begin, end = 0, min(window, chain.steps)
    x = chain.start.repeat(chain.steps + 1, 1)
    past: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=memory)
    while begin < chain.steps:
        nodes = torch.arange(begin, end)
        data = chain.data(x[nodes], nodes)
        noise = (x[nodes] - alpha[nodes, None] * data) / sigma[nodes, None]
        forcing = b[nodes, None] * noise + chain.forcing[nodes]
        mapped = chain.step(x[nodes], data, nodes)
        close = rms(mapped - x[nodes + 1]) <= tolerance * chain.yardstick[nodes]
        done = min(int(close.long().cumprod(0).sum()), len(nodes) - 1)
        target = _equations(a[nodes], forcing, x[begin : end + 1], order)
        past.append((begin, x[nodes + 1].clone(), target - x[nodes + 1]))
        x[begin + done + 1 : end + 1] = (target - _mixed(past, begin))[done:]
        x[begin + done + 1] = mapped[done]  # its input is accepted, and stands
        begin, before = begin + done + 1, end
        end = min(begin + window, chain.steps)
        x[before + 1 : end + 1] = x[before]
    return x[-1]


def _equations(a: Tensor, forcing: Tensor, x: Tensor, order: int) -> Tensor:
    """Return every state after the first from the one `order` before it, or from the first."""
    free, product = [torch.zeros_like(x[0])], [torch.ones((), dtype=x.dtype)]
    for weight, force in zip(a, forcing, strict=True):
        free.append(weight * free[-1] + force)
        product.append(weight * product[-1])
    rows = []
    for i in range(1, len(x)):
        base = max(0, i - order)
        share = product[i] / product[base]
        rows.append(free[i] + share * (x[base] - free[base]))
    return torch.stack(rows)


def _mixed(past: deque[tuple[int, Tensor, Tensor]], begin: int) -> Tensor:
    """Return what acceleration subtracts from the new states, row by row."""
    correction = torch.zeros_like(past[-1][2])
    whole = [(x[begin - b :], r[begin - b :]) for b, x, r in past]
    shared = min(len(x) for x, _ in whole)
    if len(whole) < 2 or shared == 0:
        return correction
    x = torch.stack([one[:shared] for one, _ in whole]).diff(dim=0)
    r = torch.stack([one[:shared] for _, one in whole])
    change, newest = r.diff(dim=0), r[-1]
    gram = torch.einsum("ind,jnd->nij", change, change).cumsum(0)
    right = torch.einsum("ind,nd->ni", change, newest).cumsum(0)
    scale = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + torch.finfo(x.dtype).tiny
    weights = torch.linalg.solve(gram + _RIDGE * scale * torch.eye(len(x), dtype=x.dtype), right[..., None])[..., 0]
    correction[:shared] = torch.einsum("ni,ind->nd", weights, x + change)
    return correction
