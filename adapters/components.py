"""The components of a pipeline, with stand-ins in their places while it runs in parallel."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .levels import hints_for
from .replay import Replay
from .standin import Memo, stand_in


def stand_ins(pipeline: Any, modules: dict[str, Any], replay: Replay, memo: Memo) -> dict[str, Any]:
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
