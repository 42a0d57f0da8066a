"""One run of the solver: rounds, counts and what is kept, from the first node to the last."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from picard.advance import Advance
from picard.conditioning import map_tensors
from picard.device import send
from picard.engine import Outcome, Setup, call_model
from picard.errors import NonFiniteError
from picard.memory import RowLimit
from picard.move import move, only, open_windows
from picard.prepare import Prepared
from picard.progress import Callback, Progress, RoundInfo
from picard.returned import check_slope
from picard.ring import Ring
from picard.rounds import run_rounds
from picard.solution import Solution, Stats, Status
from picard.thin import REACH
from picard.tolerance import TotalVariation
from picard.trajectory import Trajectory
from picard.transforms import forwards

logger = logging.getLogger("picard")


class Run:
    """One solve: its window, its trajectory and its counts."""

    def __init__(
        self,
        setup: Setup,
        prepared: Prepared,
        x0: Tensor,
        trajectory: Trajectory,
        max_rounds: int | None,
        callback: Callback | None,
        evaluations: int = 0,
    ) -> None:
        """Start a run; `evaluations` counts the rows that preparing it has cost."""
        batch = len(x0)
        self.setup, self.prepared, self.trajectory = setup, prepared, trajectory
        self.max_rounds, self.callback = max_rounds, callback
        self.started = time.perf_counter()
        whole = setup.functions is not None and setup.functions.slides
        ring = None
        if prepared.draw is not None:
            reach = setup.window * (REACH if setup.thinning else 1 + setup.sync_every if whole else 1)
            ring = Ring(prepared.draw, batch, setup.plan.nodes, reach, setup.problem.noise_shape)
        start_states = x0.to(prepared.wide).flatten(1)
        self.window = open_windows(setup, start_states, ring, setup.window if whole else 1)
        self.reached = [0] * batch  # nodes accepted, per sample
        self.status = [Status.CONVERGED] * batch
        self.residual = [0.0] * batch
        self.rounds, self.evaluations, self.syncs = 0, evaluations, 0
        self.kept: list[int] | None = None  # rows of the last round's samples that go on, if others do not

    def finish(self, bar: Progress, *, throw: bool) -> Solution:
        """Run round after round until every sample is through, or something ends the solve."""
        window = self.window
        for outcome in self._outcomes():
            info = self._record(outcome)
            failed = outcome.usable.index(0) if throw and 0 in outcome.usable else None
            sample, node = (window.samples[failed], window.begin[failed]) if failed is not None else (0, 0)
            self._slide(outcome)
            if failed is not None:
                self._end(Status.STOPPED)
                where = "state" if outcome.sound(failed) else "drift"
                if where == "state":  # which a slope that is not finite spoils, too
                    step = outcome.step  # where a round has slid the windows on, these are the slopes there
                    slopes = step.field.slope if isinstance(step, Advance) else step.state.slope
                    check_slope(self.setup.linearization, float(slopes[failed, 0]))
                raise self._non_finite(sample, node, where)
            bar.show(lambda: sum(self._steps()))
            if info is not None and self.callback is not None and self.callback(info):
                self._end(Status.STOPPED)
                break
        self._check_last_claims()
        return self._solution()

    def _outcomes(self) -> Iterator[Outcome]:
        """Return round after round; several may have run before the first of them is known."""
        window = self.window
        while window.samples:
            if self.rounds == self.max_rounds:
                self._end(Status.MAX_ROUNDS)
                return
            outcomes = run_rounds(self.setup, window, self.max_rounds and self.max_rounds - self.rounds)
            self.syncs += 1
            self.evaluations += sum(outcome.rows for outcome in outcomes)  # also of those that nobody will ask for
            while outcomes and window.samples:
                yield outcomes.pop(0)
                if self.kept:
                    outcomes = [only(later, self.kept) for later in outcomes]

    def _record(self, outcome: Outcome) -> RoundInfo | None:
        """Count the round, keep the accepted states, mark samples whose model failed, and tell it if anyone listens."""
        window, step = self.window, outcome.step
        self.rounds += 1
        if self.rounds == 1:
            _refuse_tangents(step.states)
        self.trajectory.store(window.samples, window.begin, outcome.stride, step.states)
        self._claim(outcome)
        for i, sample in enumerate(window.samples):
            self.reached[sample] += outcome.stride[i]
            self.residual[sample] = max(self.residual[sample], outcome.residual[i])
            if outcome.usable[i] == 0:
                self.status[sample] = Status.NON_FINITE
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("round %d: %d rows, converged %s", self.rounds, outcome.rows, self._steps())
        if self.callback is None:
            return None
        change, states, field = step.change, step.states, step.field
        if self.setup.graphs is not None:  # which write the next ones there
            change, states, field = map_tensors((change, states, field), torch.clone)
        return RoundInfo(
            round=self.rounds,
            samples=tuple(window.samples),
            begin=tuple(window.begin),
            width=tuple(window.width),
            stride=tuple(outcome.stride),
            converged=self._steps(),
            steps=self.setup.plan.steps,
            rows=outcome.rows,
            change=change,
            states=states.unflatten(2, self.setup.problem.x0.shape[1:]),
            _field=field,
        )

    def _claim(self, outcome: Outcome) -> None:
        """Hand what was accepted to the certifier, unless the tolerance has certified it already."""
        certifier, window = self.setup.certifier, self.window
        if certifier is None:
            return
        step = outcome.step
        if isinstance(step, Advance) and not isinstance(self.setup.tolerance, TotalVariation):
            certifier.accept(window.samples, window.begin, outcome.stride, step.states, step.field.inner())
        cut = zip(window.samples, outcome.usable, window.width, strict=True)
        certifier.void([sample for sample, usable, width in cut if usable < width])

    def _check_last_claims(self) -> None:
        """Evaluate the states accepted in the last round, which no later round has done."""
        certifier = self.setup.certifier
        if certifier is None or certifier.claim is None:
            return
        claim, count = certifier.claim, certifier.claims
        if count == 0:
            certifier.check(claim.states)
            return
        value, _ = call_model(self.setup, claim.states, claim.nodes, claim.samples, claim)
        certifier.check(value.flatten(1).to(claim.states.dtype))
        self.rounds += 1
        self.evaluations += count

    def _slide(self, outcome: Outcome) -> None:
        """Slide every window; one with useless nodes is halved, and doubles again with every clean round."""
        window = self.window
        end, stride = [], list(outcome.stride)
        for i, limit in enumerate(window.limit):
            grown = min(2 * limit, self.setup.window)
            clean = outcome.usable[i] == window.width[i]
            window.limit[i] = grown if clean else max(1, min(limit, window.width[i]) // 2)
            end.append(window.begin[i] + outcome.usable[i])
            if outcome.usable[i] == 0:  # the model failed: leave the sample where it is, and go on without it
                self._repeat(i)
                stride[i] = self.setup.plan.nodes
        most, thinning = window.limit, self.setup.thinning
        if thinning is not None:
            most = thinning.slide(stride, end, most)
        self.kept = move(self.setup, window, outcome, stride, end, most)

    def _repeat(self, i: int) -> None:
        """Fill what a sample has not reached with its state at the last grid point, which a step's nodes all need."""
        window, done = self.window, self.prepared.steps_at
        node, slot = window.begin[i], window.state.history()
        while slot > 0 and node > 0 and done[node] == done[node - 1]:  # the window begins within a step
            node, slot = node - 1, slot - 1
        self.trajectory.repeat(window.samples[i], window.begin[i], window.state.z[i, slot])

    def _end(self, status: Status) -> None:
        for i, sample in enumerate(self.window.samples):
            self.status[sample] = status
            self._repeat(i)

    def _steps(self) -> tuple[int, ...]:
        return tuple(self.prepared.steps_at[node] for node in self.reached)

    def _non_finite(self, sample: int, node: int, where: str) -> NonFiniteError:
        return NonFiniteError(
            round_number=self.rounds,
            step=int(self.setup.plan.step[node]),
            time=float(self.setup.plan.times[node]),
            sample=sample,
            where=where,
            solution=self._solution(),
        )

    def _solution(self) -> Solution:
        setup, batch = self.setup, len(self.status)
        seconds = time.perf_counter() - self.started
        if setup.certifier is not None:
            setup.certifier.give_up([i for i, status in enumerate(self.status) if status is not Status.CONVERGED])
        most = RowLimit(setup.problem, setup.problem.x0).rows(setup.max_rows)
        stats = Stats(self.rounds, self.evaluations, setup.plan.nodes, batch, setup.window, self.syncs, seconds, most)
        return Solution(
            self.prepared.times[self.trajectory.points],
            self.trajectory.ys,
            self.trajectory.final,
            tuple(self.status),
            self._steps(),
            send(torch.tensor(self.residual, dtype=self.prepared.wide, device="cpu"), self.trajectory.states),
            stats,
            setup.problem.noise,
            None if setup.certifier is None else setup.certifier.certificate(),
        )


def _refuse_tangents(states: Tensor) -> None:
    """Refuse forward-mode derivatives: states are accepted by their own changes, whatever those of tangents are."""
    if unpack_dual(states).tangent is not None:
        raise forwards()
