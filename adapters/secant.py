"""Secants: how steep a denoiser's output is in its input, measured from its last two evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from picard.errors import NotSupportedError

from .calls import Call, main_tensor, predictions, with_main_tensor
from .levels import Hints

ULPS = 4  # a relative change of so many units in the last place is rounding
_MERGED = (0.005, 0.05)  # far above the rounding of TF32 and of half precision
_LOWER, _UPPER = 0.0, 1.2  # bounds of the factor of a step
_STEEPEST = 10.0  # bound of a slope where the levels are not known


@dataclass(eq=False)
class Node:
    """A denoiser call inside the window: where it was last evaluated, and what came out.

    Attributes:
        call: the call.
        output: what the denoiser returned.
        slope: slope of the output in the noisy state, by row.
        errors: relative error of what was returned in its place, round by round.
    """

    call: Call
    output: Any
    slope: Tensor
    errors: list[float] = field(default_factory=list)

    def corrected(self, call: Call) -> Any:
        """Correct the output for the change of its input."""
        value = main_tensor(self.output)
        part = overlap(call.x, value)
        slope = self.slope.reshape(-1, *[1] * (value.ndim - 1))
        return shifted(self.output, part, (slope * (call.x[part] - self.call.x[part])).to(value))


def learn(
    old: Node | None, call: Call, output: Any, hints: tuple[Hints, int] | None, factor: Tensor | None
) -> tuple[Node, Tensor | None]:
    """Measure the slope of an output from its last two evaluations, within the bounds of a stable step.

    Args:
        old: the call's last evaluation, if it has one.
        call: the call now.
        output: its output.
        hints: what the scheduler's levels say, with the index of the first step.
        factor: factor of the step at the nearest earlier call that has a measured one, by row.

    Returns:
        The evaluation, and the factor for the next call.
    """
    new = main_tensor(output)
    wide = torch.promote_types(new.dtype, torch.float32)
    levels, place = (None, 0) if hints is None else (hints[0], hints[1] + call.step)
    if levels is not None and place >= len(levels.u):
        levels = None
    slope = torch.zeros(len(new), dtype=wide, device=new.device)
    measured = old is not None and old.call.x.shape == call.x.shape
    if old is not None and measured:
        part = overlap(call.x, new)
        moved = (call.x[part].to(wide) - old.call.x[part].to(wide)).flatten(1)
        answered = (new[part].to(wide) - main_tensor(old.output)[part].to(wide)).flatten(1)
        square, size = moved.square().sum(1), call.x.to(wide).flatten(1).square().sum(1)
        clear = square > (ULPS * torch.finfo(call.x.dtype).eps) ** 2 * size
        slope = torch.where(clear, (moved * answered).sum(1) / torch.where(clear, square, 1), old.slope)
    if levels is not None:
        if measured or factor is None:
            if not measured:
                slope = torch.full_like(slope, -levels.u[place] / levels.w[place])
            factor = levels.factor(place, slope).clamp(_LOWER, _UPPER)
        slope = levels.slope(place, factor)
    elif measured:
        slope = slope.clamp(-_STEEPEST, _STEEPEST)
    return Node(call, output, slope, [] if old is None else old.errors), factor


def held(before: Call, output: Any, call: Call, hints: tuple[Hints, int] | None) -> Any:
    """Guess the output of a call never evaluated: that which holds the data prediction, or else the output.

    Args:
        before: an earlier call.
        output: its output.
        call: the call.
        hints: what the scheduler's levels say, with the index of the first step.

    Returns:
        The guess; `None` if the calls have different shapes.
    """
    if before.x.shape != call.x.shape:
        return None
    levels, start = (None, 0) if hints is None else hints
    node, to = start + before.step, start + call.step
    if levels is None or max(node, to) >= len(levels.u):
        return output
    value = main_tensor(output)
    part = overlap(call.x, value)
    guessed = value.clone()
    guessed[part] = levels.hold(node, before.x[part].to(value), value[part], to, call.x[part].to(value))
    return with_main_tensor(output, guessed)


def overlap(x: Tensor, output: Tensor) -> tuple[slice, ...]:
    """Where a noisy state and a prediction correspond: inputs may have mask channels, outputs a learned variance."""
    if x.ndim != output.ndim:
        return (slice(0, 0),) * output.ndim
    return tuple(slice(0, min(a, b)) for a, b in zip(x.shape, output.shape, strict=True))


def shifted(output: Any, part: tuple[slice, ...], by: Tensor) -> Any:
    """Add something to a part of an output's prediction."""
    value = main_tensor(output).clone()
    value[part] = (value[part] + by).to(value)
    return with_main_tensor(output, value)


def error_of(given: Tensor, right: Tensor) -> Tensor:
    """Root mean square error of a row relative to the row, the largest of all rows."""
    wide = torch.promote_types(right.dtype, torch.float32)
    difference = (given.to(wide) - right.to(wide)).flatten(1).square().mean(1).sqrt()
    size = right.to(wide).flatten(1).square().mean(1).sqrt()
    return (difference / size.clamp_min(torch.finfo(wide).tiny)).amax()


def worst_error(given: Any, right: Any, rows: int) -> Tensor:
    """Return the largest of the errors of the predictions in an output."""
    pairs = zip(predictions(given, rows), predictions(right, rows), strict=True)
    return torch.stack([error_of(one, other).float() for one, other in pairs]).amax()


def check_rows(batched: Any, alone: Any, mend: str | None) -> None:
    """Compare a call's output with what came out for the same rows in a batch.

    Args:
        batched: output of the rows in the batch.
        alone: output of the call.
        mend: how to leave training mode, for the message; `None` if it is not that.

    Raises:
        NotSupportedError: if they differ by more than rounding.
    """
    value = main_tensor(alone)
    error = float(worst_error(batched, alone, len(value)))
    if error > _MERGED[value.dtype in (torch.float16, torch.bfloat16)]:
        msg = (
            "the denoiser must treat the rows of a batch independently; in a batch one call's output changed by "
            f"{error:.1e} of its size: an argument without a batch dimension was taken for one that has it, or the "
            + (f"model is in training mode ({mend})" if mend else "model, or a hook on it, mixes rows")
        )
        raise NotSupportedError(msg)
