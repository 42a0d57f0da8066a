"""The check: a solver against the sequential one, property by property."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from picard.doors import check_options
from picard.errors import InvalidProblemError, check_choice, describe
from picard.number import number
from picard.sequential import sequential
from picard.solve import solve
from picard.verify.case import Case
from picard.verify.properties import PROPERTIES
from picard.verify.report import Finding, Outcome, Report
from picard.verify.reproducer import WITHIN, Reproducer
from picard.verify.shrink import attempt, shrink
from picard.verify.trial import Solver, Trial, parameters


def check(
    problem: Any,
    grid: Any,
    *,
    method: Any,
    solver: Solver = solve,
    reference: Solver = sequential,
    rtol: float | None = None,
    within: float = WITHIN,
    properties: Sequence[str] | None = None,
    **solve_options: Any,
) -> Report:
    """Check a parallel solver against a sequential one on one problem.

    A solver is any callable `solver(problem, grid, method=..., **options)` that returns an object with a tensor
    `final`, shape (batch, *state), or `ys`, shape (steps + 1, batch, *state). Properties that need more, such as a
    `tolerance` option, are skipped, and the report says what is missing. A solver with `**options` is taken to have
    every option. The problem of a solver of another library may be anything; one of this library's can be taken apart,
    so more can be checked. No tensor in problem, grid and options is left changed: a solver that writes to one fails.

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
        InvalidProblemError: if a property is unknown, an argument has the wrong form, or the reference does not return
            states.
        TypeError: if the solver has no such option.
        Exception: if the reference fails.
    """
    _check(solver, reference, rtol, within, properties, solve_options)
    chosen = list(PROPERTIES) if properties is None else list(properties)
    trial = Trial(Case(problem, grid, method, solve_options), solver, reference, rtol, within)
    trial.wanted()
    return Report(trial.case, tuple(_find(trial, name) for name in chosen))


def _check(
    solver: Any, reference: Any, rtol: float | None, within: float, properties: Any, options: dict[str, Any]
) -> None:
    for name, one in (("solver", solver), ("reference", reference)):
        taken = parameters(one) if callable(one) else {""}
        if not callable(one) or (taken and "method" not in taken):
            msg = f"{name} must be callable as {name}(problem, grid, method=..., **options); given {describe(one)}"
            raise InvalidProblemError(msg)
        if name == "solver" and taken:  # an empty set says nothing: not every callable tells what it takes
            check_options(options, sorted(taken - {"problem", "grid", "method"}), "the solver")
    for name, given in (("rtol", 0.0 if rtol is None else rtol), ("within", within)):
        if not number(name, given) >= 0:
            msg = f"{name} must be a number of at least 0; given {given}"
            raise InvalidProblemError(msg)
    if isinstance(properties, str) or not isinstance(properties, (Iterable, type(None))):
        fix = [properties] if isinstance(properties, str) else list(PROPERTIES)[:1]
        msg = f"properties must be a list of names; given {describe(properties)}: write properties={fix}"
        raise InvalidProblemError(msg)
    for name in () if properties is None else properties:
        check_choice("property", name, PROPERTIES)


def _find(trial: Trial, name: str) -> Finding:
    kind, detail, error = attempt(trial, PROPERTIES[name])
    if kind == "":
        return Finding(name, Outcome.PASSED, detail)
    if kind == "Skip":
        return Finding(name, Outcome.SKIPPED, detail)
    case, smallest = shrink(trial, PROPERTIES[name], kind)
    smaller = Reproducer(case, name, trial.solver, smallest, trial.reference, trial.rtol, trial.within)
    return Finding(name, Outcome.FAILED, detail, smaller, error)
