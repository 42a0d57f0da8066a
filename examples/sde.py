"""A stochastic differential equation on one Brownian path, on two grids: `python examples/sde.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import picard

VOLATILITY = 0.4


def drift(t: Tensor, x: Tensor) -> Tensor:
    """Grow in proportion to the state, at a rate that falls."""
    return torch.cos(t)[:, None] * x


def diffusion(_t: Tensor, x: Tensor) -> Tensor:
    """Fluctuate in proportion to the state: diagonal noise, with the shape of `x`."""
    return VOLATILITY * x


def main() -> None:
    """Solve geometric Brownian motion both ways, then on a grid four times as coarse, along the same paths."""
    x0 = torch.ones(64, 1, dtype=torch.float64)
    noise = picard.Noise.from_seed(list(range(64)))  # one seed a sample: sample 3 is the same in any batch
    fine = torch.linspace(0, 1, 1025, dtype=torch.float64)
    problem = picard.SDE(drift, diffusion, x0, noise=noise)

    reference = picard.sequential(problem, fine, method="euler")
    parallel = picard.solve(problem, fine, method="euler", window=256, tolerance=1e-8)
    difference = float((parallel.final - reference.final).abs().max())
    print(parallel)
    print(f"largest difference to Euler-Maruyama step by step: {difference:.1e}")
    assert difference < 1e-6

    alone = picard.SDE(drift, diffusion, x0[3:4], noise=noise.select([3]))
    same = picard.solve(alone, fine, method="euler", window=256, tolerance=1e-8)
    assert torch.allclose(same.final, parallel.final[3:4], rtol=1e-12)

    # The coarse increments are sums of the fine ones, so both grids see one path and can be compared with its solution.
    coarse = picard.SDE(drift, diffusion, x0, noise=noise.coarsen(4))
    rough = picard.solve(coarse, fine[::4], method="euler", window=256, tolerance=1e-8)
    brownian = noise.coarsen(1024).draw(range(64), [0] * 64, (1,)).double()  # W(1): one increment over the whole grid
    exact = torch.exp(math.sin(1) - VOLATILITY**2 / 2 + VOLATILITY * brownian)
    errors = [float((solution.final - exact).square().mean().sqrt()) for solution in (rough, parallel)]
    print(f"error against the exact paths: {errors[0]:.1e} with 256 steps, {errors[1]:.1e} with 1024")
    assert errors[1] < errors[0]


if __name__ == "__main__":
    main()
