"""Solves with compiled rounds beside plain ones, for `test_compile.py`; prints what it finds as JSON.

A program of its own: the run-time type checks of the tests stand in a compiler's way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import picard
from tests.problems import F64, diffusion, pendulum, sde, times


def failing() -> picard.ODE:
    """Make a problem whose early iterates run out of the field's range, so that windows are cut and grow again."""

    def drift(_: Tensor, x: Tensor) -> Tensor:
        return torch.where(x.abs() > 5, torch.nan, -30 * x)

    return picard.ODE(drift, torch.tensor([[1.0], [2.0]], dtype=F64))


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "diffusion": (lambda: diffusion(batch=1), 50, {"method": "ddpm", "window": 12}),
    "batch": (lambda: diffusion(batch=3), 50, {"method": "ddpm", "window": 12}),
    "order": (lambda: diffusion(batch=2), 30, {"method": "dpmsolver++", "window": 9, "save": "all"}),
    "sde": (sde, times(40), {"method": "euler", "window": 10}),
    "copies": (lambda: diffusion(batch=2), 50, {"method": "ddpm", "window": 12, **picard.presets.PARADIGMS}),
    "polynomial": (pendulum, times(40), {"method": "rk4", "window": 16}),
    "newton": (pendulum, times(40), {"method": "rk4", "window": 16, "linearization": "newton"}),
    "newton, noise": (sde, times(40), {"method": "euler", "window": 10, "linearization": "newton"}),
    "rounds": (lambda: diffusion(batch=2), 50, {"method": "ddpm", "window": 12, "tolerance": picard.FixedRounds(2)}),
    "cut": (
        failing,
        torch.linspace(0, 1, 41, dtype=F64),
        {"method": "euler", "window": 16, "guess": "copy", "linearization": "identity"},
    ),
}

# Their windows are slid on by the host.
WARM: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    f"warm, {rule}": (
        pendulum,
        times(40),
        {"method": "rk4", "window": 16, "linearization": rule, "guess": torch.zeros(41, 2, 2, dtype=F64)},
    )
    for rule in ("secant", "newton")
}


def compare(name: str, backend: str) -> dict[str, Any]:
    """Solve a case both ways, twice, and count what was compiled."""
    make, grid, options = CASES[name] if name in CASES else WARM[name]
    torch._dynamo.reset()
    plain = picard.solve(make(), grid, **options)
    counters = torch._dynamo.utils.counters
    counters.clear()
    found = [picard.solve(make(), grid, **options, compile={"backend": backend}) for _ in range(2)]
    everything = list(found)
    if name in CASES:
        everything.append(picard.solve(make(), grid, **options, compile={"backend": backend}, sync_every=3))
    scale = float(plain.ys.abs().max())
    return {
        "difference": max(float((one.ys - plain.ys).abs().max()) for one in everything) / scale,
        "counts": [(one.stats.rounds, one.stats.evaluations, one.stats.host_syncs) for one in (plain, *found)],
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }


def march(backend: str) -> dict[str, Any]:
    """Choose steps both ways, and through the door of torchdiffeq."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    problem, grid, compiler = pendulum(), times(2), {"backend": backend}
    with torch.no_grad():
        plain, compiled = (picard.adaptive(problem, grid, window=24, compile=given) for given in (False, compiler))
        doors = [
            picard.odeint(problem.drift, problem.x0, grid, rtol=1e-6, options={"rows": True, "window": 24, **more})
            for more in ({}, {"compile": compiler})
        ]
    gaps = [(one - other).abs().max() for one, other in ((compiled.ys, plain.ys), doors)]
    return {
        "difference": float(max(gaps)),
        "counts": [(one.stats.rounds, one.stats.evaluations, one.converged) for one in (plain, compiled)],
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }


def plan_actions(family: str, backend: str) -> dict[str, Any]:
    """Let a policy plan both ways, twice each."""
    from picard.adapters import parallelize
    from tests.test_policies import build, scheduler

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    plans, rounds = list[Tensor](), list[int]()
    for options in ({}, {"compile": {"backend": backend}}):
        torch.manual_seed(0)
        policy, sample = build(family, scheduler())
        parallelize(policy, window=8, tolerance=0.01, **options)
        for _ in range(2):
            plans.append(sample(1, torch.Generator().manual_seed(1)).detach())
            rounds.append(policy.picard.stats.rounds)
    return {
        "difference": max(float((one - plans[0]).abs().max()) for one in plans),
        "counts": rounds,
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }


def made(backend: str) -> list[int]:
    """Count what is compiled for windows of one size after the other."""
    counters, found = torch._dynamo.utils.counters, [0]
    for window in (8, 9, 12, 11, 20, 8):
        twins = picard.ODE(lambda t, x: torch.tanh(x) - x.flip(-1), torch.tensor([[1.0, 0.5]] * 2, dtype=F64))
        picard.solve(twins, times(10 + window), method="rk4", window=window, compile={"backend": backend})
        found.append(counters["stats"]["unique_graphs"])
    return [after - before for before, after in pairwise(found)]


POLICIES = {"policy": "unet-global", "inpainting": "unet-inpaint"}
OTHERS: dict[str, Callable[[str], dict[str, Any]]] = {
    **{name: partial(compare, name) for name in WARM},
    "steps": march,
    **{name: partial(plan_actions, family) for name, family in POLICIES.items()},
}

COUNTS = {"windows": made}

if __name__ == "__main__":
    torch.set_num_threads(1)
    backend, *chosen = sys.argv[1:]
    ways: dict[str, Callable[[str], Any]] = {**OTHERS, **COUNTS}
    found = {
        name: ways[name](backend) if name in ways else compare(name, backend) for name in chosen or (*CASES, *OTHERS)
    }
    sys.stdout.write(json.dumps(found) + "\n")
