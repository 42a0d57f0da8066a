"""The plan: an integrator on a grid, written as one affine recurrence over nodes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from picard.device import check_data
from picard.errors import InvalidProblemError, describe
from picard.grid import Levels, Times


@dataclass(frozen=True, eq=False)
class Plan:
    """Coefficients of `z[m+1] = sum_p a[m,p] z[m-p] + sum_p b[m,p] F[m-p] + c[m] xi[m]`, `F[j]` the field at node j.

    A node is one model evaluation; the last state, `z[nodes]`, is the result. Everything is float64 on the CPU:
    a plan holds numbers only, no state and no model. Entries that would reach before node 0 must be zero.

    Attributes:
        times: time given to the model at every node, shape (nodes,).
        a: weights of the last K states, newest first, shape (nodes, K).
        b: weights of the last K field values, newest first, shape (nodes, K).
        c: scale of the step's standard normal noise where it enters the state, shape (nodes,).
        step: index of the grid step every node belongs to, ascending, shape (nodes,), int64.
        factor: pairs (u, w) such that u + w g is the derivative of a whole step if the field's derivative is g;
            linearizations bound it. Shape (nodes, 2); by default the pair (a[:, 0], b[:, 0]).
        kick: factor that turns the step's standard normal noise into the Brownian increment over the step size,
            for noise that enters through the field, shape (nodes,).
        yardstick: standard deviation of the noise of the step in its stochastic form, shape (nodes,), against which
            `NoiseRatio` measures changes; `None` where there is no such scale.
        scales: signal and noise scale (alpha, sigma) at every node, shape (nodes, 2), as a denoiser needs them;
            `None` for plans over times.
        inputs: weights of the last K states, newest first, whose sum the field is evaluated at instead of the newest
            state alone, shape (nodes, K); only with `b` zero past its first column. Adjoint plans need it.
    """

    times: Tensor
    a: Tensor
    b: Tensor
    step: Tensor
    c: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    factor: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    kick: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    yardstick: Tensor | None = None
    scales: Tensor | None = None
    inputs: Tensor | None = None

    def __post_init__(self) -> None:
        """Fill the defaults and check the shapes."""
        self._check_types()
        if self.a.ndim != 2 or self.a.numel() == 0:
            msg = f"Plan.a must have shape (nodes, K); given {describe(self.a)}: write a[:, None] for K = 1"
            raise InvalidProblemError(msg)
        if self.b.shape != self.a.shape:
            msg = f"Plan.b must have shape {tuple(self.a.shape)} to fit `a`; given {describe(self.b)}"
            raise InvalidProblemError(msg)
        nodes, order = self.a.shape
        defaults = {
            "c": torch.zeros(nodes, dtype=torch.float64, device="cpu"),
            "factor": torch.stack([self.a[:, 0], self.b[:, 0]], 1),
            "kick": torch.zeros(nodes, dtype=torch.float64, device="cpu"),
        }
        for name, value in defaults.items():
            if getattr(self, name).numel() == 0:
                object.__setattr__(self, name, value)
        table, pairs, each = (nodes, order), (nodes, 2), (nodes,)
        shapes = {"times": each, "a": table, "b": table, "c": each, "factor": pairs, "kick": each}
        shapes |= {"yardstick": each, "scales": pairs, "inputs": table}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and (tuple(value.shape) != shape or value.dtype != torch.float64):
                msg = f"Plan.{name} must have shape {shape} and dtype float64 to fit `a`; given {describe(value)}"
                raise InvalidProblemError(msg)
        fits = tuple(self.step.shape) == each and self.step.dtype == torch.int64
        counted = torch.unique_consecutive(self.step) if fits else self.step
        if not fits or not torch.equal(counted, torch.arange(len(counted), device="cpu")):
            msg = (
                f"Plan.step must have shape {each} and dtype int64, and count from 0 without a gap; given "
                f"{describe(self.step)}: write torch.arange({nodes}) for one node a step"
            )
            raise InvalidProblemError(msg)
        for name in ("a", "b", "c", "factor"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                msg = f"Plan.{name} must be finite; this method has no finite coefficients on this grid or schedule"
                raise InvalidProblemError(msg)
        if self.inputs is not None and bool((self.b[:, 1:] != 0).any()):
            msg = "a plan with `inputs` must use the newest field value only: set b[:, 1:] to zero"
            raise InvalidProblemError(msg)
        early = self.a.new_ones(order, order).triu(1)[:nodes] > 0
        if order > 1 and bool(((self.a != 0) | (self.b != 0))[:order][early].any()):
            msg = "a plan must not reach before node 0: set a[m, p] and b[m, p] to zero for p > m"
            raise InvalidProblemError(msg)

    def _check_types(self) -> None:
        for one in fields(self):
            given = getattr(self, one.name)
            if not isinstance(given, Tensor) and (given is not None or one.default is not None):
                msg = f"Plan.{one.name} must be a tensor; given {describe(given)}: write torch.as_tensor(...).double()"
                raise InvalidProblemError(msg)
            if given is not None:
                check_data(f"Plan.{one.name}", given)

    @property
    def nodes(self) -> int:
        """Number of nodes, which is the number of model evaluations of the sequential solver."""
        return self.a.shape[0]

    @property
    def order(self) -> int:
        """Number K of past states and field values a node may use."""
        return self.a.shape[1]

    @property
    def steps(self) -> int:
        """Number of grid steps."""
        return int(self.step[-1]) + 1

    @property
    def stages(self) -> int:
        """Number of nodes of the first step."""
        return int((self.step == 0).sum())

    @cached_property
    def grid_nodes(self) -> Tensor:
        """Index of the state at every grid point, the first node of every step and then `nodes`; shape (steps + 1,)."""
        return torch.searchsorted(self.step, torch.arange(self.steps + 1, device="cpu"))


@runtime_checkable
class Integrator(Protocol):
    """A maker of plans: a small frozen object that holds a method's options and knows its coefficients."""

    def plan(self, points: Times | Levels) -> Plan:
        """Write the method on these points as a plan.

        Args:
            points: `Times` for ODEs and SDEs, `Levels` for diffusion models.

        Returns:
            The plan.

        Raises:
            NotSupportedError: if the method does not exist for this kind of points.
        """
        ...
