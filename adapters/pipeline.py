"""Pipelines of Diffusers that run parallel in time: the changed class, and what a call does."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError, close_match

from .components import Kept, Turn, stand_ins
from .course import Course
from .guidance import Unplanned
from .planned import Planned, count
from .progress import Bars
from .replay import Ended, Replay
from .scout import Scout, Turned
from .standin import Memo, RandomState, by_making, replaced
from .stats import Stats
from .trace import Trace, trace_loop

logger = logging.getLogger("picard")
Mode = Literal["auto", "plan", "replay"]
_DENOISERS = ("unet", "transformer", "transformer_2")
_OTHERS = ("prior", "decoder")  # of pipelines that have none of the above


@dataclass(frozen=True)
class Options:
    """How a pipeline is to run.

    Attributes:
        mode: how it runs.
        window: denoiser calls in flight.
        tolerance: largest relative error of a denoiser output that counts as right.
        max_rows: rows one evaluation of the denoiser may hold.
    """

    mode: Mode
    window: int
    tolerance: float
    max_rows: int | None


class Parallel:
    """What a parallel pipeline has at `.picard`.

    Attributes:
        original: the pipeline's class before.
        options: how it runs.
        denoisers: names of the components that are evaluated in parallel.
        stats: what the last call cost, or `None`.
    """

    def __init__(self, original: Any, options: Options, denoisers: tuple[str, ...]) -> None:
        self.original, self.options, self.denoisers = original, options, denoisers
        self.stats: Stats | None = None
        self._checked: list[tuple[Any, bool]] = []
        self._turn: Turn | None = None
        self._traced: tuple[Any, Trace] | None = None
        self._bars: Bars | None = None

    @property
    def final(self) -> bool:
        """Whether the pass that now runs is the last one: a callback that should act once can ask."""
        return self._turn is None or self._turn.player.finishing

    def run(self, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the pipeline."""
        modules = {name: getattr(pipeline, name) for name in self.denoisers}
        modules = {name: module for name, module in modules.items() if module is not None}
        for name, module in modules.items():
            if getattr(module, "is_cache_enabled", False):
                msg = (
                    f"{name} has a cache of earlier calls enabled, so that a call's output depends on more than its "
                    f"arguments: write pipe.{name}.disable_cache(), or restore(pipe)"
                )
                raise NotSupportedError(msg)
        options = self.options
        replay = Replay(list(modules.values()), options.window, options.tolerance, options.max_rows)
        now = [(module, module.training) for module in modules.values()]
        replay.unchecked = now != self._checked
        memo, random, components = Memo(), RandomState((args, kwargs)), Kept(pipeline)
        turn = Turn(replay)
        bars = Bars(functools.partial(self.original.progress_bar, pipeline), lambda: turn.player.exact)
        self._turn, self._bars = turn, bars

        def once() -> Any:
            random.restore()
            memo.rewind()
            bars.rewind()
            try:
                return self.original.__call__(pipeline, *args, **kwargs)
            except BaseException:
                components.restore()
                raise

        try:
            with replaced(pipeline, stand_ins(pipeline, modules, turn, memo)):
                if options.mode != "replay":
                    self._plan(turn, replay, once, bars)
                result = replay.run(once)
            self.stats, self._checked = replay.stats, [] if replay.unchecked else now
        finally:
            bars.close()
            self._turn = self._bars = None
            del turn.player  # hooks that offload models may keep stand-ins, which know of it
        return result

    def _plan(self, turn: Turn, replay: Replay, once: Callable[[], Any], bars: Bars) -> None:
        """Look at the pipeline's loop in one pass and solve it; what no plan can say is left to replay."""
        options, scout = self.options, Scout(replay.modules, self.options.max_rows, self._trace)
        turn.player = scout
        replay.stats.passes += 1
        try:
            with contextlib.suppress(Ended):
                once()
            planned = Planned(replay.modules, scout)
            check = replay.check if replay.unchecked else None
            solution, belief = planned.solve(options, check, lambda info: bars.show(min(info.converged) / info.steps))
        except (Turned, Unplanned) as why:
            if options.mode == "plan":
                msg = f"this call does not run on a plan: {why}; write mode='auto', which replays it then"
                raise NotSupportedError(msg) from why
            replay.stats.reason = str(why)
            logger.info("replayed, not planned: %s", why)
            if scout.first is not None:
                replay.start_from(*scout.first)
        else:
            replay.start_from(*planned.first)
            replay.believe(belief)
            count(replay.stats, planned, solution, options.tolerance)
        finally:
            turn.player = replay

    def _trace(self, course: Course) -> Trace:
        """Trace a scheduler's loop, unless the last call had the same one."""
        sigmas = vars(course.scheduler).get("sigmas")
        key = (
            type(course.scheduler),
            str(course.scheduler.config),
            course.timesteps.tolist(),
            course.start,
            dict(course.step),
            sigmas.tolist() if isinstance(sigmas, Tensor) else None,
        )
        if self._traced is None or self._traced[0] != key:
            self._traced = key, trace_loop(course)
        return self._traced[1]

    def progress_bar(self, pipeline: Any, iterable: Any, total: int | None) -> Any:
        """Give a pipeline its progress bar."""
        if self._bars is None:
            return self.original.progress_bar(pipeline, iterable, total)
        return self._bars.bar(iterable, total)

    def undo(self, pipeline: Any) -> None:
        """Give a pipeline its own class back."""
        pipeline.__class__ = self.original

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read off the scheduler: it may not be pickled, and is found again."""
        return {**vars(self), "_traced": None}

    def __repr__(self) -> str:
        """Show the options."""
        return f"Parallel({self.options}, denoisers={self.denoisers})"


def change(pipeline: Any, options: Options, denoiser: str | None) -> Any:
    """Change a pipeline's class to one that runs in parallel, with a `Parallel` at `.picard`.

    Raises:
        NotSupportedError: if it has no denoiser and scheduler.
        InvalidProblemError: if it has no component of the given name.
    """
    vars(pipeline)["picard"] = Parallel(type(pipeline), options, _find(pipeline, denoiser))
    kind: Any = type(pipeline)
    pipeline.__class__ = _parallel_class(kind)
    return pipeline


def _find(pipeline: Any, denoiser: str | None) -> tuple[str, ...]:
    parts = getattr(pipeline, "components", None)
    if not isinstance(parts, dict) or parts.get("scheduler") is None:
        msg = (
            "parallelize needs a Diffusers pipeline with a scheduler; "
            f"given {type(pipeline).__name__}: parallelize the pipelines inside it one by one, or use picard.solve"
        )
        raise NotSupportedError(msg)
    known = [name for name, part in parts.items() if isinstance(part, torch.nn.Module)]
    if denoiser is not None:
        if denoiser not in known:
            msg = f"the pipeline has no model {denoiser!r}: {close_match(denoiser, known)}"
            raise InvalidProblemError(msg)
        return (denoiser,)
    for names in (_DENOISERS, _OTHERS):
        found = tuple(name for name in names if name in known)
        if found:
            return found
    msg = f"{type(pipeline).__name__} has no {', '.join(_DENOISERS)}: say which component, denoiser=one of {known}"
    raise NotSupportedError(msg)


@functools.cache
def _parallel_class(original: Any) -> Any:
    """Make a subclass of a pipeline's class, under the same name, that runs in parallel."""

    @functools.wraps(original.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.picard.run(self, args, kwargs)

    def progress_bar(self: Any, iterable: Any = None, total: int | None = None) -> Any:
        return self.picard.progress_bar(self, iterable, total)

    def leave(self: Any, *_: Any) -> None:
        vars(self).pop("picard").undo(self)

    body = {
        "__call__": call,
        "__enter__": lambda self: self,
        "__exit__": leave,
        "progress_bar": progress_bar,
        "__reduce_ex__": by_making(_parallel_class, original),
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        "__qualname__": original.__qualname__,
    }
    return type(original.__name__, (original,), body)
