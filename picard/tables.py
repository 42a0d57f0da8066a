"""Tables: a plan's coefficients where the solver computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from picard.permodel import PerModel
from picard.plan import Plan
from picard.shapes import Float, Int


class Coefficients(NamedTuple):
    """A plan's coefficients at the nodes of a window, every tensor of shape (batch, nodes, ...); see `Plan`.

    Attributes:
        a: weights of the states, newest first.
        b: weights of the field values.
        c: scale of the noise.
        factor: step factor at slope 0, its change per unit of slope, and the inverse of that, 0 where there is none.
        yardstick: that of the node after, if the plan has any.
        inputs: weights of the states whose sum the field is evaluated at, if it is such a sum.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    factor: Tensor
    yardstick: Tensor | None
    inputs: Tensor | None


@dataclass(frozen=True, eq=False)
class Tables:
    """A plan's coefficients on the state's device, in the dtype of the computation.

    The yardstick is that of the node after, by which the state after a node is judged; the last node's is its own.
    Instants are the times of nodes, or their indices where a stage's times do not go one way, as sums of two numbers,
    or of one in float64: differences of times are so as exact as the dtype allows.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    factor: Tensor
    kick: Tensor
    times: Tensor
    instants: Tensor
    yardstick: Tensor | None
    scales: Tensor | None
    inputs: Tensor | None

    @classmethod
    def of(cls, plan: Plan, like: Tensor, time_dtype: torch.dtype) -> Tables:
        """Move a plan to a tensor's device and dtype, each number rounded once, and keep that while the plan lives."""
        known, key = _MADE.of(plan), (like.dtype, like.device, time_dtype)
        if key not in known:
            with torch.inference_mode(mode=False):  # a later solve may need gradients
                known[key] = cls._made(plan, like, time_dtype)
        return known[key]

    @classmethod
    def _made(cls, plan: Plan, like: Tensor, time_dtype: torch.dtype) -> Tables:
        def move(value: Tensor) -> Tensor:
            return value.to(like.dtype).to(like.device)

        return cls(
            a=move(plan.a),
            b=move(plan.b),
            c=move(plan.c),
            factor=move(torch.cat([plan.factor, _inverse(plan.factor[:, 1:], like.dtype)], 1)),
            kick=move(plan.kick),
            times=plan.times.to(time_dtype).to(like.device),
            instants=move(_instants(plan, like.dtype)),
            yardstick=None if plan.yardstick is None else move(after(plan.yardstick)),
            scales=None if plan.scales is None else move(plan.scales),
            inputs=None if plan.inputs is None else move(plan.inputs),
        )

    def tapered(self, power: float) -> Tables:
        """Return tables whose yardstick shrinks where there is little noise, by `min(1, sigma / alpha) ** power`.

        The levels are those of the judged states, like the yardstick itself. Plans over times stay as they are.
        """
        if power == 0 or self.yardstick is None or self.scales is None:
            return self
        level = (self.scales[:, 1] / self.scales[:, 0]).clamp_max(1)
        return replace(self, yardstick=self.yardstick * after(level) ** power)

    def at(self, index: Int[Tensor, "batch nodes"]) -> Coefficients:
        """Look up the coefficients of nodes."""
        yardstick, inputs = (None if one is None else one[index] for one in (self.yardstick, self.inputs))
        return Coefficients(self.a[index], self.b[index], self.c[index], self.factor[index], yardstick, inputs)

    def kicks(self, nodes: Int[Tensor, "*nodes"], noise: Float[Tensor, "*nodes *noise"]) -> Tensor:
        """Scale noise that enters through the field: increments over step sizes."""
        return self.kick[nodes].reshape(*nodes.shape, *[1] * (noise.ndim - nodes.ndim)) * noise


_MADE: PerModel[Tables] = PerModel()


def _inverse(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Invert what has an inverse in a dtype's range, and make the rest zero."""
    usable = values.abs() > 1 / torch.finfo(dtype).max
    return torch.where(usable, 1 / torch.where(usable, values, 1), 0)


def _instants(plan: Plan, dtype: torch.dtype) -> Float[Tensor, "nodes parts"]:
    """Split times into what a dtype holds and what it leaves, if it leaves anything."""
    stages = plan.stages
    pace = plan.times[stages:] - plan.times[:-stages]
    steady = bool((pace > 0).all()) or bool((pace < 0).all())
    times = plan.times if steady else torch.arange(plan.nodes, device="cpu").double()
    held = times.to(dtype).double()
    return times[:, None] if dtype == torch.float64 else torch.stack([held, times - held], 1)


def after(values: Float[Tensor, " nodes"]) -> Float[Tensor, " nodes"]:
    """Return for every node the value at the node after; the last one's is its own."""
    return torch.cat([values[1:], values[-1:]])
