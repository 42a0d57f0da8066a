"""Planned: a pipeline's loop on its scheduler's plan, solved by the core."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picard.device import send
from picard.errors import PicardError
from picard.plan import Plan
from picard.progress import RoundInfo
from picard.solution import Solution, Status
from picard.solve import solve
from picard.tolerance import Candidates, Tolerance

from .belief import Belief
from .calls import main_tensor, with_main_tensor
from .denoisers import Denoisers
from .guidance import Unplanned
from .scheduled import Indexed
from .scout import Scout
from .stats import Stats

_NOISE = 32  # units in the last place that a change may keep because the model rounds
_MOST = 1 / 4  # but no more than this share of the digits that half precision has, the root of its unit
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

    def bound(self, candidates: Candidates) -> Tensor:
        """Return the share of the yardstick, which is what a step makes of an output of size one."""
        size, effect = candidates.size, candidates.yardstick
        bound = _SHARE * self.relative * (size if effect is None else effect)
        coarse = self.eps > torch.finfo(size.dtype).eps  # otherwise the solver allows for as much itself
        late = torch.maximum(bound, min(_NOISE * self.eps, _MOST * self.eps**0.5) * size)
        soon = torch.maximum(bound, self.eps * size) if coarse else bound
        return torch.where(candidates.age >= _PATIENCE, late, soon)


class Planned:
    """A recognised pipeline: its denoiser and guidance as the model of a problem.

    Args:
        denoisers: the denoisers.
        scout: what the scout has seen.

    Attributes:
        nodes: nodes of the plan.
        eps: unit in the last place of the numbers that the denoiser computes with.
        first: the first call and its output.
        evaluations: rows evaluated.
        spared: rounds that needed no evaluation, since the scout had made it.
        residual: largest relative error of an output with which a state was accepted.

    Raises:
        Unplanned: if the scout has seen something that no plan can say.
    """

    def __init__(self, denoisers: Denoisers, scout: Scout) -> None:
        noise = scout.noise()
        if scout.problem is None or scout.first is None:
            msg = "its scheduler makes no step"
            raise Unplanned(msg)
        self._denoisers, self._phases, self.first = denoisers, scout.phases, scout.first
        self._guidance = scout.measured.guidance()
        self.eps = max(denoisers.eps(phase.call, self.first[1]) for phase in self._phases)
        for phase in self._phases:
            phase.freeze()
        self.nodes, self._samples = scout.problem.trace.plan.nodes, len(scout.problem.start)
        order = torch.arange(self.nodes, dtype=torch.int64, device="cpu")
        self._problem = replace(
            scout.problem,
            model=self._model,
            trace=replace(scout.problem.trace, timesteps=order),
            noise=noise,
            cond={"sample": torch.arange(self._samples, device=scout.problem.start.device)},
        )
        start = self._problem.x0
        self._inputs = start.new_zeros(self.nodes, *start.shape)
        self._outputs: list[Tensor] = []  # by phase: (nodes, copies, samples, ...)
        self.evaluations = self.spared = 0
        self.residual = 0.0
        self._asked = False  # whether the solver has called the model

    @property
    def rows(self) -> int:
        """Rows of the denoiser for one state of all samples."""
        return sum(phase.call.rows for phase in self._phases)

    def solve(
        self, options: Any, check: Callable[[Any, Any], None] | None, watch: Callable[[RoundInfo], None]
    ) -> tuple[Solution, Belief]:
        """Solve the loop.

        Args:
            options: window, tolerance and rows; see `Options`.
            check: compares the first call's output in a batch with that alone, if it is still to be.
            watch: sees every round.

        Returns:
            The solution, and the outputs of all denoiser calls.

        Raises:
            Unplanned: if the solver refuses the plan, or the denoiser returns a non-finite value.
        """
        self._check, each = check, self.rows // self._samples
        self._most = sys.maxsize if options.max_rows is None else max(1, options.max_rows // each)
        method = Weighed(self._problem.trace.plan, self._problem.trace.w)
        effect, errors = method.effect.to(self._inputs), [self._inputs.new_zeros(())]

        def note(info: RoundInfo) -> None:
            errors.append(torch.maximum(errors.pop(), _error(info, effect, self.eps)))
            watch(info)

        try:
            with torch.no_grad():
                solution = solve(
                    self._problem,
                    self.nodes,
                    method=method,
                    guess="hold",  # its first round is the call that is known already
                    window=options.window,
                    max_rows=self._most,
                    tolerance=OutputError(options.tolerance, self.eps),
                    callback=note,
                    throw=False,
                )
        except PicardError as error:
            if self._asked:  # then it is about the denoiser, and replay would meet it, too
                raise
            raise Unplanned(str(error)) from error
        self.residual = float(errors[0])
        if any(status is not Status.CONVERGED for status in solution.status):
            msg = "the denoiser returns a value that is not finite"
            raise Unplanned(msg)
        outputs, inputs = [], []
        for node in range(self.nodes):
            for phase, values in zip(self._phases, self._outputs, strict=True):
                outputs.append(with_main_tensor(self.first[1], values[node].flatten(0, 1)))
                inputs.append(self._inputs[node].to(phase.call.x.dtype))
        return solution, Belief(outputs, inputs, options.tolerance, self.eps, self._slopes())

    def _slopes(self) -> list[float] | None:
        """List the slopes, by call, at which outputs hold the data prediction; `None` if rounding is the solver's."""
        trace = self._problem.trace
        if self.eps <= torch.finfo(self._inputs.dtype).eps:
            return None
        return (-trace.u / trace.w).repeat_interleave(len(self._phases)).tolist()

    def _model(self, x: Tensor, node: Tensor, *, sample: Tensor) -> Tensor:
        """Evaluate denoiser and guidance at rows of states, and keep the outputs for the pipeline."""
        self._asked = True
        first, rows = main_tensor(self.first[1]), len(x)
        check = self._check if self._outputs and rows + self._samples <= self._most else None
        if check is not None:  # the first call's rows ride along with others
            everyone = torch.arange(self._samples, device=x.device)
            x, node = torch.cat([x, self._problem.x0.to(x)]), torch.cat([node, torch.zeros_like(everyone)])
            sample = torch.cat([sample, everyone])
        calls = [phase.rows(x, node, sample) for phase in self._phases]
        known = [] if self._outputs or rows != self._samples else [self.first[1]]  # the first round is the first call
        self.spared += len(known) == len(calls)
        self.evaluations += sum(call.rows for call in calls[len(known) :])
        found = [*known, *self._denoisers.evaluate(calls[len(known) :], None)]
        values = [
            main_tensor(one).unflatten(0, (phase.copies, -1)) for phase, one in zip(self._phases, found, strict=True)
        ]
        if check is not None:
            check(values[0][:, rows:].flatten(0, 1), first)
            self._check = None
            x, node, sample = x[:rows], node[:rows], sample[:rows]
            values = [value[:, :rows] for value in values]
        if not self._outputs:
            self._outputs = [one.new_zeros(self.nodes, len(one), self._samples, *one.shape[2:]) for one in values]
        for kept, value in zip(self._outputs, values, strict=True):
            kept[node, :, sample] = value.transpose(0, 1)
        self._inputs[node, sample] = x.to(self._inputs)
        parts = [part[:, : x.shape[1]] for value in values for part in value.unbind(0)]
        return self._guidance.combine(parts, node)


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


def _error(info: RoundInfo, effect: Tensor, eps: float) -> Tensor:
    """Return the largest relative error of an output with which a round accepts a state, taking its size as one.

    A change within the model's rounding is no output's error but the state's: relative to that it counts.

    Args:
        info: the round; of the states it accepts, the last one is not tested.
        effect: what a step makes of an output of size one, by node.
        eps: unit in the last place of the numbers that the model computes with.
    """
    slots = np.arange(info.change.shape[1])
    begin, tested = np.array(info.begin)[:, None], np.array(info.stride)[:, None] - 1
    node, accepted = send(np.minimum(begin + slots, len(effect) - 1), effect), send(slots < tested, effect)
    size = info.states.flatten(2).square().mean(2).sqrt()
    unit = torch.where(info.change <= eps * size, size, effect[node])
    error = torch.where(unit > 0, (info.change - _FLOOR * torch.finfo(effect.dtype).eps * size) / unit, 0)
    return torch.where(accepted, error, 0).amax().clamp_min(0)


def count(stats: Stats, planned: Planned, solution: Solution, tolerance: float) -> None:
    """Add what a solve cost to the statistics of a call."""
    stats.mode = "plan"
    if planned.residual > tolerance:  # since the model rounds
        stats.stall(tolerance, planned.residual)
    stats.rounds += solution.stats.rounds - planned.spared
    stats.evaluations += planned.evaluations
    stats.residual = planned.residual
