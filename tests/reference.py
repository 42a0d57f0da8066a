"""The plainest way to run a plan, for tests of the coefficients alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from picard.plan import Plan


def run_plan(plan: Plan, field: Callable[[int, Tensor], Tensor], x: Tensor, xi: Tensor | None = None) -> Tensor:
    """Evaluate the recurrence node by node and return the last state.

    Args:
        plan: the coefficients.
        field: called with the index of the node and its state.
        x: the first state.
        xi: standard normal noise of every step, shape (steps, *x.shape), added where the plan says.
    """
    z, F = [x], []
    for m in range(plan.nodes):
        F.append(field(m, z[m]))
        reach = range(min(plan.order, m + 1))
        new = sum((plan.a[m, p] * z[m - p] + plan.b[m, p] * F[m - p] for p in reach), start=0 * x)
        z.append(new if xi is None else new + plan.c[m] * xi[plan.step[m]])
    return z[-1]
