"""Newton's method: the field's whole derivative at every node, in one call with a row for every number of a state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from benchmarks.hard_problems import hard_problems
from picard import newton
from picard.certificate import LawCertificate
from picard.conditioning import Conditioning
from picard.jacobian import differentiate
from picard.linearize import Newton
from picard.rows import Rows
from picard.tolerance import RelAbs, TotalVariation
from tests.problems import F64, diffusion, pendulum, pendulum_drift, sde, start, times

HARD = {hard.name: hard for hard in hard_problems()}
TIGHT = RelAbs(1e-6, 1e-8)
NEWTON = {"linearization": "newton"}


@pytest.mark.parametrize(
    ("name", "window", "most", "error"),
    [
        ("Lorenz, t=2", 1024, 40, 1e-11),
        ("Van der Pol, mu=50", 1024, 12, 1e-10),
        ("Kepler", 1024, 14, 1e-10),
        ("heat, 256 points", 64, 20, 1e-12),
    ],
)
def test_hard_problems_take_few_rounds(name: str, window: int, most: int, error: float) -> None:
    """Of 1,000 to 4,000 sequential calls; where the change is within the tolerance, the error is its square."""
    hard = HARD[name]
    expected = picard.sequential(hard.problem(), hard.grid(), method=hard.method)
    solution = picard.solve(
        hard.problem(), hard.grid(), method=hard.method, window=window, tolerance=TIGHT, linearization="newton"
    )
    assert solution.stats.rounds <= most
    assert float((solution.final - expected.final).abs().max()) <= error * float(expected.final.abs().max())


def test_far_states_that_make_no_sense_do_not_shrink_windows_to_nothing() -> None:
    hard = HARD["Lorenz, t=20"]
    solution = picard.solve(hard.problem(), hard.grid(), method="rk4", window=512, linearization="newton")
    assert solution.success
    assert solution.stats.rounds < 300  # of 8,000; 7,000 if states were propagated as far as derivatives reach


@pytest.mark.parametrize("method", ["euler", "heun", "rk4"])
def test_a_linear_equation_takes_a_window_a_round(method: str) -> None:
    matrix = torch.tensor([[0.0, 3.0, 0.0], [-3.0, -0.1, 1.0], [0.5, 0.0, -20.0]], dtype=F64)
    problem = picard.ODE(lambda t, x: x @ matrix.T + torch.sin(t)[:, None], start(4, 3))
    solution = picard.solve(problem, times(100), method=method, window=1000, tolerance=1e-12, linearization="newton")
    expected = picard.sequential(problem, times(100), method=method)
    assert solution.stats.rounds <= 3  # the first node, all of them, and one to see that nothing moves
    torch.testing.assert_close(solution.final, expected.final, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_derivatives_are_those_of_the_field_with_its_noise(noise_type: Any) -> None:
    equation = sde(noise_type)
    problem = equation.absorb(times(4))
    batch, shape = problem.x0.shape[0], problem.x0.shape[1:]
    dims, sample = shape.numel(), torch.arange(batch)
    kick = torch.linspace(-1, 1, batch * torch.Size(problem.noise_shape).numel(), dtype=F64).view(
        batch, *problem.noise_shape
    )
    t, x = torch.full((batch,), 0.3, dtype=F64), problem.x0

    def rows(t: Tensor, x: Tensor, sample: Tensor) -> Rows:
        return Rows(t, x, Conditioning(problem.conditioning(), batch).of(None, sample))

    def field(x: Tensor) -> Tensor:
        value, diffusion = problem.field(rows(t, x, sample))
        assert diffusion is not None
        noisy = diffusion * kick if noise_type == "diagonal" else (diffusion * kick[:, None]).sum(-1)
        return value + noisy

    each = [one.repeat_interleave(dims, 0) for one in (t, x, sample, kick)]
    value, _, found = differentiate(problem, rows(*each[:3]), each[3], max_rows=5)
    torch.testing.assert_close(value, problem.field(rows(t, x, sample))[0])
    full = torch.autograd.functional.jacobian(field, x).reshape(batch, dims, batch, dims)
    torch.testing.assert_close(found, torch.stack([full[i, :, i] for i in range(batch)]))


def test_rows_are_counted_and_split() -> None:
    asked: list[int] = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        asked.append(len(x))
        return torch.stack([x[:, 1], -x[:, 0].sin()], 1)

    problem = picard.ODE(drift, start(3, 2))
    with torch.no_grad():
        found = [
            picard.solve(problem, times(50), method="rk4", window=16, linearization="newton", max_rows=most)
            for most in (None, 7, 1)
        ]
    for solution in found:
        assert solution.stats.rounds == found[0].stats.rounds
        torch.testing.assert_close(solution.final, found[0].final)
    assert sum(asked) == sum(solution.stats.evaluations for solution in found)
    assert max(asked[: found[0].stats.rounds]) == 3 * 16 * 2
    assert max(asked[found[0].stats.rounds :]) == 7


@pytest.mark.parametrize("name", ["Kepler", "double well", "heat, 256 points"])
def test_gradients(name: str) -> None:
    hard, calls = HARD[name], []
    grid = hard.grid(60)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        calls.append(len(x))
        return hard.drift(t, x)

    def gradient(solver: Any, **options: Any) -> tuple[Tensor, int]:
        calls.clear()
        x = hard.y0[None].clone().requires_grad_()
        problem: Any = picard.ODE(drift, x)
        if hard.diffusion is not None:
            problem = picard.SDE(drift, hard.diffusion, x, noise=picard.Noise.from_seed(0))
        solver(problem, grid, method=hard.method, **options).final.square().sum().backward()
        assert x.grad is not None
        return x.grad, len(calls)

    expected, _ = gradient(picard.sequential)
    _, others = gradient(picard.solve, tolerance=TIGHT)
    found, calls_made = gradient(picard.solve, tolerance=TIGHT, linearization="newton")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert calls_made < others


def test_gradients_of_a_network_whose_backward_pass_has_no_derivative() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2)).double()
    found = []
    ways: list[tuple[Any, dict[str, Any]]] = [(picard.sequential, {}), (picard.solve, {"tolerance": 1e-9, **NEWTON})]
    for solver, options in ways:
        x = start(2, 2).requires_grad_()
        solution = solver(picard.ODE(lambda t, x: network(x), x), times(30), method="rk4", **options)
        found.append(torch.autograd.grad(solution.final.square().sum(), [x, *network.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_laws_are_certified() -> None:
    problem = diffusion(batch=4)
    options: dict[str, Any] = {"method": "ddpm", "linearization": "newton"}
    certificate = picard.solve(problem, 60, certify=True, **options).certificate
    assert isinstance(certificate, LawCertificate)
    assert certificate.tv < 0.05
    strict = picard.solve(problem, 60, tolerance=TotalVariation(0.01), **options)
    assert isinstance(strict.certificate, LawCertificate)
    assert strict.certificate.tv <= 0.01
    assert strict.stats.rounds < 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_precision_and_autocast(dtype: torch.dtype) -> None:
    problem, grid = picard.ODE(pendulum_drift, start(2, 2, dtype=dtype)), times(60).float()
    expected = picard.sequential(problem, grid, method="heun").final.float()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        solution = picard.solve(problem, grid, method="heun", tolerance=1e-4, linearization="newton")
    assert solution.stats.rounds <= 30  # of 120
    torch.testing.assert_close(solution.final.float(), expected, rtol=3e-2, atol=3e-2)


class Opaque(torch.autograd.Function):
    """Minus the state, with a derivative backwards only."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return -x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return -grads[0]


def test_a_model_without_a_derivative_forwards_is_refused() -> None:
    problem = picard.ODE(lambda t, x: Opaque.apply(x), start(2, 3))  # type: ignore[no-untyped-call]
    assert picard.solve(problem, times(20), method="euler").success
    with pytest.raises(picard.NotSupportedError, match=r"differentiate forwards.*linearization='secant'"):
        picard.solve(problem, times(20), method="euler", linearization="newton")


def test_threads_solve_at_once() -> None:
    """PyTorch differentiates forwards one at a time in a process."""

    def solve(seed: int) -> Tensor:
        problem = picard.ODE(lambda t, x: torch.tanh(2 * x) - x.flip(-1), start(2, 3) + seed)
        return picard.solve(problem, times(100), method="rk4", tolerance=1e-8, linearization="newton").final

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(solve, range(12)))
    assert all(torch.equal(one, solve(seed)) for seed, one in enumerate(found))


def test_derivatives_around_a_solve_are_refused() -> None:
    def final(x: Tensor) -> Tensor:
        return picard.solve(picard.ODE(lambda t, x: -x, x), times(10), method="rk4", linearization="newton").final

    with pytest.raises(picard.NotSupportedError, match=r"picard\.sequential"):
        torch.func.jvp(final, (start(2, 3),), (start(2, 3),))


def test_a_model_that_hides_its_derivative_is_solved_without() -> None:
    problem = picard.ODE(lambda t, x: -x.detach(), start(2, 3))
    expected = picard.sequential(problem, times(20), method="euler").final
    solution = picard.solve(problem, times(20), method="euler", tolerance=1e-9, linearization="newton")
    torch.testing.assert_close(solution.final, expected, rtol=1e-7, atol=1e-8)


def test_a_models_own_error_is_its_own() -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine\b"):
        picard.solve(picard.ODE(drift, start(2, 3)), times(20), method="euler", linearization="newton")


def test_large_states_are_refused_unless_asked_for() -> None:
    problem = picard.ODE(lambda t, x: -x, torch.ones(1, 40, 30))
    with pytest.raises(picard.NotSupportedError, match=r"at most 1024 numbers; .*Newton\(most=1200\)"):
        picard.solve(problem, times(4).float(), method="euler", linearization="newton")
    assert picard.solve(problem, times(4).float(), method="euler", linearization=Newton(most=1200)).success


def test_windows_are_chosen_by_time() -> None:
    solution = picard.solve(pendulum(), times(200), method="rk4", window="auto", linearization="newton")
    assert solution.success
    assert solution.stats.reason


@pytest.mark.parametrize("name", ["batch", "multistep", "noise in the field", "gradient"])
def test_systems_solved_whole_or_node_by_node_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def solved() -> Tensor:
        options: dict[str, Any] = {"linearization": "newton", "tolerance": 1e-9, "window": 24}
        if name == "multistep":
            return picard.solve(diffusion(), 30, method="dpmsolver++", **options).final
        if name == "noise in the field":
            return picard.solve(sde(), times(60), method="euler", **options).final
        problem = pendulum(3)
        x0 = problem.x0.clone().requires_grad_(name == "gradient")
        final = picard.solve(
            picard.ODE(pendulum_drift, x0, cond=problem.cond), times(40), method="rk4", **options
        ).final
        return torch.autograd.grad(final.square().sum(), x0)[0] if name == "gradient" else final

    whole = solved()
    monkeypatch.setattr(newton, "_WHOLE", 0)
    torch.testing.assert_close(solved(), whole, rtol=1e-11, atol=1e-12)
