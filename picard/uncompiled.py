"""Ways in that a compiler of the code around steps over: rounds are decided by values, so a solve is no one graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def uncompiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a compiler of the code around break its graph at a function; what is compiled inside of it stays so."""

    @wraps(function)
    def entered(*args: _P.args, **keywords: _P.kwargs) -> _R:
        # Not decorated by torch.compiler.disable once and for all: that imports the compiler, which takes seconds.
        if torch.compiler.is_compiling():
            return _disabled(function, *args, **keywords)
        return function(*args, **keywords)

    return entered


def _disabled(function: Callable[_P, _R], /, *args: _P.args, **keywords: _P.kwargs) -> _R:
    apart: Any = torch.compiler.disable(function)  # its types differ between versions of torch
    found: _R = apart(*args, **keywords)
    return found
