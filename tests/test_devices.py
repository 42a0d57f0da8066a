"""Solves whose states are on a device: nothing of the host mixes in, and nothing asks for float64 there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard import FixedRounds, NoiseRatio, TotalVariation
from picard.device import fetch, send
from picard.guidance import Guidance
from tests.pretend import DEVICE, Device, OnDevice

HOST = torch.device("cpu")
GRID = torch.linspace(0, 1, 17)
START = torch.tensor([[0.5, -1.0, 0.3], [1.5, 0.2, -0.7]])
SHIFT = torch.tensor([0.3, 0.5])
BETWEEN = torch.tensor([0.33, 0.5])
STRONG = torch.linspace(-1, 1, 144).view(24, 2, 3).cos()
NOISE = picard.Noise.from_seed(0)
WEIGHT = torch.tensor([[0.3, -0.5, 0.2], [0.4, 0.1, -0.3], [-0.2, 0.6, 0.1]])


def start(place: torch.device) -> Tensor:
    return START.to(place)


def shift(place: torch.device) -> Tensor:
    return SHIFT.to(place)


def drift(t: Tensor, x: Tensor, **cond: Tensor) -> Tensor:
    moved = torch.tanh(x @ WEIGHT.to(x.device)) - x * (1 + t[:, None] / 10)
    return moved + cond["shift"][:, None] if cond else moved


def model(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    found = torch.tanh(x @ WEIGHT.to(x.device)) * (1 + t[:, None].to(x.dtype) / 1000)
    return found + cond["shift"][:, None] if cond else found


def ode(place: torch.device, method: str = "heun", **options: Any) -> picard.Solution:
    problem = picard.ODE(drift, start(place), cond={"shift": shift(place)})
    return picard.solve(problem, GRID.to(place), method=method, **{"window": 8, **options})


def sde(place: torch.device, noise_type: Any = "diagonal", **options: Any) -> picard.Solution:
    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        diagonal = 0.3 * torch.cos(x)
        return diagonal if noise_type == "diagonal" else torch.stack([diagonal, 0.1 * torch.sin(x)], -1)

    problem = picard.SDE(drift, diffusion, start(place), noise=NOISE, noise_type=noise_type)
    return picard.solve(problem, GRID.to(place), method="euler", **{"window": 8, **options})


def sample(
    place: torch.device, method: str = "ddpm", noise: picard.Noise = NOISE, steps: int = 24, **options: Any
) -> picard.Solution:
    denoiser = picard.Denoiser(model, picard.Schedule.linear(1000), prediction="sample")
    problem = picard.Diffusion(denoiser, start(place), noise=noise)
    return picard.solve(problem, steps, method=method, **{"window": 8, **options})


def guided(place: torch.device) -> picard.Solution:
    guidance = Guidance(3.0, {"shift": 0 * shift(place)}, rescale=0.5)
    denoiser = picard.Denoiser(model, picard.Schedule.linear(1000), guidance=guidance)
    problem = picard.Diffusion(denoiser, start(place), noise=NOISE, cond={"shift": shift(place)})
    return picard.solve(problem, 30, method="ddim", window=8)


def levels(place: torch.device) -> picard.Solution:
    problem = picard.Diffusion(picard.Denoiser(model, picard.Schedule.karras()), 80 * start(place), noise=NOISE)
    return picard.solve(problem, 20, method="heun", window=8)


def warm(place: torch.device) -> picard.Solution:
    whole = picard.sequential(picard.ODE(drift, start(place)), GRID.to(place), method="heun", save="all")
    return picard.solve(picard.ODE(drift, start(place)), GRID.to(place), method="heun", guess=whole)


def gradient(place: torch.device) -> tuple[Tensor, ...]:
    x0, cond = start(place).requires_grad_(), shift(place).requires_grad_()
    problem = picard.ODE(drift, x0, cond={"shift": cond})
    final = picard.solve(problem, GRID[:11].to(place), method="rk4", window=8).final
    return torch.autograd.grad(final.square().sum(), (x0, cond))


def adaptive(place: torch.device, *, alone: bool = True, **options: Any) -> tuple[Tensor, ...]:
    shifted = picard.ODE(drift, start(place), cond={"shift": shift(place)})
    times = GRID[[0, 3, -1]].to(place if alone else HOST)
    with torch.no_grad():
        found = picard.adaptive(shifted, times, rtol=1e-4, window=24, **options)
    return found.ys, found.final


def told(place: torch.device) -> tuple[Tensor, ...]:
    rounds: list[picard.RoundInfo] = []
    ode(place, callback=rounds.append)
    found = [one for info in rounds for one in (info.states, info.change, info.field())]
    assert len(found) == 3 * len(rounds)
    return tuple(one.clone() for one in found)


def between(place: torch.device) -> Tensor:
    return ode(place, save="all").interpolate(
        BETWEEN.to(place), picard.ODE(drift, start(place), cond={"shift": shift(place)})
    )


class Process:
    sde_type, noise_type = "ito", "diagonal"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.3 * torch.cos(y)


SOLVES: dict[str, Callable[[torch.device], Any]] = {
    "ode": ode,
    "ode, grid on the host": lambda place: picard.solve(picard.ODE(drift, start(place)), GRID, method="heun"),
    "ode, all states": lambda place: ode(place, "rk4", save="all").ys,
    "ode, rows": lambda place: ode(place, max_rows=5),
    "ode, certified": lambda place: ode(place, certify=True),
    "ode, plain": lambda place: ode(place, linearization="identity", guess="copy"),
    "ode, frozen": lambda place: ode(place, linearization="frozen", guess="hold"),
    "ode, sequential": lambda place: picard.sequential(picard.ODE(drift, start(place)), GRID.to(place), method="rk4"),
    "ode, told": told,
    "ode, warm": warm,
    "ode, between": between,
    "ode, gradient": gradient,
    "adaptive": adaptive,
    "adaptive, all states": lambda place: adaptive(place, save="all", method="bosh3"),
    "adaptive, times on the host": lambda place: adaptive(place, alone=False),
    "odeint": lambda place: picard.odeint(lambda t, y: -t * torch.tanh(y), start(place), GRID.to(place), method="rk4"),
    "sde": sde,
    "sde, general": lambda place: sde(place, "general"),
    "sdeint": lambda place: picard.sdeint(
        Process(), start(place), GRID.to(place), dt=0.02, method="euler", bm=picard.Noise.from_seed(1)
    ),
    "ddpm": sample,
    "ddim": lambda place: sample(place, "ddim"),
    "multistep": lambda place: sample(place, "dpmsolver++"),
    "stochastic": lambda place: sample(place, "sde-dpmsolver++"),
    "thinned": lambda place: sample(place, steps=100, tolerance=NoiseRatio(1.0)),
    "certified": lambda place: sample(place, certify=True),
    "budget": lambda place: sample(place, tolerance=TotalVariation(0.1)),
    "rounds": lambda place: sample(place, tolerance=FixedRounds(2)),
    "noise given": lambda place: sample(place, noise=picard.Noise.from_tensor(STRONG.to(place))),
    "waiting rarely": lambda place: sample(place, sync_every=3),
    "guided": guided,
    "levels": levels,
}


def tensors(found: Any) -> tuple[Tensor, ...]:
    return (found.final,) if isinstance(found, picard.Solution) else found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", SOLVES)
def test_a_solve_on_a_device_is_the_one_on_the_host(name: str) -> None:
    if name == "ode, gradient" and not hasattr(torch._C, "_skip_one_hop_torch_function"):
        pytest.skip("this torch cannot differentiate what pretends to be on a device")
    expected = tensors(SOLVES[name](HOST))
    with Device():
        found = tensors(SOLVES[name](DEVICE))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, OnDevice)
        assert torch.equal(one.values_, other)


@pytest.mark.parametrize("name", SOLVES)
def test_the_default_device_does_not_matter(name: str) -> None:
    expected = tensors(SOLVES[name](HOST))
    with torch.device("meta"):  # where nothing can be computed
        found = tensors(SOLVES[name](HOST))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_window_is_chosen_on_a_device() -> None:
    with Device():
        for solve in (ode, sample):
            assert isinstance(solve(DEVICE, window="auto").final, OnDevice)


def test_the_device_notices() -> None:
    """A check of the check: what fails on a device must fail here."""
    with Device():
        x = start(DEVICE)
        for wrong, error in (
            (lambda: x + start(HOST), "same device"),
            (lambda: torch.cat([x, start(HOST)]), "same device"),
            (x.double, "no float64"),
            (x.numpy, "numpy"),
            (lambda: start(HOST).to(DEVICE, non_blocking=True), "freed by then"),
            (lambda: start(HOST)[send([0], x)], "same device"),
        ):
            with pytest.raises((RuntimeError, TypeError), match=error):
                wrong()
        assert fetch(x).dtype == torch.float64
        assert type(fetch(x)) is Tensor
