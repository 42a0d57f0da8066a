"""Steps chosen by their error: attempts of many steps, each solved parallel in time, and kept as far as they hold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from picard.control import Control
from picard.doors import check_constant
from picard.errors import InvalidProblemError, NotSupportedError, check_choice, describe
from picard.grid import check_times
from picard.interpolate import slopes
from picard.linearize import Linearization
from picard.march import March
from picard.number import check_count, check_flags, check_limit, not_negative
from picard.ode import ODE
from picard.plan import Integrator
from picard.problem import Problem
from picard.progress import Progress
from picard.registry import resolve
from picard.solution import Solution
from picard.uncompiled import uncompiled


@uncompiled
def adaptive(
    problem: Problem,
    times: Tensor,
    *,
    method: str | Integrator = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-9,
    first_step: float | None = None,
    max_steps: int | None = None,
    window: int = 64,
    max_rows: int | None = None,
    linearization: str | Linearization = "secant",
    compile: bool | Mapping[str, Any] = False,  # noqa: A002  # as in `solve`
    save: Literal["times", "all", "last"] = "times",
    progress: bool = False,
) -> Solution:
    """Solve an ODE parallel in time, by steps chosen such that the error of every one stays within a tolerance.

    Many steps are attempted at once, and solved as `solve` does. Those before the first one whose estimated error is
    too large are kept, and the next attempt begins there with shorter ones. Where errors are far below what they may
    be, it begins with longer ones. All samples share the steps; the largest error of a sample counts.

    The result agrees with `sequential` on the same steps, which are `ts` with `save="all"`, within a
    hundredth of the tolerance at every state. It carries gradients, to which the steps are constants.

    Args:
        problem: the ODE.
        times: start, end, and what lies between them that a step must end at, shape (times,), floating, monotone in
            either direction.
        method: a method with an error estimate: `"dopri5"`, `"dopri8"`, `"bosh3"`, `"fehlberg2"`, `"heun"`, or a
            `RungeKutta` whose tableau has one.
        rtol: part of the state that the error of a step may be.
        atol: what is added to that, in units of the state. Errors are measured number by number against
            `atol + rtol max(|before|, |after|)`, root mean square over the state.
        first_step: length of the first step; guessed by default.
        max_steps: steps after which to give up; any number by default.
        window: nodes evaluated a round per sample, at most.
        max_rows: as for `solve`.
        linearization: as for `solve`. `"newton"` takes far fewer rounds for equations of few unknowns.
        compile: as for `solve`.
        save: which states to return: those at `times`, after all steps, or the last.
        progress: whether to show a tqdm bar of the percentage of the time that is solved.

    Returns:
        The solution. Its `stats` count all attempts, with what was thrown away.

    Raises:
        InvalidProblemError: if the problem is no ODE, or an option has the wrong form.
        InvalidGridError: if the times are not valid.
        UnknownMethodError: if the method is unknown.
        NotSupportedError: if the method does not estimate errors.
        NonFiniteError: if the drift is not finite at a state that was accepted; carries the solution so far.
        NotConvergedError: if `max_steps` is reached, or no step is short enough; carries the solution so far.
    """
    started = time.perf_counter()
    check_flags(progress=progress)
    if not isinstance(problem, Problem) or not isinstance(problem.alone, ODE):
        msg = f"adaptive needs a picard.ODE; given {describe(problem)}: write picard.solve on a grid for other problems"
        raise InvalidProblemError(msg)
    check_choice("save", save, ("times", "all", "last"))
    integrator = resolve(method)
    tableau: Any = getattr(integrator, "tableau", None)
    if getattr(tableau, "error", None) is None:
        msg = (
            f"adaptive needs a method that estimates the errors of its steps; given {describe(method)}: write "
            'method="dopri5", "dopri8", "bosh3", "fehlberg2" or "heun", or picard.solve on a grid'
        )
        raise NotSupportedError(msg)
    control = Control(not_negative("rtol", rtol), not_negative("atol", atol), tableau.order)
    if control.rtol + control.atol == 0:
        msg = "rtol or atol must be positive: no step has an error of zero; write e.g. rtol=1e-6"
        raise InvalidProblemError(msg)
    nodes, rows = check_count("window", window), check_limit("max_rows", max_rows)
    options = {"window": nodes, "max_rows": rows, "linearization": linearization, "compile": compile}
    most = check_limit("max_steps", max_steps)
    stops = check_times(times, "times", steps=False).tolist()
    check_constant("times", times)
    wanted = torch.is_grad_enabled() and (
        problem.x0.requires_grad
        or problem.together(lambda: slopes(problem.alone, times[:1], problem.x0[None], rows).requires_grad)
    )
    march = March(problem, times, stops, integrator, control, options, started, all_states=wanted or save == "all")
    with torch.no_grad(), Progress(100, enabled=progress, unit="%") as bar:
        march.begin(None if first_step is None else not_negative("first_step", first_step))
        while march.at != stops[-1]:
            march.go_on(most)
            bar.show(lambda: int(100 * march.share))
    return march.with_gradient(save) if wanted else march.solution(save)
