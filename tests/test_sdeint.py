"""sdeint gives torchsde's trajectories on the same Brownian path, for its noise types, SDE types, methods and steps."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor, nn

import picard
from picard.errors import InvalidGridError, InvalidProblemError, NotSupportedError, UnknownMethodError
from picard.sdeint import sdeint
from picard.stepped import check_diagonal

F64 = torch.float64
EXACT: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-13}
BATCH, DIMS = 4, 3
NOISE_TYPES = ("diagonal", "scalar", "additive", "general")
COMBINATIONS = [
    (sde_type, noise_type, method)
    for sde_type, methods in {"ito": ("euler", "milstein"), "stratonovich": ("heun", "midpoint", "milstein")}.items()
    for noise_type in NOISE_TYPES
    for method in methods
    if (noise_type, method) != ("general", "milstein")
]
STEPS = {
    "even": (torch.linspace(0, 1, 6, dtype=F64), 0.05),
    "between": (torch.tensor([0.0, 0.13, 0.52, 1.0], dtype=F64), 0.03),
    "ends": (torch.tensor([0.3, 1.0], dtype=F64), 0.1),
    "one step": (torch.tensor([0.3, 0.4], dtype=F64), 0.5),
}
each_combination = pytest.mark.parametrize(("sde_type", "noise_type", "method"), COMBINATIONS)


class Equation(nn.Module):
    """Written for torchsde: scalar t, y (batch, d), the batch size read off y."""

    def __init__(self, sde_type: str, noise_type: str, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        self.channels = {"diagonal": DIMS, "scalar": 1}.get(noise_type, 2)
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Linear(DIMS + 1, DIMS, dtype=dtype)
        self.weight = nn.Parameter(0.5 * torch.randn(DIMS, self.channels, generator=generator, dtype=F64).to(dtype))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        assert t.shape == ()
        return torch.tanh(self.net(torch.cat([y, t.expand(y.shape[0], 1)], 1)))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        assert y.shape == (BATCH, DIMS)
        if self.noise_type == "diagonal":
            return 0.4 * torch.cos(y + t) * self.weight.sum(1)
        if self.noise_type == "additive":
            return (self.weight * torch.cos(t)).expand(BATCH, DIMS, self.channels)
        return self.weight * torch.cos(y)[..., None]


def path(equation: Equation, ts: Tensor, kind: str = "interval", dtype: torch.dtype = F64) -> Any:
    size = (BATCH, equation.channels)
    if kind == "interval":
        return torchsde.BrownianInterval(float(ts[0]), float(ts[-1]), size=size, entropy=5, dtype=dtype)
    zeros = torch.zeros(size, dtype=dtype)
    if kind == "path":
        return torchsde.BrownianPath(float(ts[0]), zeros)
    return torchsde.BrownianTree(float(ts[0]), zeros, t1=float(ts[-1]), entropy=5)


def start(dtype: torch.dtype = F64) -> Tensor:
    return torch.linspace(-1, 1, BATCH * DIMS, dtype=dtype).reshape(BATCH, DIMS)


@pytest.mark.parametrize("steps", STEPS)
@each_combination
def test_the_trajectory_of_torchsde(sde_type: str, noise_type: str, method: str, steps: str) -> None:
    """A path of its own with the same entropy: it is asked in the same order, so it gives the same values."""
    (ts, dt), equation = STEPS[steps], Equation(sde_type, noise_type)
    with torch.no_grad():
        expected = torchsde.sdeint(equation, start(), ts, bm=path(equation, ts), method=method, dt=dt)
        given = sdeint(equation, start(), ts, bm=path(equation, ts), method=method, dt=dt, **EXACT)
    torch.testing.assert_close(given, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["tree", "path"])
@pytest.mark.parametrize(("sde_type", "method"), [("ito", "milstein"), ("stratonovich", "heun")])
def test_other_brownian_paths(sde_type: str, method: str, kind: str) -> None:
    (ts, dt), equation = STEPS["between"], Equation(sde_type, "diagonal")
    shared = path(equation, ts, kind)
    with torch.no_grad():
        expected = torchsde.sdeint(equation, start(), ts, bm=shared, method=method, dt=dt)
        given = sdeint(equation, start(), ts, bm=shared, method=method, dt=dt, **EXACT)
    torch.testing.assert_close(given, expected, rtol=1e-11, atol=1e-11)


@each_combination
def test_single_precision(sde_type: str, noise_type: str, method: str) -> None:
    equation, ts = Equation(sde_type, noise_type, torch.float32), torch.linspace(0, 1, 4)
    with torch.no_grad():
        bms = [path(equation, ts, dtype=torch.float32) for _ in range(2)]
        expected = torchsde.sdeint(equation, start(torch.float32), ts, bm=bms[0], method=method, dt=0.03)
        given = sdeint(equation, start(torch.float32), ts, bm=bms[1], method=method, dt=0.03)
    torch.testing.assert_close(given, expected, rtol=2e-5, atol=2e-5)


class Mixed(nn.Module):
    """Where lifted, `torch.where` takes the dtype of a time for that of a state."""

    sde_type, noise_type = "ito", "diagonal"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, t, -y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.3 * torch.where(y > 0, t, torch.cos(y))


@pytest.mark.parametrize("method", ["euler", "milstein"])
def test_times_of_another_precision(method: str) -> None:
    y0, ts = start(torch.float32), torch.tensor([0.0, 0.33, 1.0], dtype=F64)
    bms = [torchsde.BrownianInterval(0.0, 1.0, size=(BATCH, DIMS), entropy=5) for _ in range(2)]
    expected = torchsde.sdeint(Mixed(), y0, ts, bm=bms[0], method=method, dt=0.1)
    given = sdeint(Mixed(), y0, ts, bm=bms[1], method=method, dt=0.1)
    torch.testing.assert_close(given, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    for ts in ([0.0, 0.25, 1.0], [0.0, 0.3, 1.0]):  # on the grid and between its points
        arguments: dict[str, Any] = {"bm": picard.Noise.from_seed(0), "method": "euler", "dt": 0.125}
        given = sdeint(Mixed(), start(dtype), ts, **arguments)
        assert given.dtype == dtype
        expected = sdeint(Mixed(), start(torch.float32), ts, **arguments)
        torch.testing.assert_close(given.float(), expected, rtol=0.1, atol=0.1)


def test_the_default_step_and_tolerance() -> None:
    equation, ts = Equation("stratonovich", "general"), [0.0, 0.05, 0.1]
    bms = [path(equation, torch.tensor(ts)) for _ in range(2)]
    with torch.no_grad():
        expected = torchsde.sdeint(equation, start(), ts, bm=bms[0])
        given = sdeint(equation, start(), ts, bm=bms[1])
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("sde_type", "noise_type", "method"), COMBINATIONS[::2])
def test_gradients(sde_type: str, noise_type: str, method: str) -> None:
    (ts, dt), equation, y0 = STEPS["between"], Equation(sde_type, noise_type), start().requires_grad_()
    found = []
    for solver, exact in ((torchsde.sdeint, {}), (sdeint, EXACT)):
        out = solver(equation, y0, ts, bm=path(equation, ts), method=method, dt=dt, **exact)
        inputs = [y0, *equation.parameters()]
        found.append(torch.autograd.grad(out.square().sum(), inputs, allow_unused=True, materialize_grads=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("listed_under_grad")
@pytest.mark.parametrize("ts", [[0.0, 1.0], torch.tensor([0.0, 1.0], dtype=F64)], ids=["list", "tensor"])
def test_torch_func_grad(ts: Any) -> None:
    def last(y0: Tensor, rate: Tensor) -> Tensor:
        class Decay:
            sde_type, noise_type = "ito", "diagonal"
            f, g = staticmethod(lambda t, y: -rate * y), staticmethod(lambda t, y: 0.3 * torch.cos(y))

        noise, options = picard.Noise.from_seed(0), {"rows": True}
        return sdeint(Decay(), y0, ts, bm=noise, method="euler", dt=0.1, options=options, **EXACT)[-1].sum()

    y0, rate = start().requires_grad_(), torch.tensor(0.5, dtype=F64, requires_grad=True)
    expected = torch.autograd.grad(last(y0, rate), (y0, rate))
    given = torch.func.grad(last, (0, 1))(y0.detach(), rate.detach())
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other)


def rows_f(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(2 * y) + torch.cos(t)[:, None]


def rows_g(t: Tensor, y: Tensor) -> Tensor:
    return 0.4 * torch.cos(y + t[:, None])


class Rows:
    sde_type, noise_type = "ito", "diagonal"
    f, g = staticmethod(rows_f), staticmethod(rows_g)


class Scalar(Rows):
    f = staticmethod(lambda t, y: torch.sin(2 * y) + torch.cos(t))
    g = staticmethod(lambda t, y: 0.4 * torch.cos(y + t))


@pytest.mark.parametrize("method", ["euler", "milstein"])
def test_functions_of_rows(method: str) -> None:
    noise = picard.Noise.from_seed(3)
    arguments: dict[str, Any] = {"ts": [0.0, 0.4, 1.0], "bm": noise, "method": method, "dt": 0.02, **EXACT}
    expected = sdeint(Scalar(), start(), **arguments)
    given = sdeint(Rows(), start(), **arguments, options={"rows": True})
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=(BATCH, DIMS), dtype=F64)
    arguments["bm"] = bm
    expected = torchsde.sdeint(Scalar(), start(), **{**arguments, "rtol": 0, "atol": 0})
    given = sdeint(Rows(), start(), **arguments, options={"rows": True})
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)


def test_our_noise_is_that_of_solve() -> None:
    noise, grid = picard.Noise.from_seed(3), torch.cat([torch.arange(50, dtype=F64) * 0.02, torch.ones(1, dtype=F64)])
    problem = picard.SDE(rows_f, rows_g, start(), noise=noise)
    expected = picard.sequential(problem, grid, method="euler").final
    given = sdeint(Scalar(), start(), [0.0, 1.0], bm=noise, method="euler", dt=0.02, **EXACT)
    torch.testing.assert_close(given[-1], expected, rtol=1e-10, atol=1e-10)


def test_the_default_noise_follows_torchs_seed() -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(sdeint(Scalar(), start(), [0.0, 1.0], method="euler", dt=0.1))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_milstein_with_scalar_noise_that_mixes_components() -> None:
    """The derivative of g along g, A A y for g = A y; torchsde takes the transpose, which is right for A = A^T only."""
    matrix = torch.tensor([[0.3, 0.5, 0.0], [-0.2, 0.1, 0.4], [0.0, 0.3, -0.3]], dtype=F64)

    class Mixed:
        sde_type, noise_type = "ito", "scalar"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return (y @ matrix.T)[..., None]

    bm = torchsde.BrownianInterval(0.0, 1.0, size=(BATCH, 1), dtype=F64)
    given = sdeint(Mixed(), start(), [0.0, 1.0], bm=bm, method="milstein", dt=0.1, **EXACT)
    y, t = start(), 0.0
    while t < 1:
        after = min(t + 0.1, 1.0)
        dw = bm(t, after)
        y, t = y - (after - t) * y + y @ matrix.T * dw + y @ (matrix @ matrix).T * (dw**2 - (after - t)) / 2, after
    torch.testing.assert_close(given[-1], y, rtol=1e-10, atol=1e-10)


def test_noise_without_a_derivative_at_the_start_may_be_diagonal() -> None:
    zero = torch.zeros(1, 2, dtype=F64)
    check_diagonal(lambda t, y: torch.sqrt(y), zero[0, :1], zero)
    with pytest.raises(NotSupportedError, match="depend on others"):
        check_diagonal(lambda t, y: torch.sqrt(y.flip(1)), zero[0, :1], zero)


def test_names_and_common_functions() -> None:
    equation, ts = Equation("ito", "diagonal"), torch.tensor([0.0, 1.0], dtype=F64)
    noise = picard.Noise.from_seed(0)

    class Renamed(nn.Module):
        sde_type, noise_type = "ito", "diagonal"
        drift, diffusion = staticmethod(equation.f), staticmethod(equation.g)

    class Both(nn.Module):
        sde_type, noise_type = "ito", "diagonal"

        def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return equation.f(t, y), equation.g(t, y)

    for method in ("euler", "milstein"):
        arguments: dict[str, Any] = {"bm": noise, "method": method, "dt": 0.05}
        expected = sdeint(equation, start(), ts, **arguments)
        names = {"drift": "drift", "diffusion": "diffusion"}
        torch.testing.assert_close(sdeint(Renamed(), start(), ts, names=names, **arguments), expected)
        torch.testing.assert_close(sdeint(Both(), start(), ts, **arguments), expected)


def test_what_a_solve_did_not_reach_is_nan() -> None:
    ts, bm = [0.0, 0.1, 1.0], picard.Noise.from_seed(0)
    arguments: dict[str, Any] = {"bm": bm, "method": "euler", "dt": 0.02}
    found = sdeint(
        Rows(), start(), ts, **arguments, options={"rows": True, "window": 7, "max_rounds": 7, "throw": False}
    )
    assert found[:2].isfinite().all()
    assert found[2].isnan().all()
    with pytest.raises(picard.NotConvergedError):
        sdeint(Rows(), start(), ts, **arguments, options={"rows": True, "window": 7, "max_rounds": 7})


def test_fewer_rounds_than_steps() -> None:
    rounds: list[int] = []
    options = {"callback": lambda info: rounds.append(info.round)}
    sdeint(Scalar(), start(), [0.0, 1.0], method="milstein", dt=0.002, options=options)
    assert max(rounds) < 100


class Products(Rows):
    f_and_g_prod = None
    g = None  # type: ignore[assignment]


class Coupled(Scalar):
    g = staticmethod(lambda t, y: y.flip(1))


class Even(Scalar):
    g = staticmethod(lambda t, y: torch.cos(y.sum(1, keepdim=True)).expand(y.shape))


class Wrong(Scalar):
    g = staticmethod(lambda t, y: y[..., None])


class NoChannel(Scalar):
    def __init__(self, noise_type: str) -> None:
        self.noise_type = noise_type


class Number(Scalar):
    f = staticmethod(lambda t, y: 1.0)  # type: ignore[assignment]


class Untyped:
    noise_type = "diagonal"


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": None}, NotSupportedError, "torchsde's default here is srk"),
    ({"y0": torch.full((2, 3), float("nan"))}, InvalidProblemError, r"y0 must be finite; given .*shape \(2, 3\)"),
    ({"method": "srk"}, NotSupportedError, "'srk' is not offered for this SDE; .* euler, milstein"),
    ({"method": "log_ode"}, NotSupportedError, "not offered"),
    ({"method": "heun"}, NotSupportedError, "'heun' is not offered for this SDE"),
    ({"method": "millstein"}, UnknownMethodError, "did you mean 'milstein'"),
    ({"adaptive": True}, NotSupportedError, "adaptive=True"),
    ({"logqp": True}, NotSupportedError, "logqp=True"),
    ({"extra": True}, NotSupportedError, "extra=True"),
    ({"options": {"grad_free": True}}, NotSupportedError, "grad_free=True"),
    ({"options": {"windw": 3}}, TypeError, "did you mean 'window'"),
    ({"names": {"drfit": "f"}}, TypeError, "did you mean 'drift'"),
    ({"ts": [1.0, 0.0]}, InvalidGridError, "must increase"),
    ({"ts": [0.0]}, InvalidGridError, "at least two points"),
    ({"ts": [0.0, 1.0, 0.5]}, InvalidGridError, "^ts must be finite and strictly"),
    ({"ts": torch.tensor([0.0, 1.0], requires_grad=True)}, NotSupportedError, r"write ts\.detach"),
    ({"dt": "a"}, InvalidProblemError, "dt must be one number; given 'a'"),
    ({"rtol": None}, InvalidProblemError, "rtol must be one number"),
    ({"dt": 0.0}, InvalidGridError, "positive"),
    ({"dt": 1e-9, "ts": torch.tensor([0.9999, 1.0])}, InvalidGridError, "lost in the rounding"),
    ({"y0": torch.zeros(3)}, InvalidProblemError, r"write y0\[None\] for one sample, y0\[:, None\] for a batch"),
    ({"bm": picard.Noise.from_tensor(torch.zeros(3, BATCH, DIMS))}, InvalidProblemError, "shape"),
    ({"bm": torchsde.BrownianInterval(0.0, 1.0, size=(BATCH, 1))}, InvalidProblemError, "of shape"),
    ({"bm": 3}, InvalidProblemError, r"Brownian path .*; given 3 \(int\): write picard\.Noise\.from_seed\(3\)"),
    ({"names": {"drift": "foo"}}, NotSupportedError, "Scalar has no foo for its drift: write them"),
    ({"y0": torch.zeros(2, 3, 4)}, InvalidProblemError, r"\(batch, d\); .* write y0\.flatten\(1\)"),
    ({"y0": torch.ones(2, 3).long()}, InvalidProblemError, r"write y0\.float\(\)"),
    ({"y0": np.ones((2, 3))}, InvalidProblemError, r"write torch\.as_tensor\(y0"),
    ({"ts": np.linspace(0, 1, 3)}, InvalidGridError, r"^ts must be .*: write torch\.as_tensor\(ts\)"),
    ({"ts": torch.arange(3)}, InvalidGridError, r"write ts\.double\(\)"),
    ({"sde": Products()}, NotSupportedError, "products such as g_prod are not used"),
    ({"sde": Coupled()}, NotSupportedError, "depend on others"),
    ({"sde": Even(), "y0": torch.zeros(BATCH, DIMS)}, NotSupportedError, "y alone; here they depend on others"),
    ({"sde": Number()}, InvalidProblemError, r"must return tensors; one returned 1\.0"),
    ({"ts": torch.tensor([0.0, 1.0], dtype=torch.bfloat16)}, InvalidGridError, r"write ts\.float\(\)"),
    ({"sde": Wrong()}, InvalidProblemError, "for diagonal noise"),
    *(
        (
            {"sde": NoChannel(name), "method": "euler"},
            InvalidProblemError,
            rf"for {name} noise, .*write g\[\.\.\., None\]",
        )
        for name in ("scalar", "additive", "general")
    ),
    ({"sde": Untyped()}, InvalidProblemError, "sde_type must be one of ito, stratonovich"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("change", "error", "message"), REFUSALS, ids=[refusal[2] for refusal in REFUSALS])
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"sde": Scalar(), "y0": start(), "ts": [0.0, 1.0], "method": "milstein", "dt": 0.1}
    with pytest.raises(error, match=message):
        sdeint(**{**arguments, **change})


def test_general_noise_has_no_milstein() -> None:
    with pytest.raises(NotSupportedError, match="there are: euler"):
        sdeint(Equation("ito", "general"), start(), [0.0, 1.0], method="milstein")
    assert sdeint(Equation("ito", "general"), start(), [0.0, 1.0], dt=0.1).shape == (2, BATCH, DIMS)
