"""The Gaussian transition between two noise levels, of which every diffusion method here is made."""

from __future__ import annotations

import torch
from torch import Tensor

from picard.errors import NotSupportedError
from picard.grid import Levels, Times
from picard.plan import Plan


def require_levels(points: Times | Levels, method: str) -> Levels:
    """Return the noise levels a diffusion method steps over.

    Raises:
        NotSupportedError: if the points are plain times.
    """
    if not isinstance(points, Levels):
        msg = (
            f"{method} steps over the noise levels of a diffusion model; given a grid of times: "
            "write method='euler', 'midpoint', 'heun' or 'rk4', or solve a picard.Diffusion"
        )
        raise NotSupportedError(msg)
    return points


def transition(levels: Levels, eta: float = 0.0, start: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the state, of the data prediction D and of the noise in a first-order step to every later level.

    The step `x' = alpha' D + sqrt(sigma'^2 - s^2) eps + s xi` with `eps = (x - alpha D) / sigma` keeps the marginal law
    of the forward process for every s (Song et al., 2021, eq. 12); `s` is `eta` times the posterior standard deviation
    (eq. 16). In half log-SNR, `exp(-h) = (alpha sigma') / (alpha' sigma)`, which is 0 where `alpha` or `sigma'` is: no
    logarithm is taken, so the pure-noise and the clean level need no special case.

    Args:
        levels: the noise levels.
        eta: strength of the noise, 0 for the probability-flow ODE, 1 for the reverse SDE.
        start: index of the level each step starts from, shape (steps,); by default the level just before its end.

    Returns:
        Three tensors of shape (steps,).
    """
    start = torch.arange(levels.steps) if start is None else start
    alpha, sigma = levels.alpha[start], levels.sigma[start]
    alpha_next, sigma_next = levels.alpha[1:], levels.sigma[1:]
    decay = alpha * sigma_next / (alpha_next * sigma)
    std = eta * sigma_next * (1 - decay**2).clamp_min(0).sqrt()
    state = (sigma_next**2 - std**2).sqrt() / sigma
    return state, alpha_next - alpha * state, std


def diffusion_plan(
    levels: Levels,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    factor: Tensor | None = None,
    level: Tensor | None = None,
    step: Tensor | None = None,
) -> Plan:
    """Complete a plan over noise levels.

    Args:
        levels: the noise levels.
        a: weights of the last states, shape (nodes, K) or, for K = 1, (nodes,).
        b: weights of the last data predictions, of the same shape.
        c: scale of the noise of every node, shape (nodes,).
        factor: weights (u, w) of the state and of the data prediction in the whole step that a node belongs to, shape
            (nodes, 2); by default the newest columns of `a` and `b`.
        level: index of the level at which every node is evaluated; by default one node a step.
        step: index of the step every node belongs to; by default the same.
    """
    a, b = a.reshape(len(c), -1), b.reshape(len(c), -1)
    every = torch.arange(levels.steps)
    level, step = every if level is None else level, every if step is None else step
    return Plan(
        times=levels.timesteps[level],
        a=a,
        b=b,
        step=step,
        c=c,
        factor=torch.stack([a[:, 0], b[:, 0]], 1) if factor is None else factor,
        yardstick=levels.yardstick()[step],
        scales=torch.stack([levels.alpha[level], levels.sigma[level]], 1),
    )
