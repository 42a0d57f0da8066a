"""The parallel solver."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from picard.certify import Certifier
from picard.choice import LARGEST, choose
from picard.conditioning import Conditioning
from picard.engine import Setup
from picard.errors import NotSupportedError
from picard.expected import Expected
from picard.functions import Functions, functions_of
from picard.gradient import differentiation, solve_with_gradient
from picard.graphs import CudaGraphs, resolve_graphs
from picard.guess import resolve_guess
from picard.linearize import Linearization, check_size, resolve_linearization
from picard.number import check_count, check_flags, check_limit
from picard.plan import Integrator
from picard.prepare import prepare
from picard.problem import Problem, check_callable
from picard.progress import Callback, Progress
from picard.run import Run
from picard.sde import SDE
from picard.sequential import follow
from picard.solution import Solution, Status
from picard.thin_along import thinning
from picard.tolerance import Tolerance, TotalVariation, resolve_tolerance
from picard.trajectory import Trajectory
from picard.uncompiled import uncompiled

logger = logging.getLogger("picard")
_DEFAULT_WINDOW = 64


@uncompiled
def solve(
    problem: Problem | SDE,
    grid: int | Tensor,
    *,
    method: str | Integrator,
    window: int | Literal["auto"] | None = None,
    max_rows: int | Literal["auto"] | None = None,
    max_rounds: int | None = None,
    tolerance: float | Tolerance | None = None,
    linearization: str | Linearization = "secant",
    guess: str | Tensor | Solution | Expected | None = None,
    save: Literal["last", "all"] | Sequence[int] | Tensor = "last",
    certify: bool = False,
    sync_every: int = 1,
    compile: bool | Mapping[str, Any] = False,  # noqa: A002  # what everybody calls it
    cuda_graph: bool | CudaGraphs = False,
    callback: Callback | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Solution:
    """Solve a problem parallel in time: a window of future nodes in one model call, corrected until it agrees.

    The result agrees with `sequential` on the same problem, grid, method and noise within the tolerance. Every sample
    of the batch has its own window. Every round accepts at least one node, so there are never more rounds than the
    sequential solver makes model calls, whatever the model does.

    Args:
        problem: `ODE`, `SDE` or `Diffusion`.
        grid: times, shape (steps + 1,), floating, monotone in either direction, for an ODE or SDE; number of steps or
            decreasing timesteps for a diffusion model.
        method: a registered name or an integrator such as `DDIM(eta=0.5)`.
        window: nodes evaluated a round per sample, at most; 64 by default. `"auto"` measures the model and takes the
            window with the fewest predicted seconds, or goes step by step if none wins; `Solution.stats.reason` says
            why.
        max_rows: rows (nodes times samples) one model call may hold; more are split, which changes rounding at most.
            `"auto"` splits calls where smaller ones were measured to be faster. Calls that run out of memory are split
            in any case.
        max_rounds: rounds after which to give up; as many as needed by default.
        tolerance: a rule, or a number for the problem's usual rule: `NoiseRatio` for diffusion models (0.1 by
            default), `RelAbs` otherwise (rtol 1e-4, atol 1e-6 by default).
        linearization: `"secant"`, `"frozen"`, `"identity"` (classical Picard), `"newton"` (the field's whole
            derivative, at the cost of a row for every number of the state: fewer rounds for equations of few unknowns,
            above all stiff, oscillating and chaotic ones) or an object.
        guess: starting values of new nodes: `"extrapolate"` (run on with the field continued as a polynomial; the
            default for an ODE), `"hold"` (run on with the last field value; the default for an SDE), `"eager"` (the
            same, and with zero, the mean of normalized data, until there is a value; the default for diffusion models),
            `"copy"` (repeat the last state); a trajectory (steps + 1, batch, *state) or `Solution` to start from, an
            unfinished one as far as it got; or `Expected` field values to go along.
        save: `"last"`, `"all"`, or indices of grid points; memory is proportional to the window plus what is saved.
        certify: whether to measure how far the result can be from the sequential solver's, see `LawCertificate` and
            `PathCertificate`; accepted states are evaluated once more, together with the next round's, and those of the
            last round in a round of their own, beyond `max_rounds`, too.
        sync_every: rounds the device runs before the host reads what they found. More than one keep a GPU busy, which
            otherwise waits for the host once a round; up to so many rounds less one are evaluated past the end, and a
            callback is called as late. Noise and states of as many more windows are held. Needs a guess given by name;
            not with certificates, or where evaluations are left out.
        compile: whether to compile what a round does outside the model, or keyword arguments of `torch.compile` for it.
            The first solve of a kind then takes up to a minute longer, later ones less time, which counts where the
            model takes a few milliseconds. The model is left as it is. Rounds that certify or leave out evaluations are
            not compiled, nor those of `"newton"` with many numbers in a window (batch x (window x state)^2 above 2^20).
        cuda_graph: whether to capture rounds, the model's call in them, as a CUDA graph, which the GPU repeats without
            Python; `CudaGraphs()` keeps what is captured for later solves. The model must not wait for the GPU, must
            depend on its arguments alone, and is always asked for whole windows. Needs what `sync_every` needs, a
            window given as a number (below 4 nothing is captured), and states on a CUDA device; not `"newton"`.
        callback: called with a `RoundInfo` after every round; a true return value ends the solve.
        progress: whether to show a tqdm bar.
        throw: whether to raise if a sample does not converge; otherwise its `status` says so.

    Returns:
        The solution.

    Raises:
        InvalidProblemError: if an option has the wrong form.
        InvalidGridError: if the grid is not valid.
        UnknownMethodError: if the method is unknown.
        NotSupportedError: if the method does not exist for the problem.
        NonFiniteError: if the model returns a non-finite value at an exact state; carries the solution so far.
        NotConvergedError: if `max_rounds` is reached; carries the solution so far.
    """
    started = time.perf_counter()
    check_flags(certify=certify, progress=progress, throw=throw)
    if callback is not None:
        check_callable("callback", callback, "info")
    nodes, most = check_limit("window", window, "auto"), check_limit("max_rows", max_rows, "auto")
    last = check_limit("max_rounds", max_rounds)
    sync_every = check_count("sync_every", sync_every)
    prepared = prepare(problem, grid, method)
    plan = prepared.plan
    rule = resolve_tolerance(tolerance, plan)
    noisy = prepared.draw is not None
    certified = certify or isinstance(rule, TotalVariation)
    slopes = resolve_linearization(linearization)
    check_size(slopes, prepared.problem)
    start = resolve_guess(guess, plan, prepared.tables, prepared.problem.x0, prepared.wide, noisy=noisy)
    setup = Setup(
        prepared.problem,
        plan,
        prepared.tables.tapered(slopes.taper if rule.tapers else 0.0),
        Conditioning(prepared.problem.conditioning(), len(prepared.problem.x0)),
        slopes,
        rule,
        start,
        min(nodes or _DEFAULT_WINDOW, plan.nodes),
        most,
        Certifier(prepared.problem, plan, prepared.tables) if certified else None,
        thinning(plan, rule, slopes, start, len(prepared.problem.x0)),
        sync_every=min(sync_every, plan.nodes),  # there are no more rounds than nodes
        graphs=resolve_graphs(cuda_graph, prepared.problem, window, max_rows),
        tells=callback is not None,
    )
    widest = min(LARGEST, plan.nodes) if window == "auto" else setup.window
    setup = replace(setup, functions=_functions(setup, compile, widest, sync_every))
    prepared.problem.agree(
        lambda: {
            "the method on the grid": plan,
            "noise": None if prepared.draw is None else prepared.draw([0], [0]),
            "tolerance": rule,
            "linearization": setup.linearization,
            "guess": guess.ys if isinstance(guess, Solution) else getattr(guess, "values", guess),
            "window": window,
            "max_rows": max_rows,
            "max_rounds": max_rounds,
            "certify": certify,
            "sync_every": sync_every,
            "whether gradients are enabled": torch.is_grad_enabled(),
        }
    )
    choice = None
    if "auto" in (window, max_rows):
        choice = choose(setup, prepared, window=window == "auto", rows=max_rows == "auto")
        setup = replace(setup, window=choice.window, max_rows=choice.max_rows)
    by_step = window == "auto" and setup.window == 1 and not (certified or callback or max_rounds)

    by = None
    if torch.is_grad_enabled():
        by = prepared.problem.together(lambda: differentiation(setup, prepared))

    def run(x0: Tensor, trajectory: Trajectory) -> Solution:
        spent = 0 if by is None else 1  # the row that told what the model depends on
        with torch.no_grad(), Progress(plan.steps * len(x0), enabled=progress) as bar:
            if by_step:  # at the cost of the sequential solver, because it is the sequential solver
                found, error = follow(prepared, x0, trajectory, bar, setup.max_rows)
                if error is not None and throw:
                    raise error
                return replace(found, stats=replace(found.stats, evaluations=found.stats.evaluations + spent))
            return Run(setup, prepared, x0, trajectory, last, callback, spent).finish(bar, throw=throw)

    if by is not None and (by.inputs or prepared.problem.x0.requires_grad):
        solution = solve_with_gradient(setup, prepared, save, by, run)
    else:
        solution = run(prepared.problem.x0, Trajectory(plan, prepared.problem.x0, save))
    if choice is not None:
        solution = choice.account(solution, time.perf_counter() - started, prepared.problem)
    logger.info("%r", solution)
    if throw and Status.STOPPED not in solution.status:
        solution.raise_for_status()
    return solution


def _functions(setup: Setup, options: bool | Mapping[str, Any], widest: int, sync_every: int) -> Functions | None:
    """Return what rounds are made of where they are compiled, or where the device decides by itself.

    Raises:
        NotSupportedError: if it should, and cannot.
    """
    alone = sync_every > 1 or setup.graphs is not None
    functions = functions_of(setup.form, options, pays=setup.compiles(widest), plain=alone) if setup.pure else None
    if alone and (functions is None or not functions.slides):
        given = f"sync_every={sync_every}" if setup.graphs is None else "cuda_graph=True"
        msg = (
            f"{given} leaves decisions to the device, which it can take with guesses given by name, without a "
            "certificate, and where no evaluations are left out (NoiseRatio above 0.1 does): choose these, or leave "
            f"{given.partition('=')[0]} out"
        )
        raise NotSupportedError(msg)
    if setup.graphs is not None and setup.newton:
        msg = "linearization='newton' differentiates the model, which is not captured: leave cuda_graph out"
        raise NotSupportedError(msg)
    return functions
