"""Hard problems: stiff, oscillating, chaotic and noisy equations, for tests and for `benchmarks.hard`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import picard
from picard.sde import NoiseType

Function = Callable[[Tensor, Tensor], Tensor]
"""Called with a scalar t and y (d,), as torchdiffeq does, or with t (rows,) and y (rows, d), as picard does."""


@dataclass(frozen=True, eq=False)
class Hard:
    """A problem, and the grid and method it is solved with.

    Attributes:
        name: what the tables call it.
        drift: the right-hand side.
        y0: initial state, shape (d,).
        end: last time; the first is 0.
        steps: number of steps.
        method: the method.
        diffusion: the diffusion of an Ito SDE.
        noise_type: its kind of noise.
        chaotic: whether trajectories separate so fast that small differences do not stay small.
    """

    name: str
    drift: Function
    y0: Tensor
    end: float
    steps: int
    method: str = "rk4"
    diffusion: Function | None = None
    noise_type: NoiseType = "diagonal"
    chaotic: bool = False

    def grid(self, steps: int | None = None, *, reverse: bool = False) -> Tensor:
        """Return the first so many steps of the grid, or all; `reverse` steps from 0 to negative times."""
        count = self.steps if steps is None else min(steps, self.steps)
        grid = torch.linspace(0, self.end, self.steps + 1, dtype=torch.float64)[: count + 1]
        return -grid if reverse else grid

    def problem(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> picard.ODE | picard.SDE:
        """Build the problem, a batch of one sample."""
        x0 = self.y0.to(dtype)[None]
        if self.diffusion is None:
            return picard.ODE(self.drift, x0)
        noise = picard.Noise.from_seed(seed)
        return picard.SDE(self.drift, self.diffusion, x0, noise=noise, noise_type=self.noise_type)


def _decay(_t: Tensor, y: Tensor) -> Tensor:
    return -y


def _stiff(t: Tensor, y: Tensor) -> Tensor:
    """Fall onto the slow solution cos(t) at rate 50 (Prothero and Robinson, 1974)."""
    return -50 * (y - torch.cos(t)[..., None]) - torch.sin(t)[..., None]


def _rotation(_t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -y[..., 0]], -1)


def _logistic(_t: Tensor, y: Tensor) -> Tensor:
    return y * (1 - y)


def _lotka_volterra(_t: Tensor, y: Tensor) -> Tensor:
    prey, predators = y.unbind(-1)
    return torch.stack([1.5 * prey - prey * predators, prey * predators - 3 * predators], -1)


def _van_der_pol(mu: float) -> Function:
    def drift(_t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, mu * (1 - x**2) * v - x], -1)

    return drift


def _lorenz(_t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def _kepler(_t: Tensor, y: Tensor) -> Tensor:
    place, speed = y.chunk(2, -1)
    return torch.cat([speed, -place / (place**2).sum(-1, keepdim=True) ** 1.5], -1)


def _heat(_t: Tensor, y: Tensor) -> Tensor:
    """Discretize u_t = u_xx on (0, 1) by second differences, u = 0 at both ends."""
    inner = torch.nn.functional.pad(y, (1, 1))
    return (inner[..., 2:] - 2 * y + inner[..., :-2]) * (y.shape[-1] + 1) ** 2


def _weights(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])


_IN, _OUT, _TIME = 2 * _weights(32, 16, seed=1), 2 * _weights(16, 32, seed=2), _weights(32, seed=3)


def _tanh_net(t: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(y @ _IN.to(y).T + t[..., None] * _TIME.to(y))
    return hidden @ _OUT.to(y).T


_FLOW_IN, _FLOW_OUT = 3 * _weights(32, 2, seed=4), 2 * _weights(2, 32, seed=5)


def _flow(t: Tensor, y: Tensor) -> Tensor:
    """Move a point by a tanh net and its log-density by the net's divergence, in closed form."""
    first, second = _FLOW_IN.to(y), _FLOW_OUT.to(y)
    hidden = torch.tanh(y[..., :2] @ first.T + t[..., None])
    trace = ((1 - hidden**2) * (first * second.T).sum(1)).sum(-1, keepdim=True)
    return torch.cat([hidden @ second.T, -trace], -1)


_FREQUENCIES = torch.linspace(-1, 1, 64, dtype=torch.float64)


def _kuramoto(_t: Tensor, y: Tensor) -> Tensor:
    sine, cosine = torch.sin(y), torch.cos(y)
    pull = cosine * sine.mean(-1, keepdim=True) - sine * cosine.mean(-1, keepdim=True)
    return _FREQUENCIES.to(y) + 2 * pull


def _double_well(_t: Tensor, y: Tensor) -> Tensor:
    return 4 * (y - y**3)


def _langevin(_t: Tensor, y: Tensor) -> Tensor:
    place, speed = y.chunk(2, -1)
    return torch.cat([speed, 4 * (place - place**3) - speed], -1)


def _constant(strength: float) -> Function:
    return lambda _t, y: torch.full_like(y, strength)


def _on_speed(_t: Tensor, y: Tensor) -> Tensor:
    """Let noise act on the second half of the state only, one channel each."""
    half = y.shape[-1] // 2
    mixing = torch.cat([torch.zeros(half, half), torch.eye(half)]).to(y)
    return mixing.expand(*y.shape, half)


def hard_problems() -> list[Hard]:
    """List the problems."""

    def vector(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    x = torch.linspace(0, 1, 258, dtype=torch.float64)[1:-1]
    heat = torch.sin(math.pi * x) + 0.5 * torch.sin(7 * math.pi * x)
    kepler = vector(0.4, 0, 0, 2)  # eccentricity 0.6
    lorenz = vector(1, 1, 1)
    points = torch.linspace(-1, 1, 8, dtype=torch.float64)
    return [
        Hard("decay", _decay, vector(1), 5, 200),
        Hard("stiff decay", _stiff, vector(0), 4, 400, "euler"),
        Hard("rotation", _rotation, vector(1, 0), 4 * math.pi, 400),
        Hard("logistic", _logistic, vector(0.01), 10, 200),
        Hard("Lotka-Volterra", _lotka_volterra, vector(1, 1), 10, 400),
        Hard("Van der Pol, mu=1", _van_der_pol(1.0), vector(2, 0), 10, 400),
        Hard("Van der Pol, mu=50", _van_der_pol(50.0), vector(2, 0), 10, 1000),
        Hard("Lorenz, t=2", _lorenz, lorenz, 2, 400),
        Hard("Lorenz, t=20", _lorenz, lorenz, 20, 2000, chaotic=True),
        Hard("Kepler", _kepler, kepler, 2 * math.pi, 400),
        Hard("heat, 256 points", _heat, heat, 1000 * 0.4 / 257**2, 1000, "euler"),
        Hard("neural ODE", _tanh_net, _weights(16, seed=6) * 4, 2, 200),
        Hard("normalizing flow", _flow, vector(0.5, -0.3, 0), 1, 100),
        Hard("Kuramoto", _kuramoto, torch.linspace(-3, 3, 64, dtype=torch.float64), 10, 200),
        Hard("Ornstein-Uhlenbeck", _decay, points, 5, 500, "euler", _constant(0.5)),
        Hard("geometric Brownian", lambda _t, y: 0.1 * y, points + 2, 2, 500, "euler", lambda _t, y: 0.4 * y),
        Hard("double well", _double_well, points, 10, 1000, "euler", _constant(0.7)),
        Hard("Langevin", _langevin, points, 10, 1000, "euler", _on_speed, "additive"),
    ]
