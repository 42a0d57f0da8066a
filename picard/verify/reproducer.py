"""A reproducer: the smallest failing case, printed as a call that can be pasted."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from picard.errors import describe
from picard.sequential import sequential
from picard.solve import solve
from picard.verify.case import Case
from picard.verify.trial import Solver, rounding

_LONGEST = 1000  # numbers of a tensor that is written out
WITHIN = 0.1
"""The default of `check`."""


@dataclass(frozen=True, eq=False)
class Reproducer:
    """The smallest case found in which a property fails.

    Attributes:
        case: the case; `case.problem`, `case.grid`, `case.method` and `case.options` can be handed to the solver.
        property: name of the property.
        solver: the solver.
        detail: what goes wrong in it.
        reference: the sequential solver.
        rtol: largest relative difference that counted as rounding; `None` for the default.
        within: largest relative difference to the reference with the options as given.
    """

    case: Case
    property: str
    solver: Solver
    detail: str
    reference: Solver = sequential
    rtol: float | None = None
    within: float = WITHIN

    def __str__(self) -> str:
        """Print as the call that shows the failure, with a line of comment for everything that cannot be written."""
        case = self.case
        notes = [f"# problem: {_describe(case.problem)}"]

        def put(name: str, value: Any) -> str:
            """Write a value, or a name to be filled in."""
            text = write(value)
            if text is None:
                holder = "" if name in ("solver", "reference") else "case."
                place = f"options[{name!r}]" if name in case.options else name
                notes.append(f"# {name}: {_kind(value)}, reproducer.{holder}{place}: put in what was given")
            return f"    {name}={text or name},"

        lines = [
            f"    {'problem' if case.samples is None else f'picard.verify.select(problem, {list(case.samples)})'},",
            put("grid", case.grid),
            put("method", case.method),
        ]
        if self.solver is not solve:
            lines.append(put("solver", self.solver))
        if self.reference is not sequential:
            lines.append(put("reference", self.reference))
        if self.rtol is not None and self.rtol != rounding(case.problem):
            lines.append(put("rtol", self.rtol))
        if self.within != WITHIN:
            lines.append(put("within", self.within))
        lines += [put(name, value) for name, value in case.options.items()]
        lines.append(f"    properties=[{self.property!r}],")
        call = ["picard.verify.check(", *lines, ").raise_for_failures()", f"# {self.detail}"]
        return "\n".join(["import torch", "import picard.verify", "", *notes, *call])


def write(value: Any) -> str | None:
    """Write a value as an expression, where `picard` and `torch` are imported; `None` if there is none for it."""
    if value is None or isinstance(value, bool | int | str | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, Tensor):
        return _tensor(value)
    if type(value) in (list, tuple):
        items = [write(item) for item in value]
        begin, end = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        return None if None in items else begin + ", ".join(map(str, items)) + end
    if isinstance(value, Mapping):
        pairs = [(write(key), write(item)) for key, item in value.items()]
        whole = all(None not in pair for pair in pairs)
        return "{" + ", ".join(f"{key}: {item}" for key, item in pairs) + "}" if whole else None
    if is_dataclass(value) and not isinstance(value, type):
        name = _name(type(value))
        given = [(one.name, write(getattr(value, one.name))) for one in fields(value) if one.init]
        whole = name is not None and all(item is not None for _, item in given)
        return f"{name}({', '.join(f'{key}={item}' for key, item in given)})" if whole else None
    return _name(value)


def _name(value: Any) -> str | None:
    """Name a function or class as it can be reached; one of the caller's by its own name."""
    name = getattr(value, "__name__", None)
    if name is None or not name.isidentifier() or getattr(value, "__self__", None) is not None:
        return None
    module = str(getattr(value, "__module__", ""))
    for place in (module.rpartition(".")[0], module):
        if place.partition(".")[0] in ("picard", "torch") and getattr(sys.modules.get(place), name, None) is value:
            return f"{place}.{name}"
    return str(name)


def _tensor(value: Tensor) -> str | None:
    device = "" if value.device.type == "cpu" else f", device={str(value.device)!r}"
    kind = f"dtype={value.dtype}{device}"
    if value.ndim == 1 and len(value) > 2 and value.is_floating_point():
        first, last = value[0].item(), value[-1].item()
        even = torch.linspace(first, last, len(value), dtype=value.dtype, device=value.device)
        if math.isfinite(first) and math.isfinite(last) and torch.equal(even, value):
            return f"torch.linspace({first}, {last}, {len(value)}, {kind})"
    if value.numel() > _LONGEST or not bool(torch.isfinite(value).all()):
        return None
    return f"torch.tensor({value.tolist()}, {kind})"


def _kind(value: Any) -> str:
    return describe(value) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _describe(problem: Any) -> str:
    """Describe a problem: its kind, the shape of its start, and the seed of its noise."""
    x0 = getattr(problem, "x0", None)
    text = f"{type(problem).__name__}" if x0 is None else f"{type(problem).__name__}, x0 {tuple(x0.shape)} {x0.dtype}"
    noise = getattr(problem, "noise", None)
    streams, seed = getattr(noise, "streams", None), getattr(noise, "seed", None)
    if streams is not None:
        return f"{text}, noise streams (seed, sample) {list(streams)}"
    return text if seed is None else f"{text}, noise=Noise.from_seed({seed})"
