"""odeint gives torchdiffeq's numbers, for its names, shapes, directions, grids and fixed-step methods."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint as reference

import picard
from benchmarks.hard_problems import Hard, hard_problems
from picard.errors import (
    InvalidGridError,
    InvalidProblemError,
    NotConvergedError,
    NotSupportedError,
    UnknownMethodError,
)
from picard.integrators import RK4
from picard.odeint import odeint
from picard.rowwise import rowwise
from picard.verify import select

METHODS = ["euler", "midpoint", "heun2", "heun3", "rk4"]
EXACT: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-13}
F64 = torch.float64
START = torch.tensor([1.0, 0.5], dtype=F64)

each_method = pytest.mark.parametrize("method", METHODS)
each_problem = pytest.mark.parametrize("hard", hard_problems(), ids=lambda hard: hard.name)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], torch.cos(t) - 0.3 * y[1] - 2 * torch.sin(y[0])])


def grid(steps: int = 20, first: float = 0.0, last: float = 2.0) -> Tensor:
    u = torch.linspace(0, 1, steps + 1, dtype=F64)
    return first + (last - first) * (u + 0.3 * u * (1 - u))


def assert_same(given: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert given.shape == expected.shape
    assert given.dtype == expected.dtype
    assert float((given - expected).abs().max()) <= tolerance * float(expected.abs().max().clamp_min(1))


@pytest.mark.parametrize("reverse", [False, True], ids=["increasing", "decreasing"])
@each_method
@each_problem
def test_hard_problems(hard: Hard, method: str, reverse: bool) -> None:
    t = hard.grid(4 if reverse else 8, reverse=reverse)  # backwards, heat amplifies errors of rounding fourfold a step
    assert_same(
        odeint(hard.drift, hard.y0, t, method=method, **EXACT), reference(hard.drift, hard.y0, t, method=method)
    )


@each_problem
def test_hard_problems_in_single_precision(hard: Hard) -> None:
    t, y0 = hard.grid(12).float(), hard.y0.float()
    given, expected = odeint(hard.drift, y0, t, method="rk4"), reference(hard.drift, y0, t, method="rk4")
    assert_same(given, expected, 2e-5)


@pytest.mark.parametrize(
    "t",
    [grid(), grid(20, 2.0, 0.0), torch.tensor([0.0, 0.37, 1.2, 2.0], dtype=F64), torch.tensor([2.0, 0.0], dtype=F64)],
    ids=["uneven", "decreasing", "sparse", "two points"],
)
@pytest.mark.parametrize("size", [0.07, 0.1, 3.0])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_step_size(method: str, interp: str, size: float, t: Tensor) -> None:
    options = {"step_size": size, "interp": interp}
    expected = reference(pendulum, START, t, method=method, options=dict(options))
    assert_same(odeint(pendulum, START, t, method=method, options=options, **EXACT), expected)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["increasing", "decreasing"])
def test_grid_constructor(ends: tuple[float, float]) -> None:
    def halved(func: Any, y0: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.stack([t[:-1], (t[:-1] + t[1:]) / 2], 1).flatten(), t[-1:]])

    t, options = grid(10, *ends), {"grid_constructor": halved}
    expected = reference(pendulum, START, t, method="rk4", options=dict(options))
    assert_same(odeint(pendulum, START, t, method="rk4", options=options, **EXACT), expected)


@pytest.mark.parametrize(
    ("y0", "t"),
    [
        (START, torch.tensor([0.3], dtype=F64)),
        (torch.zeros(0, 2, dtype=F64), grid(4)),
        (torch.zeros(0, dtype=torch.complex64), grid(4)),
        ((torch.ones(2, 0), torch.ones(0, 3)), torch.tensor([0.0])),
    ],
    ids=["one time", "empty batch", "empty complex", "both"],
)
def test_nothing_to_integrate(y0: Any, t: Tensor) -> None:
    expected, given = (solve(lambda t, y: y, y0, t, method="euler") for solve in (reference, odeint))
    assert type(given) is type(expected)
    for one, other in zip(given, expected, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_an_empty_batch_of_rows() -> None:
    found = odeint(lambda t, y: -y, torch.zeros(0, 2), grid(4).float(), method="rk4", options={"rows": True})
    assert found.shape == (5, 0, 2)


def test_tuples() -> None:
    def drift(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        a, b, c = y
        return -a + b.mean(), torch.cos(t) * b.T @ b, -c * a.sum()

    y0 = (torch.randn(3, dtype=F64), torch.randn(2, 2, dtype=F64), torch.tensor(0.3, dtype=F64))
    for t in (grid(10, 0.0, 0.5), grid(10, 0.5, 0.0)):
        expected = reference(drift, y0, t, method="rk4")
        given = odeint(drift, y0, t, method="rk4", **EXACT)
        assert isinstance(given, tuple)
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)


def test_tuples_of_several_precisions() -> None:
    y0 = (torch.randn(3), torch.randn(2, dtype=F64))
    given = odeint(lambda t, y: (-y[0], y[1] * y[0].sum()), y0, grid(10, 0.0, 0.5), method="rk4")
    assert [part.dtype for part in given] == [torch.float32, F64]
    assert [tuple(part.shape) for part in given] == [(11, 3), (11, 2)]
    assert_same(given[0][-1], y0[0] * 0.6065306597, 1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 2), (2, 3, 4, 2)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    y0 = torch.randn(shape, dtype=F64)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        assert y.shape == shape
        assert t.shape == ()
        return torch.sin(y) * t - y.mean()

    assert_same(odeint(drift, y0, grid(), method="heun3", **EXACT), reference(drift, y0, grid(), method="heun3"))


def test_complex_states() -> None:
    y0 = torch.randn(3, dtype=torch.complex128)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return 1j * y * t + y.conj() * 0.1

    assert_same(odeint(drift, y0, grid(), method="rk4", **EXACT), reference(drift, y0, grid(), method="rk4"))


@pytest.mark.parametrize("drift", [lambda t, y: y.conj(), lambda t, y: y.mH], ids=["conj", "mH"])
def test_conjugates_that_are_not_worked_out(drift: Any) -> None:
    y0 = torch.randn(2, 2, dtype=torch.complex128).conj()
    assert_same(odeint(drift, y0, grid(), method="rk4", **EXACT), reference(drift, y0, grid(), method="rk4"))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("window", [1, 64])
def test_tuples_of_real_and_complex_states(count: int, window: int) -> None:
    def drift(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0] * t, 1j * y[1] + y[0].sum()

    y0 = (torch.randn(count, dtype=F64), torch.randn(2, dtype=torch.complex128))
    given = odeint(drift, y0, grid(), method="rk4", options={"window": window}, **EXACT)
    for part, one, other in zip(y0, given, reference(drift, y0, grid(), method="rk4"), strict=True):
        assert one.dtype == part.dtype
        assert_same(one.to(other.dtype), other)  # torchdiffeq makes every part complex


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4)).double()
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(torch.cat([y, t.expand(y.shape[0], 1)], 1))


def test_modules_and_their_gradients() -> None:
    net, t = Net(), grid(40)
    y0 = torch.randn(6, 4, dtype=F64, requires_grad=True)
    found = []
    for solver, exact in ((reference, {}), (odeint, EXACT)):
        net.calls = 0
        out = solver(net, y0, t, method="rk4", **exact)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), [y0, *net.parameters()])])
    for one, other in zip(*found, strict=True):
        assert_same(one, other, 1e-8)


@pytest.mark.usefixtures("listed_under_grad")
def test_torch_func_grad_by_parameters_of_a_lifted_function() -> None:
    net, y0 = nn.Linear(2, 2).double(), torch.ones(2, dtype=F64)

    def total(parameters: dict[str, Tensor]) -> Tensor:
        def drift(t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(torch.func.functional_call(net, parameters, (y,)))

        return odeint(drift, y0, grid(), method="rk4", **EXACT)[-1].sum()

    expected = torch.autograd.grad(total(dict(net.named_parameters())), list(net.parameters()))
    given = torch.func.grad(total)({name: value.detach() for name, value in net.named_parameters()})
    for one, other in zip(given.values(), expected, strict=True):
        assert_same(one, other, 1e-9)


def test_calls_are_rounds() -> None:
    net = Net()
    with torch.no_grad():
        odeint(net, torch.randn(6, 4, dtype=F64), grid(100), method="rk4")
    assert net.calls < 100  # torchdiffeq makes 400


def test_the_default_tolerance_is_small() -> None:
    expected = reference(pendulum, START, grid(200), method="rk4")
    assert_same(odeint(pendulum, START, grid(200), method="rk4"), expected, 1e-6)


@each_method
def test_functions_of_rows(method: str) -> None:
    def rows(t: Tensor, y: Tensor) -> Tensor:
        assert t.shape == y.shape[:1]
        return torch.stack([y[:, 1], torch.cos(t) - torch.sin(y[:, 0])], 1)

    def one(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 1], torch.cos(t) - torch.sin(y[:, 0])], 1)

    y0 = torch.randn(3, 2, dtype=F64)
    expected = reference(one, y0, grid(), method=method)
    assert_same(odeint(one, y0, grid(), method=method, **EXACT), expected)
    assert_same(odeint(rows, y0, grid(), method=method, options={"rows": True}, **EXACT), expected)
    both = odeint(
        lambda t, y: (rows(t, y[0]), -y[1]), (y0, y0[:, 0]), grid(), method=method, options={"rows": True}, **EXACT
    )
    assert_same(both[0], expected)


def test_options_of_the_solver() -> None:
    seen: list[int] = []
    options = {"window": 5, "max_rows": 3, "linearization": "identity", "guess": "copy", "tolerance": 0.0}
    given = odeint(
        pendulum, START, grid(), method=RK4(), options={**options, "callback": lambda r: seen.append(r.rows)}
    )
    assert max(seen) == 5
    expected = picard.sequential(picard.ODE(rowwise(pendulum), START[None]), grid(), method="rk4", save="all").ys[:, 0]
    assert_same(given, expected, 1e-13)


def test_the_window_of_one_runs_anything() -> None:
    def stubborn(t: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros(2, dtype=F64)
        out[0] = y[1] if float(t) > 1 else -y[1]
        return out

    expected = reference(stubborn, START, grid(), method="euler")
    assert_same(odeint(stubborn, START, grid(), method="euler", options={"window": 1}), expected)
    t, between = torch.tensor([0.0, 0.33, 2.0], dtype=F64), {"step_size": 0.1, "interp": "cubic"}
    expected = reference(stubborn, START, t, method="euler", options=dict(between))
    assert_same(odeint(stubborn, START, t, method="euler", options={**between, "window": 1}), expected)


def test_slopes_for_interpolation_are_evaluated_in_calls_no_larger_than_those_of_the_solve() -> None:
    calls: list[int] = []

    def drift(t: Tensor, y: Tensor) -> Tensor:
        calls.append(len(t))
        return -y

    t, y0 = torch.linspace(0, 2, 30, dtype=F64), torch.randn(2, 3, dtype=F64)
    for limit, most in (({"max_rows": 5}, 5), ({"window": 4}, 8)):
        calls.clear()
        odeint(drift, y0, t, method="rk4", options={"rows": True, "step_size": 0.05, "interp": "cubic", **limit})
        assert max(calls) == most


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_a_sample_that_explodes_need_not_end_the_others(interp: str) -> None:
    def explodes(t: Tensor, y: Tensor) -> Tensor:
        return y**2 - y

    y0, t = torch.tensor([[1.0], [50.0]], dtype=F64), torch.linspace(0, 1, 6, dtype=F64)
    options = {"rows": True, "step_size": 0.03, "interp": interp}
    with pytest.raises(picard.NonFiniteError, match="of sample 1"):
        odeint(explodes, y0, t, method="rk4", options=options)
    without_sample = r"\(time 0\.0\d+\), in round"  # in one trajectory there are none
    with pytest.raises(picard.NonFiniteError, match=without_sample):
        odeint(explodes, y0, t, method="rk4", options={**options, "rows": False})
    found = odeint(explodes, y0, t, method="rk4", options={**options, "throw": False})
    expected: Any = reference(explodes, y0, t, method="rk4", options={"step_size": 0.03, "interp": interp})
    assert torch.equal(found.isnan(), expected.isnan())
    assert_same(found[:, :1], expected[:, :1], 1e-8)
    assert odeint(explodes, y0, t, method="rk4", options={"step_size": 0.03, "throw": False})[1:].isnan().all()


def writes(t: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros(2, dtype=F64)
    out[0] = y[1]
    return out


def energy(y: Tensor) -> Tensor:
    return (torch.cosh(y[..., 0]) + y[..., 1] ** 2).sum()


def rotated(slope: Tensor) -> Tensor:
    return torch.stack([slope[..., 1], -slope[..., 0]], -1)


def hamiltonian(t: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        return rotated(torch.autograd.grad(energy(y), y)[0])


STUBBORN = {
    "writes": writes,
    "branches": lambda t, y: y if y.sum() > 0 else -y,
    "item": lambda t, y: y * t.item(),
    "random": lambda t, y: y + torch.randn_like(y),
    "numpy": lambda t, y: torch.from_numpy(y.numpy() * 2),
    "autograd": hamiltonian,
}


@pytest.mark.parametrize("name", STUBBORN)
def test_functions_that_cannot_be_lifted(name: str) -> None:
    with pytest.raises(NotSupportedError, match=r"one row but not on \d+ .* options=\{\"rows\": True\}"):
        odeint(STUBBORN[name], START, grid(), method="euler")


def test_derivatives_inside_a_function() -> None:
    expected = reference(hamiltonian, START, grid(), method="rk4")
    lifted = odeint(lambda t, y: rotated(torch.func.grad(energy)(y)), START, grid(), method="rk4", **EXACT)
    rows = odeint(hamiltonian, START[None], grid(), method="rk4", options={"rows": True}, **EXACT)
    assert_same(lifted, expected)
    assert_same(rows[:, 0], expected)


def test_errors_of_the_function_itself_are_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        odeint(lambda t, y: y / (1 // 0), START, grid(), method="euler")


SLOPES: dict[str, tuple[Any, Any]] = {
    "number": (torch.zeros(2, 3, dtype=F64), lambda t, y: t**2),
    "row": (torch.zeros(2, 3, dtype=F64), lambda t, y: y[0] - t),
    "another dtype": (torch.zeros(2, 3, dtype=F64), lambda t, y: torch.ones_like(y).long()),
    "further dimension": (torch.ones(3, dtype=F64), lambda t, y: -y.reshape(1, 3)),
    "no dimension": (torch.ones(1, dtype=F64), lambda t, y: -y.sum()),
    "real": (torch.ones(3, dtype=torch.complex128) * (1 + 1j), lambda t, y: -y.abs()),
    "flat parts": ((torch.ones(2, 1, dtype=F64), torch.ones(3, dtype=F64)), lambda t, y: (-y[0].sum(1), -y[1][None])),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_are_what_torchdiffeq_can_add_to_a_state(name: str) -> None:
    y0, drift = SLOPES[name]
    given, expected = odeint(drift, y0, grid(), method="rk4", **EXACT), reference(drift, y0, grid(), method="rk4")
    for one, other in zip(given, expected, strict=True) if isinstance(y0, tuple) else [(given, expected)]:
        assert_same(one, other)


WRONG: dict[str, tuple[Any, Any]] = {
    "as many numbers in another shape": (torch.ones(2, 3), lambda t, y: y.T),
    "flattened": (torch.ones(2, 3), lambda t, y: y.flatten()),
    "too few": (torch.ones(6), lambda t, y: y[:3]),
    "complex": (torch.ones(6), lambda t, y: 1j * y),
    "a number": (torch.ones(6), lambda t, y: 1.0),
    "a tuple": (torch.ones(6), lambda t, y: (y,)),
    "too few parts": ((torch.ones(2), torch.ones(2)), lambda t, y: (y[0],)),
    "one tensor of the first part": ((torch.ones(2, 3), torch.ones(2, 3)), lambda t, y: y[0]),
    "one tensor": ((torch.ones(2), torch.ones(2)), lambda t, y: y[0]),
    "swapped parts": ((torch.ones(2), torch.ones(3)), lambda t, y: (y[1], y[0])),
    "another part": ((torch.ones(2), torch.ones(2)), lambda t, y: (y[0], y[1][:1])),
}


def test_one_tensor_for_a_tuple_is_called_that() -> None:
    y0, drift = WRONG["one tensor of the first part"]
    with pytest.raises(InvalidProblemError, match=r"a tuple of 2 tensors.*returned a tensor of shape \(2, 3\)"):
        odeint(drift, y0, grid().float(), method="euler")


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_a_slope_is_refused(name: str) -> None:
    y0, drift = WRONG[name]
    with pytest.raises(InvalidProblemError, match=r"func must return (what|a tuple)"):
        odeint(drift, y0, grid().float(), method="euler")


def test_slopes_of_rows_are_checked_too() -> None:
    y0, options = torch.ones(4, 2, 3, dtype=F64), {"rows": True}
    found = odeint(lambda t, y: -t[:, None], y0[:, 0], grid(), method="euler", options=options, **EXACT)
    assert_same(found, reference(lambda t, y: -t, y0[:, 0], grid(), method="euler"))
    with pytest.raises(InvalidProblemError, match=r"must return what it is given, shape \(rows, 2, 3\)"):
        odeint(lambda t, y: y.transpose(1, 2), y0, grid(), method="euler", options=options)


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": "implicit_adams"}, NotSupportedError, "solves for its steps .* known: dopri5, dopri8, .* rk4"),
    (
        {"method": "tsit5"},
        NotSupportedError,
        "'tsit5' is a Runge-Kutta method that .*: write dopri5, .*; known: dop",
    ),
    ({"method": "explicit_adams"}, NotSupportedError, "method of several steps, which is not offered: write a Runge-K"),
    ({"method": "scipy_solver", "options": {"solver": "LSODA"}}, NotSupportedError, "runs in SciPy"),
    ({"method": "dopri5", "options": {"max_num_steps": 0}}, InvalidProblemError, "max_num_steps must be an integer"),
    (
        {"method": "dopri5", "options": {"max_num_steps": 1}},
        NotConvergedError,
        r"^1 steps lead to t = .*: raise max_steps \(max_num_steps in the options of odeint\)",
    ),
    ({"method": "dopri5", "options": {"interp": "cubic"}}, TypeError, "odeint by dopri5 has no option 'interp'"),
    ({"method": None, "options": {"first_steps": 0.1}}, TypeError, "did you mean 'first_step'"),
    ({"method": "rk"}, UnknownMethodError, "did you mean 'rk4'"),
    ({"options": {"stepsize": 0.1}}, TypeError, "did you mean 'step_size'"),
    ({"options": {"interp": "cubik"}}, InvalidProblemError, "did you mean 'cubic'"),
    ({"options": {"step_size": -0.1}}, InvalidProblemError, "must be positive"),
    ({"options": {"step_size": float("inf")}}, InvalidProblemError, "positive and finite"),
    ({"options": {"step_size": 0.1, "grid_constructor": grid}}, InvalidProblemError, "one of them"),
    ({"options": {"grid_constructor": lambda f, y, t: t[:-1]}}, InvalidGridError, r"from t\[0\] to t\[-1\]"),
    ({"t": torch.tensor([0.0, 1.0])}, InvalidGridError, "one single step"),
    ({"t": torch.tensor([0.0, 1.0]), "options": {"step_size": None}}, InvalidGridError, "two points would be one"),
    ({"t": torch.tensor([0.0, 1.0, 0.5])}, InvalidGridError, "strictly"),
    ({"t": torch.arange(4)}, InvalidGridError, "floating"),
    ({"y0": torch.arange(2)}, InvalidProblemError, r"y0\.float\(\)"),
    ({"y0": torch.tensor([1.0, float("nan")])}, InvalidProblemError, r"y0 must be finite; given .*shape \(2,\)"),
    ({"options": {"perturb": True}}, NotSupportedError, "leave perturb out"),
    ({"event_fn": lambda t, y: y}, NotSupportedError, "events"),
    ({"rtol": torch.ones(2)}, InvalidProblemError, "one number"),
    ({"y0": [1.0, 2.0]}, InvalidProblemError, "tuple"),
    ({"y0": 1.0}, InvalidProblemError, r"write torch\.as_tensor\(y0"),
    ({"t": [0.0, 0.5, 1.0]}, InvalidGridError, r"^t must be .*: write torch\.as_tensor\(t\)"),
    ({"func": 3}, InvalidProblemError, "callable"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("change", "error", "message"), REFUSALS, ids=[refusal[2] for refusal in REFUSALS])
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"func": pendulum, "y0": START, "t": grid(), "method": "rk4", **change}
    with pytest.raises(error, match=message):
        odeint(**arguments)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.Dropout()], ids=["normalization", "dropout"])
def test_a_network_in_training_mode_is_told_of(layer: nn.Module) -> None:
    with pytest.raises(NotSupportedError, match=r"Call \.eval\(\) on a network with dropout or batch normalization"):
        odeint(lambda t, y: layer(y), torch.ones(3, 2), grid(), method="euler")
    layer.eval()
    assert torch.isfinite(odeint(lambda t, y: layer(y), torch.ones(3, 2), grid(), method="euler")).all()


def test_times_that_are_not_perturbed_may_be_said() -> None:
    options = {"perturb": False}
    expected = reference(pendulum, START, grid(), method="rk4", options=dict(options))
    assert_same(odeint(pendulum, START, grid(), method="rk4", options=options, **EXACT), expected)


def test_a_gradient_by_time_is_refused_where_one_is_asked_for() -> None:
    t = grid().requires_grad_()
    with pytest.raises(NotSupportedError, match=r"gets no gradient: write t\.detach\(\)"):
        odeint(pendulum, START, t, method="euler")
    with torch.no_grad():
        odeint(pendulum, START, t, method="euler")
    length = torch.tensor(2.0, dtype=F64, requires_grad=True)  # what the error says to write instead
    found = []
    for solver, drift, times, exact in (
        (reference, pendulum, length * grid(last=1.0), {}),
        (odeint, lambda t, y: length * pendulum(length * t, y), grid(last=1.0), EXACT),
    ):
        found.append(torch.autograd.grad(solver(drift, START, times, method="rk4", **exact)[-1].sum(), length)[0])
    assert_same(found[1], found[0])


def test_callbacks_of_func_are_refused() -> None:
    class Callback(Net):
        def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None: ...

    with pytest.raises(NotSupportedError, match="callback"):
        odeint(Callback(), torch.randn(6, 4, dtype=F64), grid(), method="euler")


def test_rowwise_lifts_conditioning() -> None:
    lifted = rowwise(lambda t, y, gain, label: y * gain * t + (1 if label == "a" else 0))
    t, y, gain = torch.arange(3.0), torch.randn(3, 2), torch.randn(3)
    given = lifted(t, y, gain=gain, label="a")
    torch.testing.assert_close(given, y * (gain * t)[:, None] + 1)
    torch.testing.assert_close(lifted(t[:1], y[:1], gain=gain[:1], label="a"), given[:1])
    assert repr(rowwise(pendulum)) == "rowwise(pendulum)"


class Rates(NamedTuple):
    decay: Tensor
    kind: str


def test_rowwise_gives_every_row_its_own_entries_of_nested_conditioning() -> None:
    def drift(t: Tensor, y: Tensor, rates: Any) -> Tensor:
        rate = rates["decay"] if isinstance(rates, dict) else rates.decay
        assert rate.shape == ()
        return -rate * y

    decay, y0 = torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.ones(3, 2, dtype=F64)
    flat = picard.ODE(rowwise(lambda t, y, decay: -decay * y), y0, cond={"decay": decay})
    expected = picard.sequential(flat, grid(), method="rk4").final
    for rates in ({"decay": decay}, Rates(decay, "slow")):
        problem = picard.ODE(rowwise(drift), y0, cond={"rates": rates})
        found = picard.solve(problem, grid(), method="rk4", tolerance=1e-12)
        torch.testing.assert_close(found.final, expected)
        found = picard.solve(select(problem, [2, 0]), grid(), method="rk4", tolerance=1e-12)
        torch.testing.assert_close(found.final, expected[[2, 0]])


@pytest.mark.parametrize("shared", [torch.eye(2, dtype=F64), torch.tensor(2.0, dtype=F64)], ids=["matrix", "number"])
def test_rowwise_refuses_conditioning_that_all_rows_share(shared: Tensor) -> None:
    problem = picard.ODE(rowwise(lambda t, y, shared: -y), torch.ones(3, 2, dtype=F64), cond={"shared": shared})
    with pytest.raises(InvalidProblemError, match=r"one entry a row, .*functools\.partial"):
        picard.solve(problem, grid(), method="rk4")


def test_rowwise_hands_on_that_memory_ran_out() -> None:
    calls: list[int] = []

    def drift(t: Tensor, y: Tensor) -> Tensor:
        calls.append(0)
        if len(calls) == 3:
            msg = "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory"
            raise RuntimeError(msg)
        return -y

    found = odeint(drift, START, grid(), method="euler")
    assert len(calls) > 3
    assert_same(found, reference(lambda t, y: -y, START, grid(), method="euler"), 1e-6)


def test_rowwise_functions_serve_solve() -> None:
    net = nn.Linear(2, 2).double()
    problem = picard.ODE(rowwise(lambda t, y: torch.tanh(net(y)) * t), torch.randn(3, 2, dtype=F64))
    expected = picard.sequential(problem, grid(), method="heun").final
    torch.testing.assert_close(picard.solve(problem, grid(), method="heun", tolerance=0.0).final, expected)
