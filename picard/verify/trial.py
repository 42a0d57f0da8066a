"""A trial: a solver on a case, with what every property needs to measure it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, describe
from picard.prepare import Prepared
from picard.problem import Problem
from picard.sde import SDE
from picard.verify.case import Case, largest_difference

Solver = Callable[..., Any]
"""Called as `solver(problem, grid, method=..., **options)`; returns an object with `final`, better with `ys`."""

_ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Skip(Exception):  # noqa: N818  # not an error: a property that means nothing here
    """A property cannot be measured; the message says what is missing."""


class Failure(Exception):  # noqa: N818  # not an error of this library: a property that does not hold
    """A property does not hold; the message says what was measured."""


@dataclass(frozen=True, eq=False)
class Run:
    """One result of a solver.

    Attributes:
        states: states at all grid points, shape (points, batch, *state), or the final ones alone, with one point; on
            the CPU, where they are compared, since not every device has float64.
        full: whether there are all points.
        solution: what the solver returned.
    """

    states: Tensor
    full: bool
    solution: Any


class Trial:
    """A solver on a case; results are kept, so that properties can share them.

    Attributes:
        case: the case.
        solver: the solver.
        reference: the sequential solver.
        rtol: largest relative difference that counts as rounding.
        within: largest relative difference to the reference with the options as given.
    """

    def __init__(self, case: Case, solver: Solver, reference: Solver, rtol: float | None, within: float) -> None:
        self.case, self.solver, self.reference, self.within = case, solver, reference, within
        dtype = getattr(getattr(case.problem, "x0", None), "dtype", torch.float64)
        self.rtol = _ROUNDING.get(dtype, 2e-4) if rtol is None else rtol
        self._taken = _parameters(solver)
        self._kept: dict[str, Run] = {}

    def on(self, case: Case) -> Trial:
        """Return the same trial of another case."""
        return Trial(case, self.solver, self.reference, self.rtol, self.within)

    def takes(self, option: str) -> bool:
        """Whether the solver has an option."""
        return self._taken is None or option in self._taken

    def needs(self, *options: str) -> None:
        """Skip the property unless the solver has all these options.

        Raises:
            Skip: if it lacks one.
        """
        for option in options:
            if not self.takes(option):
                msg = f"the solver takes no option {option!r}"
                raise Skip(msg)

    def run(self, case: Case | None = None, **changes: Any) -> Run:
        """Run the solver with the case's options and some changed."""
        given = self.case if case is None else case
        options = {**given.options, **changes}
        if self.takes("save"):
            options["save"] = "all"
        key = repr(sorted(options.items(), key=str)) if case is None else ""
        if not key or key not in self._kept:
            run = self._call(self.solver, given, options)
            if not key:
                return run
            self._kept[key] = run
        return self._kept[key]

    def wanted(self, case: Case | None = None) -> Run:
        """Run the reference."""
        if case is not None:
            return self._call(self.reference, case, self._save(self.reference))
        if "reference" not in self._kept:
            self._kept["reference"] = self._call(self.reference, self.case, self._save(self.reference))
        return self._kept["reference"]

    def prepared(self) -> Prepared:
        """Write the case as a plan.

        Raises:
            Skip: if the problem is of another library.
        """
        if not isinstance(self.case.problem, Problem | SDE):
            msg = "the problem is not one of picard's, so its nodes are not known"
            raise Skip(msg)
        return self.case.prepare()

    def nodes(self) -> int:
        """Return the number of model evaluations of the sequential solver."""
        return self.prepared().plan.nodes

    def expect(self, got: Run, wanted: Run, most: float, what: str, points: list[int] | None = None) -> float:
        """Compare two results, at some grid points or all.

        Returns:
            The largest relative difference.

        Raises:
            Failure: if it is more than `most`, or the shapes differ.
        """
        a, b = (got.states, wanted.states) if got.full and wanted.full else (got.states[-1:], wanted.states[-1:])
        if a.shape != b.shape:
            msg = f"{what}: shape {tuple(a.shape)} instead of {tuple(b.shape)}"
            raise Failure(msg)
        if points is not None:
            a, b = a[points], b[points]
        difference, point, sample = largest_difference(a, b)
        if not difference <= most:
            where = point if points is None else points[point]
            place = f"at grid point {where}" if got.full and wanted.full else "at the end"
            msg = f"{what}: relative difference {difference:.1e} {place} of sample {sample}, more than {most:.1e}"
            raise Failure(msg)
        return difference

    def _call(self, solver: Solver, case: Case, options: dict[str, Any]) -> Run:
        solution = solver(case.problem, case.grid, method=case.method, **options)
        ys, final = getattr(solution, "ys", None), getattr(solution, "final", None)
        steps = case.steps
        if isinstance(ys, Tensor) and (len(ys) == steps + 1 if steps is not None else len(ys) > 1):
            return Run(ys.detach().cpu(), True, solution)
        last = ys[-1] if final is None and isinstance(ys, Tensor) and len(ys) else final
        if isinstance(last, Tensor):
            return Run(last[None].detach().cpu(), False, solution)
        msg = f"a solver must return an object with a tensor `final` or `ys`; it returned {describe(solution)}"
        raise InvalidProblemError(msg)

    @staticmethod
    def _save(solver: Solver) -> dict[str, Any]:
        taken = _parameters(solver)
        return {"save": "all"} if taken is None or "save" in taken else {}


def _parameters(solver: Solver) -> set[str] | None:
    """Names of the options a callable takes; `None` if it takes any."""
    try:
        parameters = inspect.signature(solver).parameters
    except (TypeError, ValueError):
        return set()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters)


def whole(run: Run) -> Run:
    """Return the run, which must hold all states.

    Raises:
        Skip: if it does not.
    """
    if not run.full:
        msg = "the solution does not hold the states at all grid points"
        raise Skip(msg)
    return run
