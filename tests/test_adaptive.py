"""Steps chosen by their error: as exact as asked for, and on them the result is that of the sequential solver."""

# torchdiffeq carries no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import picard
from benchmarks.adaptive import count
from benchmarks.hard_problems import Hard, hard_problems
from picard.errors import (
    InvalidGridError,
    InvalidProblemError,
    NonFiniteError,
    NotConvergedError,
    NotSupportedError,
    UnknownMethodError,
)
from picard.integrators import Bosh3, Dopri5, Dopri8, Fehlberg2, Heun, RungeKutta, Tableau
from picard.solution import Status
from tests.problems import F64, pendulum, rms, sde, start

PAIRS = {"dopri5": Dopri5(), "dopri8": Dopri8(), "bosh3": Bosh3(), "fehlberg2": Fehlberg2(), "heun": Heun()}
LIMITS = {"dopri5": 1e-8, "dopri8": 1e-9, "bosh3": 1e-5, "fehlberg2": 1e-4, "heun": 1e-4}

each_pair = pytest.mark.parametrize("method", PAIRS)


def ends(*times: float) -> Tensor:
    return torch.tensor(times, dtype=F64)


def kepler(eccentricity: float = 0.6) -> picard.ODE:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        place, speed = x[:, :2], x[:, 2:]
        return torch.cat([speed, -place / place.norm(dim=1, keepdim=True) ** 3], 1)

    fast = math.sqrt((1 + eccentricity) / (1 - eccentricity))
    return picard.ODE(drift, torch.tensor([[1 - eccentricity, 0, 0, fast]], dtype=F64))


def true_errors(problem: picard.ODE, ts: Tensor, ys: Tensor, pair: Tableau, rtol: float, atol: float) -> list[float]:
    """Take every step anew, one stage after the other, and return its estimated error; the largest over the samples."""
    assert pair.error is not None
    found = []
    for before, after, y in zip(ts[:-1], ts[1:], ys[:-1], strict=True):
        h, fields = after - before, list[Tensor]()

        def field(t: Tensor, x: Tensor) -> Tensor:
            return problem.drift(t.expand(len(x)), x, **problem.cond)

        for row, c in zip(pair.A, pair.c, strict=True):
            fields.append(field(before + c * h, y + h * sum(w * f for w, f in zip(row, fields, strict=True))))
        end = y + h * sum(w * f for w, f in zip(pair.b, fields, strict=True))
        fields.append(field(after, end))
        error = h * sum(w * f for w, f in zip(pair.error, fields, strict=False))
        ratio = error / (atol + rtol * torch.maximum(y.abs(), end.abs()))
        found.append(max(map(rms, ratio)))
    return found


@each_pair
@pytest.mark.parametrize("last", [3.0, -2.0], ids=["increasing", "decreasing"])
def test_every_step_holds_and_the_result_is_that_of_the_sequential_solver(method: str, last: float) -> None:
    problem, rtol = pendulum(3), LIMITS[method]
    found = picard.adaptive(problem, ends(0, last), method=method, rtol=rtol, atol=rtol, save="all")
    assert found.success
    assert found.ts[0] == 0
    assert found.ts[-1] == last
    assert bool((found.ts.diff() * last > 0).all())
    assert found.converged == (len(found.ts) - 1,) * 3
    errors = true_errors(problem, found.ts, found.ys, PAIRS[method].tableau, rtol, rtol)
    assert max(errors) <= 1.01
    assert sum(errors) / len(errors) >= 2e-4, "the steps are far shorter than they need be"
    reference = picard.sequential(problem, found.ts, method=method, save="all")
    assert rms(found.ys - reference.ys) <= 0.1 * rtol * (1 + rms(reference.ys))


@each_pair
def test_the_error_falls_with_the_tolerance(method: str) -> None:
    problem, times = pendulum(2), ends(0, 2)
    exact = picard.adaptive(problem, times, method="dopri8", rtol=1e-13, atol=1e-13).final
    errors = [
        rms(picard.adaptive(problem, times, method=method, rtol=limit, atol=limit).final - exact)
        for limit in (1e-3, 1e-5, 1e-7)
    ]
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]
    assert errors[2] < (1e-4 if method in ("fehlberg2", "heun") else 3e-6)


@pytest.mark.parametrize("linearization", ["secant", "newton"])
def test_uneven_steps_go_along_with_the_solution(linearization: str) -> None:
    problem, period = kepler(), 2 * math.pi
    found = picard.adaptive(problem, ends(0, period), rtol=1e-8, atol=1e-10, linearization=linearization, save="all")
    lengths = found.ts.diff()
    assert float(lengths.max() / lengths.min()) > 3  # long far out, short near the sun
    assert rms(found.final - problem.x0) < 1e-5  # once around
    calls = [0]

    def counted(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        drift: Tensor = problem.drift(t, x[None])[0]
        return drift

    torchdiffeq.odeint(counted, problem.x0[0], ends(0, period), rtol=1e-8, atol=1e-10, method="dopri5")
    assert found.stats.sequential_evaluations < 1.5 * calls[0]
    assert found.stats.rounds < (0.5 if linearization == "secant" else 0.3) * calls[0]


@given(
    rates=st.lists(st.floats(-3, 0.5), min_size=1, max_size=3),
    spin=st.floats(0, 4),
    last=st.floats(0.3, 3),
    digits=st.integers(3, 9),
)
def test_linear_systems_are_solved_as_exactly_as_asked_for(
    rates: list[float], spin: float, last: float, digits: int
) -> None:
    matrix = torch.diag(torch.tensor(rates, dtype=F64))
    for i in range(len(rates) - 1):
        matrix[i, i + 1], matrix[i + 1, i] = spin, -spin
    limit, x0 = 10.0**-digits, torch.linspace(1, 2, len(rates), dtype=F64)[None]
    found = picard.adaptive(picard.ODE(lambda t, x: x @ matrix.T, x0), ends(0, last), rtol=limit, atol=limit)
    exact = x0 @ torch.linalg.matrix_exp(last * matrix).T
    assert rms(found.final - exact) <= 60 * limit * (1 + rms(exact))


def test_steps_end_at_the_times() -> None:
    problem, times = pendulum(2), ends(0, 0.1, 0.1000001, 1, 2.5)
    found = picard.adaptive(problem, times)
    assert torch.equal(found.ts, times)
    assert found.ys.shape == (5, 2, 2)
    steps = picard.adaptive(problem, times, save="all")
    assert set(times.tolist()) <= set(steps.ts.tolist())
    places = torch.searchsorted(steps.ts, times)
    assert torch.equal(steps.ys[places], found.ys)
    last = picard.adaptive(problem, times, save="last")
    assert torch.equal(last.ts, times[-1:])
    assert torch.equal(last.ys[0], found.final)
    assert torch.equal(found.ys[-1], found.final)


def test_times_closer_than_the_steps_do_not_shorten_those_after() -> None:
    dense = torch.cat([torch.linspace(0, 0.01, 50, dtype=F64), ends(4)])
    found, plain = (picard.adaptive(pendulum(1), times, save="all") for times in (dense, ends(0, 4)))
    assert len(found.ts) - 50 <= 1.5 * len(plain.ts)


def test_a_step_that_is_far_too_long_is_shortened_and_one_too_short_lengthened() -> None:
    problem, times = kepler(), ends(0, 3)
    usual = picard.adaptive(problem, times, save="all")
    for first in (3.0, 1e-7):
        found = picard.adaptive(problem, times, first_step=first, save="all")
        errors = true_errors(problem, found.ts, found.ys, Dopri5().tableau, 1e-6, 1e-9)
        assert max(errors) <= 1.01
        assert len(found.ts) < 2 * len(usual.ts)


def test_the_worst_sample_decides() -> None:
    calm, wild = torch.ones(1, 1, dtype=F64), torch.full((1, 1), 30.0, dtype=F64)

    def solved(rate: Tensor) -> picard.Solution:
        cond, x0 = {"rate": rate}, torch.ones(len(rate), 1, dtype=F64)
        return picard.adaptive(
            picard.ODE(lambda t, x, rate: rate * torch.cos(rate * t[:, None]), x0, cond=cond), ends(0, 2)
        )

    both, alone = solved(torch.cat([calm, wild])), solved(wild)
    assert torch.equal(both.ts, alone.ts)
    assert both.stats.sequential_evaluations == alone.stats.sequential_evaluations
    assert float((both.final - 1 - torch.sin(2 * torch.cat([calm, wild]))).abs().max()) < 1e-4


def test_gradients_are_those_of_the_sequential_solver_on_the_same_steps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x0 = start(3, 2).requires_grad_()
    times = ends(0, 0.5, 1.5)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = net(x) * torch.cos(t)[:, None]
        return out

    def gradients(solution: picard.Solution) -> list[Tensor]:
        loss = solution.ys[1].square().sum() + solution.ys[2].sum()
        return list(torch.autograd.grad(loss, [x0, *net.parameters()]))

    problem = picard.ODE(drift, x0)
    found = picard.adaptive(problem, times, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        plain = picard.adaptive(problem, times, rtol=1e-9, atol=1e-9, save="all")
    steps, places = plain.ts, torch.searchsorted(plain.ts, times)
    reference = picard.sequential(problem, steps, method="dopri5", save=places)
    assert torch.equal(found.ts, times)
    assert found.stats.rounds == plain.stats.rounds, "the states that were found are differentiated"
    assert found.stats.evaluations == plain.stats.evaluations + 1  # which tells what the field depends on
    for mine, own in zip(gradients(found), gradients(reference), strict=True):
        assert rms(mine - own) <= 1e-6 * (1 + rms(own))
    with torch.no_grad():
        assert not picard.adaptive(problem, times).ys.requires_grad


@pytest.mark.parametrize("method", [None, "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"])
def test_odeint_is_as_exact_as_torchdiffeq(method: str | None) -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], torch.cos(t) - 0.3 * y[1] - 2 * torch.sin(y[0])])

    y0, t = ends(1, 0.5), torch.linspace(3, 0, 7, dtype=F64)
    limit = 1e-7 if method in (None, "dopri5", "dopri8") else 1e-4
    exact = torchdiffeq.odeint(func, y0, t, method="dopri8", rtol=1e-12, atol=1e-12)
    mine = picard.odeint(func, y0, t, method=method, rtol=limit, atol=limit)
    own = torchdiffeq.odeint(func, y0, t, method=method, rtol=limit, atol=limit)
    assert mine.shape == own.shape
    assert rms(mine - exact) <= max(rms(own - exact), 10 * limit)


def test_odeint_at_its_defaults_in_single_precision_and_for_tuples_and_rows() -> None:
    y0, t = (torch.ones(3), torch.zeros(2, 2)), torch.tensor([0.0, 1.0])
    decay, growth = picard.odeint(lambda t, y: (-y[0], y[0].sum() * torch.eye(2)), y0, t)
    assert torch.allclose(decay[-1], torch.full((3,), math.exp(-1)), rtol=1e-5)
    assert torch.allclose(growth[-1], 3 * (1 - math.exp(-1)) * torch.eye(2), rtol=1e-5)
    options = {"rows": True, "window": 24, "linearization": "newton", "first_step": 0.1, "max_num_steps": 1000}
    batch = picard.odeint(lambda t, y: -y * t[:, None], torch.ones(4, 2), t, options=options)
    assert batch.shape == (2, 4, 2)
    assert torch.allclose(batch[-1], torch.full((4, 2), math.exp(-0.5)), rtol=1e-5)


def test_a_method_of_ones_own() -> None:
    pair = Tableau(A=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), error=(-0.5, 0.5), order=2)
    own, heun = (
        picard.adaptive(pendulum(2), ends(0, 1), method=method, rtol=1e-4, save="all")
        for method in (RungeKutta(pair), "heun")
    )
    assert torch.equal(own.ys, heun.ys)


def test_what_a_solve_has_cost_is_counted() -> None:
    calls, rows = [0], [0]

    def counted(t: Tensor, x: Tensor) -> Tensor:
        calls[0], rows[0] = calls[0] + 1, rows[0] + len(x)
        return -x

    stats = picard.adaptive(picard.ODE(counted, torch.ones(2, 1, dtype=F64)), ends(0, 1)).stats
    assert (stats.rounds, stats.evaluations, stats.batch) == (*(calls[0] - 1, rows[0] - 2), 2)  # one tells of gradients
    assert stats.seconds > 0
    assert stats.host_syncs > stats.rounds - 3  # one a round, and one for every batch of errors


@pytest.mark.parametrize("way", [1, -1])
def test_the_progress_bar_says_what_share_of_the_time_is_solved(way: int, capsys: pytest.CaptureFixture[str]) -> None:
    problem = kepler()
    silent = picard.adaptive(problem, ends(1, 1 + way * 6))
    assert capsys.readouterr().err == ""
    shown = picard.adaptive(problem, ends(1, 1 + way * 6), progress=True)
    percentages = [int(found) for found in re.findall(r"(\d+)%\|", capsys.readouterr().err)]
    assert percentages[0] == 0
    assert percentages[-1] == 100
    assert percentages == sorted(percentages)
    assert torch.equal(shown.final, silent.final)


def test_rows_are_split() -> None:
    rows: list[int] = []

    def counted(t: Tensor, x: Tensor) -> Tensor:
        rows.append(len(x))
        return -x

    problem = picard.ODE(counted, torch.ones(9, 3, dtype=F64))
    found = picard.adaptive(problem, ends(0, 1), max_rows=7)
    assert max(rows) == found.stats.max_rows == 7
    assert torch.allclose(found.final, torch.exp(-ends(1)).expand(9, 3), rtol=1e-5)


def test_a_solution_that_ends_is_an_error_that_carries_it() -> None:
    problem = picard.ODE(lambda t, x: x.square(), torch.ones(1, 1, dtype=F64))  # 1 / (1 - t)
    with pytest.raises(NotConvergedError, match=r"torch\.float64 can tell apart; those from t = 1\.?\d* on") as caught:
        picard.adaptive(problem, ends(0, 0.5, 2), rtol=1e-4, atol=1e-4)
    found = caught.value.solution
    assert found.status == (Status.STOPPED,)
    assert torch.equal(found.ts, ends(0, 0.5, 2))
    assert rms(found.ys[1] - 2) < 1e-2
    assert torch.equal(found.ys[2], found.final)  # the last state repeated
    assert float(found.final) > 1e6


def test_too_many_steps_are_an_error_that_carries_them() -> None:
    with pytest.raises(NotConvergedError, match=r"^20 steps lead to t = [\d.]+ only: raise max_steps") as caught:
        picard.adaptive(kepler(), ends(0, 1000), max_steps=20)
    found = caught.value.solution
    assert found.converged[0] >= 20
    assert found.stats.rounds > 0


@pytest.mark.parametrize("wall", [0.0, 1.0], ids=["at the start", "later"])
def test_a_drift_that_is_not_finite(wall: float) -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.where(t[:, None] >= wall, torch.nan, torch.ones_like(x))

    problem = picard.ODE(drift, torch.zeros(2, 1, dtype=F64))
    message = "finite" if wall == 0 else "from t = 1 on"
    with pytest.raises((NonFiniteError, NotConvergedError), match=message) as caught:
        picard.adaptive(problem, ends(0, 3))
    error: Any = caught.value
    assert isinstance(error, NonFiniteError) == (wall == 0)
    assert rms(error.solution.final - wall) < 1e-6


def test_stages_that_overflow_shorten_the_step() -> None:
    problem = picard.ODE(lambda t, x: -x * x.abs().exp(), torch.full((1, 1), 5.0, dtype=F64))  # steep, then calm
    found = picard.adaptive(problem, ends(0, 1), first_step=0.5, save="all")
    errors = true_errors(problem, found.ts, found.ys, Dopri5().tableau, 1e-6, 1e-9)
    assert max(errors) <= 1.01


def test_half_precision() -> None:
    found = picard.adaptive(
        picard.ODE(lambda t, x: -x, torch.ones(2, 3, dtype=torch.bfloat16)),
        torch.tensor([0.0, 1.0]),
        rtol=1e-2,
        atol=1e-2,
    )
    assert found.final.dtype == torch.bfloat16
    assert rms(found.final - math.exp(-1)) < 0.02


def solved(**change: Any) -> Callable[[], object]:
    arguments: dict[str, Any] = {"problem": pendulum(1), "times": ends(0, 1), **change}
    return lambda: picard.adaptive(**arguments)


REFUSALS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "an sde": (solved(problem=sde()), InvalidProblemError, r"needs a picard\.ODE"),
    "no problem": (solved(problem=3), InvalidProblemError, r"given 3 \(int\)"),
    "no error estimate": (solved(method="rk4"), NotSupportedError, 'method="dopri5"'),
    "a sampler": (solved(method="ddim"), NotSupportedError, "estimates the errors"),
    "unknown": (solved(method="dopri"), UnknownMethodError, "did you mean 'dopri"),
    "no tolerance": (solved(rtol=0, atol=0), InvalidProblemError, "must be positive"),
    "a negative tolerance": (solved(rtol=-1), InvalidProblemError, "rtol must be finite and not negative"),
    "a negative step": (solved(first_step=-0.1), InvalidProblemError, "first_step must be finite and not negative"),
    "no steps": (solved(max_steps=0), InvalidProblemError, "max_steps must be an integer of at least 1"),
    "a window to measure": (solved(window="auto"), InvalidProblemError, "window must be an integer"),
    "what to save": (solved(save="every"), InvalidProblemError, "unknown save 'every'"),
    "progress": (solved(progress=1), InvalidProblemError, "progress must be True or False"),
    "a list of times": (solved(times=[0.0, 1.0]), InvalidGridError, r"torch\.as_tensor\(times\)"),
    "one time": (solved(times=ends(0)), InvalidGridError, "at least two points"),
    "times that turn": (solved(times=ends(0, 2, 1)), InvalidGridError, "strictly"),
    "whole times": (solved(times=torch.arange(3)), InvalidGridError, r"times\.double\(\)"),
    "times with a gradient": (solved(times=ends(0, 1).requires_grad_()), NotSupportedError, "times is a constant"),
    "an option of fixed steps": (
        lambda: picard.odeint(lambda t, y: -y, ends(1), ends(0, 1), options={"step_size": 0.1}),
        TypeError,
        "odeint by dopri5 has no option 'step_size'",
    ),
    "weights that do not cancel": (
        lambda: Tableau(A=((),), b=(1.0,), c=(0.0,), error=(1.0,), order=1),
        InvalidProblemError,
        "must sum to 0",
    ),
    "weights of no order": (
        lambda: Tableau(A=((),), b=(1.0,), c=(0.0,), error=(0.0,)),
        InvalidProblemError,
        "the order of a tableau",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "hard", [hard for hard in hard_problems() if hard.diffusion is None], ids=lambda hard: hard.name
)
def test_hard_problems(hard: Hard) -> None:
    """As exact as torchdiffeq, in fewer calls one after the other, on the first part of each."""
    found = count(hard, share=0.1 if hard.steps >= 1000 else 0.5)
    sequential = found["torchdiffeq"]
    for name in ("default", "newton"):
        own = found[name]
        assert own.error <= 2 * sequential.error + 1e-6, name
        assert own.calls <= 0.7 * sequential.calls, name
        assert own.steps * 6 <= 3 * sequential.calls, name
