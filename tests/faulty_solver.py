"""A compact parallel solver, written apart from the library's, into which faults can be put by name.

Windowed Picard iteration with one window a sample, as `picard.solve` has, but as plain loops over whole trajectories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import Conditioning
from picard.prepare import Prepared, prepare
from picard.rows import Rows, evaluate, kicked

FAULTS = {
    "stride_off_by_one": "accepts one state more than passed the test",
    "noise_shifted": "adds the noise of the next step",
    "noise_by_slot": "finds the noise by the place in the window, not by the step",
    "copied_without_noise": "nodes that enter the window by a copy never get their noise",
    "stale_field": "does not evaluate a node again once it has been evaluated",
    "wrong_node": "compares the change of the state before to the tolerance",
    "coupled_windows": "slides all windows of the batch by the smallest stride",
    "no_guard": "lets a non-finite state into the matrix product",
    "wrong_anchor": "a multistep method takes the window's first field value for those before it",
    "window_scalar": "damps the correction by a number that depends on the whole window",
    "time_shifted": "gives the model the time of the next node",
    "late_acceptance": "wants to see the exact first state twice",
    "last_chunk_lost": "drops the last rows if the model call is split unevenly",
    "own_noise": "draws fresh noise in place of the problem's realization",
    "squared_tolerance": "compares the mean square change to the tolerance, without the root",
    "tail_forgotten": "stops when a single node is left",
}


@dataclass
class _State:
    """Whole trajectories: simple, and memory is no matter here."""

    prepared: Prepared
    cond: Conditioning
    z: Tensor  # (batch, nodes + 1, dims)
    F: Tensor  # (batch, nodes, dims)
    xi: Tensor | None  # (batch, nodes, *noise)
    seen: set[tuple[int, int]]
    fault: str | None
    begin: Tensor
    into_field: bool = False  # whether the noise is part of the field

    def evaluate(self, rows: list[tuple[int, int]], max_rows: int | None) -> None:
        if self.fault == "stale_field":
            rows = [row for row in rows if row not in self.seen]
            self.seen.update(rows)
        if not rows:
            return
        tables, x0 = self.prepared.tables, self.prepared.problem.x0
        s, m = torch.tensor(rows).T
        x = self.z[s, m].to(x0.dtype).unflatten(1, x0.shape[1:])
        at = (m + 1).clamp_max(len(tables.times) - 1) if self.fault == "time_shifted" else m
        scales = None if tables.scales is None else tables.scales[m]
        value, diffusion = evaluate(
            self.prepared.problem, Rows(tables.times[at], x, self.cond.of(tuple(rows), s), scales), max_rows
        )
        value = value.to(self.z.dtype)
        self.into_field = diffusion is not None
        if diffusion is not None and self.xi is not None:
            xi = self.xi[s, self._noise_index(m, s)]
            value = kicked(value, diffusion, tables.kick[m].reshape(-1, *[1] * (xi.ndim - 1)) * xi)
        if self.fault == "last_chunk_lost" and max_rows is not None and len(rows) % max_rows:
            value[-(len(rows) % max_rows) :] = 0
        self.F[s, m] = value.flatten(1)

    def _noise_index(self, m: Tensor, s: Tensor) -> Tensor:
        if self.fault == "noise_shifted":
            return (m + 1).clamp_max(self.F.shape[1] - 1)
        if self.fault == "noise_by_slot":
            return m - self.begin[s]
        return m

    def propagate(self, s: int, b: int, e: int, linearization: str) -> tuple[Tensor, Tensor]:
        """The new states after nodes b .. e-1, and the slopes used there."""
        t, m = self.prepared.tables, torch.arange(b, e)
        u, w, _ = t.factor[m].unbind(1)
        slope = torch.zeros_like(u)
        if linearization == "identity":
            slope = torch.where(w != 0, (1 - u) / torch.where(w != 0, w, 1), 0)
        mapped = torch.zeros_like(self.z[s, b:e])
        system = torch.eye(e - b, dtype=self.z.dtype)
        for p in range(t.a.shape[1]):
            past = (m - p).clamp_min(0)
            values = past.clamp_min(b) if self.fault == "wrong_anchor" else past
            mapped += t.a[m, p, None] * self.z[s, past] + t.b[m, p, None] * self.F[s, values]
            weight = t.a[m, p] + t.b[m, p] * torch.where(m - p > b, slope[(m - p - b).clamp_min(0)], 0)
            inside = m - p > b
            system[torch.arange(e - b)[inside], (m - p - b - 1)[inside]] -= weight[inside]
        if self.xi is not None and not self.into_field:
            noise = self.xi[s, self._noise_index(m, torch.full_like(m, s))].flatten(1)
            mapped += t.c[m, None] * noise
        residual = mapped - self.z[s, b + 1 : e + 1]
        answer = torch.linalg.inv(system).tril(-1)
        if self.fault != "no_guard":
            residual = torch.where(torch.isfinite(residual).all(1, keepdim=True), residual, 0)
        if self.fault == "window_scalar":
            answer = answer / (1 + residual[:-1].norm())
        return mapped + answer @ residual, slope


@torch.no_grad()
def solve(
    problem: Any,
    grid: Any,
    *,
    method: Any,
    window: int = 8,
    tolerance: float = 1e-4,
    max_rows: int | None = None,
    max_rounds: int | None = None,
    linearization: str = "identity",
    save: str = "last",
    fault: str | None = None,
) -> SimpleNamespace:
    """Solve in parallel, with a fault or without."""
    prepared = prepare(problem, grid, method)
    x0, nodes, batch = prepared.problem.x0, prepared.plan.nodes, len(prepared.problem.x0)
    z = x0.to(prepared.wide).flatten(1)[:, None].repeat(1, nodes + 1, 1)  # the first guess: copies of the start
    xi = None
    if prepared.draw is not None:
        pairs = [(s, m) for s in range(batch) for m in range(nodes)]
        xi = prepared.draw([s for s, _ in pairs], [m for _, m in pairs]).unflatten(0, (batch, nodes))
        if fault == "own_noise":
            xi = torch.randn_like(xi)
        if fault == "copied_without_noise":
            xi[:, window:] = 0
    begin, rounds = [0] * batch, 0
    cond = Conditioning(prepared.problem.conditioning(), batch)
    state = _State(prepared, cond, z, torch.zeros_like(z[:, 1:]), xi, set(), fault, torch.tensor(begin))
    left = 1 if fault == "tail_forgotten" and nodes > 2 else 0
    while any(b < nodes - left for b in begin) and rounds != max_rounds:
        rounds += 1
        state.begin = torch.tensor(begin)
        active = [s for s in range(batch) if begin[s] < nodes]
        ends = {s: min(begin[s] + window, nodes) for s in active}
        state.evaluate([(s, m) for s in active for m in range(begin[s], ends[s])], max_rows)
        news = {s: state.propagate(s, begin[s], ends[s], linearization) for s in active}
        strides = {s: _stride(z[s, begin[s] + 1 : ends[s] + 1], news[s][0], tolerance, fault) for s in active}
        if fault == "coupled_windows":
            strides = dict.fromkeys(active, min(strides.values()))
        for s in active:
            b, e, (new, slope) = begin[s], ends[s], news[s]
            finite = int(torch.isfinite(new).all(1).long().cumprod(0).sum())
            if fault != "no_guard":
                new[finite:] = new[finite - 1]
            state.F[s, b + 1 : e] += slope[1:, None] * torch.nan_to_num(new[:-1] - z[s, b + 1 : e])
            z[s, b + 1 : e + 1], z[s, e + 1 :] = new, new[-1]
            begin[s] += min(strides[s], e - b)
    for s in range(batch):
        z[s, begin[s] + 1 :] = z[s, begin[s]]
    ends_of_steps = prepared.plan.grid_nodes
    ys = z[:, ends_of_steps].transpose(0, 1).unflatten(2, x0.shape[1:]).to(x0.dtype)
    return SimpleNamespace(ys=ys if save == "all" else ys[-1:], final=ys[-1], stats=SimpleNamespace(rounds=rounds))


def _stride(old: Tensor, new: Tensor, tolerance: float, fault: str | None) -> int:
    """Count the states to accept: the first is exact, then as long as the change is within the tolerance."""
    square, size = (new - old).square().mean(1), new.square().mean(1).sqrt()
    change = square if fault == "squared_tolerance" else square.sqrt()
    passed = (change <= tolerance * (size + 0.01)) | (square.sqrt() <= 4 * torch.finfo(new.dtype).eps * size)
    if fault == "wrong_node":
        passed = torch.cat([torch.ones_like(passed[:1]), passed])[:-1]
        passed[:2] = True
    elif fault != "late_acceptance":
        passed[0] = True
    count = int(passed.long().cumprod(0).sum())
    return count + (fault == "stride_off_by_one")


def faulty(fault: str | None) -> Callable[..., SimpleNamespace]:
    """The solver with one fault, as a function of its own name."""

    def solver(
        problem: Any,
        grid: Any,
        *,
        method: Any,
        window: int = 8,
        tolerance: float = 1e-4,
        max_rows: int | None = None,
        max_rounds: int | None = None,
        linearization: str = "identity",
        save: str = "last",
    ) -> SimpleNamespace:
        return solve(
            problem,
            grid,
            method=method,
            window=window,
            tolerance=tolerance,
            max_rows=max_rows,
            max_rounds=max_rounds,
            linearization=linearization,
            save=save,
            fault=fault,
        )

    solver.__name__ = fault or "faultless"
    return solver
