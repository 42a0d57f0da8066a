"""What a scheduler's levels say about a denoiser's outputs: where to start them, and how steep they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.device import on_host

from .course import Course, copied, number
from .probe import probe_output


@dataclass(frozen=True, eq=False)
class Hints:
    """Numbers of every step of a scheduler's loop. They change how fast replay converges, never what it converges to.

    Attributes:
        u: the data prediction is `u y + w m`, y the denoiser's input and m its output, shape (steps,).
        w: shape (steps,).
        state: weight of the state in a first-order step to the next level, shape (steps,).
        data: weight of the data prediction there.
    """

    u: list[float]
    w: list[float]
    state: list[float]
    data: list[float]

    def hold(self, node: int, y: Tensor, output: Tensor, to: int, y_to: Tensor) -> Tensor:
        """Guess the output at one step from that at another, the data prediction being held."""
        data = self.u[node] * y + self.w[node] * output
        return (data - self.u[to] * y_to) / self.w[to]

    def slope(self, node: int, factor: Tensor) -> Tensor:
        """Return the output's slope at which a whole step has a given factor; the frozen one if that means nothing."""
        if abs(self.data[node]) < 1e-6:
            return torch.full_like(factor, -self.u[node] / self.w[node])
        return ((factor - self.state[node]) / self.data[node] - self.u[node]) / self.w[node]

    def factor(self, node: int, slope: Tensor) -> Tensor:
        """Return the factor of a whole step, given the output's slope."""
        return self.state[node] + self.data[node] * (self.u[node] + self.w[node] * slope)


def hints_for(scheduler: Any, first: Any) -> tuple[Hints, int] | None:
    """Probe a scheduler that is about to make its first step.

    Args:
        scheduler: the scheduler; it is not changed.
        first: the timestep of that step.

    Returns:
        The numbers of all its timesteps and the index of the first one; `None` if the scheduler cannot be probed.
    """
    try:
        twin = copied(scheduler)
        for name in ("_begin_index", "_step_index"):
            if hasattr(twin, name):
                setattr(twin, name, None)
        with on_host():
            output = probe_output(Course(twin, twin.timesteps, 0, {}))
        start = int((twin.timesteps == number(first)).nonzero()[0])
    except Exception:  # noqa: BLE001  # whatever a scheduler does on probes, replay works without hints
        return None
    numbers = torch.cat([output.u, output.w, output.levels.flatten()])
    if not bool(torch.isfinite(numbers).all()) or bool((output.w == 0).any() or (output.levels[:, 1] <= 0).any()):
        return None
    alpha = torch.cat([output.levels[:, 0], torch.ones(1, dtype=torch.float64, device="cpu")])
    sigma = torch.cat([output.levels[:, 1], torch.zeros(1, dtype=torch.float64, device="cpu")])
    state = sigma[1:] / sigma[:-1]
    data = alpha[1:] - alpha[:-1] * state
    return Hints(output.u.tolist(), output.w.tolist(), state.tolist(), data.tolist()), start
