"""Interpolation between grid points: cubic Hermite polynomials."""

from __future__ import annotations

import torch
from torch import Tensor

from picard.conditioning import Conditioning
from picard.device import check_data, fetch
from picard.errors import InvalidGridError, NotSupportedError, describe
from picard.ode import ODE
from picard.problem import Problem
from picard.rows import Rows, evaluate


def hermite(share: Tensor, h: Tensor, y0: Tensor, f0: Tensor, y1: Tensor, f1: Tensor) -> Tensor:
    """Evaluate the cubic with values y0, y1 and slopes f0, f1 at the ends of a step.

    Args:
        share: position within the step, from 0 to 1; like `h`, it broadcasts against the states.
        h: length of the step, signed.
        y0: state at the start.
        f0: slope at the start.
        y1: state at the end.
        f1: slope at the end.
    """
    rest = 1 - share
    start = rest * rest * ((1 + 2 * share) * y0 + share * h * f0)
    end = share * share * ((3 - 2 * share) * y1 - rest * h * f1)
    return start + end


def locate(knots: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Find the step that every time lies in, as (start, end] in the direction of the knots.

    Args:
        knots: monotone times, shape (knots,), on the CPU.
        t: times, shape (points,), within the knots.

    Returns:
        The index of every step's start, and the position of `t` within it, from 0 to 1; both (points,).
    """
    direction = 1.0 if knots[-1] >= knots[0] else -1.0
    start = torch.searchsorted(direction * knots[1:], direction * t).clamp_max(len(knots) - 2)
    h = knots[start + 1] - knots[start]
    share = torch.where(h == 0, 1.0, (t - knots[start]) / torch.where(h == 0, 1.0, h))
    return start, torch.where(t == knots[start + 1], 1.0, share)


class Readout:
    """Where the times of a result lie on a grid, and how states there are read from those at grid points.

    Attributes:
        points: indices of the grid points needed, ascending.
    """

    def __init__(self, grid: Tensor, t: Tensor) -> None:
        """Find the steps that the times lie in.

        Args:
            grid: monotone times, shape (points,).
            t: times within the grid, shape (wanted,).
        """
        self._grid = grid
        self._knots, wanted = map(fetch, (grid, t))
        start, share = locate(self._knots, wanted)
        last = share == 1
        at_end = start + last.long()
        between = (share > 0) & ~last
        self._on_grid = not bool(between.any())
        self.points, place = torch.cat([at_end, at_end + between.long()]).unique(return_inverse=True)
        self._before, self._after = place.chunk(2)
        self._share = torch.where(between, share, 0)
        self._h = torch.where(between, self._knots[(at_end + 1).clamp_max(len(grid) - 1)] - self._knots[at_end], 0)

    def linear(self, ys: Tensor) -> Tensor:
        """Interpolate linearly between the states at `points`, shape (points, batch, *state)."""
        device = ys.device
        first = ys[self._before.to(device)]
        if self._on_grid:
            return first
        return (first + self._like(self._share, ys) * (ys[self._after.to(device)] - first)).to(ys.dtype)

    def cubic(self, ys: Tensor, problem: ODE, max_rows: int | None = None) -> Tensor:
        """Interpolate by cubic Hermite polynomials; the drift is evaluated once more, at `points`.

        Args:
            ys: states at `points`, shape (points, batch, *state).
            problem: the ODE that was solved.
            max_rows: rows a call of the drift may hold; `None` for no limit.
        """
        device = ys.device
        before, after = self._before.to(device), self._after.to(device)
        if self._on_grid:
            return ys[before]
        slope = slopes(problem, self._grid[self.points.to(self._grid.device)], ys, max_rows)
        share, h = self._like(self._share, ys), self._like(self._h, ys)
        return hermite(share, h, ys[before], slope[before], ys[after], slope[after]).to(ys.dtype)

    @staticmethod
    def _like(value: Tensor, ys: Tensor) -> Tensor:
        return value.to(ys.device, torch.promote_types(ys.dtype, torch.float32)).reshape(-1, *[1] * (ys.ndim - 1))


def interpolate(ts: Tensor, ys: Tensor, t: Tensor, problem: object) -> Tensor:
    """Evaluate a trajectory between its points; see `Solution.interpolate`."""
    if not isinstance(problem, ODE):
        msg = f"only trajectories of a picard.ODE are smooth between grid points; given {describe(problem)}"
        raise NotSupportedError(msg)
    if len(ts) < 2:
        msg = f"interpolation needs at least two saved points; given {len(ts)}: solve with save='all'"
        raise InvalidGridError(msg)
    low, high = float(ts.amin()), float(ts.amax())
    if isinstance(t, Tensor):
        check_data("t", t)
    if not isinstance(t, Tensor) or not t.is_floating_point() or not bool(((t >= low) & (t <= high)).all()):
        msg = f"t must be a floating tensor of times within the saved points, {low:g} to {high:g}; given {describe(t)}"
        raise InvalidGridError(msg)
    readout = Readout(ts, t.reshape(-1))
    found = readout.cubic(ys[readout.points.to(ys.device)], problem)
    return found.reshape(*t.shape, *ys.shape[1:])


def slopes(problem: Problem, ts: Tensor, ys: Tensor, max_rows: int | None) -> Tensor:
    """Evaluate the drift at states (points, batch, *state) at grid times (points,)."""
    count, batch = ys.shape[:2]
    times = ts.to(ys.device, problem.time_dtype(ts)).repeat_interleave(batch)
    cond = Conditioning(problem.conditioning(), batch).of(None, torch.arange(batch, device="cpu").repeat(count))
    value, _ = evaluate(problem, Rows(times, ys.flatten(0, 1), cond), max_rows)
    return value.unflatten(0, (count, batch))
