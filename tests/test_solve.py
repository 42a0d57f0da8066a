"""The parallel solver agrees with the sequential one: every method, problem, window, linearization and guess."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import picard
from picard import propagate
from picard.convert import Prediction
from picard.grid import Levels, Times
from picard.integrators import DDIM, DDPM, DPMSolver
from picard.plan import Integrator, Plan
from picard.sde import NoiseType
from picard.solution import Solution
from tests.problems import PREDICTIONS, SCHEDULES, Case, diffusion, pendulum, rms, sde, times

STEPS = 9
EPS = torch.finfo(torch.float64).eps
LEVEL_METHODS: list[str | Integrator] = [
    "euler",
    "heun",
    DDPM(),
    DDPM("fixed_large"),
    DDIM(),
    DDIM(eta=0.5),
    DDIM(eta=1.0),
    *[
        DPMSolver(order, algorithm, variant)
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")
        for variant in ("multistep", "singlestep")
        for order in (1, 2, 3)
    ],
]
ONE_OF_EACH: dict[str, Case] = {
    "ode": (pendulum(), times(STEPS), "heun"),
    "sde": (sde("general"), times(STEPS), "euler"),
    "diffusion": (diffusion(), STEPS, DPMSolver(2, "sde-dpmsolver++")),
}
each = pytest.mark.parametrize("case", ONE_OF_EACH.values(), ids=ONE_OF_EACH)


def assert_equal(given: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    """Compare each state with its own size: a component near zero is not asked for more digits than the others."""
    size = expected.flatten(2).abs().amax(2).reshape(*expected.shape[:2], *[1] * (expected.ndim - 2))
    torch.testing.assert_close(given / size, expected / size, rtol=0, atol=rtol)


def check(case: Case, *, ulps: float = 16, few: bool = False, **options: Any) -> None:
    """Solve exactly with every kind of window; one of a single node differs by a few units in the last place."""
    problem, grid, method = case
    reference = picard.sequential(problem, grid, method=method, save="all")
    nodes = reference.stats.rounds
    for window in (2, nodes) if few else (1, 2, 7, nodes, nodes + 5):
        solution = picard.solve(problem, grid, method=method, window=window, tolerance=0.0, save="all", **options)
        assert solution.success
        assert solution.stats.rounds <= nodes
        assert_equal(solution.ys, reference.ys, 1e-10 if window > 1 else ulps * EPS)
        assert torch.equal(solution.final, solution.ys[-1])
        assert torch.equal(solution.ts, reference.ts)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["increasing", "decreasing"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "heun3", "rk4"])
def test_ode(method: str, ends: tuple[float, float]) -> None:
    check((pendulum(), times(STEPS, *ends), method), few=ends[0] > ends[1])


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["increasing", "decreasing"])
@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_sde(noise_type: NoiseType, ends: tuple[float, float]) -> None:
    check((sde(noise_type), times(STEPS, *ends), "euler"), few=ends[0] > ends[1])


@pytest.mark.parametrize("method", ["midpoint", "heun", "heun3", "rk4"])
def test_sde_of_higher_order_with_additive_noise(method: str) -> None:
    check((sde("additive"), times(STEPS), method))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", LEVEL_METHODS, ids=repr)
def test_diffusion(method: str | Integrator, schedule: str) -> None:
    check((diffusion(SCHEDULES[schedule]), STEPS, method), few=schedule not in ("cosine", "flow"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions(prediction: Prediction, schedule: str) -> None:
    grid: int | Tensor = STEPS
    if prediction == "epsilon" and schedule == "flow":  # no data in pure noise: start a little later
        grid = torch.linspace(0.98, 0.02, STEPS, dtype=torch.float64)
    for method in (DPMSolver(2, "dpmsolver"), DDPM()):
        # Data recovered from noise or velocity at a large sigma is a small difference of large numbers.
        check((diffusion(SCHEDULES[schedule], prediction), grid, method), ulps=1000, few=schedule != "cosine")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_exact_networks_sample_the_same_whatever_they_predict(prediction: Prediction, schedule: str) -> None:
    grid = STEPS if schedule != "flow" else torch.linspace(0.98, 0.02, STEPS, dtype=torch.float64)
    given, data = (
        picard.sequential(diffusion(SCHEDULES[schedule], kind), grid, method="ddim").final
        for kind in (prediction, "sample")
    )
    torch.testing.assert_close(given, data, rtol=1e-9, atol=1e-9)


@each
@pytest.mark.parametrize("guess", ["hold", "copy"])
@pytest.mark.parametrize("linearization", ["secant", "frozen", "identity", "newton"])
def test_linearizations_and_guesses(case: Case, linearization: str, guess: str) -> None:
    check(case, linearization=linearization, guess=guess)


@each
@pytest.mark.parametrize("linearization", ["secant", "frozen"])
def test_large_batches_are_propagated_node_by_node(
    case: Case, linearization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagate, "_WRITTEN", 0)
    check(case, linearization=linearization, guess="hold")
    problem, grid, _ = case
    if isinstance(problem, picard.Diffusion):
        check((problem, grid, DPMSolver(3)), linearization=linearization)


@each
@pytest.mark.parametrize("linearization", ["secant", "identity"])
def test_warm_start(case: Case, linearization: str) -> None:
    problem, grid, method = case
    wrong = picard.sequential(problem, grid, method=method, save="all").ys + 0.3
    check(case, linearization=linearization, guess=wrong)
    loose = picard.solve(problem, grid, method=method, tolerance=0.1, save="all")
    check(case, linearization=linearization, guess=loose)


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_expected_values_of_an_equation_with_noise(noise_type: NoiseType) -> None:
    """The first windows are full, and no diffusion is known there."""
    check((sde(noise_type), times(STEPS), "euler"), few=True, guess=picard.Expected(torch.zeros(STEPS, 2, 4)))


@each
def test_a_warm_start_at_the_answer_needs_no_corrections(case: Case) -> None:
    problem, grid, method = case
    if method == "heun":
        grid, method = times(4 * STEPS), "euler"  # a trajectory holds no stages
    known = picard.sequential(problem, grid, method=method, save="all")
    nodes = known.stats.rounds
    solution = picard.solve(problem, grid, method=method, guess=known, window=nodes, tolerance=1e-9)
    assert solution.stats.rounds <= 2
    assert_equal(solution.final[None], known.final[None], 1e-8)


@dataclass(frozen=True)
class Again:
    """A method that gives the model the same time at two steps."""

    def plan(self, points: Times | Levels) -> Plan:
        plan = DDIM().plan(points)
        times = plan.times.clone()
        times[4] = times[3]
        return replace(plan, times=times)


def test_a_warm_start_goes_by_steps_where_times_repeat() -> None:
    known = picard.sequential(diffusion(), 2 * STEPS, method=Again(), save="all")
    solution = picard.solve(diffusion(), 2 * STEPS, method=Again(), guess=known, window=2 * STEPS, tolerance=1e-9)
    assert solution.stats.rounds <= 2
    assert_equal(solution.final[None], known.final[None], 1e-8)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("save", [np.arange(0, 9, 4), [np.int64(0), np.int32(4), 8]], ids=["array", "integers"])
def test_points_to_save_may_be_numpys(save: Any) -> None:
    solution = picard.solve(pendulum(), times(8), method="euler", save=save)
    expected = picard.solve(pendulum(), times(8), method="euler", save=[0, 4, 8])
    assert torch.equal(solution.ys, expected.ys)


@each
def test_saved_points(case: Case) -> None:
    problem, grid, method = case

    def solve(save: Any) -> Solution:
        return picard.solve(problem, grid, method=method, window=5, save=save)

    whole = solve("all")
    assert whole.ys.shape == (STEPS + 1, *problem_start(case).shape)
    assert torch.equal(whole.ys[0], problem_start(case))
    wanted: list[tuple[Any, list[int]]] = [
        ("last", [STEPS]),
        ([0, 3, -2], [0, 3, STEPS - 1]),
        (torch.tensor([4, STEPS]), [4, STEPS]),
    ]
    for save, points in wanted:
        part = solve(save)
        assert torch.equal(part.ys, whole.ys[points])
        assert torch.equal(part.ts, whole.ts[points])
        assert torch.equal(part.final, whole.final)
        reference = picard.sequential(problem, grid, method=method, save=save)
        assert reference.ys.shape == part.ys.shape
        assert torch.equal(reference.ts, part.ts)


def problem_start(case: Case) -> Tensor:
    problem = case[0]
    return problem.x_T if isinstance(problem, picard.Diffusion) else problem.x0


@each
@pytest.mark.parametrize("linearization", ["secant", "frozen", "identity", "newton"])
def test_finite_prefix(case: Case, linearization: str) -> None:
    """After k rounds the first k nodes are exact, whatever the tolerance has accepted."""
    problem, grid, method = case
    reference = picard.sequential(problem, grid, method=method, save="all")
    nodes = reference.stats.rounds
    stages = nodes // STEPS
    for rounds in (1, 2, 5, nodes - 1):
        part = picard.solve(
            problem,
            grid,
            method=method,
            window=nodes,
            max_rounds=rounds,
            tolerance=0.0,
            linearization=linearization,
            save="all",
            throw=False,
        )
        exact = rounds // stages
        assert min(part.converged) >= exact
        assert_equal(part.ys[: exact + 1], reference.ys[: exact + 1], 1e-13)


@pytest.mark.parametrize("linearization", ["secant", "frozen", "identity", "newton"])
def test_default_tolerance_keeps_the_error_small(linearization: str) -> None:
    cases: list[tuple[Case, float]] = [
        ((pendulum(), times(200), "heun"), 1e-3),
        ((sde(), times(200), "euler"), 1e-3),
        ((diffusion(), 50, "dpmsolver++"), 6e-2),
    ]
    for (problem, grid, method), most in cases:
        expected = picard.sequential(problem, grid, method=method)
        solution = picard.solve(problem, grid, method=method, linearization=linearization)
        assert rms(solution.final - expected.final) < most * rms(expected.final)
        assert solution.stats.rounds < expected.stats.rounds / 2
        assert solution.stats.sequential_evaluations == expected.stats.rounds


def test_a_smaller_tolerance_gives_a_smaller_error_for_more_rounds() -> None:
    problem, grid = pendulum(), times(300)
    expected = picard.sequential(problem, grid, method="euler").final
    found = [picard.solve(problem, grid, method="euler", tolerance=10.0**-k) for k in (2, 4, 6, 8)]
    errors = [rms(one.final - expected) for one in found]
    assert errors == sorted(errors, reverse=True)
    assert [one.stats.rounds for one in found] == sorted(one.stats.rounds for one in found)


def test_options_may_be_numbers_of_numpy_and_of_torch(unchecked: None) -> None:
    problem = diffusion()
    plain = picard.solve(problem, 20, method="ddim", window=7, max_rows=5, max_rounds=30, tolerance=0.5)
    given: dict[str, Any] = {"window": np.int64(7), "max_rows": np.int32(5), "max_rounds": np.int64(30)}
    for tolerance in (np.float32(0.5), torch.tensor(0.5), np.float64(0.5)):
        found = picard.solve(problem, np.int64(20), method="ddim", tolerance=tolerance, **given)  # type: ignore[arg-type]
        assert torch.equal(found.final, plain.final)
        assert (found.stats.rounds, found.stats.evaluations) == (plain.stats.rounds, plain.stats.evaluations)
