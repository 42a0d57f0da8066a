"""Tables: a plan's coefficients where the solver computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from picard.plan import Plan
from picard.shapes import Int


class Coefficients(NamedTuple):
    """A plan's coefficients at the nodes of a window, every tensor of shape (batch, nodes, ...); see `Plan`.

    Attributes:
        a: weights of the states, newest first.
        b: weights of the field values.
        c: scale of the noise.
        factor: step factor at slope 0, and its change per unit of slope.
        yardstick: that of the node after; `c` where the plan has none.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    factor: Tensor
    yardstick: Tensor


@dataclass(frozen=True, eq=False)
class Tables:
    """A plan's coefficients on the state's device, in the dtype of the computation.

    Attributes:
        packed: what `at` looks up, side by side.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    factor: Tensor
    kick: Tensor
    times: Tensor
    yardstick: Tensor | None
    scales: Tensor | None
    inputs: Tensor | None
    packed: Tensor

    @classmethod
    def of(cls, plan: Plan, like: Tensor, time_dtype: torch.dtype) -> Tables:
        """Move a plan to a tensor's device and dtype, each number rounded once."""

        def move(value: Tensor) -> Tensor:
            return value.to(like.dtype).to(like.device)

        yardstick = plan.c if plan.yardstick is None else plan.yardstick
        after = torch.cat([yardstick[1:], yardstick[-1:]])
        return cls(
            packed=move(torch.cat([plan.a, plan.b, plan.c[:, None], plan.factor, after[:, None]], 1)),
            a=move(plan.a),
            b=move(plan.b),
            c=move(plan.c),
            factor=move(plan.factor),
            kick=move(plan.kick),
            times=plan.times.to(time_dtype).to(like.device),
            yardstick=None if plan.yardstick is None else move(plan.yardstick),
            scales=None if plan.scales is None else move(plan.scales),
            inputs=None if plan.inputs is None else move(plan.inputs),
        )

    def at(self, index: Int[Tensor, "batch nodes"]) -> Coefficients:
        """Look up the coefficients of nodes, in one go."""
        order = self.a.shape[1]
        return Coefficients(*self.packed[index].split([order, order, 1, 2, 1], 2))
