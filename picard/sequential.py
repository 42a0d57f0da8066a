"""The sequential reference: the same plan, node after node. It shares no code with the parallel loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, Literal

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
from picard.uncompiled import uncompiled

_SMALL = 1 << 14  # numbers of values and states that are looked at together


@uncompiled
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
    prepared: Prepared,
    x0: Tensor,
    trajectory: Trajectory,
    bar: Progress,
    max_rows: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[Solution, NonFiniteError | None]:
    """Go from node to node.

    Args:
        prepared: the problem on its grid.
        x0: initial states, shape (batch, *state).
        trajectory: is filled.
        bar: is told the steps done.
        max_rows: rows one model call may hold.
        given: conditioning in place of the problem's.

    Returns:
        The solution, and the error to raise if it is not finite.
    """
    started = time.perf_counter()
    plan, tables = prepared.plan, prepared.tables
    batch, samples = len(x0), list(range(len(x0)))
    conditioning = Conditioning(prepared.problem.conditioning() if given is None else given, batch)
    cond = conditioning.of(None, torch.arange(batch, device="cpu"))
    times, c = plan.times.to(tables.times.dtype).tolist(), plan.c.tolist()
    # Values and states take turns, newest first; the field is evaluated before its value is there.
    weights = torch.stack([plan.b, plan.a], 2).flatten(1).tolist()
    inputs = [[1.0]] * plan.nodes
    if plan.inputs is not None:
        inputs = torch.stack([plan.inputs, torch.zeros_like(plan.inputs)], 2).flatten(1).tolist()
    past = deque([x0.to(prepared.wide, copy=True)], 2 * plan.order)
    sound, unseen = list[Tensor](), list[Tensor]()
    for node in range(plan.nodes):
        rows = Rows(
            tables.times.new_full((batch,), times[node]),  # a new one: models may work on their time in place
            _sum(inputs[node], past).to(x0.dtype),
            cond,
            None if tables.scales is None else tables.scales[node].expand(batch, 2),
        )
        value, diffusion = evaluate(prepared.problem, rows, max_rows)
        noise = None if prepared.draw is None else prepared.draw(samples, [node] * batch)
        value = value.to(prepared.wide, copy=True)  # the next call may return the same memory
        if diffusion is not None and noise is not None:
            value = kicked(value, diffusion.to(prepared.wide), tables.kick[node] * noise)
        past.appendleft(value)
        after = _sum(weights[node], past)
        if noise is not None and diffusion is None:
            after = after + c[node] * noise
        past.appendleft(after)
        unseen += value, after
        if len(unseen) * x0.numel() >= _SMALL or node + 1 == plan.nodes:  # small states are looked at together
            sound.append(finite(torch.stack(unseen).to(x0.dtype).flatten(2)).all(2))
            unseen.clear()
        trajectory.keep(node + 1, after)
        bar.show(lambda node=node: prepared.steps_at[node + 1] * batch)  # type: ignore[misc]
    # (nodes, value or state, batch): one wait for the device, at the end
    bad = ~torch.cat(sound).unflatten(0, (plan.nodes, 2)).cpu()
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


def _sum(weights: Sequence[float], tensors: Iterable[Tensor]) -> Tensor:
    """Return a weighted sum, without the work for weights of 0 and 1; the first term is always made."""
    terms = zip(weights, tensors, strict=False)
    weight, tensor = next(terms)
    total = tensor if weight == 1 else weight * tensor
    for weight, tensor in terms:
        if weight != 0:
            total = torch.add(total, tensor, alpha=weight)
    return total
