"""Gradients through a solve: the implicit derivative of the converged recurrence, parallel in time both ways."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from picard.adjoint import AdjointProblem, FieldAtNodes, adjoint_plan, asking, draw_everything
from picard.engine import Setup
from picard.extrapolate import Extrapolate
from picard.hold import Hold
from picard.prepare import Prepared
from picard.progress import Progress
from picard.rows import Conditioning, map_tensors
from picard.run import Run
from picard.shapes import Float
from picard.solution import Solution
from picard.tolerance import NoiseRatio, RelAbs, Tolerance
from picard.trajectory import Trajectory, check_save
from picard.window import Guess, Tables

logger = logging.getLogger("picard")
Solve = Callable[[Tensor, Trajectory], Solution]


@dataclass(frozen=True, eq=False)
class Differentiation:
    """What a field is differentiated by.

    Attributes:
        inputs: tensors that ask for a gradient: those of the conditioning, then leaves the model captured.
        stand_ins: what the field is evaluated with: detached copies of the former, the latter themselves.
        cond: the conditioning made of these.
    """

    inputs: list[Tensor]
    stand_ins: list[Tensor]
    cond: Any


def differentiation(setup: Setup, prepared: Prepared) -> Differentiation:
    """Find the tensors a field depends on that ask for a gradient.

    The field is evaluated once more, on one row, and its graph is walked: so parameters are found wherever the model
    keeps them.
    """
    inputs: list[Tensor] = []
    copies: list[Tensor] = []

    def detached(value: Tensor) -> Tensor:
        copy = value.detach()
        if value.requires_grad:
            inputs.append(value)
            copies.append(asking(copy))
        return copy

    cond = map_tensors(prepared.problem.conditioning(), detached)
    x0 = prepared.problem.x0.detach()
    noise = None if prepared.draw is None else prepared.draw([0], [0])[None]
    at_start = FieldAtNodes(setup, x0[None], noise, cond)
    zero = torch.zeros(1, dtype=torch.int64, device=x0.device)
    with torch.enable_grad():
        _, value = at_start(zero, zero, by_state=False)
    captured = [leaf for leaf in _leaves(value) if not any(leaf is copy for copy in copies)]
    return Differentiation([*inputs, *captured], [*copies, *captured], cond)


def solve_with_gradient(setup: Setup, prepared: Prepared, save: Any, by: Differentiation, run: Solve) -> Solution:
    """Solve, and give the states a graph that leads to the initial state and the inputs.

    Args:
        setup: the solve.
        prepared: the problem on its grid.
        save: as for `solve`.
        by: what to differentiate by.
        run: solves forward from an initial state and fills a trajectory.

    Returns:
        The solution, whose `ys` and `final` require gradients.
    """
    task = _Task(setup, prepared, save, by, run, [])
    apply: Any = _Implicit.apply
    ys, final, _ = apply(task, prepared.problem.x0, *by.inputs)
    return replace(task.solutions[0], ys=ys, final=final)


@dataclass(frozen=True, eq=False)
class _Task:
    """What the autograd function needs besides tensors; the forward pass appends its solution."""

    setup: Setup
    prepared: Prepared
    save: Any
    by: Differentiation
    run: Solve
    solutions: list[Solution]


class _Implicit(torch.autograd.Function):
    """Forward: the parallel solve. Backward: the adjoint solve, then the gradients of all nodes, a window a call."""

    @staticmethod
    def forward(task: _Task, x0: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solve and keep the state at every node."""
        trajectory = Trajectory(task.prepared.plan, x0, task.save, every_node=True)
        task.solutions.append(task.run(x0, trajectory))
        return trajectory.ys.clone(), trajectory.final.clone(), trajectory.states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the trajectory for the backward pass."""
        ctx.task, ctx.wants_inputs = inputs[0], len(inputs) > 2
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[2])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # as torch documents it
        ctx: Any, by_ys: Tensor, by_final: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Solve the adjoint recurrence backward in time."""
        task: _Task = ctx.task
        (states,) = ctx.saved_tensors
        batch, plan = states.shape[1], task.prepared.plan
        noise = draw_everything(task.prepared, batch) if task.prepared.problem.noise_in_field else None
        field_at = FieldAtNodes(task.setup, states, noise, task.by.cond)
        points = check_save(task.save, plan.steps)
        direct = {node: by_ys[slot] for slot, node in enumerate(plan.grid_nodes[points].tolist())}
        start = (by_final + direct.pop(plan.nodes, 0)).to(task.prepared.wide)
        costates = _solve_adjoint(task, field_at, start, direct)
        found = _by_inputs(task, field_at, costates) if ctx.wants_inputs else []
        return (None, costates[-1].to(states.dtype), *found)


def _solve_adjoint(
    task: _Task, field_at: FieldAtNodes, start: Float[Tensor, "batch *state"], direct: Mapping[int, Tensor]
) -> Float[Tensor, "points batch *state"]:
    """Return the gradient by the state of every node, last node first.

    Args:
        task: the forward solve.
        field_at: its field.
        start: gradient by the last state.
        direct: gradient by the saved states before it, by node.
    """
    forward, batch = task.setup, len(start)
    plan = adjoint_plan(forward.plan, list(direct))
    tables = Tables.of(plan, start, torch.int64)
    sample = {"sample": torch.arange(batch, device=start.device)}
    problem = forward.problem.like(AdjointProblem(field_at, start, sample))
    setup = replace(
        forward,
        problem=problem,
        plan=plan,
        tables=tables,
        conditioning=Conditioning(sample, batch),
        tolerance=_adjoint_tolerance(forward.tolerance),
        guess=_backward(forward.guess, tables, tuple(start.shape[1:])),
        certifier=None,
    )

    def draw(samples: Sequence[int], nodes: Sequence[int]) -> Tensor:
        found = ((direct.get(plan.nodes - 1 - node), sample) for sample, node in zip(samples, nodes, strict=True))
        return torch.stack([nothing if one is None else one[sample].to(start.dtype) for one, sample in found])

    nothing = torch.zeros_like(start[0])
    nodes = list(range(plan.nodes + 1))
    drawn = draw if direct else None
    prepared = Prepared(problem, plan, tables, start.dtype, torch.tensor(nodes).double(), drawn, nodes)
    trajectory = Trajectory(plan, start, "all")
    with Progress(0, enabled=False) as bar:
        solution = Run(setup, prepared, start, trajectory, None, None).finish(bar, throw=True)
    logger.info("backward: %r", solution)
    return trajectory.states


def _by_inputs(
    task: _Task, field_at: FieldAtNodes, costates: Float[Tensor, "points batch *state"]
) -> list[Tensor | None]:
    """Sum the gradients of all nodes by the inputs; no node waits for another, so a window of them makes one call."""
    plan, device, batch = task.setup.plan, costates.device, costates.shape[1]
    weights = task.setup.tables.b
    total: list[Tensor | None] = [None] * len(task.by.inputs)
    for first in range(0, plan.nodes, task.setup.window):
        node = torch.arange(first, min(first + task.setup.window, plan.nodes), device=device)
        vector = torch.zeros_like(costates[: len(node)])
        for p in range(plan.order):
            inside = node + p < plan.nodes
            later = (node + p).clamp_max(plan.nodes - 1)
            weight = torch.where(inside, weights[later, p], 0)
            vector += weight.reshape(-1, *[1] * (vector.ndim - 1)) * costates[plan.nodes - 1 - later]
        rows, samples = node.repeat_interleave(batch), torch.arange(batch, device=device).repeat(len(node))
        with torch.enable_grad():
            _, value = field_at(rows, samples, by_state=False)
        if not value.requires_grad:
            continue
        part = torch.autograd.grad(
            value, task.by.stand_ins, vector.flatten(0, 1).to(value.dtype), allow_unused=True, retain_graph=True
        )
        for i, new in enumerate(part):
            if new is not None:
                old = total[i]
                total[i] = new if old is None else old + new
    return total


def _backward(forward: Guess, tables: Tables, state: tuple[int, ...]) -> Guess:
    """Extrapolate backward in time if the forward solve does so forward; hold otherwise."""
    if isinstance(forward, Extrapolate):
        return replace(forward, tables=tables, clock=forward.clock.flip(0))
    return Hold(tables, state)


def _adjoint_tolerance(forward: Tolerance) -> RelAbs:
    """Ask of the gradient, whose scale is the loss's, the relative accuracy asked of the states."""
    if isinstance(forward, RelAbs):
        return RelAbs(max(forward.rtol, forward.atol), 0.0)
    if isinstance(forward, NoiseRatio):
        return RelAbs(1e-2 * forward.tau, 0.0)
    return RelAbs(1e-4, 0.0)


def _leaves(value: Tensor) -> list[Tensor]:
    """Walk a graph back to the leaves that ask for a gradient."""
    if value.grad_fn is None:
        return [value] if value.requires_grad else []
    leaves, seen, todo = [], set(), [value.grad_fn]
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        if hasattr(function, "variable"):
            leaves.append(getattr(function, "variable"))  # noqa: B009  # only leaves have it, which torch does not declare
        todo.extend(after for after, _ in function.next_functions if after is not None)
    return leaves
