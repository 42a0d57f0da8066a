"""Driven pendulums, each with its own damping, solved by RK4 parallel in time: `python examples/ode.py`."""

from __future__ import annotations

import torch
from torch import Tensor

import picard


def pendulum(t: Tensor, x: Tensor, damping: Tensor) -> Tensor:
    """Give the derivative of (angle, speed) in every row; `t` and `damping` are (rows,), `x` is (rows, 2)."""
    angle, speed = x.unbind(1)
    return torch.stack([speed, 0.2 * torch.cos(t) - torch.sin(angle) - damping * speed], 1)


def main() -> None:
    """Solve both ways and compare."""
    damping = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(4, 2)
    problem = picard.ODE(pendulum, x0, cond={"damping": damping})  # repeated for every row of a call
    grid = torch.linspace(0, 10, 401, dtype=torch.float64)

    reference = picard.sequential(problem, grid, method="rk4", save="all")
    parallel = picard.solve(problem, grid, method="rk4", window=100, tolerance=1e-8, save="all")

    difference = float((parallel.ys - reference.ys).abs().max())
    print(parallel)
    print(
        f"model calls one after the other: {reference.stats.rounds} sequentially, {parallel.stats.rounds} in parallel"
    )
    print(f"largest difference over {len(parallel.ts)} points and 4 pendulums: {difference:.1e}")
    assert difference < 1e-5
    assert parallel.stats.rounds < reference.stats.rounds / 5


if __name__ == "__main__":
    main()
