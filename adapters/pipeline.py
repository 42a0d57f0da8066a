"""Pipelines of Diffusers that run parallel in time: the changed class, and what a call does."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from picard.errors import NotSupportedError
from picard.uncompiled import uncompiled

from .calls import leaves
from .components import Kept, Turn, find_denoisers, inner_pipelines, stand_ins
from .copies import Copy
from .course import trace_once
from .denoisers import Denoisers
from .guidance import Unplanned
from .planned import Planned, count
from .progress import Bars
from .replay import Ended, Replay
from .scout import Scout, Turned
from .standin import Memo, RandomState, by_making, replaced
from .stats import Mode, Stats
from .trace import trace_loop

logger = logging.getLogger("picard")


@dataclass(frozen=True)
class Options:
    """How a pipeline is to run.

    Attributes:
        mode: how it runs.
        window: denoiser calls in flight.
        tolerance: largest relative error of a denoiser output that counts as right.
        asked: whether the tolerance was asked for, or is the default.
        max_rows: rows one evaluation of the denoiser may hold.
    """

    mode: Mode
    window: int
    tolerance: float
    asked: bool
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
        self._denoisers: tuple[Any, Denoisers] | None = None
        self._inner: list[str] = []
        self._turn: Turn | None = None
        self._traced: dict[Any, Any] = {}
        self._bars: Bars | None = None

    @property
    def final(self) -> bool:
        """Whether the pass that now runs is the last one, as a callback that should act once can ask."""
        return self._turn is None or self._turn.player.finishing

    @uncompiled
    def run(self, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the pipeline."""
        self._inner = inner_pipelines(pipeline)
        modules = {name: getattr(pipeline, name) for name in self.denoisers}
        modules = {name: module for name, module in modules.items() if module is not None}
        for name, module in modules.items():
            if getattr(module, "is_cache_enabled", False):
                msg = (
                    f"{name} has a cache of earlier calls enabled, so that a call's output depends on more than its "
                    f"arguments: write pipe.{name}.disable_cache(), or restore(pipe)"
                )
                raise NotSupportedError(msg)
        now = [(module, module.training) for module in modules.values()]
        if self._denoisers is None or now != self._denoisers[0]:
            self._denoisers = now, Denoisers(list(modules.values()))
        denoisers, memo, random, components = self._denoisers[1], Memo(), RandomState((args, kwargs)), Kept(pipeline)
        given = [Copy(leaf) for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        turn = Turn()
        bars = Bars(functools.partial(self.original.progress_bar, pipeline), lambda: turn.player.exact)
        self._turn, self._bars = turn, bars

        def once() -> Any:
            random.restore()
            for copy in given:
                copy.put_back()
            memo.rewind()
            bars.rewind()
            try:
                return self.original.__call__(pipeline, *args, **kwargs)
            except BaseException:
                components.restore()
                raise

        try:
            with replaced(pipeline, stand_ins(pipeline, modules, turn, memo)):
                try:
                    return self._solve(turn, denoisers, once, bars)
                except Exception:
                    if not denoisers.mend():
                        raise
                return self._solve(turn, denoisers, once, bars)
        finally:
            bars.close()
            denoisers.forget()
            self._turn = self._bars = None
            vars(turn).clear()  # hooks that offload models may keep stand-ins, which know of it

    def _solve(self, turn: Turn, denoisers: Denoisers, once: Callable[[], Any], bars: Bars) -> Any:
        """Run the pipeline's call in parallel."""
        options = self.options
        replay = Replay(denoisers, options.window, options.tolerance, options.max_rows, asked=options.asked)
        turn.player = replay
        if options.mode != "replay":
            self._plan(turn, replay, once, bars)
        result = replay.run(once)
        self._require_calls(replay.index)
        self.stats = replay.stats
        return result

    def _plan(self, turn: Turn, replay: Replay, once: Callable[[], Any], bars: Bars) -> None:
        """Look at the pipeline's loop in one pass and solve it; what no plan can say is left to replay."""
        options, trace = self.options, functools.partial(trace_once, self._traced, trace_loop)
        scout = Scout(replay.denoisers, options.max_rows, trace)
        turn.player = scout
        replay.stats.passes += 1
        try:
            with contextlib.suppress(Ended):
                once()
            self._require_calls(scout.index)
            planned = Planned(replay.denoisers, scout)
            replay.start_from(*planned.first)
            check = replay.check if replay.checks else None
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
            replay.believe(belief)
            count(replay.stats, planned, solution, options)
        finally:
            turn.player = replay

    def _require_calls(self, count: int) -> None:
        """Refuse a pipeline that hands its call to others, whose denoisers are not these stand-ins."""
        if self._inner and not count:
            msg = (
                f"{self.original.__name__} has not called its {self.denoisers[0]}, but other pipelines do: "
                f"parallelize the pipelines inside it one by one, {', '.join(f'pipe.{name}' for name in self._inner)}"
            )
            raise NotSupportedError(msg)

    def progress_bar(self, pipeline: Any, iterable: Any, total: int | None, *args: Any, **kwargs: Any) -> Any:
        """Give a pipeline its progress bar; some have more arguments."""
        if self._bars is None:
            return self.original.progress_bar(pipeline, iterable, total, *args, **kwargs)
        return self._bars.bar(iterable, total, *args, **kwargs)

    def undo(self, pipeline: Any) -> None:
        """Give a pipeline its own class back."""
        pipeline.__class__ = self.original

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read off the scheduler: it may not be pickled, and is found again."""
        return {**vars(self), "_traced": {}, "_denoisers": None}

    def __repr__(self) -> str:
        """Show the options."""
        return f"Parallel({self.options}, denoisers={self.denoisers})"


def change(pipeline: Any, options: Options, denoiser: str | None) -> Any:
    """Change a pipeline's class to one that runs in parallel, with a `Parallel` at `.picard`.

    Raises:
        NotSupportedError: if it has no denoiser and scheduler.
        InvalidProblemError: if it has no component of the given name.
    """
    vars(pipeline)["picard"] = Parallel(type(pipeline), options, find_denoisers(pipeline, denoiser))
    kind: Any = type(pipeline)
    pipeline.__class__ = _parallel_class(kind)
    return pipeline


@functools.cache
def _parallel_class(original: Any) -> Any:
    """Make a subclass of a pipeline's class, under the same name, that runs in parallel."""

    @functools.wraps(original.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.picard.run(self, args, kwargs)

    def progress_bar(self: Any, iterable: Any = None, total: int | None = None, *args: Any, **kwargs: Any) -> Any:
        return self.picard.progress_bar(self, iterable, total, *args, **kwargs)

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
