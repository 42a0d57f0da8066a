"""The march: attempts one after the other, from the start to the end."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from picard.attempt import Attempt, tolerance_of
from picard.conditioning import Conditioning
from picard.control import Control
from picard.device import fetch
from picard.engine import Setup
from picard.errors import NonFiniteError, NotConvergedError
from picard.gradient import differentiation, solve_with_gradient
from picard.guess import resolve_guess
from picard.interpolate import slopes
from picard.linearize import resolve_linearization
from picard.memory import RowLimit
from picard.plan import Integrator
from picard.prepare import prepare
from picard.problem import Problem
from picard.solution import Solution, Stats, Status
from picard.trajectory import Trajectory

_LEAST = 8  # units in the last place of the time that a step must be long, or rounding makes it another one
_WINDOWS = (4, 16)  # of nodes that an attempt lays out: to begin anew costs rounds, and to lay out more costs memory
_NUMBERS = 2**24  # that may be held for more windows than the fewest


class March:
    """Where the attempts have come to, and what they have cost.

    Attributes:
        at: the time reached.
    """

    def __init__(
        self,
        problem: Problem,
        times: Tensor,
        stops: list[float],
        integrator: Integrator,
        control: Control,
        options: dict[str, Any],
        started: float,
        *,
        all_states: bool,
    ) -> None:
        """Stand at the start.

        Args:
            problem: the problem, from its start.
            times: see `adaptive`.
            stops: the same on the host.
            integrator: a method with an error estimate.
            control: how errors are measured.
            options: of `solve`.
            started: when the clock was started.
            all_states: whether to keep the states after all steps; otherwise those at the times.
        """
        self._problem, self._times, self._integrator, self._control = problem, times, integrator, control
        self._options, self._started, self._all = options, started, all_states
        self._sign = math.copysign(1.0, stops[-1] - stops[0])
        self._stops = [self._sign * stop for stop in stops]  # ascending
        self._landings = set(self._stops)
        fewest, most = (windows * options["window"] for windows in _WINDOWS)
        nodes = min(most, max(fewest, _NUMBERS // max(1, problem.x0.numel())))
        tableau: Any = integrator.tableau  # type: ignore[attr-defined]  # checked before
        self._stages = tableau.stages
        self._most = max(2, nodes // self._stages)  # steps of an attempt
        self.at, self._state = stops[0], problem.x0.detach()
        self._grid, self._kept = [self.at], [self._state[None]]
        self._step = 0.0  # length wanted of the next step
        self._rounds = self._evaluations = self._syncs = 0
        self._residual = self._state.new_zeros(len(self._state), dtype=torch.float32)

    @property
    def share(self) -> float:
        """Share of the time that is solved."""
        return (self._sign * self.at - self._stops[0]) / (self._stops[-1] - self._stops[0])

    def begin(self, first_step: float | None) -> None:
        """Begin with steps of a length that is given or guessed."""
        self._step = first_step or self._control.first(self._state, self._slope)
        self._syncs += 0 if first_step else 3

    def _slope(self, ahead: float, x: Tensor) -> Tensor:
        """Return the field so far ahead, along the way."""
        self._spend(1, len(x), 0)
        when = torch.tensor([self.at + self._sign * ahead], dtype=self._times.dtype, device="cpu")
        return self._sign * slopes(self._problem, when, x[None], self._options["max_rows"])[0]

    def go_on(self, most: int | None) -> None:
        """Attempt steps, and take up those that hold.

        Args:
            most: steps after which no more are attempted.

        Raises:
            NonFiniteError: if the field is not finite at the state reached.
            NotConvergedError: if there are so many steps, or none is short enough.
        """
        steps = len(self._grid) - 1
        if most is not None and steps >= most:
            msg = (
                f"{most} steps lead to t = {self.at:g} only: raise max_steps (max_num_steps in the options of odeint), "
                "or loosen rtol and atol"
            )
            raise NotConvergedError(msg, self.solution("times"))
        grid, bound = self._ahead()
        values = fetch(grid)
        least = _LEAST * torch.finfo(self._times.dtype).eps * abs(self.at)
        if self._step < least or not bool((self._sign * values.diff() > 0).all()):
            msg = (
                f"steps must be longer than {self._times.dtype} can tell apart; those from t = {self.at:g} on would "
                "not be: the solution may end there; if it does not, loosen rtol and atol, or give the times in float64"
            )
            raise NotConvergedError(msg, self.solution("times"))
        own: Any = self._problem.alone
        problem = self._problem.like(replace(own, x0=self._state))
        attempt = Attempt(problem, self._integrator, grid, self._control, bound, self._options)
        self._spend(attempt.rounds, attempt.evaluations, attempt.syncs)
        self._residual = torch.maximum(self._residual, attempt.residual)
        held, wanted = attempt.held, attempt.following()
        longer = held > 0 and held == len(attempt.errors) and bound[held - 1]  # than it was, if it could have been
        self._step = max(self._step, wanted) if longer else wanted
        if held == 0:
            if attempt.failed:
                self._check_finite()
            return
        new = values[1 : held + 1].tolist()
        kept = [step for step, t in enumerate(new) if self._all or self._sign * t in self._landings]
        self._grid += new
        self._kept.append(attempt.states[kept])
        self.at, self._state = new[-1], attempt.states[-1].clone()

    def _ahead(self) -> tuple[Tensor, list[bool]]:
        """Lay out steps of about the length wanted, which end at the times.

        Returns:
            The points, here the first, and whether each step is as long as it may be, whatever its error.
        """
        at = self._sign * self.at
        points, bound = [at], list[bool]()
        place = bisect_right(self._stops, at)
        while place < len(self._stops) and len(bound) < self._most:
            start, stop, place = points[-1], self._stops[place], place + 1
            parts = max(1, math.ceil((stop - start) / self._step - 1e-9))
            count = min(parts, self._most - len(bound))
            points += [start + (stop - start) * (part / parts) for part in range(1, count + 1)]
            points[-1] = stop if count == parts else points[-1]
            bound += [parts == 1] * count
        if len(bound) == 1:  # a grid has two steps at least
            points, bound = [at, (at + points[-1]) / 2, points[-1]], [True, True]
        grid = self._sign * torch.tensor(points, dtype=torch.float64, device="cpu")
        return grid.to(self._times.dtype).to(self._times.device), bound

    def _check_finite(self) -> None:
        """Check the field at the state reached.

        Raises:
            NonFiniteError: if it is not finite.
        """
        sound = torch.isfinite(self._slope(0.0, self._state)).flatten(1).all(1)
        if not bool(sound.all()):
            raise NonFiniteError(
                round_number=self._rounds,
                step=len(self._grid) - 1,
                time=self.at,
                sample=int(sound.int().argmin()),
                where="drift",
                solution=self.solution("times"),
            )

    def solution(self, save: str) -> Solution:
        """Return what was reached, and what it has cost."""
        states, steps, x0 = torch.cat(self._kept), len(self._grid) - 1, self._problem.x0
        done = self._sign * self.at == self._stops[-1]
        if save == "all":
            ts = self._points()
        elif save == "last":
            ts, states = self._points()[-1:], self._state[None]
        else:
            ts, states = self._times, states[self._landed()] if self._all else states
            states = torch.cat([states, self._state.expand(len(ts) - len(states), *x0.shape)])
        return Solution(
            ts,
            states,
            self._state,
            (Status.CONVERGED if done else Status.STOPPED,) * len(x0),
            (steps,) * len(x0),
            self._residual,
            self._stats(),
            None,
        )

    def with_gradient(self, save: str) -> Solution:
        """Return what was reached as the solution on the steps found, which are constants to its gradient."""
        options = self._options
        prepared = prepare(self._problem, self._points(), self._integrator)
        problem, x0 = prepared.problem, prepared.problem.x0
        setup = Setup(
            problem,
            prepared.plan,
            prepared.tables,
            Conditioning(problem.conditioning(), len(x0)),
            resolve_linearization(options["linearization"]),
            tolerance_of(self._control),
            resolve_guess(None, prepared.plan, prepared.tables, x0, prepared.wide),
            min(options["window"], prepared.plan.nodes),
            options["max_rows"],
            certifier=None,
            thinning=None,
        )
        by = problem.together(lambda: differentiation(setup, prepared))
        self._spend(0, 1, 0)

        def known(_: Tensor, trajectory: Trajectory) -> Solution:
            trajectory.states.copy_(torch.cat(self._kept))  # a Runge-Kutta method's inner states follow from these
            return self.solution(save)

        points = self._landed() if save == "times" else save
        return solve_with_gradient(setup, prepared, points, by, known)

    def _spend(self, rounds: int, evaluations: int, syncs: int) -> None:
        """Count what something has cost."""
        self._rounds, self._evaluations = self._rounds + rounds, self._evaluations + evaluations
        self._syncs += syncs

    def _points(self) -> Tensor:
        """Return all points of the steps."""
        return torch.tensor(self._grid, dtype=self._times.dtype, device="cpu").to(self._times.device)

    def _landed(self) -> list[int]:
        """Return the indices of the points at the times."""
        return [step for step, t in enumerate(self._grid) if self._sign * t in self._landings]

    def _stats(self) -> Stats:
        x0, options = self._problem.x0, self._options
        nodes = (len(self._grid) - 1) * self._stages
        seconds, most = time.perf_counter() - self._started, RowLimit(self._problem, x0).rows(options["max_rows"])
        return Stats(self._rounds, self._evaluations, nodes, len(x0), options["window"], self._syncs, seconds, most)
