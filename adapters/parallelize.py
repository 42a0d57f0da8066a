"""One line that makes a Diffusers pipeline sample parallel in time, and one that undoes it."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch

from picard.errors import InvalidProblemError, NotSupportedError, close_match, describe

from .levels import hints_for
from .progress import Bars
from .replay import Replay
from .standin import Memo, RandomState, replaced, stand_in
from .stats import Stats

Mode = Literal["auto", "replay"]
_MODES = ("auto", "replay")
_DENOISERS = ("unet", "transformer", "transformer_2")
_OTHERS = ("prior", "decoder")  # of pipelines that have none of the above
_WINDOW = 64


class Parallel:
    """What a parallel pipeline has at `.picard`.

    Attributes:
        original: the pipeline's class before.
        mode: how it runs.
        window: denoiser calls in flight.
        tolerance: largest relative error of a denoiser output that counts as right.
        max_rows: rows one evaluation of the denoiser may hold.
        denoisers: names of the components that are evaluated in parallel.
        stats: what the last call cost, or `None`.
    """

    def __init__(
        self,
        original: Any,
        mode: Mode,
        window: int,
        tolerance: float,
        max_rows: int | None,
        denoisers: tuple[str, ...],
    ) -> None:
        self.original, self.mode, self.window, self.tolerance = original, mode, window, tolerance
        self.max_rows, self.denoisers = max_rows, denoisers
        self.stats: Stats | None = None
        self._unchecked = True
        self._replay: Replay | None = None
        self._bars: Bars | None = None

    @property
    def final(self) -> bool:
        """Whether the pass that now runs is the last one: a callback that should act once can ask."""
        return self._replay is None or self._replay.finishing

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
        replay = Replay(list(modules.values()), self.window, self.tolerance, self.max_rows)
        replay.unchecked = self._unchecked
        memo, random = Memo(), RandomState((args, kwargs))
        bars = Bars(functools.partial(self.original.progress_bar, pipeline), lambda: replay.exact)
        self._replay, self._bars = replay, bars

        def once() -> Any:
            random.restore()
            memo.rewind()
            bars.rewind()
            return self.original.__call__(pipeline, *args, **kwargs)

        try:
            with replaced(pipeline, _components(pipeline, modules, replay, memo)):
                result = replay.run(once)
            self.stats, self._unchecked = replay.stats, replay.unchecked
        finally:
            bars.close()
            self._replay = self._bars = None
        return result

    def progress_bar(self, pipeline: Any, iterable: Any, total: int | None) -> Any:
        """Give a pipeline its progress bar."""
        if self._bars is None:
            return self.original.progress_bar(pipeline, iterable, total)
        return self._bars.bar(iterable, total)

    def __repr__(self) -> str:
        """Show the options."""
        return (
            f"Parallel(mode={self.mode!r}, window={self.window}, tolerance={self.tolerance:g}, "
            f"denoisers={self.denoisers})"
        )


def _components(pipeline: Any, modules: dict[str, Any], replay: Replay, memo: Memo) -> dict[str, Any]:
    """Make stand-ins for the denoisers, the scheduler, the encoders and the decoder."""
    parts: dict[str, Any] = {
        name: stand_in(module, __call__=functools.partial(replay.call, i))
        for i, (name, module) in enumerate(modules.items())
    }
    scheduler = pipeline.scheduler

    def step(*args: Any, **kwargs: Any) -> Any:
        if replay.hints is None and replay.steps == 0 and replay.stats.passes == 1:
            replay.hints = hints_for(scheduler, kwargs.get("timestep", args[1] if len(args) > 1 else None))
        result = type(scheduler).step(parts["scheduler"], *args, **kwargs)
        replay.stepped()
        return result

    parts["scheduler"] = stand_in(scheduler, step=step)

    def remembered(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if replay.index else memo.call(original, *args, **kwargs)

    def decode(original: Any, *args: Any, **kwargs: Any) -> Any:
        replay.before_result()
        return original(*args, **kwargs)

    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module) or name in parts:
            continue
        methods: dict[str, Any] = {"__call__": functools.partial(remembered, part)}
        if hasattr(type(part), "decode"):
            methods["decode"] = functools.partial(decode, part.decode)
        if hasattr(type(part), "encode"):
            methods["encode"] = functools.partial(remembered, part.encode)
        parts[name] = stand_in(part, **methods)
    return parts


def parallelize(
    pipeline: Any,
    *,
    window: int | None = None,
    tolerance: float = 1e-4,
    max_rows: int | None = None,
    mode: Mode = "auto",
    denoiser: str | None = None,
) -> Any:
    """Make a Diffusers pipeline sample parallel in time: same call, same arguments, same images.

    The pipeline itself is changed, by a subclass of its class; `restore(pipeline)` undoes it, and so does the end of a
    `with parallelize(pipeline, ...):` block. What the last call cost is at `pipeline.picard.stats`.

    Args:
        pipeline: a pipeline whose loop is "for every timestep: denoiser, guidance, `scheduler.step`".
        window: denoiser calls in flight, 64 by default. Choose the number of calls your device evaluates together in
            about the time of one.
        tolerance: largest relative error (root mean square over a row) of a denoiser output that counts as right; 0
            asks for the sequential result up to rounding.
        max_rows: rows one evaluation of the denoiser may hold; guidance counts two rows a sample.
        mode: `"replay"` runs the pipeline's own loop again and again until every output is right; `"auto"` chooses the
            best way there is, which today is replay.
        denoiser: name of the component to evaluate in parallel, if it is not found by itself.

    Returns:
        The same pipeline.

    Raises:
        NotSupportedError: if the pipeline has no denoiser and scheduler, or a later call finds it cannot be replayed.
        InvalidProblemError: if an option has the wrong form.
    """
    if mode not in _MODES:
        msg = f"unknown mode {mode!r}: {close_match(str(mode), _MODES)}"
        raise InvalidProblemError(msg)
    for name, value in (("window", window), ("max_rows", max_rows)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            msg = f"{name} must be an integer of at least 1, or None; given {describe(value)}"
            raise InvalidProblemError(msg)
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        msg = f"tolerance must be a number in [0, 1), relative to the denoiser's output; given {describe(tolerance)}"
        raise InvalidProblemError(msg)
    restore(pipeline)
    handle = Parallel(type(pipeline), mode, window or _WINDOW, tolerance, max_rows, _find(pipeline, denoiser))
    vars(pipeline)["picard"] = handle
    kind: Any = type(pipeline)
    pipeline.__class__ = _parallel_class(kind)
    return pipeline


def restore(pipeline: Any) -> Any:
    """Make a parallel pipeline sequential again; anything else is returned as it is."""
    handle = vars(pipeline).pop("picard", None)
    if isinstance(handle, Parallel):
        pipeline.__class__ = handle.original
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
        restore(self)

    body = {
        "__call__": call,
        "__enter__": lambda self: self,
        "__exit__": leave,
        "progress_bar": progress_bar,
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        "__qualname__": original.__qualname__,
    }
    return type(original.__name__, (original,), body)
