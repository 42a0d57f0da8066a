"""The parallel solver."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from picard.engine import Outcome, Setup, run_round
from picard.errors import InvalidProblemError, NonFiniteError, describe
from picard.guess import Hold, resolve_guess
from picard.linearize import Linearization, resolve_linearization
from picard.plan import Integrator
from picard.prepare import Prepared, prepare
from picard.problem import Problem
from picard.progress import Callback, Progress, RoundInfo
from picard.rows import Conditioning
from picard.sde import SDE
from picard.solution import Solution, Stats, Status
from picard.tolerance import Tolerance, resolve_tolerance
from picard.trajectory import Trajectory
from picard.window import Window

logger = logging.getLogger("picard")
_DEFAULT_WINDOW = 64


@torch.no_grad()
def solve(
    problem: Problem | SDE,
    grid: int | Tensor,
    *,
    method: str | Integrator,
    window: int | None = None,
    max_rows: int | None = None,
    max_rounds: int | None = None,
    tolerance: float | Tolerance | None = None,
    linearization: str | Linearization = "secant",
    guess: str | Tensor | Solution = "hold",
    save: Literal["last", "all"] | Sequence[int] | Tensor = "last",
    callback: Callback | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Solution:
    """Solve a problem parallel in time: a window of future nodes in one model call, corrected until it agrees.

    The result agrees with `sequential` on the same problem, grid, method and noise within the tolerance. Every sample
    of the batch has its own window. Every round accepts at least one node, so there are never more rounds than the
    sequential solver makes model calls, whatever the model does.

    Args:
        problem: `ODE`, `SDE` or `Diffusion`.
        grid: times, shape (steps + 1,), floating, monotone in either direction, for an ODE or SDE; number of steps or
            decreasing timesteps for a diffusion model.
        method: a registered name or an integrator such as `DDIM(eta=0.5)`.
        window: nodes in flight per sample, at least 1; 64 by default.
        max_rows: rows (nodes times samples) one model call may hold; more are split, which never changes the result.
        max_rounds: rounds after which to give up; as many as needed by default.
        tolerance: a rule, or a number for the problem's usual rule: `NoiseRatio` for diffusion models (0.1 by
            default), `RelAbs` otherwise (rtol 1e-4, atol 1e-6 by default).
        linearization: `"secant"`, `"frozen"`, `"identity"` (classical Picard) or an object.
        guess: starting values of new nodes: `"hold"` (run on with the last field value), `"copy"` (repeat the last
            state), or a trajectory (steps + 1, batch, *state) or `Solution` to start from.
        save: `"last"`, `"all"`, or indices of grid points; memory is proportional to the window plus what is saved.
        callback: called with a `RoundInfo` after every round; a true return value ends the solve.
        progress: whether to show a tqdm bar.
        throw: whether to raise if a sample does not converge; otherwise its `status` says so.

    Returns:
        The solution.

    Raises:
        InvalidProblemError: if an option has the wrong form.
        InvalidGridError: if the grid is not valid.
        UnknownMethodError: if the method is unknown.
        NotSupportedError: if the method does not exist for the problem.
        NonFiniteError: if the model returns a non-finite value at an exact state; carries the solution so far.
        NotConvergedError: if `max_rounds` is reached; carries the solution so far.
    """
    nodes = _check_at_least_one("window", window)
    _check_at_least_one("max_rows", max_rows)
    _check_at_least_one("max_rounds", max_rounds)
    prepared = prepare(problem, grid, method)
    plan = prepared.plan
    setup = Setup(
        prepared.problem,
        plan,
        prepared.tables,
        Conditioning(prepared.problem.conditioning(), len(prepared.problem.x0)),
        resolve_linearization(linearization),
        resolve_tolerance(tolerance, plan),
        resolve_guess(guess, plan, prepared.tables, prepared.problem.x0, prepared.wide),
        min(nodes or _DEFAULT_WINDOW, plan.nodes),
        max_rows,
    )
    run = _Run(setup, prepared, Trajectory(plan, prepared.problem.x0, save), max_rounds, callback)
    with Progress(plan.steps * len(prepared.problem.x0), enabled=progress) as bar:
        solution = run.finish(bar, throw=throw)
    logger.info("%r", solution)
    if throw and Status.STOPPED not in solution.status:
        solution.raise_for_status()
    return solution


class _Run:
    """One solve: its window, its trajectory and its counts."""

    def __init__(
        self,
        setup: Setup,
        prepared: Prepared,
        trajectory: Trajectory,
        max_rounds: int | None,
        callback: Callback | None,
    ) -> None:
        batch = len(setup.problem.x0)
        self.setup, self.prepared, self.trajectory = setup, prepared, trajectory
        self.max_rounds, self.callback = max_rounds, callback
        self.started = time.perf_counter()
        self.window = Window(setup.plan, setup.problem.x0.to(prepared.wide).flatten(1), prepared.draw)
        self.limit = [setup.window] * batch
        self.reached = [0] * batch  # nodes accepted, per sample
        self.status = [Status.CONVERGED] * batch
        self.residual = torch.zeros(batch, dtype=prepared.wide, device=setup.problem.x0.device)
        self.rounds = self.evaluations = self.syncs = 0
        if not isinstance(setup.guess, Hold) and setup.window > 1:
            start = self.window
            zeros = [0] * batch
            start.slide(start.z[:, start.history + 1 :], start.values, zeros, zeros, self.limit, setup.guess)

    def finish(self, bar: Progress, *, throw: bool) -> Solution:
        """Run round after round until every sample is through, or something ends the solve."""
        window = self.window
        while window.samples:
            if self.rounds == self.max_rounds:
                self._end(Status.MAX_ROUNDS)
                break
            outcome = run_round(self.setup, window)
            info = self._record(outcome)
            if Status.NON_FINITE in self.status and throw:
                raise self._non_finite(outcome)
            self._slide(outcome)
            bar.update(sum(self._steps()))
            if self.callback is not None and self.callback(info):
                self._end(Status.STOPPED)
                break
        return self._solution()

    def _record(self, outcome: Outcome) -> RoundInfo:
        """Count the round, keep the accepted states, and mark samples whose model failed."""
        window = self.window
        self.rounds += 1
        self.syncs += 1
        self.evaluations += sum(window.width)
        samples = torch.tensor(window.samples).to(self.residual.device, non_blocking=True)
        self.residual[samples] = torch.maximum(self.residual[samples], outcome.residual)
        self.trajectory.store(window.samples, window.begin, outcome.stride, outcome.states)
        for i, sample in enumerate(window.samples):
            self.reached[sample] += outcome.stride[i]
            if outcome.usable[i] == 0:
                self.status[sample] = Status.NON_FINITE
        info = RoundInfo(
            round=self.rounds,
            samples=tuple(window.samples),
            begin=tuple(window.begin),
            width=tuple(window.width),
            stride=tuple(outcome.stride),
            converged=self._steps(),
            steps=self.setup.plan.steps,
            rows=sum(window.width),
            change=outcome.change,
            states=outcome.states.unflatten(2, self.setup.problem.x0.shape[1:]),
        )
        logger.debug("round %d: %d rows, converged %s", info.round, info.rows, info.converged)
        return info

    def _slide(self, outcome: Outcome) -> None:
        """Slide every window; one with useless nodes is halved, and doubles again with every clean round."""
        window = self.window
        states, end, stride = outcome.states, [], list(outcome.stride)
        for i, sample in enumerate(window.samples):
            clean = outcome.usable[i] == window.width[i]
            grown = min(2 * self.limit[sample], self.setup.window)
            self.limit[sample] = grown if clean else max(1, window.width[i] // 2)
            end.append(window.begin[i] + outcome.usable[i])
            if outcome.usable[i] == 0:  # the model failed: leave the sample where it is, and go on without it
                self._repeat(i)
                stride[i] = self.setup.plan.nodes
        if any(usable < width for usable, width in zip(outcome.usable, window.width, strict=True)):
            states = torch.nan_to_num(states, posinf=0.0, neginf=0.0)
        window.slide(
            states, outcome.values, stride, end, [self.limit[sample] for sample in window.samples], self.setup.guess
        )

    def _repeat(self, i: int) -> None:
        window = self.window
        self.trajectory.repeat(window.samples[i], window.begin[i], window.z[i, window.history])

    def _end(self, status: Status) -> None:
        for i, sample in enumerate(self.window.samples):
            self.status[sample] = status
            self._repeat(i)

    def _steps(self) -> tuple[int, ...]:
        return tuple(self.prepared.steps_at[node] for node in self.reached)

    def _non_finite(self, outcome: Outcome) -> NonFiniteError:
        window = self.window
        i = outcome.usable.index(0)
        node = window.begin[i]
        for other in range(len(window.samples)):
            self._repeat(other)
        return NonFiniteError(
            round_number=self.rounds,
            step=int(self.setup.plan.step[node]),
            time=float(self.setup.plan.times[node]),
            sample=window.samples[i],
            where="state" if outcome.sound[i] else "drift",
            solution=self._solution(),
        )

    def _solution(self) -> Solution:
        setup, batch = self.setup, len(self.status)
        seconds = time.perf_counter() - self.started
        stats = Stats(self.rounds, self.evaluations, setup.plan.nodes, batch, setup.window, self.syncs, seconds)
        return Solution(
            self.prepared.times[self.trajectory.points],
            self.trajectory.ys,
            self.trajectory.final,
            tuple(self.status),
            self._steps(),
            self.residual,
            stats,
            setup.problem.noise,
        )


def _check_at_least_one(name: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        msg = f"{name} must be an integer of at least 1, or None; given {describe(value)}"
        raise InvalidProblemError(msg)
    checked: int | None = value
    return checked
