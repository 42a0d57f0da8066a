"""What a solver may get wrong beside its states: what it returns, what it writes to, and what it tells."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard.verify import Mixture, check, mixture_diffusion
from picard.verify.known import tanh_ode, tanh_sde
from picard.verify.report import Outcome
from tests.faulty_solver import faulty

GRID = torch.linspace(0, 1, 6, dtype=torch.float64)
right = faulty(None)


def changed(**changes: Any) -> Any:
    """The right solver, of whose result something is changed."""

    def solver(problem: Any, grid: Any, *, method: Any, tolerance: float = 1e-4, save: str = "last") -> Any:
        found = right(problem, grid, method=method, tolerance=tolerance, save=save)
        return SimpleNamespace(**{**vars(found), **{name: make(found, save) for name, make in changes.items()}})

    return solver


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (changed(final=lambda found, save: 2 * found.final), "`final` must be the last of `ys`"),
        (changed(final=lambda found, save: found.final.flatten()), r"`final` must have shape \(2, 3\)"),
        (changed(final=lambda found, save: found.final.float()), "`final` is a tensor of shape"),
        (changed(ys=lambda found, save: found.ys[:, 0]), r"`ys` must have shape \(points, 2, 3\)"),
    ],
)
def test_the_final_state_is_the_last_of_all(solver: Any, message: str) -> None:
    report = check(tanh_ode(0), GRID, method="euler", solver=solver, properties=["equal_to_sequential", "reproducible"])
    assert [one.outcome for one in report.findings] == [Outcome.FAILED] * 2
    with pytest.raises(AssertionError, match=message):
        report.raise_for_failures()


@pytest.mark.parametrize("options", [{}, {"save": "last"}, {"save": [0, 5]}], ids=str)
def test_what_is_saved_changes_nothing(options: dict[str, Any]) -> None:
    def wrong(found: Any, save: Any) -> Tensor:
        return found.ys if save == "all" else found.ys * 1.001

    solver = changed(ys=wrong, final=lambda found, save: found.final if save == "all" else found.final * 1.001)
    report = check(tanh_ode(0), GRID, method="euler", solver=solver, **options)
    assert [one.property for one in report.failures] == ["save_independent"]


def test_the_points_that_are_saved_are_the_ones_asked_for() -> None:
    def shifted(problem: Any, grid: Any, *, method: Any, save: Any = "last") -> Any:
        places: Any = save if isinstance(save, str) else [point + 1 for point in save]
        return picard.solve(problem, grid, method=method, save=places)

    names = ["save_independent"]
    check(tanh_ode(0), GRID, method="euler", properties=names, save=[1, 3]).raise_for_failures()
    assert not check(tanh_ode(0), GRID, method="euler", solver=shifted, properties=names, save=[1, 3]).passed


def test_a_result_of_another_dtype_fails() -> None:
    def wide(problem: Any, grid: Any, *, method: Any, tolerance: float = 1e-4) -> Any:
        return SimpleNamespace(final=right(problem, grid, method=method, tolerance=tolerance).final.double())

    problem = tanh_ode(0, dtype=torch.float32)
    names = ["equal_to_sequential", "within_tolerance"]
    report = check(problem, GRID.float(), method="euler", solver=wide, properties=names)
    assert [one.detail.split(": ")[1] for one in report.failures] == [
        "dtype torch.float64 instead of torch.float32"
    ] * 2


def reusing(drift: float) -> Any:
    """A solver that returns the same memory every time; one with a drift is a little off, more so every time."""
    memory: dict[Any, Tensor] = {}
    calls = [0]

    def solver(problem: Any, grid: Any, *, method: Any, tolerance: float = 1e-4, save: str = "last") -> Any:
        found = right(problem, grid, method=method, tolerance=tolerance, save="all").ys
        calls[0] += 1
        ys = memory.setdefault(found.shape, torch.empty_like(found)).copy_(found * (1 + calls[0] * drift))
        return SimpleNamespace(ys=ys, final=ys[-1])

    return solver


def test_a_solver_may_return_the_same_memory_again() -> None:
    check(tanh_sde(0), GRID, method="euler", solver=reusing(0.0)).raise_for_failures()
    report = check(tanh_sde(0), GRID, method="euler", solver=reusing(1e-7))
    assert report.failures[0].property == "reproducible"  # which says more than that nothing else holds


def test_a_result_that_is_not_finite_is_found_where_it_matters() -> None:
    solver = changed(ys=lambda found, save: found.ys * torch.nan, final=lambda found, save: found.final * torch.nan)
    report = check(tanh_ode(0), GRID, method="euler", solver=solver)
    assert report["reproducible"].outcome is Outcome.PASSED
    assert report["equal_to_sequential"].outcome is Outcome.FAILED


WRITERS = {
    "problem.x0": lambda problem, grid, guess: problem.x0.add_(1),
    "problem.cond['shift'][0]": lambda problem, grid, guess: problem.cond["shift"][0].zero_(),
    "problem.noise.values": lambda problem, grid, guess: problem.noise.values.mul_(2),
    "grid": lambda problem, grid, guess: grid.data.mul_(1.001),
    "guess": lambda problem, grid, guess: guess.t_(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_solver_that_writes_to_its_input_is_told_and_undone(name: str) -> None:
    def writes(problem: Any, grid: Any, *, method: Any, guess: Tensor) -> Any:
        found = picard.sequential(problem, grid, method=method)
        WRITERS[name](problem, grid, guess)
        return found

    noise = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond = {"shift": (torch.ones(3, dtype=torch.float64),)}
    problem = replace(
        tanh_sde(0),
        drift=lambda t, x, shift: x + shift[0],
        diffusion=lambda t, x, shift: torch.ones_like(x),
        noise=picard.Noise.from_tensor(noise),
        cond=cond,
    )
    guess = torch.zeros(2, 3, dtype=torch.float64)
    given = [problem.x0, noise, cond["shift"][0], GRID, guess]
    before = [one.clone() for one in given]
    names = ["within_tolerance"]
    report = check(problem, GRID, method="euler", solver=writes, guess=guess, properties=names)
    assert f"it changed {name} in place" in report["within_tolerance"].detail
    assert all(torch.equal(one, was) for one, was in zip(given, before, strict=True))


def test_a_reference_that_writes_to_its_input_is_no_reference() -> None:
    def writes(problem: Any, grid: Any, *, method: Any) -> Any:
        problem.x0.mul_(0.5)
        return picard.sequential(problem, grid, method=method)

    with pytest.raises(picard.InvalidProblemError, match=r"reference is not usable.*problem\.x0"):
        check(tanh_ode(0), GRID, method="euler", reference=writes)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("method", ["ddpm", "heun"])
def test_evaluations_are_the_rows_that_the_model_is_given(method: str, gradient: bool) -> None:
    problem = mixture_diffusion(Mixture.random(0), picard.Schedule.linear(50), 0, batch=3)
    if gradient:
        problem = replace(problem, x_T=problem.x_T.requires_grad_())
    options: dict[str, Any] = {"tolerance": picard.NoiseRatio(0.5), "certify": method == "ddpm", "max_rows": 4}
    report = check(problem, 8, method=method, properties=["evaluations_counted"], **options)
    assert report["evaluations_counted"].outcome is Outcome.PASSED, str(report)


def test_evaluations_that_are_not_what_the_model_was_given_fail() -> None:
    def wrong(found: Any, save: Any) -> SimpleNamespace:
        return SimpleNamespace(rounds=found.stats.rounds, evaluations=5)

    report = check(tanh_sde(0), GRID, method="euler", solver=changed(stats=wrong), properties=["evaluations_counted"])
    assert "stats.evaluations is 5, but the model was given" in report.failures[0].detail


def test_guidance_gives_the_model_two_rows_for_one() -> None:
    denoiser = picard.Denoiser(
        lambda x, t, label: x * label[:, None],
        picard.Schedule.linear(20),
        guidance=picard.Guidance(2.0, {"label": GRID[:2]}),
    )
    problem = picard.Diffusion(denoiser, torch.ones(2, 3, dtype=torch.float64), cond={"label": GRID[2:4]})
    report = check(problem, 4, method="ddim", properties=["evaluations_counted"])
    assert report["evaluations_counted"].detail == "guidance gives the model two rows for one"


def uneven(problem: Any, grid: Any, *, method: Any, tolerance: float = 1e-4, max_rows: int | None = None) -> Any:
    """Solve; rows of a smaller last call are off."""
    rows, size = 3 * 4, max_rows or 12
    found = right(problem, grid, method=method, tolerance=tolerance)
    return SimpleNamespace(final=found.final * (1 + 1e-3 * (rows % size != 0)))


def test_some_calls_leave_a_smaller_one_whatever_the_batch() -> None:
    report = check(tanh_ode(0, batch=3), GRID, method="euler", solver=uneven, properties=["max_rows_independent"])
    assert not report.passed


@pytest.mark.parametrize("kind", ["solution", "tensor", "expected"])
def test_a_guess_is_taken_apart_with_the_batch(kind: str) -> None:
    problem = tanh_sde(0, batch=3)
    near = picard.sequential(problem, GRID, method="euler", save="all")
    values = torch.zeros(5, 3, 3, dtype=torch.float64)
    guess = {"solution": near, "tensor": near.ys, "expected": picard.Expected(values)}[kind]
    report = check(problem, GRID, method="euler", guess=guess)
    report.raise_for_failures()
    assert report["batch_independent"].outcome is report["causal"].outcome is Outcome.PASSED
    short = report.case.select([2]).shorten(3).options["guess"]
    assert tuple(getattr(short, "values", short).shape if kind == "expected" else short.shape) == (
        (3, 1, 3) if kind == "expected" else (4, 1, 3)
    )


def test_a_solve_that_may_end_early_need_not_reach_the_end() -> None:
    report = check(tanh_ode(0), GRID, method="euler", max_rounds=2, throw=False)
    report.raise_for_failures()
    assert report["within_tolerance"].detail.startswith("max_rounds=2 may end a solve")
    full = check(tanh_ode(0), GRID, method="euler", max_rounds=5, properties=["within_tolerance"])
    assert full["within_tolerance"].outcome is Outcome.PASSED


def test_what_goes_by_measured_times_need_not_repeat() -> None:
    report = check(tanh_ode(0, batch=3), GRID, method="euler", window="auto", max_rows="auto")
    report.raise_for_failures()
    for name in ("reproducible", "batch_independent", "max_rows_independent", "save_independent"):
        assert report[name].detail.startswith('window="auto" goes by measured times'), name
