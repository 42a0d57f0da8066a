"""Euler and Heun for the probability-flow ODE of diffusion models, in the coordinates of Karras et al. (2022)."""

from __future__ import annotations

import torch

from picard.grid import Levels
from picard.plan import Plan

from .transition import diffusion_plan, transition


def euler_plan(levels: Levels) -> Plan:
    """Write Euler's method on noise levels.

    In scaled coordinates `y = x / alpha`, `s = sigma / alpha`, the ODE is `dy/ds = (y - D) / s` (Karras et al., 2022,
    eq. 4 with eq. 3); for the straight path of flow matching it is `dx/dsigma = (x - D) / sigma`. An Euler step
    of either, written back in x, is the noise-free transition, that is, DDIM with eta = 0.
    """
    return diffusion_plan(levels, *transition(levels))


def heun_plan(levels: Levels) -> Plan:
    """Write Heun's method on noise levels (Karras et al., 2022, algorithm 1 without churn).

    A step of ratio `rho = s' / s` has two nodes, at its two ends: the Euler predictor `y1 = rho y + (1 - rho) D0` and
    the corrector `y' = (1 + rho)/2 y + (1 - rho)/2 D0 + (1 - 1/rho)/2 (y1 - D1)`. The last step is the predictor alone:
    the slope at a clean level is infinite, and the model has no time for the final level.
    """
    # State and data prediction are both divided by `scale`: the coordinates in which the ODE has the form above.
    scale = torch.ones_like(levels.alpha) if levels.straight else levels.alpha
    rho = (levels.sigma / scale)[1:] / (levels.sigma / scale)[:-1]
    state, data, none = transition(levels)
    old, new, rho = scale[:-2], scale[1:-1], rho[:-1]

    nodes = 2 * levels.steps - 1
    a, b = torch.zeros(nodes, 2, dtype=torch.float64), torch.zeros(nodes, 2, dtype=torch.float64)
    a[::2, 0], b[::2, 0] = state, data
    a[1::2, 0], b[1::2, 0] = (1 - 1 / rho) / 2, -new * (1 - 1 / rho) / 2
    a[1::2, 1], b[1::2, 1] = new / old * (1 + rho) / 2, new * (1 - rho) / 2

    node = torch.arange(nodes)
    step = node // 2
    factor = torch.stack([state, data], 1)[step]
    return diffusion_plan(levels, a, b, none[step], factor=factor, level=(node + 1) // 2, step=step)
