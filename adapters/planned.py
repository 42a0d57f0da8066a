"""Planned: a pipeline's loop on its scheduler's plan, solved by the core."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from picard.errors import PicardError
from picard.progress import RoundInfo
from picard.solution import Solution, Status
from picard.solve import solve

from .belief import Belief
from .calls import main_tensor, with_main_tensor
from .denoisers import Denoisers
from .guidance import Unplanned
from .output_error import OutputError, Weighed, largest_error
from .scout import Scout
from .stats import Stats


class Planned:
    """A recognised pipeline: its denoiser and guidance as the model of a problem.

    Args:
        denoisers: the denoisers.
        scout: what the scout has seen.

    Attributes:
        nodes: nodes of the plan.
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
        self._eps = max(denoisers.eps(phase.call, self.first[1]) for phase in self._phases)
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
        rule = OutputError(options.tolerance, self._eps)
        coarse = rule.coarser(self._inputs.dtype)
        rounding = rule.rounding if coarse else 0.0

        def note(info: RoundInfo) -> None:
            errors.append(torch.maximum(errors.pop(), largest_error(info, effect, rounding)))
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
                    tolerance=rule,
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
        held = -self._problem.trace.u / self._problem.trace.w  # slopes at which the data prediction stays
        slopes = held.repeat_interleave(len(self._phases)).tolist() if coarse else None
        return solution, Belief(outputs, inputs, options.tolerance, self._eps, slopes)

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


def count(stats: Stats, planned: Planned, solution: Solution, options: Any) -> None:
    """Add what a solve cost to the statistics of a call."""
    stats.mode = "plan"
    if planned.residual > options.tolerance:  # since the model rounds
        stats.stall(options.tolerance, planned.residual, asked=options.asked)
    stats.rounds += solution.stats.rounds - planned.spared
    stats.evaluations += planned.evaluations
    stats.residual = planned.residual
