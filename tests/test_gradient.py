"""Gradients through a solve equal autograd through the sequential reference, and cost what they should."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.autograd import forward_ad

import picard
from picard.integrators import DDIM, DPMSolver

METHODS = ["euler", "midpoint", "heun", "heun3", "rk4"]
SAMPLERS = [
    "ddpm",
    DDIM(eta=0.5),
    "dpmsolver",
    DPMSolver(order=3),
    "sde-dpmsolver++",
    DPMSolver(order=3, variant="singlestep"),
]


class Net(nn.Module):
    """A tanh network that counts its calls."""

    def __init__(self, dims: int = 4, hidden: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(dims, hidden), nn.Tanh(), nn.Linear(hidden, dims)).double()
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        self.calls += 1
        out: Tensor = self.layers(x) + torch.sin(t)[:, None]
        return out if c is None else out * c


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times(steps: int = 20, end: float = 1.0) -> Tensor:
    return torch.linspace(0, end, steps + 1, dtype=torch.float64)


def loss(solution: picard.Solution) -> Tensor:
    return (solution.ys**2).sum() + solution.final.sin().sum()


def agree(
    problem: Callable[[], Any], grid: Any, method: Any, inputs: Sequence[Tensor], window: int = 7, **options: Any
) -> None:
    save = options.pop("save", "last")
    expected = torch.autograd.grad(loss(picard.sequential(problem(), grid, method=method, save=save)), inputs)
    solution = picard.solve(problem(), grid, method=method, save=save, window=window, tolerance=1e-13, **options)
    for given, wanted in zip(torch.autograd.grad(loss(solution), inputs), expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("window", [1, 7, 100])
@pytest.mark.parametrize("method", METHODS)
def test_ode_gradients_equal_the_sequential_ones(method: str, window: int) -> None:
    net, x0, c = Net(), normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    # `2 * c` is no leaf: its gradient must flow on to c, once
    agree(lambda: picard.ODE(net, x0, cond={"c": 2 * c}), times(), method, [x0, c, *net.parameters()], window)


@pytest.mark.parametrize("save", ["all", [3, 7], [0, 20]])
@pytest.mark.parametrize("end", [1.0, -1.0])
def test_gradients_reach_every_saved_state(save: Any, end: float) -> None:
    net, x0 = Net(), normal(3, 4).requires_grad_()
    agree(lambda: picard.ODE(net, x0), times(end=end), "heun", [x0, *net.parameters()], save=save, max_rows=5)


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_sde_gradients_equal_the_sequential_ones(noise_type: Any) -> None:
    weight, scale, inner = normal(4, 4).requires_grad_(), normal(4).requires_grad_(), normal(4, seed=2).requires_grad_()
    x0, captured = normal(3, 4).requires_grad_(), inner.exp()  # captured is no leaf, and not the problem's own
    channels = {"diagonal": 0, "scalar": 1, "additive": 2, "general": 2}[noise_type]

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        value = scale.expand_as(x) if noise_type == "additive" else torch.sigmoid(x * scale)
        return value[..., None] * torch.ones(channels, dtype=x.dtype) if channels else value

    def problem() -> picard.SDE:
        noise = picard.Noise.from_seed(0)
        return picard.SDE(
            lambda t, x: torch.tanh(x @ weight) * captured, diffusion, x0, noise=noise, noise_type=noise_type
        )

    inputs = [x0, weight, scale]
    expected = torch.autograd.grad(
        loss(picard.sequential(problem(), times(), method="euler")), [*inputs, inner], retain_graph=True
    )
    solution = picard.solve(problem(), times(), method="euler", window=7, tolerance=1e-13)
    given = torch.autograd.grad(loss(solution), [*inputs, inner])
    torch.testing.assert_close(given, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", SAMPLERS, ids=str)
def test_diffusion_gradients_with_guidance(method: Any) -> None:
    weight, x, label = (
        normal(4, 4).requires_grad_(),
        normal(3, 4).requires_grad_(),
        normal(3, 4, seed=1).requires_grad_(),
    )
    guidance = picard.Guidance(2.0, {"c": torch.zeros(3, 4, dtype=torch.float64)}, rescale=0.3)
    denoiser = picard.Denoiser(
        lambda x, t, c: torch.tanh(x @ weight + c) * 0.3 + 0.1 * x, picard.Schedule.linear(), guidance=guidance
    )

    def problem() -> picard.Diffusion:
        return picard.Diffusion(denoiser, x, noise=picard.Noise.from_seed(1), cond={"c": label})

    agree(problem, 20, method, [x, weight, label])


def test_gradients_through_a_solve_that_leaves_evaluations_out() -> None:
    """The backward pass leaves none out; it is as far off as the states along which it runs."""
    x = normal(3, 4).requires_grad_()
    denoiser = picard.Denoiser(lambda x, t: torch.tanh(x) * 0.5, picard.Schedule.linear(), prediction="sample")
    problem = picard.Diffusion(denoiser, x, noise=picard.Noise.from_seed(1))
    (exact,) = torch.autograd.grad(loss(picard.sequential(problem, 50, method="ddpm")), x)
    errors = []
    for tolerance in (2.0, 0.5):
        solution = picard.solve(problem, 50, method="ddpm", window=10, tolerance=tolerance)
        assert solution.stats.evaluations < 50 * 3 + 1, "some evaluations were left out"
        (given,) = torch.autograd.grad(loss(solution), x)
        errors.append(float((given - exact).abs().max() / exact.abs().max()))
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


def test_the_backward_pass_has_a_tolerance_of_its_own_where_the_device_decides() -> None:
    x = normal(3, 4).requires_grad_()
    agree(lambda: picard.ODE(Net(), x), times(), "euler", [x], guess="hold", sync_every=3)


class Unscaled(picard.Tolerance):
    """A rule that says no relative size."""

    def bound(self, candidates: Any) -> Tensor:
        return torch.full_like(candidates.size, 1e-10)


@pytest.mark.parametrize(
    "tolerance",
    [picard.RelAbs(1e-8, 10.0), picard.RelAbs(0.0, 10.0), Unscaled(), picard.FixedRounds(12)],
    ids=["large unit", "absolute alone", "own rule", "fixed rounds"],
)
def test_the_accuracy_of_a_gradient_does_not_follow_the_unit_of_the_states(tolerance: picard.Tolerance) -> None:
    """Linear, so that the gradient by the start does not depend on the states along which it is taken."""
    x0 = torch.tensor([[1e5, 0.0]], dtype=torch.float64, requires_grad=True)
    turn = torch.tensor([[-0.1, -3.0], [3.0, -0.1]], dtype=torch.float64)
    problem = picard.ODE(lambda t, x: x @ turn.T * (1.5 + torch.sin(3 * t))[:, None], x0)
    (expected,) = torch.autograd.grad(picard.sequential(problem, times(100, 3.0), method="rk4").final[0, 0], x0)
    solution = picard.solve(problem, times(100, 3.0), method="rk4", tolerance=tolerance)
    (given,) = torch.autograd.grad(solution.final[0, 0], x0)
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("method", "window"), [*((method, 5) for method in METHODS), ("midpoint", 1), ("rk4", 64)])
def test_gradcheck(method: str, window: int) -> None:
    net = Net(2)

    def final(x0: Tensor) -> Tensor:
        return picard.solve(picard.ODE(net, x0), times(4), method=method, window=window, tolerance=1e-13).final

    assert torch.autograd.gradcheck(final, (normal(2, 2).requires_grad_(),))


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_gradcheck_of_an_sde(noise_type: Any) -> None:
    def final(x0: Tensor, weight: Tensor) -> Tensor:
        def diffusion(t: Tensor, x: Tensor) -> Tensor:
            value = torch.sigmoid(x * weight[0])
            return value if noise_type == "diagonal" else value[..., None].expand(*x.shape, 2)

        noise = picard.Noise.from_seed(0)
        problem = picard.SDE(lambda t, x: torch.tanh(x @ weight), diffusion, x0, noise=noise, noise_type=noise_type)
        return picard.solve(problem, times(5), method="euler", window=3, tolerance=1e-13).final

    assert torch.autograd.gradcheck(final, (normal(2, 2).requires_grad_(), normal(2, 2, seed=1).requires_grad_()))


@pytest.mark.parametrize("method", ["ddpm", "ddim", DPMSolver(order=2), "heun"], ids=str)
def test_gradcheck_of_a_diffusion_model_with_guidance(method: Any) -> None:
    guidance = picard.Guidance(2.0, {"c": torch.zeros(2, 2, dtype=torch.float64)}, rescale=0.3)

    def final(x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        denoiser = picard.Denoiser(
            lambda x, t, c: torch.tanh(x @ weight + c) * 0.3 + 0.1 * x, picard.Schedule.linear(), guidance=guidance
        )
        problem = picard.Diffusion(denoiser, x, noise=picard.Noise.from_seed(1), cond={"c": label})
        return picard.solve(problem, 5, method=method, window=3, tolerance=1e-13).final

    inputs = tuple(normal(2, 2, seed=seed).requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(final, inputs)


@pytest.mark.usefixtures("listed_under_grad")
def test_torch_func_grad_by_state_and_by_parameters() -> None:
    net, x0 = Net(), normal(3, 4)

    def by_state(x: Tensor) -> Tensor:
        return loss(picard.solve(picard.ODE(net, x), times(), method="heun", window=7, tolerance=1e-13))

    def by_parameters(parameters: dict[str, Tensor]) -> Tensor:
        def drift(t: Tensor, x: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(net, parameters, (t, x))
            return out

        return loss(picard.solve(picard.ODE(drift, x0), times(), method="heun", window=7, tolerance=1e-13))

    x = x0.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(by_state)(x0), torch.autograd.grad(by_state(x), x)[0])
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    expected = torch.autograd.grad(by_parameters(dict(net.named_parameters())), list(net.parameters()))
    for given, wanted in zip(torch.func.grad(by_parameters)(parameters).values(), expected, strict=True):
        torch.testing.assert_close(given, wanted)


@pytest.mark.usefixtures("listed_under_grad")
@pytest.mark.parametrize("captured", [True, False])
def test_torch_func_vjp_by_parameters_is_refused_where_it_would_be_zero(captured: bool) -> None:
    def final(rate: Tensor) -> Tensor:
        cond = {} if captured else {"rate": rate.expand(2)}
        problem = picard.ODE(lambda t, x, rate=rate: -rate.reshape(-1, 1) * x, normal(2, 3), cond=cond)
        return picard.solve(problem, times(), method="heun", tolerance=1e-13).final.sum()

    rate = torch.tensor(0.5, dtype=torch.float64)
    pull = torch.func.vjp(final, rate)[1]
    with pytest.raises(picard.NotSupportedError, match=r"write torch\.func\.grad"):
        pull(torch.ones((), dtype=torch.float64))
    assert float(torch.func.grad(final)(rate)) != 0
    net = Net().requires_grad_(False)
    by_state = torch.func.vjp(
        lambda x: picard.solve(picard.ODE(net, x), times(), method="heun", tolerance=1e-13).final, normal(2, 4)
    )[1]
    assert bool((by_state(torch.ones(2, 4, dtype=torch.float64))[0] != 0).all())


# the sequential reference hands the compiled drift a state inside a graph, whose .grad torch looks at itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_drift_keeps_its_gradient() -> None:
    net, x0 = Net(), normal(3, 4).requires_grad_()
    frames = []

    def backend(module: Any, inputs: Any) -> Any:
        frames.append(module)
        return module.forward

    compiled = torch.compile(net, backend=backend, dynamic=True)
    agree(lambda: picard.ODE(compiled, x0), times(), "heun", [x0, *net.parameters()])
    assert frames, "nothing was compiled"


def requires_grad(x: Tensor) -> Tensor:
    x.requires_grad_()
    return x


ASKING: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": requires_grad,
    "a copy": lambda x: x.clone().requires_grad_(),
    "if it does not": lambda x: x if x.requires_grad else x.requires_grad_(),
}


@pytest.mark.parametrize("way", ASKING)
@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_differentiates_by_its_state(way: str, trained: bool) -> None:
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double().requires_grad_(trained)
    x0 = normal(3, 2).requires_grad_()

    def hamiltonian(t: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = ASKING[way](x)
            (slope,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)

    inputs = [x0, *[one for one in energy.parameters() if one.requires_grad]]
    if trained:
        inputs.pop()  # an energy's constant term moves nothing
    agree(lambda: picard.ODE(hamiltonian, x0), times(), "rk4", inputs)
    agree(lambda: picard.ODE(hamiltonian, x0), times(), "rk4", inputs, window=1)
    steps = picard.adaptive(picard.ODE(hamiltonian, x0), times(1), save="all")
    expected = torch.autograd.grad(
        loss(picard.sequential(picard.ODE(hamiltonian, x0), steps.ts, method="dopri5", save="all")), inputs
    )
    torch.testing.assert_close(torch.autograd.grad(loss(steps), inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_drift_that_is_none_of_pytorch_needs_no_gradient() -> None:
    drift = picard.ODE(lambda t, x: torch.from_numpy(np.cos(x.numpy())), normal(3, 4))
    assert torch.is_grad_enabled()
    expected = picard.sequential(drift, times(), method="rk4").final
    torch.testing.assert_close(picard.solve(drift, times(), method="rk4", tolerance=1e-10).final, expected)


@pytest.mark.parametrize("window", [2, 7])
def test_hooks_of_parameters_see_their_gradients_once_and_whole(window: int) -> None:
    net, x0 = Net(), normal(3, 4)
    weight = next(net.parameters())
    expected = torch.autograd.grad(loss(picard.sequential(picard.ODE(net, x0), times(), method="euler")), weight)
    seen = []

    def halve(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return gradient / 2

    handle = weight.register_hook(halve)
    for _ in range(2):
        net.zero_grad()
        loss(picard.solve(picard.ODE(net, x0), times(), method="euler", window=window, tolerance=1e-13)).backward()
        assert len(seen) == 1
        torch.testing.assert_close(seen.pop(), expected[0])
        torch.testing.assert_close(weight.grad, expected[0] / 2)
    handle.remove()
    loss(picard.solve(picard.ODE(net, x0), times(), method="euler")).backward()
    assert not seen


def test_conditioning_that_changes_in_place_is_noticed() -> None:
    net, x0, c = Net(), normal(3, 4).requires_grad_(), normal(3, 4, seed=1)
    total = loss(picard.solve(picard.ODE(net, x0, cond={"c": c}), times(), method="euler"))
    c[2] = 0  # not the sample that is looked at
    with pytest.raises(picard.InvalidProblemError, match=r"conditioning must not be changed.*clone"):
        total.backward()


@pytest.mark.parametrize("seed", range(6))
def test_a_solve_under_autocast_goes_backward_under_it(seed: int) -> None:
    torch.manual_seed(seed)
    net, x0 = nn.Linear(64, 64), torch.randn(8, 64)
    gradients = []
    for inside in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drift = picard.ODE(lambda t, x: torch.tanh(net(x)).float(), x0)
            final = picard.solve(drift, times(10).float(), method="rk4", tolerance=1e-3).final.square().mean()
            if inside:
                gradients.append(torch.autograd.grad(final, net.weight)[0])
        if not inside:
            gradients.append(torch.autograd.grad(final, net.weight)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_without_gradients_nothing_is_added() -> None:
    net, x0 = Net(), normal(3, 4)
    with torch.no_grad():
        solution = picard.solve(picard.ODE(net, x0), times(), method="euler", window=7)
    assert net.calls == solution.stats.rounds
    assert not solution.final.requires_grad
    frozen = picard.solve(picard.ODE(lambda t, x: -x, x0), times(), method="euler", window=7)
    assert not frozen.final.requires_grad


@pytest.mark.parametrize(("method", "steps"), [("euler", 1000), ("rk4", 250)])
def test_the_backward_pass_is_parallel(method: str, steps: int) -> None:
    net, x0 = Net(16, 32), normal(4, 16).requires_grad_()
    solution = picard.solve(picard.ODE(net, x0), times(steps), method=method, window=64, tolerance=1e-6)
    net.calls = 0
    solution.final.square().sum().backward()
    gradient_calls = -(-1000 // 64)  # every node once more, a window a call, for the parameters
    assert net.calls - gradient_calls <= 2 * solution.stats.rounds


def test_a_neural_ode_trains_as_with_torchdiffeq() -> None:
    x0, target, grid = normal(8, 2), normal(8, 2, seed=1), times(20)

    def train(final: Callable[[Net], Tensor]) -> list[float]:
        net = Net(2)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        curve = []
        for _ in range(20):
            error = (final(net) - target).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            curve.append(error.item())
        return curve

    def scalar(net: Net) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, x: net(t.expand(len(x)), x)

    ours = train(lambda net: picard.solve(picard.ODE(net, x0), grid, method="heun", tolerance=1e-10).final)
    theirs = train(lambda net: torchdiffeq.odeint(scalar(net), x0, grid, method="heun2")[-1])
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("start_asks", [True, False])
def test_tensors_that_the_first_row_does_not_show_are_not_forgotten(start_asks: bool) -> None:
    """An expert that the first sample does not meet: its gradient would be missing without a word."""
    experts = [nn.Linear(2, 2, dtype=torch.float64) for _ in range(2)]

    def drift(t: Tensor, x: Tensor, shown: bool) -> Tensor:
        out, chosen = torch.zeros_like(x), (x[:, 0] < 0).long()
        for index in chosen.unique().tolist():
            rows = (chosen == index).nonzero()[:, 0]
            out = out.index_put((rows,), experts[index](x[rows]))
        return out + 0 * sum(one.sum() for expert in experts for one in expert.parameters()) if shown else out

    x0 = torch.tensor([[2.0, 0.1], [-2.0, 0.2]], dtype=torch.float64, requires_grad=start_asks)
    if start_asks:
        experts[0].requires_grad_(False)
    inputs = [one for expert in experts for one in expert.parameters() if one.requires_grad] + [x0] * start_asks
    agree(lambda: picard.ODE(drift, x0, cond={"shown": True}), times(end=0.2), "rk4", inputs)
    solution = picard.solve(picard.ODE(drift, x0, cond={"shown": False}), times(end=0.2), method="rk4")
    with pytest.raises(picard.NotSupportedError, match=r"0 \* tensor\.sum"):
        solution.final.sum().backward()


def test_what_changes_before_the_backward_pass_is_noticed() -> None:
    net = Net()
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    problem = picard.ODE(lambda t, x, scale: net(t, x, scale[:, None]), normal(2, 4), cond={"scale": scale})
    for changed in (next(net.parameters()), scale):
        total = loss(picard.solve(problem, times(), method="heun"))
        with torch.no_grad():
            changed.mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_a_control_that_is_set_anew_for_every_segment_is_noticed(method: str) -> None:
    net, x = Net(), normal(2, 4)
    held = {"control": torch.zeros(4, dtype=torch.float64)}
    for level in (0.0, 1.0):
        held["control"] = torch.full((4,), level, dtype=torch.float64)
        x = picard.solve(picard.ODE(lambda t, x: net(t, x) + held["control"], x), times(), method=method).final
    with pytest.raises(picard.InvalidProblemError, match="the same in the backward pass"):
        x.sum().backward()
    x = normal(2, 4)
    for control in (torch.zeros(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)):
        problem = picard.ODE(lambda t, x, control: net(t, x) + control, x, cond={"control": control})
        x = picard.solve(problem, times(), method=method).final
    x.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # which PyTorch's forward mode calls
@pytest.mark.parametrize("by", ["state", "captured", "dual"])
def test_forward_mode_is_refused_where_tangents_would_not_have_converged(by: str) -> None:
    x0, rate = normal(1, 3), torch.tensor(0.5, dtype=torch.float64)

    def run(solver: Any, x: Tensor, rate: Tensor) -> Tensor:
        return solver(picard.ODE(lambda t, x: -rate * x, x), times(), method="rk4").final

    def tangent(solver: Any) -> Tensor:
        if by == "state":
            return torch.func.jvp(lambda x: run(solver, x, rate), (x0,), (torch.ones_like(x0),))[1]
        if by == "captured":
            return torch.func.jvp(lambda rate: run(solver, x0, rate), (rate,), (torch.ones_like(rate),))[1]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(run(solver, forward_ad.make_dual(x0, torch.ones_like(x0)), rate)).tangent

    right = torch.exp(-rate) * (-x0 if by == "captured" else torch.ones_like(x0))
    torch.testing.assert_close(tangent(picard.sequential), right, rtol=1e-6, atol=1e-6)
    with pytest.raises(picard.NotSupportedError, match=r"write picard\.sequential in its place"):
        tangent(picard.solve)
