"""Gradients through a solve: the implicit derivative of the converged recurrence, parallel in time both ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from picard.adjoint import FieldAtNodes, draw_everything, leaves, unhooked
from picard.backward import solve_backward
from picard.conditioning import map_tensors, versions
from picard.device import mixed_as_now
from picard.engine import Setup
from picard.errors import InvalidProblemError
from picard.higher import AsItWas, Gradient, Leaves, Many, Sequentially, differentiable
from picard.prepare import Prepared
from picard.recall import Recall, recallable
from picard.solution import Solution
from picard.trajectory import Trajectory, check_save
from picard.transforms import asking, check_single, check_tracked, forwards, many_at_once, transforms, unwrapped

Solve = Callable[[Tensor, Trajectory], Solution]
_CHANGED = (0.005, 0.05)  # far above the rounding of TF32 and of half precision


@dataclass(frozen=True, eq=False)
class Differentiation:
    """What a field is differentiated by.

    Attributes:
        inputs: tensors that ask for a gradient: those of the conditioning, then leaves the model captured.
        stand_ins: what the field is evaluated with: detached copies of the former, the latter themselves.
        cond: the conditioning made of these.
        start: the field at the first node of the first sample, by which a changed model is noticed.
        outside: leaves that only transforms of `torch.func` around the innermost one track, or none.
        changes: how often every tensor of the conditioning had been changed in place.
    """

    inputs: list[Tensor]
    stand_ins: list[Tensor]
    cond: Any
    start: Tensor
    outside: list[Tensor]
    changes: tuple[int, ...]

    def check_cond(self) -> None:
        """Check that the conditioning is what it was.

        Raises:
            InvalidProblemError: if it was changed in place.
        """
        if versions(self.cond) != self.changes:
            msg = (
                "conditioning must not be changed in place between a solve and its gradient, which calls the model "
                "again: call backward() before, or give the problem a copy, cond={...: tensor.clone()}"
            )
            raise InvalidProblemError(msg)


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
    # The state asks for no gradient here, for a model may be none of PyTorch.
    start = prepared.problem.x0.detach()[:1].clone()  # the model may work in place, or make it ask
    noise = None if prepared.draw is None else prepared.draw([0], [0])[None]
    with torch.enable_grad():
        value = _at_start(FieldAtNodes(setup, noise, cond), start)
    own = [start, *copies]
    captured = [leaf for leaf in leaves(value) if not any(leaf is one or leaf._base is one for one in own)]
    outside = [leaf for outer in unwrapped(value) for leaf in leaves(outer)]
    everything, stand_ins = [*inputs, *captured], [*copies, *captured]
    return Differentiation(everything, stand_ins, cond, value.detach().clone(), outside, versions(cond))


def _at_start(field_at: FieldAtNodes, x: Tensor) -> Tensor:
    """Evaluate the field at the first node of the first sample, whose state is of shape (1, *state)."""
    zero = torch.zeros(1, dtype=torch.int64, device=x.device)
    return field_at(zero, zero, x)


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
    plan, x0 = prepared.plan, prepared.problem.x0
    start = x0.detach()
    trajectory = Trajectory(plan, start, save, keep="grid" if recallable(plan) else "nodes")
    solution = run(start, trajectory)  # in `forward`, torch.func could not lift a model that captures tensors
    task = _Task(setup, prepared, save, by, trajectory.slots, mixed_as_now(x0.device), transforms())
    apply: Any = _Implicit.apply
    ys, final = apply(task, trajectory.states, x0, *by.inputs)
    return replace(solution, ys=ys, final=final)


@dataclass(frozen=True, eq=False)
class _Task:
    """What the autograd function needs besides tensors.

    Attributes:
        slots: where among the states kept those asked for are.
        mixed: sets autocast to what it was in the solve: the model must be the same.
        transforms: transforms of `torch.func` that it ran in.
    """

    setup: Setup
    prepared: Prepared
    save: Any
    by: Differentiation
    slots: list[int]
    mixed: Callable[[], AbstractContextManager[Any]]
    transforms: int


class _Implicit(torch.autograd.Function):
    """Forward: states asked for. Backward: the adjoint solve, then the gradients of all nodes, a window a call."""

    @staticmethod
    def forward(task: _Task, states: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Copy the states asked for."""
        return states[task.slots], states[-1].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        """Keep the trajectory for the backward pass, and be told of inputs that change in place before it."""
        task, states, _, *inputs_by = inputs
        ctx.task, ctx.wants_inputs = task, len(inputs_by) > 0
        ctx.set_materialize_grads(False)  # or zeros as large as all that is kept
        ctx.save_for_backward(states, *inputs_by)

    @staticmethod
    def vmap(*_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse to be lifted."""
        raise many_at_once()

    @staticmethod
    def jvp(*_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse to be differentiated forwards."""
        raise forwards()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # as torch documents it
        ctx: Any, by_ys: Tensor | None, by_final: Tensor | None
    ) -> Many:
        """Solve the adjoint recurrence backward in time."""
        task: _Task = ctx.task
        check_single(by_ys, by_final)
        kept, *_ = ctx.saved_tensors
        with task.mixed(), torch.no_grad():
            found = _gradient(task, kept, by_ys, by_final, wants_inputs=ctx.wants_inputs)
        if torch.is_grad_enabled():
            found = _differentiable(task, found, kept[0], by_ys, by_final)
        return (None, None, *found)


def _gradient(task: _Task, kept: Tensor, by_ys: Tensor | None, by_final: Tensor | None, *, wants_inputs: bool) -> Many:
    """Solve the adjoint recurrence; return the gradients by the initial state and by all inputs."""
    prepared, plan = task.prepared, task.prepared.plan
    noise = draw_everything(prepared, kept.shape[1]) if prepared.problem.noise_in_field else None
    check_tracked(task.by.stand_ins)
    # Outside of a transform it ran in, tensors that it did not track are tracked again; none of them is asked for.
    known = task.by.stand_ins if transforms() == task.transforms else None
    field_at = FieldAtNodes(task.setup, noise, task.by.cond, known)
    task.by.check_cond()
    _check_unchanged(field_at, kept[0][:1], task.by.start)
    points = check_save(task.save, plan.steps)
    nodes = plan.grid_nodes[points].tolist()
    direct = {} if by_ys is None else {node: by_ys[slot] for slot, node in enumerate(nodes)}
    last = [one for one in (by_final, direct.pop(plan.nodes, None)) if one is not None]
    start = sum(last, torch.zeros_like(kept[0])).to(prepared.wide)
    wanted = task.by.stand_ins if wants_inputs else []
    with unhooked(wanted):
        by_start, by_inputs = solve_backward(field_at, Recall(field_at, kept), start, direct, wanted)
    return (by_start.to(kept.dtype), *by_inputs)


def _differentiable(task: _Task, found: Many, start: Tensor, by_ys: Tensor | None, by_final: Tensor | None) -> Many:
    """Let the gradients found be differentiated; `start` is the initial state as it was."""
    by = task.by
    states = Sequentially(task.prepared, task.save, task.setup.max_rows, by.cond, task.mixed)
    leaves = Leaves(by.stand_ins, task.transforms, len(by.outside), by.check_cond)
    as_it_was: Any = AsItWas.apply
    given = (as_it_was(task.prepared.problem.x0, start), by_ys, by_final)
    return differentiable(Gradient(states, 1, leaves), found, given, [*by.inputs, *by.outside])


def _check_unchanged(field_at: FieldAtNodes, x: Tensor, before: Tensor) -> None:
    """Check that the field at the first node is what it was when the problem was solved.

    Raises:
        InvalidProblemError: if it is not, for the backward pass calls the model again.
    """
    with torch.no_grad():
        now = _at_start(field_at, x.clone())
    half = now.dtype in (torch.float16, torch.bfloat16)
    largest = before.abs().amax()
    if bool((now - before).abs().amax() > _CHANGED[half] * largest):
        msg = (
            "the model must be the same in the backward pass, which calls it again; its value at the start is another: "
            "call backward() before what it reads is changed, or give that to the problem as cond={...}"
        )
        raise InvalidProblemError(msg)
