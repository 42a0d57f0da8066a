"""The check: a solver against the sequential one, property by property."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from picard.errors import InvalidProblemError, close_match
from picard.sequential import sequential
from picard.solve import solve
from picard.verify.case import Case
from picard.verify.properties import PROPERTIES
from picard.verify.report import Finding, Outcome, Report, Reproducer
from picard.verify.shrink import attempt, shrink
from picard.verify.trial import Solver, Trial


def check(
    problem: Any,
    grid: Any,
    *,
    method: Any,
    solver: Solver = solve,
    reference: Solver = sequential,
    rtol: float | None = None,
    within: float = 0.1,
    properties: Sequence[str] | None = None,
    **solve_options: Any,
) -> Report:
    """Check a parallel solver against a sequential one on one problem.

    A solver is any callable `solver(problem, grid, method=..., **options)` that returns an object with a tensor
    `final`, shape (batch, *state), or `ys`, shape (steps + 1, batch, *state). Properties that need more, such as a
    `tolerance` option, are skipped, and the report says what is missing. The problem of a solver of another library
    may be anything; one of this library's can be taken apart, so more can be checked.

    Args:
        problem: `ODE`, `SDE`, `Diffusion`, or whatever the solvers take.
        grid: as for `picard.solve`, or whatever the solvers take.
        method: handed to both solvers.
        solver: the solver to be verified.
        reference: the sequential solver.
        rtol: largest relative difference that counts as rounding; by default it depends on the state's dtype: 1e-10
            for float64, 2e-4 for float32, 2e-2 for float16, 1e-1 for bfloat16.
        within: largest relative root mean square difference of the result to the reference, with the options as given.
        properties: names of the properties to check, of `PROPERTIES`; all by default.
        **solve_options: handed to `solver`.

    Returns:
        The report; print it, or call its `raise_for_failures()`.

    Raises:
        InvalidProblemError: if a property is unknown.
        Exception: if the reference fails.
    """
    chosen = list(PROPERTIES) if properties is None else list(properties)
    for name in chosen:
        if name not in PROPERTIES:
            msg = f"unknown property {name!r}: {close_match(name, PROPERTIES)}"
            raise InvalidProblemError(msg)
    trial = Trial(Case(problem, grid, method, solve_options), solver, reference, rtol, within)
    trial.wanted()
    return Report(trial.case, tuple(_find(trial, name) for name in chosen))


def _find(trial: Trial, name: str) -> Finding:
    kind, detail = attempt(trial, PROPERTIES[name])
    if kind == "":
        return Finding(name, Outcome.PASSED, detail)
    if kind == "Skip":
        return Finding(name, Outcome.SKIPPED, detail)
    case, smallest = shrink(trial, PROPERTIES[name], kind)
    solver = getattr(trial.solver, "__name__", type(trial.solver).__name__)
    return Finding(name, Outcome.FAILED, detail, Reproducer(case, name, solver, smallest))
