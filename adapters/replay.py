"""Replay: a pipeline run again and again on stale denoiser outputs, until they are the outputs of its own states."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .belief import Belief
from .calls import Call, copied, main_tensor
from .denoisers import Denoisers
from .levels import Hints, hints_for
from .secant import ULPS, Node, held, learn, worst_error
from .stats import Stats

logger = logging.getLogger("picard")
_NOISE = 128  # and one of so many may be, if it does not shrink any more
_RECENT = 8  # more calls than a step of any pipeline makes


class Stop(BaseException):
    """Ends a pass at the end of the window; no handler of the pipeline's own should catch it."""


class Ended(Stop):
    """Ends a pass after the last denoiser call."""


class Replay:
    """One call of a pipeline, in passes.

    Attributes:
        denoisers: the denoisers.
        window: calls in flight.
        tolerance: largest relative error (root mean square over a row) of a denoiser output that counts as right.
        max_rows: rows one evaluation may hold.
        hints: what the scheduler's levels say, with the index of the first step, once known.
        steps: steps the scheduler has made in this pass.
        final: outputs of the calls that are through.
        unchecked: whether the denoisers may still need the check of their rows.
        stats: what it costs.
    """

    def __init__(
        self, denoisers: Denoisers, window: int, tolerance: float, max_rows: int | None, *, asked: bool
    ) -> None:
        """Prepare; `asked` says whether the tolerance was asked for, or is a default."""
        self.denoisers, self.window, self.tolerance, self.max_rows = denoisers, window, tolerance, max_rows
        self.unchecked = True
        self.hints: tuple[Hints, int] | None = None
        self.final: list[Any] = []
        self.total: int | None = None
        self.steps = self.index = 0
        self.stats, self._started = Stats("replay", window=window), time.perf_counter()
        self._asked = asked
        self._known: dict[int, Node] = {}
        self._pass: dict[int, tuple[Call, Any]] = {}
        self._phase = 0
        self._hinted = False
        self._first: tuple[Call, Any] | None = None
        self._belief: Belief | None = None
        self._inputs: list[Tensor] = []  # states at which the final outputs were evaluated
        self._last: dict[tuple[int, int], tuple[Call, Any]] = {}

    @property
    def finishing(self) -> bool:
        """Whether this pass has only final outputs, so that its result is the result."""
        return self.total is not None and len(self.final) >= self.total

    @property
    def exact(self) -> bool:
        """Whether every call so far in this pass was answered with its final output."""
        return not self._pass

    def run(self, once: Callable[[], Any]) -> Any:
        """Run passes until one has only final outputs, and return its result."""
        while True:
            self.steps = self.index = self._phase = 0
            self._pass, self._last = {}, {}
            self.stats.passes += 1
            if self.finishing and self._belief is None and self._first is not None:
                self._belief = Belief(self.final, self._inputs, self.tolerance, self.denoisers.eps(*self._first))
            result, stop = None, None
            try:
                result = once()
            except Stop as caught:
                stop = caught
            if stop is None or isinstance(stop, Ended):
                self.total = self.index
            if stop is None and not self._pass and not self._mistaken():
                self.stats.sequential_evaluations = self.index
                self.stats.seconds = time.perf_counter() - self._started
                return result
            if self._pass:
                self._round()

    def call(self, module: int, *args: Any, **kwargs: Any) -> Any:
        """Answer a denoiser call of the pipeline."""
        i = self.index
        if i < len(self.final):
            call = self._record(module, args, kwargs)
            output = self.final[i] if self._belief is None else self._belief.meet(i, call)
            if i + _RECENT >= len(self.final):  # the window's first guesses start from it
                self._last[module, self._phase] = (call, output)
            return self._answer(output)
        if i >= len(self.final) + self.window:
            raise Stop
        call = self._record(module, args, kwargs)
        node, before = self._known.get(i), self._last.get((module, self._phase))
        if node is not None and node.call.x.shape == call.x.shape:
            output = node.corrected(call)
        else:
            output = None if before is None else held(*before, call, self.hints)
        if output is None:
            if self._pass:
                raise Stop
            output = self._evaluate([call])[0]  # its input is exact
            self._accept(call, output)
            self._first = (call, output)
        else:
            self._pass[i] = (call, output)
        self._last[module, call.phase] = (call, output)
        return self._answer(output)

    def step(self, scheduler: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a step of the scheduler; the first one of all tells what its levels say."""
        if not self._hinted:
            self._hinted = True
            self.hints = hints_for(scheduler, kwargs.get("timestep", args[1] if len(args) > 1 else None))
        result = original(*args, **kwargs)
        self.stepped()
        return result

    def stepped(self) -> None:
        """Take note that the scheduler has made a step."""
        self.steps += 1
        self._phase = 0

    def before_result(self) -> None:
        """Stop here unless all outputs were final: what follows the loop is needed once."""
        if self._pass or self._mistaken():
            raise Ended

    def start_from(self, call: Call, output: Any) -> None:
        """Take over the first call's output, evaluated elsewhere."""
        self.final, self._inputs, self._first, self.stats.rounds = [output], [call.x], (call, output), 1
        self.stats.rows = self.stats.evaluations = call.rows

    def believe(self, belief: Belief) -> None:
        """Take all outputs from elsewhere, unless the next pass shows that they belong to other states."""
        self.final, self._inputs, self.total = belief.outputs, belief.inputs, len(belief.outputs)
        self._belief = belief

    def _mistaken(self) -> bool:
        """Whether the pass has shown that outputs taken from elsewhere do not belong to its calls."""
        wrong = None if self._belief is None else self._belief.first_mistake()
        if wrong is None:
            return False
        self._belief = None
        planned = self.stats.mode == "plan"
        whose = "not the plan's" if planned else "another one in the last pass, perhaps by a callback's random numbers"
        why = f"the state at denoiser call {wrong} is {whose}"
        self.stats.reason = "; ".join(filter(None, [self.stats.reason, why]))
        if not planned:
            logger.warning("%s: the result is not the sequential one", why)
            return False
        logger.warning("%s: it is replayed from there on", why)
        self.stats.mode = "replay"
        self.final, self._inputs = self.final[:wrong], self._inputs[:wrong]
        return True

    def _accept(self, call: Call, output: Any) -> None:
        """Take an output as final."""
        self.final.append(output)
        self._inputs.append(call.x)

    def _record(self, module: int, args: tuple[Any, ...], kwargs: Any) -> Call:
        return self.denoisers.record(module, self._phase, self.steps, args, kwargs)

    def _answer(self, output: Any) -> Any:
        self.index += 1
        self._phase += 1
        return copied(output)  # pipelines may write into it

    def _evaluate(self, calls: list[Call]) -> list[Any]:
        self.stats.rounds += 1
        self.stats.rows = calls[0].rows
        self.stats.evaluations += sum(call.rows for call in calls)
        return self.denoisers.evaluate(calls, self.max_rows)

    def _round(self) -> None:
        """Evaluate the window in one go, accept what was right, and learn the slopes of the rest."""
        indices = sorted(self._pass)
        calls = [self._pass[i][0] for i in indices]
        if self._first is not None and self.checks and len(calls) > 1:
            again, *outputs = self._evaluate([self._first[0], *calls])
            self.check(again, self._first[1])
        else:
            outputs = self._evaluate(calls)
        pairs = zip((self._pass[i] for i in indices), outputs, strict=True)
        errors = [worst_error(given, new, call.rows) for (call, given), new in pairs]
        accepted, right = 0, True
        relative = torch.stack(errors).tolist()  # the round's one wait for the device
        for i, output, error in zip(indices, outputs, relative, strict=True):
            if not right:
                break
            accepted += 1
            self._accept(self._pass[i][0], output)
            right = self._right(error, self._known[i].errors if i in self._known else [], main_tensor(output).dtype)
            if right:
                self.stats.residual = max(self.stats.residual, error)
        logger.debug("round %d: %d rows, %d calls accepted", self.stats.rounds, sum(c.rows for c in calls), accepted)
        known = {}
        factor: Tensor | None = None
        for i, call, output, error in list(zip(indices, calls, outputs, relative, strict=True))[accepted:]:
            if not math.isfinite(error):  # this guess and those after it were no good
                break
            known[i], factor = learn(self._known.get(i), call, output, self.hints, factor)
            known[i].errors.append(error)
        self._known = known

    @property
    def checks(self) -> bool:
        """Whether the first call's rows are still to be compared with those of a batch."""
        return self.unchecked and self._first is not None and self.denoisers.unchecked(self._first[0])

    def check(self, batched: Any, alone: Any) -> None:
        """Check that the first call's rows come out of a batch as they did alone."""
        if self._first is not None:
            self.denoisers.check(self._first[0], batched, alone)
        self.unchecked = False

    def _right(self, error: float, history: list[float], dtype: torch.dtype) -> bool:
        eps = torch.finfo(dtype).eps
        recent = [*history, error][-3:]
        still = len(recent) == 3 and max(recent) <= min(_NOISE * eps, eps**0.5) and recent[-1] > 0.25 * recent[0]
        right, rounding = error <= self.tolerance + ULPS * eps, ULPS * eps
        if self.tolerance < rounding:  # what half precision rounds is no longer small beside it
            rounding = ULPS * min(eps, torch.finfo(torch.float32).eps)
        if (right or still) and error > self.tolerance + rounding:
            self.stats.stall(self.tolerance, error, asked=self._asked)
        return right or still
