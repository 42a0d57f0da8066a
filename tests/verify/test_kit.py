"""The kit itself: what it says, what it skips, what it refuses, and that it takes solvers of other libraries."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import picard
from picard.verify import PROPERTIES, Case, Mixture, VerificationError, check, mixture_diffusion, select, strategies
from picard.verify.known import tanh_ode, tanh_sde
from picard.verify.report import Outcome
from tests.pretend import Device, OnDevice

GRID = torch.linspace(0, 1, 6, dtype=torch.float64)


def test_a_report_prints_one_line_a_property() -> None:
    report = check(tanh_sde(0), GRID, method="euler", window=3)
    lines = str(report).splitlines()
    assert [line.split()[1] for line in lines[1:]] == list(PROPERTIES)
    assert lines[0] == repr(report.case)
    assert report.passed
    assert repr(report) == "Report(passed=11, failed=0, skipped=2)"
    assert report["certified"].outcome is Outcome.SKIPPED
    report.raise_for_failures()


def careless(problem: Any, grid: Any, *, method: Any, window: int = 4, tolerance: float = 0.1) -> Any:
    """Solve, stopping too early."""
    return picard.solve(problem, grid, method=method, window=window, tolerance=tolerance + 0.01, save="all")


def test_a_failure_raises_with_the_property_and_the_smallest_case() -> None:
    report = check(tanh_sde(3, batch=4), GRID, method="euler", solver=careless, window=5)
    with pytest.raises(VerificationError, match="equal to sequential") as caught:
        report.raise_for_failures()
    assert isinstance(caught.value, picard.PicardError)
    assert isinstance(caught.value, AssertionError)
    text = str(caught.value)
    assert "picard.verify.select(problem, [0])" in text
    assert "solver=careless" in text
    assert "noise streams (seed, sample) [(3, 0)]" in text
    assert str(report).endswith(str(report.failures[-1].reproducer))


def test_options_a_solver_does_not_take_skip_the_properties_that_need_them() -> None:
    def fixed(problem: Any, grid: Any, *, method: Any) -> SimpleNamespace:
        return SimpleNamespace(final=picard.sequential(problem, grid, method=method).final)

    report = check(tanh_ode(0), GRID, method="heun", solver=fixed)
    assert report.passed
    assert report["equal_to_sequential"].detail == "the solver takes no option 'tolerance'"
    assert report["rounds_bounded"].detail == "the solution carries no stats.rounds"
    assert report["batch_independent"].outcome is Outcome.PASSED


def test_a_solver_that_raises_has_failed() -> None:
    def broken(problem: Any, grid: Any, *, method: Any, tolerance: float = 0.1) -> SimpleNamespace:
        raise ZeroDivisionError("no\nway")

    report = check(tanh_ode(0), GRID, method="heun", solver=broken, properties=["equal_to_sequential"])
    assert report.failures[0].detail == "raised ZeroDivisionError: no"


def test_a_solver_must_return_states() -> None:
    report = check(tanh_ode(0), GRID, method="heun", solver=lambda problem, grid, method: 3)
    assert "must return an object with a tensor `final` or `ys`" in report["within_tolerance"].detail


def test_a_result_of_another_shape_fails() -> None:
    def cut(problem: Any, grid: Any, *, method: Any, save: str = "last", tolerance: float = 0.0) -> SimpleNamespace:
        return SimpleNamespace(final=picard.sequential(problem, grid, method=method).final[:, :1])

    report = check(
        tanh_ode(0), GRID, method="euler", solver=cut, properties=["equal_to_sequential", "within_tolerance"]
    )
    assert len(report.failures) == 2


def test_an_unknown_property_is_refused_with_a_hint() -> None:
    with pytest.raises(picard.InvalidProblemError, match="did you mean 'causal'"):
        check(tanh_ode(0), GRID, method="euler", properties=["casual"])


def test_a_failing_reference_is_no_finding() -> None:
    with pytest.raises(picard.UnknownMethodError):
        check(tanh_ode(0), GRID, method="eulr")


def test_problems_of_other_libraries_are_handed_on() -> None:
    def walk(problem: dict[str, Tensor], grid: int, *, method: str) -> SimpleNamespace:
        return SimpleNamespace(final=problem["x"] * 0.5**grid)

    report = check({"x": torch.ones(2, 3)}, 4, method="halve", solver=walk, reference=walk)
    assert report.passed
    assert report["batch_independent"].outcome is Outcome.SKIPPED
    assert report["reproducible"].outcome is Outcome.PASSED
    with pytest.raises(picard.NotSupportedError, match="can be taken apart"):
        Case(torch.ones(2, 3), 4, "halve").select([0])


@pytest.mark.usefixtures("unchecked")
def test_what_strategies_and_mixtures_are_asked_for_is_checked() -> None:
    refused: list[tuple[Any, str]] = [
        (lambda: strategies.methods("odes"), "unknown kind 'odes': did you mean 'ode'"),  # type: ignore[arg-type]
        (lambda: strategies.cases("odes"), "unknown kind"),  # type: ignore[arg-type]
        (lambda: strategies.solve_options("odes"), "unknown kind"),  # type: ignore[arg-type]
        (lambda: strategies.time_grids(direction="down"), "unknown direction"),  # type: ignore[arg-type]
        (lambda: Mixture.random(0, components=0), "components must be an integer of at least 1"),
        (lambda: Mixture.random(0, dims=-1), "dims must be an integer of at least 1"),
    ]
    for make, says in refused:
        with pytest.raises(picard.InvalidProblemError, match=says):
            make()


def test_samples_are_selected_with_their_noise_and_conditioning() -> None:
    label = torch.arange(3.0).double()
    problem = picard.SDE(
        lambda t, x, label, table: x + label[:, None] + table[0],
        lambda t, x, label, table: torch.ones_like(x),
        torch.randn(3, 2, dtype=torch.float64),
        noise=picard.Noise.from_seed(1),
        cond={"label": label, "table": [torch.zeros(1, dtype=torch.float64)]},
    )
    whole = picard.sequential(problem, GRID, method="euler").final
    part = picard.sequential(select(problem, [2, 0]), GRID, method="euler").final
    assert torch.equal(part, whole[[2, 0]])
    with pytest.raises(picard.NotSupportedError, match="taken apart"):
        select(3, [0])


def test_a_sparse_matrix_that_all_rows_share_is_handed_on() -> None:
    shared = torch.eye(3, dtype=torch.float64).to_sparse()
    x0 = torch.randn(2, 3, dtype=torch.float64)
    problem = picard.ODE(lambda t, x, matrix: -(matrix @ x.T).T, x0, cond={"matrix": shared})
    assert check(problem, GRID, method="euler").passed


def test_guidance_is_taken_apart_too() -> None:
    schedule = picard.Schedule.linear(20)
    labels = torch.arange(3.0).double()

    def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return 0.1 * x + label[:, None]

    guidance = picard.Guidance(2.0, {"label": -labels})
    denoiser = picard.Denoiser(model, schedule, guidance=guidance)
    x = torch.randn(3, 2, dtype=torch.float64)
    problem = picard.Diffusion(denoiser, x, noise=picard.Noise.from_seed(0), cond={"label": labels})
    check(problem, 5, method="ddpm", properties=["batch_independent", "causal"], rtol=1e-9).raise_for_failures()


def test_everything_is_checked_where_everything_is_there() -> None:
    problem = mixture_diffusion(Mixture.random(0), picard.Schedule.linear(50), 0)
    report = check(problem, 6, method="ddpm", window=4)
    assert all(finding.outcome is Outcome.PASSED for finding in report.findings), str(report)


@given(strategies.time_grids(direction="decreasing"), strategies.time_grids(direction="increasing"))
def test_grids_run_the_way_they_should(down: Tensor, up: Tensor) -> None:
    assert bool((down.diff() < 0).all())
    assert bool((up.diff() > 0).all())


@given(strategies.lipschitz_odes(), st.integers(0, 99))
def test_the_lipschitz_constant_is_one(problem: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, *problem.x0.shape, generator=generator, dtype=torch.float64)
    t = torch.zeros(len(x), dtype=torch.float64)
    rise = (problem.drift(t, x) - problem.drift(t, y)).flatten(1).norm(dim=1)
    assert bool((rise <= problem.lipschitz * (x - y).flatten(1).norm(dim=1) * (1 + 1e-12)).all())


@given(strategies.cases("diffusion"), strategies.dtypes(half=True))
def test_cases_are_printed_in_one_line(case: Case, dtype: torch.dtype) -> None:
    assert repr(case).startswith("Case(Diffusion, x0=(")
    assert "\n" not in repr(case)


def test_hypothesis_is_imported_when_used_only() -> None:
    code = (
        "import sys, picard.verify as v\n"
        "assert 'hypothesis' not in sys.modules\n"
        "sys.modules['hypothesis'] = None\n"
        "try:\n    v.strategies.seeds()\n"
        "except ImportError as error:\n    assert 'pip install hypothesis' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=picard.__path__[0] + "/..")


def test_problems_on_a_device_without_float64_can_be_checked() -> None:
    model = picard.Denoiser(lambda x, t: 0.5 * x, picard.Schedule.linear(50), prediction="sample")
    start = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    with Device():
        problem = picard.Diffusion(model, OnDevice(start), noise=picard.Noise.from_seed(0))
        report = check(
            problem, 3, method="ddpm", window=2, properties=["equal_to_sequential", "within_tolerance", "certified"]
        )
    report.raise_for_failures()
    assert {one.outcome for one in report.findings} == {Outcome.PASSED}


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "epsilon"])
def test_exact_networks_do_not_overflow_in_half_precision(prediction: Any) -> None:
    model = Mixture.random(0).denoiser(picard.Schedule.karras(0.01, 80.0), prediction).model
    x, t = torch.full((1, 2), 300.0, dtype=torch.float64), torch.full((1,), 80.0, dtype=torch.float64)
    torch.testing.assert_close(model(x.half(), t), model(x, t).half())
