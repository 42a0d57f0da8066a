"""An attempt: steps laid out ahead and solved together, until one of them does not hold or all could be longer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from picard.control import Control
from picard.device import fetch, on_host, send
from picard.interpolate import slopes
from picard.plan import Integrator
from picard.problem import Problem
from picard.progress import RoundInfo
from picard.shapes import Float
from picard.solution import Solution, Status
from picard.solve import solve
from picard.tolerance import RelAbs
from picard.trajectory import Trajectory

_SHARE = 0.01  # of a step's largest error: what the parallel solver may change a state by; less costs few rounds
_SLACK = 2.0  # an attempt ends where its steps could be so many times as long
_TAIL = 4  # latest steps that this is judged by


def tolerance_of(control: Control) -> RelAbs:
    """Return the tolerance at which errors of steps are not those of the parallel solver."""
    return RelAbs(_SHARE * control.rtol, _SHARE * control.atol)


class Attempt:
    """Steps from a state on, and their errors as far as they are known.

    Attributes:
        grid: points of the steps, shape (points,).
        lengths: lengths of the steps, positive, shape (points - 1,), float64, on the CPU.
        errors: of the leading steps, in units of the largest they may have.
        failed: whether the field was not finite somewhere.
        rounds: batched model calls.
        evaluations: rows evaluated.
        syncs: times the host waited.
        residual: see `Solution`.
    """

    def __init__(
        self,
        problem: Problem,
        integrator: Integrator,
        grid: Tensor,
        control: Control,
        bound: Sequence[bool],
        options: dict[str, Any],
    ) -> None:
        """Solve.

        Args:
            problem: the problem that starts at the first point.
            integrator: a method with an error estimate.
            grid: points of the steps, at least three.
            control: how errors are measured.
            bound: whether a step is as long as it may be, whatever its error.
            options: of `solve`.
        """
        tableau: Any = integrator.tableau  # type: ignore[attr-defined]  # checked before
        x0 = problem.x0
        with on_host():
            plan = integrator.plan(problem.points(grid))
        self.grid, self.errors, self.syncs, self._control, self._bound = grid, list[float](), 0, control, bound
        signed = fetch(grid).diff()
        self.lengths, self._stages, self._batch = signed.abs(), tableau.stages, len(x0)
        wide = torch.promote_types(x0.dtype, torch.float32)
        self._weights = send(torch.tensor(tableau.error, dtype=wide, device="cpu"), x0)
        self._signed = send(signed.to(wide), x0)
        self._points = Trajectory(plan, x0, "last", keep="grid")
        self._fields = Trajectory(plan, x0, "last", keep="nodes")  # the last one is that at the end
        tolerance = tolerance_of(control)
        found = solve(
            problem, grid, method=integrator, tolerance=tolerance, callback=self._watch, throw=False, **options
        )
        self.failed = Status.NON_FINITE in found.status
        self.rounds, self.evaluations, self.residual = found.stats.rounds, found.stats.evaluations, found.residual
        self.syncs += found.stats.host_syncs
        if found.success and self.held == len(self.errors):
            self._finish(problem, found, options["max_rows"])

    @property
    def held(self) -> int:
        """Number of leading steps whose errors are small enough."""
        return next((step for step, error in enumerate(self.errors) if not error <= 1), len(self.errors))

    @property
    def states(self) -> Float[Tensor, "held batch *state"]:
        """States after the steps that held."""
        return self._points.states[1 : self.held + 1]

    def following(self) -> float:
        """Return how long the next step may be, positive."""
        held = self.held
        if held < len(self.errors):
            return float(self.lengths[held]) * self._control.factor([self.errors[held]])
        if self.failed:
            return float(self.lengths[held]) * self._control.factor([math.inf])
        return float(self.lengths[held - 1]) * self._control.factor(self.errors[-_TAIL:])

    def _watch(self, info: RoundInfo) -> bool:
        """Keep what a round has found, and say whether to end."""
        self._points.store(info.samples, info.begin, info.stride, info.states.flatten(2))
        self._fields.store(info.samples, [first - 1 for first in info.begin], info.stride, info.field().flatten(2))
        gone = set(range(self._batch)).difference(info.samples)
        known = min(info.converged)
        self._judge(known - 1 if len(self._weights) > self._stages else known)
        judged = len(self.errors)
        if self.held < judged or any(info.converged[sample] < info.steps for sample in gone):
            return True
        if judged in (0, info.steps) or self._bound[judged - 1]:
            return False
        return self._control.factor(self.errors[-_TAIL:]) > _SLACK

    def _judge(self, until: int) -> None:
        """Work out the errors of the steps before `until`."""
        first, stages, weights = len(self.errors), self._stages, self._weights
        if until <= first:
            return
        fields = self._fields.states[first * stages : until * stages + 1].to(weights.dtype)
        inner = fields[:-1].unflatten(0, (until - first, stages))
        estimate = (_like(weights[:stages], inner[0]) * inner).sum(1)
        if len(weights) > stages:
            estimate = estimate + weights[stages] * fields[stages::stages]
        points = self._points.states[first : until + 1].to(weights.dtype)
        estimate = _like(self._signed[first:until], estimate) * estimate
        self.errors += self._control.error(estimate, points[:-1], points[1:])
        self.syncs += 1

    def _finish(self, problem: Problem, found: Solution, max_rows: int | None) -> None:
        """Judge the last step, too, whose error may ask for the field at its end."""
        if len(self._weights) > self._stages:
            end = slopes(problem, self.grid[-1:], found.final[None], max_rows)
            self._fields.states[-1] = end[0]
            self.rounds, self.evaluations = self.rounds + 1, self.evaluations + self._batch
        self._judge(len(self.lengths))


def _like(numbers: Tensor, values: Tensor) -> Tensor:
    """Give numbers the dimensions of values that they multiply along the first."""
    return numbers.reshape(-1, *[1] * (values.ndim - 1))
