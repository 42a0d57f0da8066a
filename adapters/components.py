"""The components of a pipeline, with stand-ins in their places while it runs in parallel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from picard.errors import InvalidProblemError, NotSupportedError, close_match

from .standin import Memo, stand_in

_DENOISERS = ("unet", "transformer", "transformer_2")
_OTHERS = ("prior", "decoder")  # of pipelines that have none of the above


@runtime_checkable
class Player(Protocol):
    """Whoever answers for a pipeline's components during a pass.

    Attributes:
        index: denoiser calls answered in this pass.
    """

    index: int

    @property
    def exact(self) -> bool:
        """Whether every answer so far in this pass was the final one."""
        ...

    @property
    def finishing(self) -> bool:
        """Whether the result of this pass is the result."""
        ...

    def call(self, module: int, *args: Any, **kwargs: Any) -> Any:
        """Answer a call of a denoiser."""
        ...

    def step(self, scheduler: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a step of the scheduler."""
        ...

    def before_result(self) -> None:
        """End the pass where nothing that comes is needed."""
        ...


class Turn:
    """Whose turn it is; before a pipeline's call and after it nobody's."""

    player: Player


class Kept:
    """Components as they are between calls: a pass that is stopped does not put back decoders' dtypes and attention."""

    def __init__(self, pipeline: Any) -> None:
        parts: list[Any] = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        self._before = [(part, getattr(part, "dtype", None), attention(part)) for part in parts]

    def restore(self) -> None:
        """Bring everything back to where it was."""
        for part, dtype, processors in self._before:
            if isinstance(dtype, torch.dtype) and part.dtype != dtype:
                part.to(dtype)
            if attention(part) != processors:
                part.set_attn_processor(processors)


def attention(part: Any) -> dict[str, Any]:
    """List what computes a model's attention, where it can be exchanged."""
    return dict(part.attn_processors) if hasattr(part, "set_attn_processor") else {}


def stand_ins(pipeline: Any, modules: dict[str, Any], turn: Turn, memo: Memo) -> dict[str, Any]:
    """Make stand-ins for the denoisers, the scheduler, the encoders and the decoder."""
    denoisers = list(modules.values())
    own = [attention(module) for module in denoisers]

    def call(module: int, *args: Any, **kwargs: Any) -> Any:
        if turn.player.index == 0 and attention(denoisers[module]) != own[module]:
            msg = (
                f"{type(pipeline).__name__} exchanges the denoiser's attention during a call, for one that needs to "
                "know which rows it is given: it cannot be parallelized, write restore(pipe)"
            )
            raise NotSupportedError(msg)
        return turn.player.call(module, *args, **kwargs)

    parts: dict[str, Any] = {
        name: stand_in(module, __call__=functools.partial(call, i)) for i, (name, module) in enumerate(modules.items())
    }
    scheduler = pipeline.scheduler
    if not hasattr(type(scheduler), "step"):
        msg = (
            f"parallelize needs a scheduler with a method `step`, which {type(scheduler).__name__} has not: "
            "write restore(pipe), or solve its equation as a picard.Diffusion or picard.SDE with picard.solve"
        )
        raise NotSupportedError(msg)

    def step(*args: Any, **kwargs: Any) -> Any:
        original = functools.partial(type(scheduler).step, parts["scheduler"])
        return turn.player.step(scheduler, original, args, kwargs)

    parts["scheduler"] = stand_in(scheduler, step=step)

    def remembered(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if turn.player.index else memo.call(original, *args, **kwargs)

    def decode(original: Any, *args: Any, **kwargs: Any) -> Any:
        turn.player.before_result()
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


def find_denoisers(pipeline: Any, denoiser: str | None) -> tuple[str, ...]:
    """Find the names of the components to evaluate in parallel: the given one, or those of the usual names.

    Raises:
        NotSupportedError: if the pipeline has none, or no scheduler.
        InvalidProblemError: if it has no component of the given name.
    """
    parts = getattr(pipeline, "components", None)
    if not isinstance(parts, dict) or parts.get("scheduler") is None:
        msg = (
            "parallelize needs a Diffusers pipeline with a scheduler, or a robot policy with `conditional_sample`; "
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


def inner_pipelines(pipeline: Any) -> list[str]:
    """List the attributes of a pipeline that are pipelines themselves, as combined ones have them."""
    return [name for name, part in vars(pipeline).items() if isinstance(getattr(part, "components", None), dict)]
