"""DPM-Solver and DPM-Solver++, exponential integrators in half log-SNR (Lu et al., 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, check_choice, describe
from picard.grid import Levels, Times
from picard.number import check_flags, whole
from picard.plan import Plan

from .transition import diffusion_plan, require_levels, transition

Algorithm = Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver++"]
Variant = Literal["multistep", "singlestep"]
SolverType = Literal["midpoint", "heun"]

_FEW = 15  # `lower_order_final` of the multistep variant applies below this number of steps


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver and DPM-Solver++ of order 1, 2 or 3: one evaluation a step, whatever the order.

    A step is the first-order transition plus weights times differences of the model's values, which the method takes as
    a polynomial in `lambda = log(alpha / sigma)`: the noise prediction for `dpmsolver` (Lu et al., 2022, "DPM-Solver",
    eq. 3.4 and algorithms 1 and 2), the data prediction for `dpmsolver++` (Lu et al., 2022, "DPM-Solver++", proposition
    4.1 and algorithms 1 and 2) and `sde-dpmsolver++` (ibid., on solvers for diffusion SDEs). The coefficients are those
    of `DPMSolverMultistepScheduler` and `DPMSolverSinglestepScheduler` in Diffusers, with these consequences:

    * the multistep variant at order 3 takes half of the second difference that a quadratic calls for, and its second
      step, of order 2, follows one of order 1: its error decreases with order 2;
    * `sde-dpmsolver++` at order 3 weighs the second difference by a factor that does not vanish with the step size:
      prefer order 2.

    Args:
        order: highest order of a step. At order 1, `dpmsolver` and `dpmsolver++` equal `DDIM()`, and
            `sde-dpmsolver++` equals `DDPM()`.
        algorithm: which prediction is a polynomial, and whether noise is added.
        variant: `multistep` uses the values of the last steps; `singlestep` takes blocks of `order` steps, of order 1,
            2, ..., each from the start of its block.
        solver_type: how differences are weighed in second-order steps and third-order singlestep ones: `midpoint`
            or `heun`, which integrates the polynomial exactly.
        lower_order_final: end with lower orders, which is stabler with few steps: `multistep` takes second and first
            order below 15 steps; `singlestep` makes the last step of a full last block first-order.
        euler_at_final: make the last step first-order. A last step to clean data (sigma = 0) always is, and so is a
            first one from pure noise (alpha = 0), since lambda is infinite there.

    Raises:
        InvalidProblemError: if an option is unknown.
        NotSupportedError: by `plan`, for a grid of times.
    """

    order: int = 2
    algorithm: Algorithm = "dpmsolver++"
    variant: Variant = "multistep"
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        order = whole(self.order)
        if order not in (1, 2, 3):
            msg = f"order must be 1, 2 or 3; given {describe(self.order)}: write DPMSolver(order=2)"
            raise InvalidProblemError(msg)
        object.__setattr__(self, "order", order)
        for name, kinds in (("algorithm", Algorithm), ("variant", Variant), ("solver_type", SolverType)):
            check_choice(name, getattr(self, name), get_args(kinds))
        check_flags(lower_order_final=self.lower_order_final, euler_at_final=self.euler_at_final)

    def plan(self, points: Times | Levels) -> Plan:
        """Write the method on these points as a plan."""
        levels = require_levels(points, "DPMSolver")
        orders = self._orders(levels)
        node = torch.arange(levels.steps)
        lag = torch.tensor(orders) - 1 if self.variant == "singlestep" else torch.zeros_like(node)
        state, data, std = transition(levels, 1.0 if self.algorithm == "sde-dpmsolver++" else 0.0, node - lag)

        # Values at level m - p; rows reach before level 0 only where their weights are zero.
        past = (node[:, None] - torch.arange(self.order)).clamp_min(0)
        weights = self._difference_weights(levels, orders)
        a, b = torch.zeros_like(weights), weights
        if self.algorithm == "dpmsolver":  # differences of eps = (x - alpha D) / sigma
            a, b = weights / levels.sigma[past], -weights * levels.alpha[past] / levels.sigma[past]
        base = torch.nn.functional.one_hot(lag, self.order)
        factor = torch.stack([state, data], 1)
        return diffusion_plan(levels, a + base * state[:, None], b + base * data[:, None], std, factor=factor)

    def _orders(self, levels: Levels) -> list[int]:
        """Choose the order of every step; a singlestep step starts `order - 1` levels back."""
        steps, infinite = levels.steps, int(levels.alpha[0] == 0)  # values at an infinite lambda are no use later
        clean = bool(levels.sigma[-1] == 0)
        if self.variant == "multistep":
            orders = [min(self.order, max(1, m + 1 - infinite)) for m in range(steps)]
            lower = self.lower_order_final and steps < _FEW
            if lower and steps > 1:
                orders[-2] = min(orders[-2], 2)
        else:
            orders = [1] * infinite + [1 + m % self.order for m in range(steps - infinite)]
            lower = self.lower_order_final and orders[-1] == self.order
        if clean or lower or self.euler_at_final:
            orders[-1] = 1
        return orders

    def _difference_weights(self, levels: Levels, orders: list[int]) -> Tensor:
        """Weigh the model's last values beyond first order, newest first, shape (steps, order); rows sum to zero.

        With x the distance in lambda from the base of the step over its length h, the chords `g = (m - m_base) / x` of
        the other values give the coefficients of the polynomial.
        """
        lam = levels.log_snr.tolist()
        scale = (levels.sigma if self.algorithm == "dpmsolver" else levels.alpha).tolist()
        rows = []
        for m, order in enumerate(orders):
            base = order - 1 if self.variant == "singlestep" else 0
            others = [p for p in range(order) if p != base]
            row = [0.0] * self.order
            h = lam[m + 1] - lam[m - base]
            if others and h != 0:  # no length: the last level may repeat
                x = [(lam[m - p] - lam[m - base]) / h for p in others]
                for p, chord, distance in zip(others, self._chord_weights(x, h, scale[m + 1]), x, strict=True):
                    row[p] = chord / distance
                    row[base] -= chord / distance
            rows.append(row)
        return torch.tensor(rows, dtype=torch.float64)

    def _chord_weights(self, x: list[float], h: float, scale: float) -> list[float]:
        """Weigh the chords to the other values, at distances `x` from the base in units of the step's length h."""
        u = {"dpmsolver": h, "dpmsolver++": -h, "sde-dpmsolver++": -2 * h}[self.algorithm]
        mean = math.expm1(u) / u  # of the exponential over the step
        e1, e2, e3 = -scale * math.expm1(u), -scale * (mean - 1), -scale * ((mean - 1) / u - 0.5)
        if self.algorithm == "sde-dpmsolver++":
            e3 = -scale * ((mean - 1) / u + 0.5)  # the sign is that of Diffusers; 0.5 would have to be subtracted
        if len(x) == 1:
            return [e1 / 2 if self.solver_type == "midpoint" else e2]
        if self.variant == "multistep":
            curve = e3  # half of what the second derivative of the quadratic calls for, as in Diffusers
        elif self.solver_type == "heun":
            curve = 2 * e3
        else:
            return [e2, 0.0]  # the newest chord alone
        near, far = x
        return [(curve - e2 * far) / (near - far), (e2 * near - curve) / (near - far)]
