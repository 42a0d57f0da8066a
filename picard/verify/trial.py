"""A trial: a solver on a case, with what every property needs to measure it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from picard.errors import InvalidProblemError
from picard.prepare import Prepared
from picard.problem import Problem
from picard.sde import SDE
from picard.verify.case import Case, largest_difference
from picard.verify.inputs import Inputs, same
from picard.verify.result import Run, read
from picard.verify.signals import Failure, Skip

Solver = Callable[..., Any]
"""Called as `solver(problem, grid, method=..., **options)`; returns an object with `final`, better with `ys`."""

_ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


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
        self.rtol = rounding(case.problem) if rtol is None else rtol
        self._taken = parameters(solver)
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

    def fixed(self, *options: str) -> None:
        """Skip the property if one of these options is chosen by measuring.

        Raises:
            Skip: with what to give instead.
        """
        for option in options:
            value = self.case.options.get(option)
            if isinstance(value, str) and value == "auto":
                msg = f'{option}="auto" goes by measured times, and results repeat within the tolerance only'
                raise Skip(f"{msg}: give a number")

    def ends(self) -> None:
        """Skip the property if the options may end a solve before its last step.

        Raises:
            Skip: with what to leave out.
        """
        most = self.case.options.get("max_rounds")
        if most is not None and (self.case.batch is None or most < self.nodes()):
            msg = f"max_rounds={most} may end a solve before its last step: leave it out"
            raise Skip(msg)

    def given(self) -> Run:
        """Run the solver with the options as they are, `save` too."""
        return self._call(self.solver, self.case, dict(self.case.options))

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

    def wanted(self) -> Run:
        """Run the reference.

        Raises:
            InvalidProblemError: if it does not return states, or changes what it is given.
        """
        if "reference" not in self._kept:
            taken = parameters(self.reference)
            options = {"save": "all"} if taken is None or "save" in taken else {}
            try:
                self._kept["reference"] = self._call(self.reference, self.case, options)
            except (Failure, Skip) as error:
                msg = f"the reference is not usable: {error}"
                raise InvalidProblemError(msg) from error
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
        for name in ("shape", "dtype"):
            if getattr(a, name) != getattr(b, name):
                msg = f"{what}: {name} {_text(getattr(a, name))} instead of {_text(getattr(b, name))}"
                raise Failure(msg)
        if points is not None:
            a, b = a[points], b[points]
        if same(a, b):
            return 0.0  # also where both are not finite
        difference, point, sample = largest_difference(a, b)
        if not difference <= most:
            where = point if points is None else points[point]
            place = f"at grid point {where}" if got.full and wanted.full else "at the end"
            at = f"{place} of sample {got.name(sample)}"
            msg = f"{what}: relative difference {difference:.1e} {at}, more than {most:.1e}"
            raise Failure(msg)
        return difference

    def _call(self, solver: Solver, case: Case, options: dict[str, Any]) -> Run:
        inputs = Inputs({"problem": case.problem, "grid": case.grid, **options})
        try:
            solution = solver(case.problem, case.grid, method=case.method, **options)
        finally:
            changed = inputs.restore()
        if changed:
            msg = f"it must leave its input as it is; it changed {' and '.join(changed)} in place: begin with x.clone()"
            raise Failure(msg)
        return read(solution, case, self.rtol, options.get("save"))


def rounding(problem: Any) -> float:
    """Return the largest relative difference that counts as rounding, by the dtype of the problem's state."""
    return _ROUNDING.get(getattr(getattr(problem, "x0", None), "dtype", torch.float64), 2e-4)


def parameters(solver: Solver) -> set[str] | None:
    """Name the options a callable takes; `None` if it takes any, none at all if it does not tell."""
    try:
        found = inspect.signature(solver).parameters
    except (TypeError, ValueError):
        return set()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values()):
        return None
    return set(found)


def _text(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)
