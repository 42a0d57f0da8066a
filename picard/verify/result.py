"""A result: what a solver returned, read and copied to where results are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, describe
from picard.verify.case import Case, largest_difference
from picard.verify.inputs import same
from picard.verify.signals import Failure, Skip


@dataclass(frozen=True, eq=False)
class Run:
    """One result of a solver.

    Attributes:
        states: states at all grid points, shape (points, batch, *state), or the final ones alone, with one point; on
            the CPU, where they are compared, since not every device has float64. A copy: a solver may write its next
            result to the same memory.
        full: whether there are all points.
        solution: what the solver returned.
        samples: the samples' indices in the batch of the first case, if this is a part of it.
    """

    states: Tensor
    full: bool
    solution: Any
    samples: tuple[int, ...] | None = None

    def pick(self, samples: list[int]) -> Run:
        """Return the result of some samples, in the given order."""
        origin = self.samples or range(self.states.shape[1])
        return Run(self.states[:, samples], self.full, self.solution, tuple(origin[sample] for sample in samples))

    def name(self, sample: int) -> int:
        """Return the index of a sample in the batch of the first case."""
        return sample if self.samples is None else self.samples[sample]


def read(solution: Any, case: Case, rtol: float, save: Any) -> Run:
    """Read what a solver returned.

    Args:
        solution: any object with a tensor `final`, `ys` or both.
        case: what was solved.
        rtol: largest relative difference between `final` and the last of `ys`.
        save: the option that the solver was given; where it lists points, the last of `ys` need not be the end.

    Raises:
        InvalidProblemError: if there are no such tensors.
        Failure: if their shapes are wrong, or they do not agree.
    """
    ys, final = getattr(solution, "ys", None), getattr(solution, "final", None)
    for one in (ys, final):
        if not (isinstance(one, Tensor) or one is None) or (ys is None and final is None):
            msg = f"a solver must return an object with a tensor `final` or `ys`; it returned {describe(solution)}"
            raise InvalidProblemError(msg)
    state = tuple(case.problem.x0.shape) if case.batch is not None else None
    ys, final = _copy("ys", ys, state), _copy("final", final, state)
    steps = case.steps
    full = ys is not None and (len(ys) == steps + 1 if steps is not None else len(ys) > 1)
    last = ys[-1] if ys is not None and len(ys) and (full or not lists_points(save)) else None
    if last is not None and final is not None and not same(final, last):
        if final.shape != last.shape or final.dtype != last.dtype:
            msg = f"`final` is {describe(final)}, the last of `ys` {describe(last)}"
            raise Failure(msg)
        difference, _, _ = largest_difference(final[None], last[None])
        if not difference <= rtol:
            msg = f"`final` must be the last of `ys`; their relative difference is {difference:.1e}"
            raise Failure(msg)
    if ys is not None and full:
        return Run(ys, full=True, solution=solution, samples=case.samples)
    end = last if final is None else final
    if end is None:
        msg = "the solution has neither `final` nor the last state in `ys`"
        raise Skip(msg)
    return Run(end[None], full=False, solution=solution, samples=case.samples)


def _copy(name: str, value: Tensor | None, state: tuple[int, ...] | None) -> Tensor | None:
    if value is None:
        return None
    lead = ("points",) if name == "ys" else ()
    if value.ndim < len(lead) + 1 or (state is not None and tuple(value.shape[len(lead) :]) != state):
        wanted = ", ".join([*lead, "batch, *state" if state is None else str(state)[1:-1]])
        msg = f"`{name}` must have shape ({wanted}); the solver returned {describe(value)}"
        raise Failure(msg)
    return value.detach().cpu().clone()


def lists_points(save: Any) -> bool:
    """Say whether the option `save` lists grid points."""
    return isinstance(save, (list, tuple, range, torch.Tensor))


def whole(run: Run) -> Run:
    """Return the run, which must hold all states.

    Raises:
        Skip: if it does not.
    """
    if not run.full:
        msg = "the solution does not hold the states at all grid points"
        raise Skip(msg)
    return run
