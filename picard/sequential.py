"""The sequential reference: the same plan, node after node. It shares no code with the parallel loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

from picard.conditioning import Conditioning
from picard.errors import NonFiniteError
from picard.number import check_flags
from picard.plan import Integrator
from picard.prepare import Prepared, prepare
from picard.problem import Problem
from picard.progress import Progress
from picard.propagate import finite
from picard.rows import Rows, evaluate, kicked
from picard.sde import SDE
from picard.solution import Solution, Stats, Status
from picard.trajectory import Trajectory


def sequential(
    problem: Problem | SDE,
    grid: int | Tensor,
    *,
    method: str | Integrator,
    save: Literal["last", "all"] | Sequence[int] | Tensor = "last",
    progress: bool = False,
) -> Solution:
    """Solve a problem one model call after the other: the reference that `solve` agrees with.

    Args:
        problem: `ODE`, `SDE` or `Diffusion`.
        grid: as for `solve`.
        method: as for `solve`.
        save: as for `solve`.
        progress: whether to show a tqdm bar.

    Returns:
        The solution; one round is one model call on the batch.

    Raises:
        PicardError: as `solve`, for problems, grids and methods that are not valid.
        NonFiniteError: if the model returns a non-finite value; carries the solution up to there, whose last saved
            state is repeated, if any was saved.
    """
    check_flags(progress=progress)
    prepared = prepare(problem, grid, method)
    plan, x0 = prepared.plan, prepared.problem.x0
    prepared.problem.agree(
        lambda: {"the method on the grid": plan, "noise": None if prepared.draw is None else prepared.draw([0], [0])}
    )
    with Progress(plan.steps * len(x0), enabled=progress) as bar:
        solution, error = follow(prepared, x0, Trajectory(plan, x0, save), bar)
    if error is not None:
        raise error
    return solution


def follow(
    prepared: Prepared, x0: Tensor, trajectory: Trajectory, bar: Progress, max_rows: int | None = None
) -> tuple[Solution, NonFiniteError | None]:
    """Go from node to node.

    Args:
        prepared: the problem on its grid.
        x0: initial states, shape (batch, *state).
        trajectory: is filled.
        bar: is told the steps done.
        max_rows: rows one model call may hold.

    Returns:
        The solution, and the error to raise if it is not finite.
    """
    started = time.perf_counter()
    plan, tables = prepared.plan, prepared.tables
    batch, samples = len(x0), list(range(len(x0)))
    conditioning = Conditioning(prepared.problem.conditioning(), batch)
    a, b, c = plan.a.tolist(), plan.b.tolist(), plan.c.tolist()
    inputs = [[1.0]] * plan.nodes if plan.inputs is None else plan.inputs.tolist()
    states, values = deque([x0.to(prepared.wide, copy=True)], plan.order), deque[Tensor]([], plan.order)
    sound, everyone = [], torch.arange(batch, device="cpu")
    for node in range(plan.nodes):
        rows = Rows(
            tables.times[node].repeat(batch),  # a copy: models may work on their time in place
            _argument(states, inputs[node]).to(x0.dtype),
            conditioning.of(None, everyone),
            None if tables.scales is None else tables.scales[node].expand(batch, 2),
        )
        value, diffusion = evaluate(prepared.problem, rows, max_rows)
        noise = None if prepared.draw is None else prepared.draw(samples, [node] * batch)
        value = value.to(prepared.wide, copy=plan.order > 1)  # the next call may return the same memory
        if diffusion is not None and noise is not None:
            value = kicked(value, diffusion.to(prepared.wide), tables.kick[node] * noise)
        values.append(value)
        after = a[node][0] * states[-1] + b[node][0] * value
        for p in range(1, min(plan.order, node + 1)):
            after = after + a[node][p] * states[-1 - p] + b[node][p] * values[-1 - p]
        if noise is not None and diffusion is None:
            after = after + c[node] * noise
        states.append(after)
        sound.append(finite(torch.stack([value, after]).to(x0.dtype).flatten(2)).all(2))
        trajectory.keep(node + 1, after)
        bar.show(lambda node=node: prepared.steps_at[node + 1] * batch)  # type: ignore[misc]
    bad = ~torch.stack(sound).cpu()  # (nodes, value or state, batch): one wait for the device, at the end
    failed, reached = bad.any(1), [plan.nodes] * batch
    flags = failed.any(0).tolist()
    for sample in compress(range(batch), flags):
        reached[sample] = int(failed[:, sample].int().argmax())
        trajectory.cut(sample, reached[sample])
    stats = Stats(plan.nodes, plan.nodes * batch, plan.nodes, batch, 1, 1, time.perf_counter() - started)
    solution = Solution(
        prepared.times[trajectory.points],
        trajectory.ys,
        trajectory.final,
        tuple(Status.NON_FINITE if flag else Status.CONVERGED for flag in flags),
        tuple(prepared.steps_at[node] for node in reached),
        torch.zeros(batch, dtype=prepared.wide, device=x0.device),
        stats,
        prepared.problem.noise,
    )
    if not any(flags):
        return solution, None
    node, where, sample = torch.nonzero(bad)[0].tolist()
    return solution, NonFiniteError(
        round_number=node + 1,
        step=int(plan.step[node]),
        time=float(plan.times[node]),
        sample=sample,
        where=("drift", "state")[where],
        solution=solution,
    )


def _argument(states: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return what the field is evaluated at: the newest state, or a weighted sum of the last ones."""
    if len(weights) == 1:
        return states[-1] if weights[0] == 1 else weights[0] * states[-1]
    terms = [weight * state for weight, state in zip(weights, reversed(states), strict=False)]
    return torch.stack(terms).sum(0)
