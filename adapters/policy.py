"""A robot policy made parallel: how it samples, and what is at its `.picard`."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from picard.errors import NotSupportedError
from picard.expected import Expected
from picard.graphs import CudaGraphs
from picard.number import whole
from picard.solution import Solution
from picard.solve import solve
from picard.uncompiled import uncompiled

from .action_loop import ActionLoop
from .calls import leaves
from .denoisers import Denoisers
from .levels import hints_for
from .loop_check import check_loop, check_network
from .network import answered_by, is_compiled
from .policy_options import PolicyOptions
from .receding import PastPlan, check_shift, filled
from .replay import Replay
from .standin import RandomState
from .start import Context, Start, bind, catch, device_of, kind_of, projected, unbound
from .stats import Stats

logger = logging.getLogger("picard")
_REPLAYED = 1e-4
_KEPT = 16  # kinds of calls whose loops are remembered


class ParallelPolicy:
    """What a parallel policy has at `.picard`.

    Attributes:
        original: the class, before, of what samples.
        network: name of its network.
        options: how it samples.
        stats: what the last plan of actions cost, checks at the first call apart, or `None`; its `mode` says how it was
            found.
        solution: the solver's last solution, with its certificate, or `None`.
        why: why the policy is not solved as a plan, if `mode="auto"` found so.
        prepared: whether the last plan started from one made ahead.
    """

    def __init__(self, original: Any, network: str, options: PolicyOptions) -> None:
        self.original, self.network, self.options = original, network, options
        self.stats: Stats | None = None
        self.solution: Solution | None = None
        self.why: str | None = None
        self._graphs = CudaGraphs() if options.cuda_graph is True else options.cuda_graph
        self._loops: dict[Any, tuple[ActionLoop | None, str | None]] = {}
        self.prepared = False
        self._past: PastPlan | None = None
        self._made: PastPlan | None = None  # ahead
        self._early = False
        self._unchecked = True

    def forget(self) -> None:
        """Forget the last plans, so that the next one starts cold; a policy's own `reset()` does it, too."""
        self._past = self._made = None

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Plan while there is time, from an observation too early or foreseen, to plan faster once it matters.

        What is sampled inside is not to be executed. Random numbers are put back at the end, so that the next plan
        draws the same noise; it starts from what the network made of it, and is the plan it would be otherwise, within
        the tolerance. Several calls inside start from each other, each for a later observation. A next plan of another
        form, or with other noise, starts as if nothing had been planned ahead; `prepared` says which it was.

        Source: the split of a controller's work into preparation and feedback is that of Diehl et al. (2005).
        """
        if self._graphs is not False:
            msg = "what is planned ahead is a guess of the host's, which cuda_graph does not take: leave it out"
            raise NotSupportedError(msg)
        random, before, self._early = RandomState(()), self._early, True
        try:
            yield
        finally:
            self._early = before
            random.restore()

    @uncompiled
    def run(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Sample actions, as the policy's own `conditional_sample` does."""
        started = time.perf_counter()
        own = functools.partial(self.original.conditional_sample, owner)
        named = bind(self.original.conditional_sample, owner, args, kwargs)
        loop = None if self.options.mode == "replay" else self._find(owner, own, named)
        once = functools.partial(own, *args, **kwargs)
        random = RandomState((args, kwargs)) if self._early else None
        try:
            if loop is not None:
                start = catch(owner, self.network, once, named)
                with start.context.entered():
                    actions, stats = self._solve(owner, loop, start)
            elif random is None:
                actions, stats = self._replay(owner, once, (args, kwargs))
            else:
                msg = f"planning ahead needs a plan, and this policy is run by replay: {self.why or 'it was asked for'}"
                raise NotSupportedError(msg)
        finally:
            if random is not None:
                random.restore()
        stats.seconds = time.perf_counter() - started
        self.stats = stats
        return actions

    def _find(self, owner: Any, own: Callable[..., Any], named: Mapping[str, Any]) -> ActionLoop | None:
        """Find the policy's loop as a plan, or find it again; `None` if there is none and replay may do."""
        key = self._what_matters(owner, named)
        if key not in self._loops:
            if len(self._loops) == _KEPT:
                self._loops.clear()
            try:
                self._loops[key] = self._checked(owner, own, named), None
            except NotSupportedError as error:
                if self.options.mode == "plan" or self.options.needs_plan:
                    raise
                self._loops[key] = None, str(error)
                logger.warning("the policy is run by replay: %s", error)
        loop, self.why = self._loops[key]
        return loop

    def _what_matters(self, owner: Any, named: Mapping[str, Any]) -> Any:
        """Return what the loop of a call may depend on: a loop is checked once for each."""
        arguments = tuple((path, kind_of(leaf)) for path, leaf in leaves(named))
        scheduler, context = owner.noise_scheduler, Context.now(owner, getattr(owner, self.network))
        state = (scheduler, repr(scheduler.config), owner.num_inference_steps, context.mixed, context.training)
        return *state, arguments, repr(named["step"])

    def _checked(self, owner: Any, own: Callable[..., Any], named: Mapping[str, Any]) -> ActionLoop:
        """Read the loop off the scheduler, and check that the policy's own code runs it and rows are independent."""
        if torch.is_autocast_enabled(device_of(owner)):
            msg = "under autocast the scheduler draws noise in the dtype of the network's output: use mode='replay'"
            raise NotSupportedError(msg)
        loop = ActionLoop.of(owner.noise_scheduler, owner.num_inference_steps, named["step"])
        check_loop(loop, owner, self.network, own, named)
        random = RandomState(named)
        try:
            start = catch(owner, self.network, functools.partial(own, **unbound(named)), named)
        finally:
            random.restore()
        check_network(loop, start, getattr(owner, self.network), self._counts(owner, len(start.x)))
        return loop

    def _solve(self, owner: Any, loop: ActionLoop, start: Start) -> tuple[Tensor, Stats]:
        """Solve the plan in parallel."""
        options, network = self.options, getattr(owner, self.network)
        plan, batch, horizon = loop.trace.plan, len(start.x), start.x.shape[-2]
        drawn = loop.noise(start)
        guess: str | Expected = options.guess
        by = options.warm_start if isinstance(options.warm_start, int) else _count(owner, "n_action_steps")
        if options.warm_start is not None:
            by = check_shift(by, horizon)
            if self._past is not None and self._past.fits(start, drawn):
                if not options.fresh_noise:
                    start, drawn = self._past.same_noise(start, drawn, by)
                guess = self._past.expected(by, start, same_noise=not options.fresh_noise)
        made, self._made = self._made, None
        self.prepared = made is not None and made.shares_noise(start, drawn)
        if made is not None and self.prepared:
            guess = made.again(start)
        leading = None
        if options.actions is not None:
            shown = min(horizon, (_count(owner, "n_obs_steps") or 1) + options.actions)
            leading = shown * start.x[0, 0].numel()
        problem = loop.problem(start, drawn, network, self._counts(owner, batch))
        if options.warm_start is not None or self._early:
            problem = replace(problem, seen=problem.x0.new_full((plan.nodes, *problem.x0.shape), torch.nan))
        solution = solve(
            problem,
            plan.nodes,
            method=loop.method,
            window=options.window,
            max_rows=options.max_rows,
            tolerance=options.rule(plan, leading, prepared=self.prepared, ahead=self._early),
            linearization=options.linearization,
            guess=guess,
            certify=options.certify,
            compile=options.compile,
            cuda_graph=self._graphs,
        )
        found = problem.unscaled(solution)
        # without the graph, which would live as long as this object, and cannot be copied
        self.solution = replace(found, ys=found.ys.detach(), final=found.final.detach())
        if problem.seen is not None:
            values = filled(problem.seen, guess.values if isinstance(guess, Expected) else None)
            plans = PastPlan(problem.start.detach(), drawn, start.mask, values)
            self._past, self._made = (self._past, plans) if self._early else (plans, None)
        cost = solution.stats
        stats = Stats("plan", cost.rounds, cost.evaluations, plan.nodes, batch, options.window)
        return projected(start, found.final), stats

    def _counts(self, owner: Any, batch: int) -> tuple[int, ...]:
        """Return the numbers of rows that a compiled network is called on; none for another."""
        if not is_compiled(getattr(owner, self.network)):
            return ()
        most = min(self.options.window * batch, self.options.max_rows or sys.maxsize)
        return min(batch, most), most

    def _replay(self, owner: Any, once: Callable[..., Any], arguments: Any) -> tuple[Any, Stats]:
        """Run the policy's own loop again and again."""
        options = self.options
        tolerance = _REPLAYED if options.tolerance is None else options.tolerance
        denoisers = Denoisers([getattr(owner, self.network)])
        asked = options.tolerance is not None
        replay = Replay(denoisers, options.window, tolerance, options.max_rows, asked=asked)  # type: ignore[arg-type]
        replay.unchecked, replay.stats.reason, random = self._unchecked, self.why or "", RandomState(arguments)

        def again() -> Any:
            random.restore()
            return once()

        def answer(*args: Any, **kwargs: Any) -> Any:
            if replay.stats.passes == 1 and replay.steps == 0:
                replay.hints = hints_for(owner.noise_scheduler, owner.noise_scheduler.timesteps[0])
            output = replay.call(0, *args, **kwargs)
            replay.stepped()
            return output

        with answered_by(owner, self.network, answer):
            actions = replay.run(again)
        self._unchecked = replay.unchecked
        return actions, replay.stats

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read off the scheduler: it may not be pickled, and is found again."""
        return {**vars(self), "_loops": {}}

    def __repr__(self) -> str:
        """Show the options."""
        return f"ParallelPolicy({self.options})"


def _count(owner: Any, name: str) -> int | None:
    """Read a number off a policy, or off its configuration; `None` if neither has it."""
    return whole(getattr(owner, name, getattr(getattr(owner, "config", None), name, None)))
