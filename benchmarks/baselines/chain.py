"""The recurrence every baseline solves: one sample of a diffusion model under a sampler of order one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import picard
from picard.conditioning import Conditioning
from picard.prepare import prepare
from picard.rows import Rows


class Chain:
    """The recurrence `x[i+1] = a[i] x[i] + b[i] D(x[i], t[i]) + forcing[i]`, D being the data prediction.

    Attributes:
        steps: number of steps, T.
        a: weights of the states, shape (T,), float64 like all that follows.
        b: weights of the data predictions, shape (T,).
        scales: alpha and sigma of every node, shape (T, 2).
        yardstick: standard deviation that a change of the state after every node is compared with, shape (T,).
        forcing: the noise `c[i] xi[i]`, shape (T, dims).
        start: the initial state, shape (dims,).
        rounds: model calls one after the other so far.
        evaluations: rows evaluated so far.
    """

    def __init__(self, problem: picard.Diffusion, steps: int, method: str) -> None:
        """Write a problem of one sample as a chain."""
        prepared = prepare(problem, steps, method)
        plan = prepared.plan
        if plan.order != 1 or plan.yardstick is None or plan.scales is None or len(problem.x_T) != 1:
            msg = "a chain has one sample, and a step of order one of a diffusion model"
            raise ValueError(msg)
        self.steps = plan.nodes
        self.a, self.b, self.scales = plan.a[:, 0], plan.b[:, 0], plan.scales
        self.yardstick = torch.cat([plan.yardstick[1:], plan.yardstick[-1:]])[: self.steps]
        self.start = problem.x_T.flatten().double()
        self.forcing = torch.zeros(self.steps, len(self.start), dtype=torch.float64)
        if prepared.draw is not None:
            noise = prepared.draw([0] * self.steps, list(range(self.steps))).flatten(1)
            self.forcing = plan.c[:, None] * noise.double()
        self.rounds = self.evaluations = 0
        self._problem, self._prepared = problem, prepared
        self._conditioning = Conditioning(problem.conditioning(), 1)

    def data(self, x: Tensor, nodes: Sequence[int] | Tensor) -> Tensor:
        """Predict the data at states (rows, dims) of given nodes in one call, and count it."""
        nodes = torch.as_tensor(nodes)
        self.rounds += 1
        self.evaluations += len(nodes)
        start = self._problem.x_T
        rows = Rows(
            self._prepared.tables.times[nodes],
            x.to(start.dtype).reshape(len(x), *start.shape[1:]),
            self._conditioning.of(len(x), torch.zeros(len(x), dtype=torch.int64)),
            self.scales.to(start.dtype)[nodes],
        )
        return self._problem.field(rows)[0].flatten(1).double()

    def step(self, x: Tensor, data: Tensor, nodes: Sequence[int] | Tensor) -> Tensor:
        """Take one step from every given node; all arguments have one row a node."""
        return self.a[nodes, None] * x + self.b[nodes, None] * data + self.forcing[nodes]

    def jump(self, x: Tensor, data: Tensor, first: int, last: int) -> Tensor:
        """Go from node `first` to node `last` with the data prediction held and every step's own noise."""
        for node in range(first, last):
            x = self.a[node] * x + self.b[node] * data + self.forcing[node]
        return x


def rms(x: Tensor) -> Tensor:
    """Root mean square over the last dimension."""
    return x.square().mean(-1).sqrt()
