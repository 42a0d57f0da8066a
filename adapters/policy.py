"""Robot policies that sample actions by diffusion: real-stanford's DiffusionPolicy, LeRobot's, and others alike."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError, close_match, describe
from picard.solution import Solution
from picard.solve import solve
from picard.tolerance import NoiseRatio, Tolerance

from .action_loop import ActionLoop, Start, bind, catch, projected
from .levels import hints_for
from .loop_check import check_loop
from .network import answered_by, is_compiled
from .replay import Replay
from .standin import RandomState
from .stats import Stats

Mode = Literal["auto", "plan", "replay"]
logger = logging.getLogger("picard")
_MODES = ("auto", "plan", "replay")
_NETWORKS = ("model", "unet")
_WINDOW = 16
_SURE, _STRICT = NoiseRatio(0.1), NoiseRatio(0.01)  # without noise of its own, a step forgets no error
_REPLAYED = 1e-4


@dataclass(frozen=True)
class Options:
    """How a policy samples; see `picard.adapters.parallelize`."""

    window: int = _WINDOW
    tolerance: float | Tolerance | None = None
    max_rows: int | None = None
    mode: Mode = "auto"
    linearization: Any = "secant"
    guess: str = "hold"
    certify: bool = False


class ParallelPolicy:
    """What a parallel policy has at `.picard`.

    Attributes:
        options: how it samples.
        stats: what the last sampling cost, or `None`; its `mode` says how it ran.
        solution: the last solution, in plan mode.
        why: why it cannot run as a plan, if `mode="auto"` found so.
    """

    def __init__(self, original: Any, network: str, options: Options) -> None:
        self.original, self.network, self.options = original, network, options
        self.stats: Stats | None = None
        self.solution: Solution | None = None
        self.why: str | None = None
        self._loop: ActionLoop | None = None
        self._key: Any = None
        self._unchecked = True

    def run(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Sample actions, as the policy's own `conditional_sample` does."""
        started = time.perf_counter()
        method = functools.partial(self.original.conditional_sample, owner)
        named = bind(method, args, kwargs)
        loop = None if self.options.mode == "replay" else self._find(owner, method, named)
        once = functools.partial(method, *args, **kwargs)
        if loop is None:
            actions, stats = self._replay(owner, once, args, kwargs)
        else:
            actions, stats = self._solve(owner, loop, catch(owner, self.network, once, named))
        stats.seconds = time.perf_counter() - started
        self.stats = stats
        return actions

    def _find(self, owner: Any, method: Any, named: Mapping[str, Any]) -> ActionLoop | None:
        """Find the loop as a plan; `None` if there is none and replay is allowed."""
        scheduler, steps = owner.noise_scheduler, owner.num_inference_steps
        key = (type(scheduler), repr(scheduler.config), steps, repr(named["step"]), torch.is_autocast_enabled())
        if key == self._key:
            return self._loop
        self._loop, self._key, self.why = None, key, None
        if torch.is_autocast_enabled():  # the scheduler then draws noise in the dtype of the network's output
            return None
        try:
            loop = ActionLoop.of(scheduler, steps, named["step"])
            check_loop(loop, owner, self.network, method, named)
        except NotSupportedError as error:
            if self.options.mode == "plan":
                self._key = None
                raise
            self.why = str(error)
            logger.warning("the policy is run by replay: %s", error)
            return None
        self._loop = loop
        return loop

    def _solve(self, owner: Any, loop: ActionLoop, start: Start) -> tuple[Tensor, Stats]:
        """Solve the plan in parallel."""
        options, network = self.options, getattr(owner, self.network)
        plan, rows = loop.trace.plan_, options.window * len(start.x)
        most = rows if options.max_rows is None else min(rows, options.max_rows)
        problem = loop.problem(start, loop.noise(start), network, most, fixed=is_compiled(network))
        tolerance = options.tolerance
        if tolerance is None and plan.yardstick is not None:
            tolerance = _SURE if bool((plan.c != 0).any()) else _STRICT
        solution = solve(
            problem,
            plan.nodes,
            method=problem.method,
            window=options.window,
            max_rows=options.max_rows,
            tolerance=tolerance,
            linearization=options.linearization,
            guess=options.guess,
            certify=options.certify,
        )
        self.solution = problem.unscaled(solution)
        cost = solution.stats
        stats = Stats("plan", cost.rounds, cost.evaluations, plan.nodes, len(start.x), options.window)
        return projected(start, self.solution.final), stats

    def _replay(self, owner: Any, once: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Stats]:
        """Run the policy's own loop again and again."""
        options = self.options
        tolerance = _REPLAYED if options.tolerance is None else options.tolerance
        if isinstance(tolerance, Tolerance):
            msg = f"replay measures outputs by one number, such as tolerance=1e-4; given {describe(tolerance)}"
            raise NotSupportedError(f"{msg}{'' if self.why is None else ': ' + self.why}")
        replay = Replay([getattr(owner, self.network)], options.window, tolerance, options.max_rows)
        replay.unchecked, random = self._unchecked, RandomState((args, kwargs))

        def again() -> Any:
            random.restore()
            return once()

        def answer(*inputs: Any, **named: Any) -> Any:
            if replay.stats.passes == 1 and replay.steps == 0:
                replay.hints = hints_for(owner.noise_scheduler, owner.noise_scheduler.timesteps[0])
            output = replay.call(0, *inputs, **named)
            replay.stepped()
            return output

        with answered_by(owner, self.network, answer):
            actions = replay.run(again)
        self._unchecked = replay.unchecked
        return actions, replay.stats

    def __repr__(self) -> str:
        """Show the options."""
        return f"ParallelPolicy({self.options})"


def owner_of(policy: Any) -> tuple[Any, str] | None:
    """Find what samples in a policy and the name of its network; `None` if this is no such policy."""
    for owner in (policy, getattr(policy, "diffusion", None)):
        if owner is None or not callable(getattr(owner, "conditional_sample", None)):
            continue
        if hasattr(owner, "noise_scheduler") and hasattr(owner, "num_inference_steps"):
            for name in _NETWORKS:
                if isinstance(getattr(owner, name, None), torch.nn.Module):
                    return owner, name
    return None


def parallelize_policy(policy: Any, **given: Any) -> Any:
    """Make a policy sample parallel in time; see `picard.adapters.parallelize`."""
    options = _checked(given)
    found = owner_of(policy)
    if found is None:
        msg = (
            "parallelize needs a policy with `conditional_sample`, `noise_scheduler`, `num_inference_steps` and a "
            f"network `model` or `unet`; given {type(policy).__name__}"
        )
        raise NotSupportedError(msg)
    restore_policy(policy)
    owner, network = found
    handle = ParallelPolicy(type(owner), network, options)
    for one in {id(owner): owner, id(policy): policy}.values():
        vars(one)["picard"] = handle
        kind: Any = type(one)
        one.__class__ = _parallel_class(kind, samples=one is owner)
    return policy


def restore_policy(policy: Any) -> bool:
    """Make a parallel policy sequential again; say whether it was one."""
    found = owner_of(policy)
    if found is None or not isinstance(vars(policy).get("picard"), ParallelPolicy):
        return False
    for one in {id(found[0]): found[0], id(policy): policy}.values():
        if vars(one).pop("picard", None) is not None:
            one.__class__ = type(one).__bases__[0]
    return True


def _checked(given: Mapping[str, Any]) -> Options:
    known = list(Options.__dataclass_fields__)
    for name in given:
        if name not in known:
            msg = f"parallelize takes no option {name!r} for a policy: {close_match(name, known)}"
            raise TypeError(msg)
    options = Options(**{name: value for name, value in given.items() if value is not None})
    if options.mode not in _MODES:
        msg = f"unknown mode {options.mode!r}: {close_match(str(options.mode), _MODES)}"
        raise InvalidProblemError(msg)
    for name, value in (("window", options.window), ("max_rows", options.max_rows)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            msg = f"{name} must be an integer of at least 1, or None; given {describe(value)}"
            raise InvalidProblemError(msg)
    return options


@functools.cache
def _parallel_class(original: Any, *, samples: bool) -> Any:
    """Make a subclass of a policy's class, under the same name, that samples in parallel."""

    def enter(self: Any) -> Any:
        return self

    def leave(self: Any, *_: Any) -> None:
        restore_policy(self)

    body: dict[str, Any] = {
        "__enter__": enter,
        "__exit__": leave,
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        "__qualname__": original.__qualname__,
    }
    if samples:

        @functools.wraps(original.conditional_sample)
        def conditional_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self.picard.run(self, args, kwargs)

        body["conditional_sample"] = conditional_sample
    return type(original.__name__, (original,), body)
