"""Shrinking: a small deterministic search for the smallest case in which a property still fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from picard.diffusion import Diffusion
from picard.verify.case import Case
from picard.verify.properties import Property
from picard.verify.signals import Failure, Skip
from picard.verify.trial import Trial

_BUDGET = 40


class Attempt(NamedTuple):
    """What came of checking a property.

    Attributes:
        kind: `""` for a pass, `"Skip"`, `"Failure"`, or the type of what was raised.
        detail: its message.
        error: what was raised, if it is an error.
    """

    kind: str
    detail: str
    error: Exception | None = None


def attempt(trial: Trial, check: Property) -> Attempt:
    """Check a property and catch everything."""
    try:
        return Attempt("", check(trial))
    except (Skip, Failure) as reason:
        return Attempt(type(reason).__name__, str(reason))
    except Exception as error:  # noqa: BLE001  # a solver that raises anything has failed, and the report says how
        name, said = type(error).__name__, str(error).partition("\n")[0]
        return Attempt(name, f"raised {name}: {said}" if said else f"raised {name}", error)


def shrink(trial: Trial, check: Property, kind: str) -> tuple[Case, str]:
    """Find a smaller case that fails in the same way.

    Batch, steps and window are reduced in turn, each to the smallest value of a short list at which the property still
    fails, until nothing gets smaller or the budget of checks is spent.

    Args:
        trial: the failing trial.
        check: the property.
        kind: the kind of failure, as `attempt` returned it.

    Returns:
        The case and the message of its failure.
    """
    best, detail, budget = trial.case, attempt(trial, check).detail, _BUDGET
    smaller = True
    while smaller and budget > 0:
        smaller = False
        for candidates in (_batches, _lengths, _windows):
            for case in candidates(best):
                if budget == 0:
                    return best, detail
                budget -= 1
                found = attempt(trial.on(case), check)
                if found.kind == kind:
                    best, detail, smaller = case, found.detail, True
                    break
    return best, detail


def _batches(case: Case) -> Iterator[Case]:
    batch = case.batch or 1
    if batch > 1:
        yield from (case.select([sample]) for sample in range(min(batch, 3)))
    if batch > 2:
        yield from (case.select([0, sample]) for sample in range(1, min(batch, 4)))


def _lengths(case: Case) -> Iterator[Case]:
    """Shorten the grid; a time grid keeps at least three points, as the solver asks."""
    steps = case.steps
    least = 1 if isinstance(case.problem, Diffusion) else 2
    if case.batch is not None and steps is not None:
        yield from (case.shorten(fewer) for fewer in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64) if least <= fewer < steps)


def _windows(case: Case) -> Iterator[Case]:
    window = case.options.get("window")
    if isinstance(window, int):
        for smaller in (1, 2, 3, 4, 8, 16, 32):
            if smaller < window:
                yield replace(case, options={**case.options, "window": smaller})
