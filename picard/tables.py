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
        yardstick: that of the node after, if the plan has any.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    factor: Tensor
    yardstick: Tensor | None


@dataclass(frozen=True, eq=False)
class Tables:
    """A plan's coefficients on the state's device, in the dtype of the computation."""

    a: Tensor
    b: Tensor
    c: Tensor
    factor: Tensor
    kick: Tensor
    times: Tensor
    yardstick: Tensor | None
    scales: Tensor | None
    inputs: Tensor | None

    @classmethod
    def of(cls, plan: Plan, like: Tensor, time_dtype: torch.dtype) -> Tables:
        """Move a plan to a tensor's device and dtype, each number rounded once."""

        def move(value: Tensor) -> Tensor:
            return value.to(like.dtype).to(like.device)

        return cls(
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
        """Look up the coefficients of nodes."""
        yardstick = None
        if self.yardstick is not None:
            yardstick = self.yardstick[(index + 1).clamp_max(len(self.yardstick) - 1)]
        return Coefficients(self.a[index], self.b[index], self.c[index], self.factor[index], yardstick)
