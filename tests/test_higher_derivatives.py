"""Derivatives of gradients of a solve equal those of the sequential reference, and are found only where asked for."""

# torchdiffeq carries no types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import picard
from tests.test_gradient import Net, loss, normal, times

Solver = Callable[..., picard.Solution]


def solve(problem: Any, grid: Any, method: Any, save: Any = "last") -> picard.Solution:
    return picard.solve(problem, grid, method=method, save=save, window=7, tolerance=1e-13)


def follow(problem: Any, grid: Any, method: Any, save: Any = "last") -> picard.Solution:
    return picard.sequential(problem, grid, method=method, save=save)


def penalized(found: picard.Solution, inputs: Sequence[Tensor], orders: int) -> tuple[Tensor, ...]:
    """Differentiate a loss, then the size of its gradient, and so on."""
    total = loss(found)
    for _ in range(orders - 1):
        gradients = torch.autograd.grad(total, inputs, create_graph=True)
        total = total + sum(((1 + gradient).square().sum() for gradient in gradients), torch.zeros(()))
    return torch.autograd.grad(total, inputs)


def agree(problem: Callable[[], Any], grid: Any, method: Any, inputs: Sequence[Tensor], *, orders: int = 2) -> None:
    save = "last" if isinstance(grid, int) else [3, 7]
    expected = penalized(follow(problem(), grid, method, save), inputs, orders)
    found = penalized(solve(problem(), grid, method, save), inputs, orders)
    for given, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_an_ode_with_conditioning_that_depends_on_its_start(method: str) -> None:
    net, x0, c = Net(), normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    agree(lambda: picard.ODE(net, x0.sin(), cond={"c": c * x0}), times(8), method, [x0, c, *net.parameters()])


def test_third_derivatives() -> None:
    net, x0 = Net(2, 3), normal(2, 2).requires_grad_()
    agree(lambda: picard.ODE(net, x0), times(8), "midpoint", [x0, *net.parameters()], orders=3)


def test_an_sde_on_one_path() -> None:
    x0, scale = normal(3, 4).requires_grad_(), normal(4).requires_grad_()

    def problem() -> picard.SDE:
        noise = picard.Noise.from_seed(0)
        return picard.SDE(lambda t, x: torch.tanh(x), lambda t, x: torch.sigmoid(x * scale), x0, noise=noise)

    agree(problem, times(8), "euler", [x0, scale])


def test_a_diffusion_model_with_guidance() -> None:
    weight, x, label = (normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, 4), (3, 4), (3, 4)]))
    guidance = picard.Guidance(2.0, {"c": torch.zeros(3, 4, dtype=torch.float64)})
    denoiser = picard.Denoiser(
        lambda x, t, c: torch.tanh(x @ weight + c) * 0.3 + 0.1 * x, picard.Schedule.linear(), guidance=guidance
    )
    agree(lambda: picard.Diffusion(denoiser, x, cond={"c": label}), 8, "ddim", [weight, x, label])


def test_steps_chosen_by_their_error_are_constants() -> None:
    net, x0 = Net(2), normal(1, 2).requires_grad_()
    inputs = [x0, *net.parameters()]
    found = picard.adaptive(picard.ODE(net, x0), times(1), rtol=1e-10, atol=1e-10, save="all")
    expected = penalized(follow(picard.ODE(net, x0), found.ts, "dopri5", "all"), inputs, 2)
    for given, wanted in zip(penalized(found, inputs, 2), expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-6, atol=1e-6)


def test_hessians_and_a_gradient_penalty_as_with_torchdiffeq() -> None:
    torch.manual_seed(0)
    net, y0 = nn.Linear(3, 3).double(), normal(3)
    found: dict[str, list[Tensor]] = {}
    for door in (picard, torchdiffeq):

        def final(y: Tensor, door: Any = door) -> Tensor:
            out: Tensor = door.odeint(lambda t, y: torch.tanh(net(y)), y, times(10), method="rk4")[-1]
            return out.square().sum()

        functional: Any = torch.autograd.functional
        y = y0.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(final(y), y, create_graph=True)
        penalty = torch.autograd.grad(gradient.pow(3).sum(), [y, *net.parameters()])
        products = (functional.hvp(final, y0, y0)[1], functional.vhp(final, y0, y0)[1])
        found[door.__name__] = [functional.hessian(final, y0), *products, *penalty]
    for given, wanted in zip(*found.values(), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)


def test_under_autocast() -> None:
    torch.manual_seed(0)
    net, x0 = nn.Linear(4, 4), torch.randn(8, 4)
    found = []
    for solver in (solve, follow):
        x = x0.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drift = picard.ODE(lambda t, x: torch.tanh(net(x)).float(), x)
            total = loss(solver(drift, times(4).float(), "midpoint"))
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        found.append(torch.autograd.grad(gradient.pow(3).sum(), [x, *net.parameters()]))
    for given, wanted in zip(*found, strict=True):
        assert float((given - wanted).norm()) < 0.05 * float(wanted.norm())


def test_tensors_in_a_closure_that_were_computed() -> None:
    encoder, net, x0 = nn.Linear(3, 3).double(), nn.Linear(6, 3).double(), normal(1, 3).requires_grad_()
    found = []
    for solver in (solve, follow):
        code = torch.tanh(encoder(torch.ones(1, 3, dtype=torch.float64)))
        drift = picard.ODE(lambda t, x, c=code: torch.tanh(net(torch.cat([x, c.expand(len(x), -1)], -1))), x0)
        total = loss(solver(drift, times(8), "midpoint"))
        (gradient,) = torch.autograd.grad(total, x0, create_graph=True)
        for module in (encoder, net):
            module.zero_grad()
        (total + gradient.square().sum()).backward()
        found.append([one.grad for one in (*encoder.parameters(), *net.parameters())])
    for given, wanted in zip(*found, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-7, atol=1e-7)


def test_an_initial_state_that_is_written_over_counts_as_it_was() -> None:
    net = Net(2)
    expected, found = list[Tensor](), list[Tensor]()
    for overwrites, gradients in ((False, expected), (True, found)):
        x0 = normal(2, 2)
        total = loss(solve(picard.ODE(net, x0), times(8), "midpoint"))
        if overwrites:
            x0.zero_()
        first = torch.autograd.grad(total, list(net.parameters()), create_graph=True)
        size = sum((one.square().sum() for one in first), torch.zeros(()))
        gradients.extend([*first, *torch.autograd.grad(size, list(net.parameters()))])
    for given, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(given, wanted)


def test_conditioning_that_changes_between_two_gradients_is_noticed() -> None:
    x0, c = normal(2, 4).requires_grad_(), normal(2, 4, seed=1)
    (gradient,) = torch.autograd.grad(
        loss(solve(picard.ODE(Net(), x0, cond={"c": c}), times(8), "euler")), x0, create_graph=True
    )
    c[1] = 0
    with pytest.raises(picard.InvalidProblemError, match="conditioning must not be changed"):
        gradient.square().sum().backward()


def test_nothing_is_solved_step_by_step_before_it_is_asked_for() -> None:
    calls = []
    for create_graph in (False, True):
        net, x0 = Net(), normal(3, 4).requires_grad_()
        total = loss(solve(picard.ODE(net, x0), times(), "euler"))
        (gradient,) = torch.autograd.grad(total, x0, create_graph=create_graph)
        calls.append(net.calls)
    assert calls[0] == calls[1]
    gradient.sum().backward()
    assert net.calls >= calls[1] + 20  # and the gradient of the states that the loss's depends on


def test_a_first_gradient_that_is_not_differentiated_depends_on_nothing() -> None:
    x0 = normal(3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(solve(picard.ODE(Net(), x0), times(), "euler")), x0)
    assert not gradient.requires_grad


@pytest.mark.usefixtures("listed_under_grad")
def test_torch_func_by_state() -> None:
    net, x = Net(2), normal(1, 2)

    def total(solver: Solver, x: Tensor) -> Tensor:
        return loss(solver(picard.ODE(net, x), times(8), "midpoint"))

    func = torch.func
    ways: list[Callable[[Any], Tensor]] = [
        lambda f: func.grad(lambda x: func.grad(f)(x).square().sum())(x),
        lambda f: func.jacrev(func.grad(f), chunk_size=1)(x),
        lambda f: func.jacrev(func.jacrev(f, chunk_size=1), chunk_size=1)(x),
    ]
    for way in ways:
        given, wanted = (way(lambda x, solver=solver: total(solver, x)) for solver in (solve, follow))
        torch.testing.assert_close(given, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("listed_under_grad")
def test_torch_func_by_parameters_is_refused() -> None:
    net, x0 = Net(2), normal(1, 2)
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def total(parameters: dict[str, Tensor]) -> Tensor:
        def drift(t: Tensor, x: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(net, parameters, (t, x))
            return out

        return loss(solve(picard.ODE(drift, x0), times(8), "euler"))

    def penalty(parameters: dict[str, Tensor]) -> Tensor:
        return sum((one.square().sum() for one in torch.func.grad(total)(parameters).values()), torch.zeros(()))

    with pytest.raises(picard.NotSupportedError, match=r"create_graph=True"):
        torch.func.grad(penalty)(parameters)


@pytest.mark.usefixtures("listed_under_grad")
def test_a_gradient_by_torch_func_in_a_loss_that_asks_for_parameters_is_refused() -> None:
    """They are constants to it, and their part of the loss would be lost."""
    net, x = Net(2), normal(1, 2)

    def total(x: Tensor) -> Tensor:
        return loss(solve(picard.ODE(net, x), times(8), "midpoint"))

    penalty = torch.func.grad(total)(x).square().sum()
    with pytest.raises(picard.NotSupportedError, match=r"create_graph=True"):
        (total(x) + penalty).backward()
    by_state = x.clone().requires_grad_()
    net.requires_grad_(False)
    (found,) = torch.autograd.grad(torch.func.grad(total)(by_state).square().sum(), by_state)
    (gradient,) = torch.autograd.grad(total(by_state), by_state, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(gradient.square().sum(), by_state)[0])


def test_a_jacobian_by_torch_func_with_parameters_that_ask_for_a_gradient() -> None:
    net, x = Net(2), normal(1, 2)

    def final(x: Tensor) -> Tensor:
        return solve(picard.ODE(net, x), times(8), "midpoint").final

    jacobian = torch.func.jacrev(final, chunk_size=1)(x)
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(final, x))
    with pytest.raises(picard.NotSupportedError, match=r"create_graph=True"):  # it knows nothing of the parameters
        jacobian.sum().backward()


MANY: dict[str, Callable[[Any, Tensor], Any]] = {
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "vectorize": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # PyTorch loads code of its own that it has deprecated
@pytest.mark.parametrize("way", MANY)
def test_many_gradients_at_once_are_refused(way: str) -> None:
    net, x = Net(2), normal(1, 2)
    with pytest.raises(picard.NotSupportedError, match=r"functional\.(jacobian|hessian)"):
        MANY[way](lambda x: solve(picard.ODE(net, x), times(8), "euler").final, x)
