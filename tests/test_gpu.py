"""Captured rounds on a GPU, where there is one: what no tape on the CPU can show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import picard
from examples.metaworld.policy import load
from examples.metaworld.problem import recorded
from picard.adapters import parallelize, restore
from tests.problems import start, times
from tests.test_cuda_graphs import OPTIONS, Net, gains, sampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CASES: dict[str, tuple[Callable[[], picard.ODE | picard.SDE], dict[str, Any]]] = {
    "ode": (lambda: picard.ODE(lambda t, x: torch.sin(3 * x), start(2, 40).cuda()), {}),
    "few": (lambda: picard.ODE(lambda t, x: torch.sin(3 * x), start(2, 3).cuda()), {"tolerance": 1e-8}),
    "rounds": (
        lambda: picard.ODE(lambda t, x: torch.sin(3 * x), start(2, 3).cuda()),
        {"tolerance": picard.FixedRounds(3)},
    ),
    "copies": (lambda: picard.ODE(lambda t, x: torch.sin(3 * x), start(2, 3).cuda()), {"guess": "copy"}),
    "sde": (lambda: wave("diagonal"), {}),
    "general": (lambda: wave("general"), {}),
}


def wave(noise_type: Any) -> picard.SDE:
    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        found = 0.3 * torch.cos(x + t[:, None])
        return found if noise_type == "diagonal" else torch.stack([found, 0.1 * torch.sin(x)], -1)

    noise = picard.Noise.from_seed(0)
    return picard.SDE(lambda t, x: -x, diffusion, start(2, 3).cuda(), noise=noise, noise_type=noise_type)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equations(name: str, count: int) -> None:
    make, more = CASES[name]
    options: dict[str, Any] = {"method": "euler", "window": 8, "guess": "hold", "sync_every": count, **more}
    plain, captured = (picard.solve(make(), times(40), **options, cuda_graph=given) for given in (False, True))
    assert captured.stats.rounds == plain.stats.rounds
    torch.testing.assert_close(captured.ys, plain.ys, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_recording_compiles_nothing() -> None:
    """Code made while a graph is recorded may have to be loaded, which then is not permitted."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    problem = picard.ODE(lambda t, x: torch.sin(3 * x), start(1, 40).cuda())
    options: dict[str, Any] = {"method": "euler", "window": 8, "guess": "hold", "compile": True, "cuda_graph": True}
    picard.solve(problem, times(40), **options)
    assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_a_trained_policy() -> None:
    policy, (observations, _) = load("pick-place-v3").cuda(), recorded("pick-place-v3")
    found: list[list[Tensor]] = []
    for given in (False, True):
        parallelize(policy, window=20, cuda_graph=given)
        found.append([])
        for seed in range(3):
            torch.manual_seed(seed)
            found[-1].append(policy.predict_action({"obs": observations[seed][None].cuda()})["action"])
        restore(policy)
    for plain, captured in zip(*found, strict=True):
        torch.testing.assert_close(captured, plain, rtol=0, atol=2e-2)  # TF32


@torch.no_grad()
def test_autocast_outside_of_a_captured_solve() -> None:
    """Weights are cast in the graph; those cast before it are gone afterwards."""
    net, graphs = nn.Linear(3, 3).cuda(), picard.CudaGraphs()
    problem = picard.ODE(lambda t, x: net(x).float(), start(2, 3).float().cuda())
    options: dict[str, Any] = {"method": "euler", "window": 8, "guess": "hold"}
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            plain = picard.solve(problem, times(40), **options)
            captured = picard.solve(problem, times(40), **options, cuda_graph=graphs)
        torch.testing.assert_close(captured.ys, plain.ys)
        with torch.no_grad():
            net.weight.mul_(0.5)


@pytest.mark.parametrize("options", [{}, {"sync_every": 3}, {"compile": True}, {"max_rows": 7}], ids=str)
@torch.no_grad()
def test_a_denoiser(options: dict[str, Any]) -> None:
    net, graphs = Net().cuda(), picard.CudaGraphs()
    for seed in range(2):
        net.rows.clear()
        problem = sampling(net, 2, seed, gain=gains(2, seed))
        problem = replace(problem, x_T=problem.x_T.cuda(), cond={"gain": problem.cond["gain"].cuda()})
        plain = picard.solve(problem, 40, **OPTIONS)
        captured = picard.solve(problem, 40, **OPTIONS, **options, cuda_graph=graphs)
        torch.testing.assert_close(captured.ys, plain.ys, rtol=1e-9, atol=1e-9)
        assert len(net.rows) < plain.stats.rounds + 10
