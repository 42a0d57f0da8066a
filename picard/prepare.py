"""Preparation: a problem, a grid and a method become a plan on the state's device. Shared by both solvers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picard.device import on_host, send
from picard.doors import check_constant
from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.grid import Levels
from picard.number import whole
from picard.plan import Integrator, Plan
from picard.problem import Problem
from picard.registry import resolve
from picard.ring import Draw
from picard.sde import SDE
from picard.shapes import Float
from picard.tables import Tables


@dataclass(frozen=True, eq=False)
class Prepared:
    """A problem on a grid by a method.

    Attributes:
        problem: the problem, deterministic: the noise of an SDE is absorbed.
        plan: the method on the grid.
        tables: the plan on the state's device.
        wide: dtype of the computation: the state's, or float32 for half precision.
        times: times of the grid points, shape (steps + 1,).
        draw: the noise by (sample, node), if the plan or the field uses any.
        steps_at: number of whole steps done when a given number of nodes is.
    """

    problem: Problem
    plan: Plan
    tables: Tables
    wide: torch.dtype
    times: Float[Tensor, " points"]
    draw: Draw | None
    steps_at: Sequence[int]


def prepare(problem: Problem | SDE, grid: int | Tensor, method: str | Integrator) -> Prepared:
    """Check a problem, a grid and a method, and write them as a plan.

    Raises:
        PicardError: if one of them is not valid; see `solve`.
    """
    if isinstance(grid, Tensor):
        check_constant("grid", grid)
    count = whole(grid)
    grid = grid if count is None else count
    if isinstance(problem, SDE):
        problem = problem.absorb(grid)  # type: ignore[arg-type]  # absorb says what is wrong with an integer
    if not isinstance(problem, Problem):
        msg = f"the problem must be an ODE, an SDE or a Diffusion; given {describe(problem)}"
        raise InvalidProblemError(msg)
    points = problem.points(grid)
    with on_host():
        plan: object = resolve(method).plan(points)
    if not isinstance(plan, Plan):
        msg = f"an integrator's `plan` must return a picard.Plan; it returned {describe(plan)}"
        raise InvalidProblemError(msg)
    if problem.noise_in_field and not bool((plan.kick != 0).all()):
        msg = (
            "an SDE's noise enters through the field, scaled by the plan's `kick`, which this method leaves at zero: "
            "write kick=h.abs().sqrt() / h in its plan, or use method='euler'"
        )
        raise NotSupportedError(msg)
    x0 = problem.x0
    wide = torch.promote_types(x0.dtype, torch.float32)
    tables = Tables.of(plan, x0.new_empty(0, dtype=wide), problem.time_dtype(grid))
    if isinstance(points, Levels):
        times = torch.cat([points.timesteps, torch.zeros(1, dtype=torch.float64, device="cpu")])
    else:
        times = grid if isinstance(grid, Tensor) else points.values
    if plan.steps != (steps := len(times) - 1):
        msg = (
            f"a plan must have the steps of the points it is made for, {steps}; its Plan.step counts {plan.steps}: "
            f"write torch.arange({steps}), every one repeated for the nodes of its step"
        )
        raise InvalidProblemError(msg)
    needed = problem.noise_in_field or bool((plan.c != 0).any())
    done = torch.zeros(plan.nodes + 1, dtype=torch.int64, device="cpu")
    done[plan.grid_nodes[1:]] = 1
    return Prepared(
        problem, plan, tables, wide, times, _drawer(problem, plan, wide) if needed else None, done.cumsum(0).tolist()
    )


def _drawer(problem: Problem, plan: Plan, wide: torch.dtype) -> Draw:
    """Bind the realization to the plan: noise by node, on the state's device."""
    noise, shape = problem.noise, problem.noise_shape
    if noise is None:
        msg = "this method adds noise, and the problem has none: give the problem noise=Noise.from_seed(0)"
        raise InvalidProblemError(msg)
    noise.check(len(problem.x0), plan.steps, shape)
    steps = plan.step.tolist()

    def draw(samples: Sequence[int], nodes: Sequence[int]) -> Tensor:
        drawn = noise.draw(samples, [steps[node] for node in nodes], shape)
        return send(drawn.to(wide), problem.x0)

    return draw
