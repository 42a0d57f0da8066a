"""Explicit Runge-Kutta methods: a new one is a class with a Butcher tableau."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.grid import Levels, Times
from picard.number import check_count, number
from picard.plan import Plan

from .karras import euler_plan, heun_plan


@dataclass(frozen=True)
class Tableau:
    """The Butcher tableau of an explicit Runge-Kutta method.

    Attributes:
        A: for every stage, the weights of the stages before it: no entry for the first, one for the second, and so on.
        b: the weight of every stage in the step.
        c: the time of every stage, as a share of the step.
        error: weights of an estimate of the step's error, `b` less those of a method of lower order: one a stage, and
            one more if the field at the end of the step is part of it. `None` if there is none.
        order: power of the step size with which that estimate falls, usually the order of the method.

    Raises:
        InvalidProblemError: if the lengths do not fit, `b` does not sum to 1, a row of `A` not to its `c`, or `error`
            not to 0, or if `error` comes without `order`.
    """

    A: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...] | None = None
    order: int | None = None

    def __post_init__(self) -> None:
        """Check that the method is explicit and consistent."""
        sequences = all(isinstance(part, (tuple, list)) for part in (self.A, self.b, self.c))
        if not sequences or not all(isinstance(row, (tuple, list)) for row in self.A):
            msg = f"a tableau must be made of tuples of numbers; given {describe(self)}"
            raise InvalidProblemError(msg)
        error = () if self.error is None else self.error
        if not isinstance(error, (tuple, list)):
            msg = f"the error of a tableau must be a tuple of numbers, or None; given {describe(error)}"
            raise InvalidProblemError(msg)
        for name, row in (("b", self.b), ("c", self.c), ("error", error), *(("A", row) for row in self.A)):
            for entry in row:
                number(f"an entry of {name}", entry)
        if not len(self.A) == len(self.b) == len(self.c) > 0 or any(len(row) != j for j, row in enumerate(self.A)):
            msg = (
                "a tableau must have one row of A, one b and one c a stage, and the row of stage j (from 0) j entries; "
                f"given {describe(self)}: write e.g. Tableau(A=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5))"
            )
            raise InvalidProblemError(msg)
        sums = [(math.fsum(row), c) for row, c in zip((*self.A, self.b), (*self.c, 1.0), strict=True)]
        if not all(abs(total - target) < 1e-12 for total, target in sums):
            msg = f"every row of A must sum to its c, and b to 1; given {describe(self)}: check the entries"
            raise InvalidProblemError(msg)
        if self.error is not None:
            check_count("the order of a tableau with an error estimate", self.order)
            if len(error) not in (len(self.b), len(self.b) + 1) or abs(math.fsum(error)) > 1e-12:
                msg = (
                    "the error weights of a tableau must sum to 0, one a stage, and at most one more for the step's "
                    f"end; given {len(error)} for {len(self.b)} stages, which sum to {math.fsum(error):g}: write b "
                    "less the weights of the other method"
                )
                raise InvalidProblemError(msg)

    @property
    def stages(self) -> int:
        """Number of model evaluations a step."""
        return len(self.b)


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method given by its Butcher tableau.

    One node a stage: the state of stage j is `y + h sum_l A[j, l] F_l` at time `t + c_j h` (Hairer, Norsett and Wanner,
    Solving Ordinary Differential Equations I, eq. II.1.8). The grid may increase or decrease. Additive noise enters the
    field as dW / h, constant over the step.

    Args:
        tableau: the coefficients.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise with more than one stage, which would not converge to the
            Ito solution, and for diffusion models, which only `Euler` and `Heun` step over.
    """

    tableau: Tableau

    def __post_init__(self) -> None:
        """Check the type."""
        if not isinstance(self.tableau, Tableau):
            msg = f"RungeKutta needs a Tableau; given {describe(self.tableau)}: write RungeKutta(Tableau(A, b, c))"
            raise InvalidProblemError(msg)

    def plan(self, points: Times | Levels) -> Plan:
        """Write the method on these points as a plan."""
        if isinstance(points, Levels):
            return self._plan_levels(points)
        if not isinstance(points, Times):
            msg = f"a method plans on picard.Times or Levels; given {describe(points)}: write Times(grid)"
            raise InvalidProblemError(msg)
        stages = self.tableau.stages
        if points.noise == "multiplicative" and stages > 1:
            msg = (
                "only euler converges to the Ito solution when the noise depends on the state; given "
                f"{type(self).__name__}, which has {stages} stages: write method='euler', or use additive noise"
            )
            raise NotSupportedError(msg)
        c = torch.tensor(self.tableau.c, dtype=torch.float64)
        weights = torch.zeros(stages, stages, dtype=torch.float64)
        for j, row in enumerate((*self.tableau.A[1:], self.tableau.b)):
            weights[j, : j + 1] = torch.tensor(row, dtype=torch.float64).flip(0)  # newest stage first
        start, end = points.values[:-1, None], points.values[1:, None]
        h = points.values.diff()
        step = torch.arange(len(h)).repeat_interleave(stages)
        return Plan(
            times=((1 - c) * start + c * end).reshape(-1),  # exactly `end` for c = 1, so that no stage leaves the grid
            a=torch.eye(stages, dtype=torch.float64).repeat(len(h), 1),
            b=(h[:, None, None] * weights).reshape(-1, stages),
            step=step,
            factor=torch.stack([torch.ones_like(h), h], 1)[step],
            kick=(h.abs().sqrt() / h)[step],
        )

    def _plan_levels(self, levels: Levels) -> Plan:
        del levels
        msg = (
            f"{type(self).__name__} has no form for the noise levels of a diffusion model: "
            "write method='heun', or a method made for them such as 'dpmsolver++'"
        )
        raise NotSupportedError(msg)


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method: order 1, one evaluation a step; for SDEs the Euler-Maruyama method.

    On a diffusion model it steps the probability-flow ODE of Karras et al. (2022) or of flow matching, and equals
    `DDIM(eta=0)`.
    """

    tableau: Tableau = field(default=Tableau(A=((),), b=(1.0,), c=(0.0,)), init=False, repr=False)

    def _plan_levels(self, levels: Levels) -> Plan:
        return euler_plan(levels)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint method: order 2, two evaluations a step.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(default=Tableau(A=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5)), init=False, repr=False)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's second-order method, the explicit trapezoidal rule: order 2, two evaluations a step (torchdiffeq's heun2).

    Its error is estimated against Euler's method (torchdiffeq's adaptive_heun).

    On a diffusion model it is the deterministic sampler of Karras et al. (2022, algorithm 1), whose last step is an
    Euler step: 2 N - 1 evaluations for N steps.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise.
    """

    tableau: Tableau = field(
        default=Tableau(A=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), error=(-0.5, 0.5), order=2), init=False, repr=False
    )

    def _plan_levels(self, levels: Levels) -> Plan:
        return heun_plan(levels)


@dataclass(frozen=True)
class Heun3(RungeKutta):
    """Heun's third-order method: order 3, three evaluations a step (torchdiffeq's heun3).

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(
        default=Tableau(A=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), c=(0.0, 1 / 3, 2 / 3)),
        init=False,
        repr=False,
    )


@dataclass(frozen=True)
class ThreeEighths(RungeKutta):
    """The 3/8 rule of Kutta: order 4, four evaluations a step; what torchdiffeq calls rk4.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(
        default=Tableau(
            A=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
            b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
            c=(0.0, 1 / 3, 2 / 3, 1.0),
        ),
        init=False,
        repr=False,
    )


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge-Kutta method: order 4, four evaluations a step.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(
        default=Tableau(
            A=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0.0, 0.5, 0.5, 1.0)
        ),
        init=False,
        repr=False,
    )
