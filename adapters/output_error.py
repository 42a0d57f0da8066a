"""Output errors: by what an error of the denoiser's output makes of a state, a planned pipeline accepts states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picard.device import send
from picard.plan import Plan
from picard.progress import RoundInfo
from picard.tolerance import Candidates, Tolerance

from .scheduled import Indexed

_NOISE = 32  # units in the last place that a change may keep because the model rounds
_COARSE = 1 / 8  # of a unit's square root is the most it may keep: fewer of the units of half precision
_SHARE = 1 / 8  # outputs are those before a state's last change: so plan and replay err alike (measured on digits)
_PATIENCE = 6  # rounds after which it may
_FLOOR = 4  # units in the last place that count as no change, as in the solver


@dataclass(frozen=True)
class OutputError(Tolerance):
    """Accept changes well below what an error of a share of the denoiser's output makes of a state in one step.

    The output's size is taken as one. Where a state keeps changing by rounding alone, that is accepted, too: in half
    precision at once, since the pipeline rounds its own states by as much in every step.

    Attributes:
        relative: the share.
        eps: unit in the last place of the numbers that the model computes with.
    """

    relative: float
    eps: float

    @property
    def rounding(self) -> float:
        """Return the largest change, relative to the state, that may be rounding."""
        return min(_NOISE * self.eps, _COARSE * self.eps**0.5)

    def coarser(self, dtype: torch.dtype) -> bool:
        """Say whether the model rounds by more than a dtype, that of the states."""
        return self.eps > torch.finfo(dtype).eps

    def bound(self, candidates: Candidates) -> Tensor:
        """Return the share of the yardstick, which is what a step makes of an output of size one."""
        size, effect = candidates.size, candidates.yardstick
        bound = _SHARE * self.relative * (size if effect is None else effect)
        late = torch.maximum(bound, self.rounding * size)
        # Otherwise the solver allows for as much itself.
        soon = torch.maximum(bound, self.eps * size) if self.coarser(size.dtype) else bound
        return torch.where(candidates.age >= _PATIENCE, late, soon)


@dataclass(frozen=True, eq=False)
class Weighed(Indexed):
    """A plan whose changes are measured against what a step makes of the denoiser's output.

    Attributes:
        w: weight of the output in the data prediction, by node.
    """

    w: Tensor

    def plan(self, points: Any) -> Plan:
        """Return the plan."""
        return replace(super().plan(points), yardstick=self.effect)

    @property
    def effect(self) -> Tensor:
        """What the step to a node makes of an output of size one, by node."""
        effect = self.source.b.abs().amax(1) * self.w.abs()
        return torch.cat([effect[:1], effect[:-1]])


def largest_error(info: RoundInfo, effect: Tensor, rounding: float) -> Tensor:
    """Return the largest relative error of an output with which a round accepts a state, taking its size as one.

    Changes that are rounding are those of a state and not of one output: they count relative to the state.

    Args:
        info: the round; of the states it accepts, the last one is not tested.
        effect: what a step makes of an output of size one, by node.
        rounding: largest change, relative to the state, that is rounding of the model.
    """
    slots = np.arange(info.change.shape[1])
    begin, tested = np.array(info.begin)[:, None], np.array(info.stride)[:, None] - 1
    node, accepted = send(np.minimum(begin + slots, len(effect) - 1), effect), send(slots < tested, effect)
    size = info.states.flatten(2).square().mean(2).sqrt()
    unit = torch.where(info.change <= rounding * size, size, effect[node])
    error = torch.where(unit > 0, (info.change - _FLOOR * torch.finfo(effect.dtype).eps * size) / unit, 0)
    return torch.where(accepted, error, 0).amax().clamp_min(0)
