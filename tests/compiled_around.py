"""Solves inside of code that is compiled: run apart, without the run-time type checks, which no compiler takes.

Prints, as JSON: by the way in, whether values and gradients are those of plain code and what operations
were compiled; and how many graphs were made of a compiled model and of compiled rounds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import picard
from picard.adapters import diffusers as adapter
from tests.problems import diffusion

GRID, SAMPLING = torch.linspace(0, 1, 11), diffusion()
SCHEDULER = diffusers.DDIMScheduler()


class Decaying:
    """An SDE as torchsde takes it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the drift."""
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the diffusion."""
        return 0.1 * y


def decay(t: Tensor, x: Tensor) -> Tensor:
    """Return a drift."""
    return -x


DOORS: dict[str, Callable[[Tensor], Tensor]] = {
    "solve": lambda y: picard.solve(picard.ODE(decay, y), GRID, method="rk4").final,
    "sequential": lambda y: picard.sequential(picard.ODE(decay, y), GRID, method="rk4").final,
    "adaptive": lambda y: picard.adaptive(picard.ODE(decay, y), GRID).final,
    "odeint": lambda y: picard.odeint(decay, y, GRID, method="rk4")[-1],
    "dopri5": lambda y: picard.odeint(decay, y, GRID)[-1],
    "sdeint": lambda y: picard.sdeint(Decaying(), y, GRID, picard.Noise.from_seed(0), "euler", dt=0.1)[-1],
    "diffusion": lambda y: picard.solve(replace(SAMPLING, x_T=y.double()), 9, method="ddim").final,
    "sample": lambda y: sampled(y).final,
}


def sampled(y: Tensor) -> picard.Solution:
    """Sample with a scheduler of Diffusers."""
    return adapter.sample(lambda x, t: 0.1 * x, SCHEDULER, y, num_inference_steps=5)


def around(door: Callable[[Tensor], Tensor], backend: str) -> dict[str, Any]:
    """Solve in the midst of other operations, plain and compiled."""

    def run(y: Tensor) -> Tensor:
        return (2 * door(y + 1)).sin()

    torch._dynamo.reset()
    counter, found = CompileCounterWithBackend(backend), []
    for call in (run, torch.compile(run, backend=counter)):
        y = torch.full((2, 3), 0.5, requires_grad=True)
        out = call(y)
        found.append((out, *torch.autograd.grad(out.sum(), y)))
    calls = [node for graph in counter.graphs for node in graph.graph.nodes if node.op.startswith("call")]
    return {
        "same": all(torch.equal(*pair) for pair in zip(*found, strict=True)),
        "compiled": sorted({str(getattr(node.target, "__name__", node.target)) for node in calls}),
    }


def inside() -> dict[str, int]:
    """Compile the model, and rounds, in a solve in compiled code."""
    torch._dynamo.reset()
    network, rounds = CompileCounter(), CompileCounterWithBackend("eager")
    model = torch.compile(decay, backend=network)

    @torch.compile(backend="eager")
    def run(y: Tensor) -> Tensor:
        options: dict[str, Any] = {"method": "euler", "compile": {"backend": rounds}}
        return picard.solve(picard.ODE(model, y), GRID, **options).final

    with torch.no_grad():
        run(torch.ones(2, 3))
    return {"network": network.frame_count, "rounds": rounds.frame_count}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ways = {name: around(door, "aot_eager") for name, door in DOORS.items()}
    ways["eager"] = around(DOORS["odeint"], "eager")
    sys.stdout.write(json.dumps({"around": ways, "inside": inside()}) + "\n")
