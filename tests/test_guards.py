"""What fails fails loudly and in place, and what only looks like failing does no harm."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard.solution import Status
from tests.problems import F64, Model, diffusion, network, pendulum, pendulum_drift, rms, start, times

each_linearization = pytest.mark.parametrize("linearization", ["secant", "frozen", "identity", "newton"])
each_guess = pytest.mark.parametrize("guess", ["hold", "copy"])
GRID = times(40)


def broken(step: int, sample: int, value: float = float("nan")) -> picard.ODE:
    """Build three pendulums whose drift fails for one of them at one step, on whatever state."""

    def drift(t: Tensor, x: Tensor, mark: Tensor) -> Tensor:
        bad = (t == GRID[step]) & (mark == sample)
        return torch.where(bad[:, None], value, pendulum_drift(t, x, 1 + 2 * mark))

    return picard.ODE(drift, start(3, 2), cond={"mark": torch.arange(3.0, dtype=F64)})


@pytest.mark.parametrize(("window", "value"), [(1, math.inf), (7, math.nan), (64, math.inf)])
@pytest.mark.parametrize(("step", "sample"), [(0, 2), (13, 0), (39, 1)])
@each_linearization
def test_a_model_that_fails_is_named(linearization: str, step: int, sample: int, window: int, value: float) -> None:
    rounds: list[int] = []
    with pytest.raises(picard.NonFiniteError) as caught:
        picard.solve(
            broken(step, sample, value),
            GRID,
            method="euler",
            window=window,
            save="all",
            tolerance=0.0,
            linearization=linearization,
            callback=lambda info: rounds.append(info.round),
        )
    error, partial = caught.value, caught.value.solution
    assert (error.step, error.sample, error.where) == (step, sample, "drift")
    assert error.time == pytest.approx(float(GRID[step]))
    assert error.round == len(rounds) + 1
    assert f"step {step}" in str(error)
    assert f"sample {sample}" in str(error)
    assert str(error).startswith("what the model returns must be finite")  # a diffusion model has no drift
    assert partial.status[sample] is Status.NON_FINITE
    assert partial.converged[sample] == step
    assert partial.stats.rounds == error.round
    assert bool(torch.isfinite(partial.ys).all())


@pytest.mark.parametrize("window", [1, 7])
def test_the_error_carries_what_was_solved_before(window: int) -> None:
    expected = picard.sequential(broken(0, 9), GRID, method="euler", save="all").ys
    with pytest.raises(picard.NonFiniteError) as caught:
        picard.solve(broken(13, 0), GRID, method="euler", window=window, save="all", tolerance=0.0)
    partial = caught.value.solution
    for b, reached in enumerate(partial.converged):
        torch.testing.assert_close(partial.ys[: reached + 1, b], expected[: reached + 1, b], rtol=1e-9, atol=1e-9)
        assert torch.equal(partial.ys[reached:, b], partial.ys[reached, b].expand(41 - reached, 2))


def test_sequential_names_the_same_place() -> None:
    with pytest.raises(picard.NonFiniteError) as caught:
        picard.sequential(broken(13, 1), GRID, method="euler", save="all")
    error, partial = caught.value, caught.value.solution
    assert (error.step, error.sample, error.where, error.round) == (13, 1, "drift", 14)
    assert partial.converged == (40, 13, 40)
    whole = picard.sequential(broken(0, 9), GRID, method="euler", save="all").ys
    whole[14:, 1] = whole[13, 1]  # as `solve` leaves it
    assert torch.equal(partial.ys, whole)


@pytest.mark.parametrize("step", [0, 13, 39])
def test_the_other_samples_go_on(step: int) -> None:
    solution = picard.solve(broken(step, 1), GRID, method="euler", window=7, save="all", tolerance=0.0, throw=False)
    expected = picard.sequential(broken(0, 9), GRID, method="euler", save="all").ys
    assert solution.status == (Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED)
    assert solution.converged == (40, step, 40)
    torch.testing.assert_close(solution.ys[:, [0, 2]], expected[:, [0, 2]], rtol=1e-9, atol=1e-9)
    assert bool(torch.isfinite(solution.ys).all())
    assert bool(torch.isfinite(solution.final).all())
    assert not solution.success
    with pytest.raises(picard.NotConvergedError, match="sample 1") as caught:
        solution.raise_for_status()
    assert caught.value.solution is solution


@pytest.mark.parametrize("tolerance", [None, picard.TotalVariation(0.5)], ids=["change", "residual"])
def test_a_diffusion_network_that_fails_is_named(tolerance: picard.Tolerance | None) -> None:
    plain = network(picard.Schedule.linear(), "epsilon")

    def model(x: Tensor, t: Tensor, mark: Tensor) -> Tensor:
        return torch.where(((t == 300) & (mark == 1))[:, None], float("nan"), plain(x, t))

    denoiser = picard.Denoiser(model, picard.Schedule.linear())
    problem = picard.Diffusion(denoiser, start(2, 3), cond={"mark": torch.arange(2)})
    with pytest.raises(picard.NonFiniteError, match="time 300") as caught:
        picard.solve(problem, 20, method="ddpm", window=8, tolerance=tolerance)
    assert (caught.value.step, caught.value.sample, caught.value.where) == (13, 1, "drift")


@each_guess
@each_linearization
@pytest.mark.parametrize(
    ("drift", "last"),
    [
        (lambda t, x: -2 * torch.sqrt(x), 0.95),  # nan once a guess is negative; the path, (1 - t)^2, never is
        (lambda t, x: torch.log(x) - 1 / x, 0.4),
        (lambda t, x: x**2, 0.97),  # a guess beyond the pole explodes
        (lambda t, x: torch.exp(4 * x) / 60, 0.17),
    ],
    ids=["sqrt", "log", "pole", "exp"],
)
def test_nonsense_in_later_states_does_no_harm(drift: Model, last: float, linearization: str, guess: str) -> None:
    ode, grid = picard.ODE(drift, torch.tensor([[1.0], [1.1]], dtype=F64)), torch.linspace(0, last, 61, dtype=F64)
    expected = picard.sequential(ode, grid, method="heun", save="all")
    solution = picard.solve(
        ode, grid, method="heun", window=50, save="all", linearization=linearization, guess=guess, tolerance=1e-9
    )
    assert solution.success
    assert solution.stats.rounds <= 120
    torch.testing.assert_close(solution.ys, expected.ys, rtol=1e-5, atol=1e-7)


def lorenz() -> tuple[Any, Tensor, str]:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        a, b, c = x.unbind(1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)

    return picard.ODE(drift, 5 * start(2, 3)), torch.linspace(0, 2, 401, dtype=F64), "euler"


def double_well() -> tuple[Any, Tensor, str]:
    noise = picard.Noise.from_seed(1)
    problem = picard.SDE(lambda t, x: 4 * x - 4 * x**3, lambda t, x: 0.8 + 0 * x, 2 * start(2, 1), noise=noise)
    return problem, torch.linspace(0, 5, 201, dtype=F64), "euler"


def stiff() -> tuple[Any, Tensor, str]:
    return picard.ODE(lambda t, x: -190 * (x - torch.cos(t)[:, None]), start(2, 1)), times(120, 0, 1.08), "euler"


@pytest.mark.parametrize(("linearization", "guess"), [("secant", "hold"), ("newton", "hold"), ("identity", "copy")])
@pytest.mark.parametrize("make", [lorenz, double_well, stiff])
def test_hard_problems_never_return_nan(make: Any, linearization: str, guess: str) -> None:
    problem, grid, method = make()
    expected = picard.sequential(problem, grid, method=method, save="all")
    assert bool(torch.isfinite(expected.ys).all())
    solution = picard.solve(
        problem, grid, method=method, window=64, tolerance=1e-6, linearization=linearization, guess=guess, save="all"
    )
    assert solution.success
    assert solution.stats.rounds <= expected.stats.rounds
    assert bool(torch.isfinite(solution.ys).all())
    assert rms(solution.ys - expected.ys) < 1e-2 * rms(expected.ys)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@each_linearization
def test_overflow_is_reported_where_the_sequential_solver_meets_it(linearization: str, dtype: torch.dtype) -> None:
    ode = picard.ODE(lambda t, x: x**3, torch.tensor([[0.1], [2.0]], dtype=dtype))
    found = []
    for solver, options in ((picard.sequential, {}), (picard.solve, {"linearization": linearization, "window": 9})):
        with pytest.raises(picard.NonFiniteError) as caught:
            solver(ode, torch.linspace(0, 2, 101), method="euler", **options)  # type: ignore[arg-type]
        found.append((caught.value.step, caught.value.sample, caught.value.where))
    assert found[0] == found[1]


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e20), (torch.float64, 1e160), (torch.float32, 1e-30)])
def test_large_and_small_states_are_no_failure(dtype: torch.dtype, size: float) -> None:
    """A finite state is finite though its square is not."""
    ode = picard.ODE(lambda t, x: -x, size * start(2, 2, dtype=dtype))
    expected = picard.sequential(ode, GRID, method="heun").final
    found = picard.solve(ode, GRID, method="heun", tolerance=picard.RelAbs(1e-5, 0.0)).final
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("solver", [picard.solve, picard.sequential])
def test_a_result_too_large_for_its_dtype_is_reported(solver: Any) -> None:
    """Half precision is accumulated in float32, where 80,000 is finite; the result is not."""
    ode = picard.ODE(lambda t, x: torch.full_like(x, 4e4), torch.ones(1, 2, dtype=torch.float16))
    with pytest.raises(picard.NonFiniteError, match="wider dtype"):
        solver(ode, torch.linspace(0, 2, 3), method="euler")


def test_too_few_rounds() -> None:
    problem = pendulum(2)
    expected = picard.sequential(problem, GRID, method="euler", save="all").ys
    options: dict[str, Any] = {"method": "euler", "window": 8, "max_rounds": 4, "save": "all", "tolerance": 0.0}
    with pytest.raises(picard.NotConvergedError, match="max_rounds") as caught:
        picard.solve(problem, GRID, **options)
    for solution in (caught.value.solution, picard.solve(problem, GRID, throw=False, **options)):
        assert solution.status == (Status.MAX_ROUNDS, Status.MAX_ROUNDS)
        assert solution.stats.rounds == 4
        for b, reached in enumerate(solution.converged):
            assert 4 <= reached < 40
            torch.testing.assert_close(solution.ys[: reached + 1, b], expected[: reached + 1, b])
            assert torch.equal(solution.final[b], solution.ys[reached, b])


def after(rounds: int) -> Callable[[picard.RoundInfo], bool]:
    return lambda info: info.round == rounds


@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("method", ["midpoint", "heun3", "rk4"])
def test_what_was_not_reached_repeats_a_state_of_the_grid_and_no_stage(method: str, save: Any) -> None:
    expected = picard.sequential(pendulum(2), GRID, method=method, save="all").ys
    options: dict[str, Any] = {"method": method, "window": 7, "save": save, "tolerance": 1e-12, "throw": False}
    for rounds in (1, 2, 5, 9):
        ended = picard.solve(pendulum(2), GRID, max_rounds=rounds, **options)
        stopped = picard.solve(pendulum(2), GRID, callback=after(rounds), **options)
        for solution in (ended, stopped):
            for b, reached in enumerate(solution.converged):
                torch.testing.assert_close(solution.final[b], expected[reached, b])
                assert torch.equal(solution.ys[-1, b], solution.final[b])
    failed = picard.solve(broken(13, 1), GRID, method=method, window=7, save=save, tolerance=1e-12, throw=False)
    assert failed.converged == (40, 13 if method != "rk4" else failed.converged[1], 40)
    whole = picard.solve(broken(13, 7), GRID, method=method, save="all", tolerance=1e-12).ys
    torch.testing.assert_close(failed.final[1], whole[failed.converged[1], 1])


def test_a_sample_that_is_through_when_the_rounds_are_has_converged() -> None:
    problem = picard.ODE(
        lambda t, x, still: torch.where(still[:, None], 0.0, pendulum_drift(t, x)),
        start(2, 2),
        cond={"still": torch.tensor([True, False])},
    )
    solution = picard.solve(problem, GRID, method="euler", window=8, max_rounds=8, tolerance=0.0, throw=False)
    assert solution.status == (Status.CONVERGED, Status.MAX_ROUNDS)


def test_a_callback_stops_the_solve_and_keeps_the_result() -> None:
    problem = pendulum(2)
    expected = picard.sequential(problem, GRID, method="euler", save="all").ys
    solution = picard.solve(
        problem, GRID, method="euler", window=8, save="all", callback=lambda info: info.round == 3, tolerance=1e-12
    )
    assert solution.status == (Status.STOPPED, Status.STOPPED)
    assert solution.stats.rounds == 3
    assert all(status.message for status in Status)
    for b, reached in enumerate(solution.converged):
        assert 3 <= reached < 40
        torch.testing.assert_close(solution.ys[: reached + 1, b], expected[: reached + 1, b])


@pytest.mark.parametrize("progress", [False, True])
def test_foreign_errors_come_through_untouched(progress: bool) -> None:
    mine = KeyError("mine")

    def fail(*_: Any) -> Any:
        raise mine

    for problem, callback in ((pendulum(2), fail), (picard.ODE(fail, start(2, 2)), None)):
        with pytest.raises(KeyError) as caught:
            picard.solve(problem, GRID, method="euler", progress=progress, callback=callback)
        assert caught.value is mine
    assert torch.is_grad_enabled()
    assert picard.solve(diffusion(), 5, method="ddim").success


ONES = torch.ones(2, 3, dtype=F64)
COLUMN = "write t[:, None] where t meets "


class Misplaced:
    """An SDE as torchsde takes it, whose drift takes time for one number."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -t * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return y


def solved(drift: Any, x0: Tensor = ONES, solver: Any = picard.solve, **cond: Any) -> Callable[[], Any]:
    return lambda: solver(picard.ODE(drift, x0, cond=cond), GRID, method="heun")


def scaled(x: Tensor, tau: Tensor, t: Tensor) -> Tensor:
    """Predict what does not fit; a further argument has the name that time has elsewhere."""
    return x * tau


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "time": (
        solved(lambda t, x: -t * x),
        RuntimeError,
        ["t of shape (2,), x of shape (2, 3)", COLUMN + "x", "rowwise"],
    ),
    "adaptive": (solved(lambda t, x: -t * x, solver=picard.adaptive), RuntimeError, [COLUMN + "x"]),
    "sequential": (solved(lambda t, x: -t * x, solver=picard.sequential), RuntimeError, [COLUMN + "x"]),
    "a larger state": (
        solved(lambda t, x: -t * x, ONES[..., None].expand(2, 3, 4)),
        RuntimeError,
        ["t[:, None, None] where"],
    ),
    "one number": (
        solved(lambda t, x: torch.stack([x[1], -x[0]]), ONES[:1]),
        IndexError,
        ["x of shape (1, 3)", "x[:, i] for x[i]"],
    ),
    "conditioning": (
        solved(lambda t, x, k, w: k * x @ w, k=ONES[:, 0], w=torch.eye(3, dtype=F64)),
        RuntimeError,
        ["k of shape (2,), w of shape (3, 3)", "k[:, None] where k meets x, and"],
    ),
    "signature": (solved(lambda x: -x), TypeError, ["t of shape (1,), x of shape (1, 3)"]),
    "one row": (
        solved(picard.rowwise(lambda t, x: x[:, 0])),
        IndexError,
        ["one time and one state, t of shape (), y of shape (3,)", "no picard.rowwise in solve"],
    ),
    "diffusion": (
        lambda: picard.solve(
            picard.SDE(lambda t, x: -x, lambda t, x: t * x, ONES, noise=picard.Noise.from_seed(0)), GRID, method="euler"
        ),
        RuntimeError,
        [COLUMN + "x"],
    ),
    "channels": (
        lambda: picard.SDE(
            lambda t, x: -x, lambda t, x: t * x, ONES, noise=picard.Noise.from_seed(0), noise_type="general"
        ).absorb(GRID),
        RuntimeError,
        [COLUMN + "x"],
    ),
    "network": (
        lambda: picard.solve(
            picard.Diffusion(picard.Denoiser(scaled, picard.Schedule.linear()), ONES, cond={"t": ONES[:, 0]}),
            9,
            method="ddim",
        ),
        RuntimeError,
        ["x of shape (", ", t of shape (", COLUMN + "x"],
    ),
    "rows of odeint": (
        lambda: picard.odeint(lambda t, y: -t * y, ONES[..., None].expand(2, 3, 4), GRID, options={"rows": True}),
        RuntimeError,
        ["y of shape (2, 3, 4)", "t[:, None, None] where t meets y"],
    ),
    "a tuple": (
        lambda: picard.odeint(lambda t, y: (-t * y[0], y[1]), (ONES, ONES), GRID, options={"rows": True}),
        RuntimeError,
        ["y of shape [(2, 3), (2, 3)]", "every row its own result"],
    ),
    "one time of odeint": (
        lambda: picard.odeint(lambda t, y: -t[:, None] * y, ONES, GRID),
        IndexError,
        ["t of shape (), y of shape (2, 3)", 'options={"rows": True}'],
    ),
    "sdeint": (
        lambda: picard.sdeint(Misplaced(), ONES, GRID, method="euler", dt=0.1, options={"rows": True}),
        RuntimeError,
        ["y of shape (2, 3)", COLUMN + "y"],
    ),
}


@pytest.mark.parametrize(("make", "kind", "says"), MISTAKES.values(), ids=MISTAKES)
def test_errors_of_a_model_say_what_it_was_called_with(make: Any, kind: type[Exception], says: list[str]) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert type(caught.value) is kind
    (note,) = caught.value.__notes__
    for part in says:
        assert part in note


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory"), picard.InvalidProblemError("mine")])
def test_errors_about_no_shape_get_no_note(error: Exception) -> None:
    def fail(t: Tensor, x: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        picard.solve(picard.ODE(fail, start(2, 2)), GRID, method="euler")
    assert caught.value is error
    assert not hasattr(error, "__notes__")


def test_one_error_raised_again_gets_one_note() -> None:
    mine = ValueError("mine")

    def fail(t: Tensor, x: Tensor) -> Tensor:
        raise mine

    for _ in range(2):
        with pytest.raises(ValueError, match="mine"):
            picard.solve(picard.ODE(fail, start(2, 2)), GRID, method="euler")
    assert len(mine.__notes__) == 1


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: picard.solve(pendulum(), GRID, method="rk4", max_rounds=1), picard.NotConvergedError),
        (lambda: picard.sequential(broken(3, 1), GRID, method="euler"), picard.NonFiniteError),
        (lambda: picard.solve(pendulum(), 3, method="rk4"), picard.InvalidGridError),
    ],
)
def test_errors_can_be_sent_to_another_process(make: Callable[[], Any], kind: type[picard.PicardError]) -> None:
    with pytest.raises(kind) as caught:
        make()
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is kind
    assert str(again) == str(caught.value)
    assert vars(again).keys() == vars(caught.value).keys()
    missing = pickle.loads(pickle.dumps(picard.MissingDependencyError("hypothesis")))
    assert "pip install hypothesis" in str(missing)
