"""The adjoint: the recurrence of the gradient, itself a plan, solved backward in time by the same solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import Conditioning
from picard.engine import Setup
from picard.errors import InvalidGridError, NotSupportedError, describe
from picard.grid import Times
from picard.noise import Noise
from picard.plan import Plan
from picard.prepare import Prepared
from picard.problem import Problem
from picard.rows import Rows, evaluate, kicked
from picard.shapes import Float, Int
from picard.transforms import asking


def adjoint_plan(plan: Plan, saved: Sequence[int]) -> Plan:
    """Write the adjoint recurrence of a plan as a plan, node i of it belonging to node `nodes - 1 - i`.

    With lambda[m] the gradient by the state z[m] and J[j] the field's Jacobian at node j,

        lambda[j] = sum_p a[j+p,p] lambda[j+1+p] + J[j]^T sum_p b[j+p,p] lambda[j+1+p] + direct[j].

    Args:
        plan: the plan solved forward.
        saved: nodes whose states the loss may depend on directly.

    Returns:
        The adjoint plan; its field is `u -> J[j]^T u`, its time the index of the node j.
    """
    nodes, order = plan.nodes, plan.order
    forward = torch.arange(nodes - 1, -1, -1, device="cpu")
    later = forward[:, None] + torch.arange(order, device="cpu")
    exists = later < nodes
    source = later.clamp_max(nodes - 1)
    columns = torch.arange(order, device="cpu").expand(nodes, order)
    a, inputs = (torch.where(exists, table[source, columns], 0) for table in (plan.a, plan.b))
    direct = torch.zeros(nodes + 1, dtype=torch.float64, device="cpu")
    direct[list(saved)] = 1
    b = torch.zeros_like(a)
    b[:, 0] = 1
    return Plan(
        times=forward.double(),
        a=a,
        b=b,
        step=torch.arange(nodes, device="cpu"),
        c=direct[forward],
        factor=plan.factor[forward],
        inputs=inputs,
    )


@dataclass(frozen=True, eq=False)
class FieldAtNodes:
    """The field of a solved problem at its nodes, with gradients.

    Attributes:
        setup: the forward solve.
        noise: noise of every node where it enters through the field, shape (nodes, batch, *noise).
        cond: conditioning, every tensor detached and, where the original does, asking for a gradient.
        known: all tensors beside the state that gradients are taken by; `None` if they are still to be found.
    """

    setup: Setup
    noise: Tensor | None
    cond: Mapping[str, Any]
    known: Sequence[Tensor] | None = None

    def __call__(
        self, node: Int[Tensor, " rows"], sample: Int[Tensor, " rows"], z: Float[Tensor, "rows *state"]
    ) -> Float[Tensor, "rows *state"]:
        """Evaluate the field at some nodes, recording a graph if gradients are enabled.

        Args:
            node: index of every row's node.
            sample: index of every row's sample.
            z: the states there.

        Returns:
            The field there.

        Raises:
            NotSupportedError: if it depends on tensors that are not known, whose gradient would be lost.
        """
        setup, tables = self.setup, self.setup.tables
        conditioning = Conditioning(self.cond, len(setup.problem.x0))
        rows = Rows(
            tables.times[node],
            z,
            conditioning.of(None, sample),
            None if tables.scales is None else tables.scales[node],
        )
        value, diffusion = evaluate(setup.problem.alone, rows, setup.max_rows)
        if diffusion is not None and self.noise is not None:
            noise = self.noise[node, sample]
            value = kicked(value, diffusion, tables.kicks(node, noise).to(value.dtype))
        if self.known is not None and torch.is_grad_enabled():
            self._check(leaves(value), [z, *self.known])
        return value

    @staticmethod
    def _check(found: Sequence[Tensor], known: Sequence[Tensor]) -> None:
        identities = {id(tensor) for tensor in known}
        for leaf in found:
            if id(leaf) not in identities:
                msg = (
                    "the model must depend on the same tensors at every time and sample, as its first row tells them; "
                    f"elsewhere it depends on {describe(leaf)} too, whose gradient would be lost: add 0 * tensor.sum() "
                    "to what the model returns, or hand the tensor over in cond; if the model makes it of its state, "
                    "write x.requires_grad_() without detach"
                )
                raise NotSupportedError(msg)


@dataclass(frozen=True, eq=False)
class AdjointProblem(Problem):
    """The adjoint of a solved problem, to be solved on its adjoint plan.

    Attributes:
        field_at: the field along the forward trajectory.
        states: the trajectory, at nodes and samples.
        x0: gradient of the loss by the last state, shape (batch, *state).
    """

    field_at: FieldAtNodes
    states: Callable[[Tensor, Tensor], Tensor]
    x0: Tensor
    cond: Mapping[str, Any]
    noise: Noise | None = None

    @property
    def linear(self) -> bool:
        """Whether the field is linear in the state: always."""
        return True

    def points(self, grid: Any) -> Times:
        """Refuse: the plan is given."""
        msg = "an adjoint problem has its plan already"
        raise InvalidGridError(msg)

    def time_dtype(self, grid: Any) -> torch.dtype:
        """Return int64: time is the index of a node."""
        return torch.int64

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Multiply the transposed Jacobian of every row's node by the row."""
        with torch.enable_grad():
            sample = rows.cond.tensors()["sample"]
            z = asking(self.states(rows.t, sample))
            value = self.field_at(rows.t, sample, z)
            if not value.requires_grad:
                return torch.zeros_like(rows.x), None
            (product,) = torch.autograd.grad(value, z, rows.x.to(value.dtype), allow_unused=True)
        return torch.zeros_like(rows.x) if product is None else product.to(rows.x.dtype), None


def leaves(value: Tensor) -> list[Tensor]:
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


@contextmanager
def unhooked(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Keep tensors' hooks from parts of their gradients: they are run on the sum, by the graph outside."""
    hooks = [one._backward_hooks for one in tensors if one._backward_hooks]
    held = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, own in zip(hooks, held, strict=True):
            each.update(own)


def draw_everything(prepared: Prepared, batch: int) -> Tensor | None:
    """Draw the noise of all nodes and samples again, shape (nodes, batch, *noise)."""
    if prepared.draw is None:
        return None
    nodes = prepared.plan.nodes
    samples = list(range(batch)) * nodes
    drawn = prepared.draw(samples, [node for node in range(nodes) for _ in range(batch)])
    return drawn.unflatten(0, (nodes, batch))
