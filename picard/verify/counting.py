"""Counting: how many rows a model is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from picard.diffusion import Diffusion
from picard.ode import ODE
from picard.sde import SDE
from picard.verify.case import Case
from picard.verify.signals import Skip


@dataclass(eq=False)
class Counter:
    """A model that counts its rows.

    Attributes:
        model: what is called.
        place: the place of the states among the arguments.
        rows: rows asked for until now.
    """

    model: Callable[..., Tensor]
    place: int
    rows: int = 0

    def __call__(self, *given: Any, **cond: Any) -> Tensor:
        """Call the model."""
        self.rows += len(given[self.place])
        return self.model(*given, **cond)


def counted(case: Case) -> tuple[Case, Counter]:
    """Put a counter before the model of a case.

    Raises:
        Skip: if the model is not known, or is given more rows than the solver asks for.
    """
    problem = case.problem
    if isinstance(problem, Diffusion):
        if problem.denoiser.guidance is not None:
            msg = "guidance gives the model two rows for one"
            raise Skip(msg)
        counter = Counter(problem.denoiser.model, 0)
        return replace(case, problem=replace(problem, denoiser=replace(problem.denoiser, model=counter))), counter
    if not isinstance(problem, ODE | SDE):
        msg = "the problem is not one of picard's, so its model is not known"
        raise Skip(msg)
    counter = Counter(problem.drift, 1)
    return replace(case, problem=replace(problem, drift=counter)), counter
