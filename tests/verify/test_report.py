"""What is said of a failure: reproducers that can be pasted, causes, names of the caller, and plain errors."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import picard
from picard.verify import VerificationError, check
from picard.verify.known import tanh_ode, tanh_sde
from tests.faulty_solver import faulty
from tests.test_readme import BLOCK, ROOT

GRID = torch.linspace(0, 2, 21, dtype=torch.float64)
faultless = faulty(None)
ODE = tanh_ode(0)


def off(problem: Any, grid: Any, *, method: Any, window: int = 8, tolerance: Any = 1e-4) -> Any:
    """Solve, with a last state that is off on grids of more than ten steps."""
    found = faultless(problem, grid, method=method, window=window, tolerance=1e-4)
    return SimpleNamespace(final=found.final * (1.001 if len(grid) > 11 else 1.0))


def other(problem: Any, grid: Any, *, method: Any) -> Any:
    return SimpleNamespace(final=1.5 * picard.sequential(problem, grid, method=method).final)


CASES: dict[str, dict[str, Any]] = {
    "within": {"solver": off, "within": 1e-4},
    "rtol": {"solver": faultless, "rtol": 1e-19, "properties": ["equal_to_sequential"]},
    "reference": {"solver": faultless, "reference": other},
    "default solver": {"tolerance": 0.5, "window": 3, "within": 0.0},
    "tolerance": {"tolerance": picard.RelAbs(0.5, 0.5), "within": 0.0},
    "infinite": {"solver": off, "within": math.inf, "properties": ["equal_to_sequential"]},
    "method": {"solver": off, "within": 1e-4, "method": picard.integrators.RK4()},
    "uneven grid": {"solver": off, "within": 1e-4, "grid": GRID**2},
}


@pytest.mark.parametrize("name", CASES)
def test_a_reproducer_can_be_pasted(name: str) -> None:
    given = {"grid": GRID, "method": "euler", "properties": ["within_tolerance"], **CASES[name]}
    report = check(ODE, **given)
    text = str(report.failures[0].reproducer)
    names = {"problem": ODE, "off": off, "other": other, "faultless": faultless}
    with pytest.raises(VerificationError, match=given["properties"][0].replace("_", " ")):
        exec(text, names)


@pytest.mark.parametrize(
    "solver", [lambda *given, method: off(*given, method=method), functools.partial(off, window=3)]
)
def test_what_has_no_name_is_left_to_be_filled_in(solver: Any) -> None:
    report = check(ODE, GRID, method="euler", solver=solver, within=1e-4, properties=["within_tolerance"])
    reproducer = report.failures[0].reproducer
    assert reproducer is not None
    assert f"# solver: a {type(solver).__name__}, reproducer.solver: put in what was given" in str(reproducer)
    with pytest.raises(VerificationError):
        exec(str(reproducer), {"problem": ODE, "solver": reproducer.solver})


def test_a_large_guess_is_left_to_be_filled_in() -> None:
    guess = torch.zeros(21, 2, 600, dtype=torch.float64)
    problem = tanh_ode(0, shape=(600,))
    report = check(
        problem, GRID, method="euler", guess=guess, within=0.0, tolerance=0.5, properties=["within_tolerance"]
    )
    text = str(report.failures[0].reproducer)
    assert "# guess: a tensor of shape (" in text
    assert "reproducer.case.options['guess']: put in what was given" in text
    assert "\n    guess=guess,\n" in text


def test_samples_are_named_as_the_caller_counts_them() -> None:
    problem = tanh_sde(0, batch=3)

    def third(problem: Any, grid: Any, *, method: Any, tolerance: float = 1e-4) -> Any:
        final = faultless(problem, grid, method=method, tolerance=tolerance).final
        marked = (final[:, None] == last).all(2).any(1)
        return SimpleNamespace(final=torch.where(marked[:, None], 2 * final, final))

    last = faultless(problem, GRID, method="euler", tolerance=0.0).final[2:]
    report = check(problem, GRID, method="euler", solver=third, properties=["equal_to_sequential"])
    reproducer = report.failures[0].reproducer
    assert reproducer is not None
    assert reproducer.case.samples == (2,)
    assert "of sample 2, more than" in reproducer.detail


def test_what_a_solver_raises_is_the_cause() -> None:
    def broken(problem: Any, grid: Any, *, method: Any) -> Any:
        try:
            return 1 / 0
        except ZeroDivisionError as inner:
            msg = "no way"
            raise ValueError(msg) from inner

    report = check(ODE, GRID, method="euler", solver=broken, properties=["reproducible"])
    assert report["reproducible"].error is not None
    with pytest.raises(VerificationError) as caught:
        report.raise_for_failures()
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)


def test_a_property_that_was_not_checked_is_no_key() -> None:
    report = check(ODE, GRID, method="euler", properties=["reproducible"])
    with pytest.raises(KeyError, match="'causal' was not checked: known: reproducible"):
        report["causal"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"properties": "causal"}, ValueError, r"write properties=\['causal'\]"),
        ({"windw": 3}, TypeError, "did you mean 'window'"),
        ({"solver": off, "sync_every": 3}, TypeError, "the solver has no option 'sync_every'"),
        ({"solver": None}, ValueError, "solver must be callable as solver"),
        ({"solver": lambda problem, grid: None}, ValueError, "solver must be callable as solver"),
        ({"reference": 3}, ValueError, "reference must be callable as reference"),
        ({"rtol": -1.0}, ValueError, "rtol must be a number of at least 0; given -1"),
        ({"within": math.nan}, ValueError, "within must be a number of at least 0; given nan"),
    ],
)
def test_a_wrong_argument_is_an_error_and_no_finding(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        check(ODE, GRID, method="euler", **options)


def test_a_solver_that_does_not_tell_its_options_is_called() -> None:
    class Silent:
        __signature__ = "none"

        def __call__(self, problem: Any, grid: Any, *, method: Any, window: int) -> Any:
            return faultless(problem, grid, method=method, window=window)

    check(ODE, GRID, method="euler", solver=Silent(), window=3).raise_for_failures()


def test_one_round_is_no_rounds() -> None:
    def wrong(problem: Any, grid: Any, *, method: Any, tolerance: float, save: Any, max_rounds: int) -> Any:
        return SimpleNamespace(ys=2 * picard.sequential(problem, grid, method=method, save=save).ys)

    report = check(ODE, GRID, method="euler", solver=wrong, properties=["prefix_exact"])
    assert report.failures[0].detail.startswith("after 1 round: ")


def test_the_reproducer_of_the_page_can_be_pasted_there() -> None:
    names: dict[str, Any] = {}
    page = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    for block in BLOCK.findall(page)[:2]:
        exec(block, names)
    reproducer = names["report"]["batch_independent"].reproducer
    assert reproducer.case.batch == 2
    with pytest.raises(VerificationError, match="batch independent"):
        exec(str(reproducer), names)
