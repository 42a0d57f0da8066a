"""The door of torchdiffeq: `odeint`, with its names, shapes, directions and Runge-Kutta methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.adaptive import adaptive
from picard.device import fetch
from picard.doors import SOLVER_OPTIONS, check_constant, check_options, reached
from picard.errors import (
    InvalidGridError,
    InvalidProblemError,
    NotSupportedError,
    UnknownMethodError,
    check_choice,
    close_match,
    describe,
)
from picard.grid import Times, check_times
from picard.interpolate import Readout
from picard.noted import called
from picard.number import check_flags, check_limit, number
from picard.ode import ODE
from picard.pack import Pack
from picard.plan import Integrator
from picard.problem import check_callable
from picard.registry import NOT_OFFERED
from picard.rowwise import rowwise
from picard.solve import solve
from picard.tolerance import RelAbs
from picard.uncompiled import uncompiled

_OPTIONS = ("step_size", "grid_constructor", "interp", *SOLVER_OPTIONS)
_ADAPTIVE_OPTIONS = {"first_step": "first_step", "max_num_steps": "max_steps"}
_ADAPTIVE_OPTIONS |= {name: name for name in ("window", "max_rows", "linearization", "compile", "progress")}
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")

_METHODS = {
    "euler": "euler",
    "midpoint": "midpoint",
    "heun2": "heun2",
    "heun3": "heun3",
    "rk4": "three_eighths",
}
_ADAPTIVE = {name: name for name in ("dopri5", "dopri8", "bosh3", "fehlberg2")} | {"adaptive_heun": "heun"}


@dataclass(frozen=True, eq=False)
class GridODE(ODE):
    """An ODE on a grid that has been checked, whose model is given time in the state's dtype, as torchdiffeq does."""

    def points(self, grid: Any) -> Times:
        """Take the grid as it is: it may have a single step."""
        return Times(fetch(grid))

    def time_dtype(self, grid: Any) -> torch.dtype:
        """Return the state's dtype."""
        return self.x0.dtype


@uncompiled
def odeint(
    func: Callable[..., Any],
    y0: Tensor | Sequence[Tensor],
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str | Integrator | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Integrate dy/dt = func(t, y) parallel in time, as torchdiffeq's `odeint` does step by step.

    The result agrees with torchdiffeq's for the same fixed-step method within `rtol` and `atol`. An adaptive method
    keeps the error of every step within them, as torchdiffeq does, by steps of its own, which end at all times of t;
    see `adaptive`. `func` is lifted to many times at once by `rowwise`; y0, batch included, is solved as one
    trajectory.

    Args:
        func: called as `func(t, y)` with a scalar tensor t, in y's dtype, and y like y0; returns dy/dt like y0.
        y0: initial state, a floating or complex tensor of any shape, or a tuple of such.
        t: times of the result, one-dimensional, increasing or decreasing. It is also the grid of a fixed-step method,
            unless `options` say otherwise.
        rtol: relative part of the largest error of a step (adaptive methods) or of the largest change at which a state
            is accepted (fixed steps, see `RelAbs`).
        atol: absolute part.
        method: `"dopri5"` (the default), `"dopri8"`, `"bosh3"`, `"fehlberg2"`, `"adaptive_heun"`, which choose their
            steps; `"euler"`, `"midpoint"`, `"heun2"`, `"heun3"`, `"rk4"` (the 3/8 rule, as in torchdiffeq), or an
            integrator, which step over a grid.
        options: for adaptive methods `first_step`, `max_num_steps`, `window`, `max_rows`, `linearization`, `compile`
            and `progress`, see `adaptive`. For fixed steps `step_size` or `grid_constructor(func, y0, t)` for a grid
            other than t, `interp` (`"linear"` or `"cubic"`) between its points; and of `solve`: `window`, `max_rows`,
            `max_rounds`, `tolerance`, `linearization`, `guess`, `sync_every`, `compile`, `cuda_graph`, `callback`,
            `progress`, `throw`; with `throw=False` the states after a failure are NaN. For all, `rows=True` if func
            takes rows itself, t (rows,) and y (rows, *state), which gives every sample of the batch y0 (batch, *state)
            its own window; and `perturb`, which must be false.
        event_fn: not supported.

    Returns:
        The states at t, shape (len(t), *y0.shape), or a tuple of such if y0 is a tuple.

    Raises:
        TypeError: if an option is unknown.
        NotSupportedError: for an implicit or multistep method, events, or a function that cannot be lifted.
        InvalidGridError: if t is not a valid grid, or has two points and no step size is given.
        PicardError: as `solve` and `adaptive` do.
    """
    method = "dopri5" if method is None else method
    by_error = _ADAPTIVE.get(method) if isinstance(method, str) else None
    name, known = ("odeint", _OPTIONS) if by_error is None else (f"odeint by {method}", _ADAPTIVE_OPTIONS)
    integrator = by_error or _resolve(method)  # before its options: those of an unknown method are unknown
    chosen = check_options(options, (*known, "perturb", "rows"), name)
    check_callable("func", func)
    if event_fn is not None or any(hasattr(func, name) for name in _CALLBACKS):
        msg = 'odeint has no events, and calls no callback_step of func: use options={"callback": f}, see RoundInfo'
        raise NotSupportedError(msg)
    rows, perturb = chosen.get("rows", False), chosen.get("perturb", False)
    check_flags(rows=rows, perturb=perturb)
    if perturb:
        msg = "odeint does not perturb the times that func is given next to grid points: leave perturb out"
        raise NotSupportedError(msg)
    pack = Pack(y0, lead=int(rows))
    x0 = pack.pack(y0) if rows else pack.pack(y0)[None]
    alone = by_error is None and all(chosen.get(option) is None for option in ("step_size", "grid_constructor"))
    _check_t(t, alone=alone)
    if len(t) == 1 or x0.numel() == 0:  # nothing to integrate
        found = x0.expand(len(t), *x0.shape).clone()
        return pack.unpack(found if rows else found[:, 0])
    problem = GridODE(_drift(func, pack, rows=rows), x0)
    check_constant("t", t)
    limits = number("rtol", rtol), number("atol", atol)
    if by_error is not None:
        check_limit("max_num_steps", chosen.get("max_num_steps"))
        given = {own: chosen[option] for option, own in _ADAPTIVE_OPTIONS.items() if option in chosen}
        found = adaptive(problem, t, method=by_error, rtol=limits[0], atol=limits[1], **given).ys
        return pack.unpack(found if rows else found[:, 0])
    grid = _grid(func, y0, t, chosen)
    readout = Readout(grid, t)
    keywords = {name: chosen[name] for name in SOLVER_OPTIONS if name in chosen}
    keywords.setdefault("tolerance", RelAbs(*limits))
    solution = solve(problem, grid, method=integrator, save=readout.points, **keywords)
    ys = reached(solution, readout.points)
    if chosen.get("interp") == "cubic":
        stats = solution.stats
        most = stats.window * stats.batch if stats.max_rows is None else min(stats.window * stats.batch, stats.max_rows)
        found = readout.cubic(ys, problem, most)
    else:
        found = readout.linear(ys)
    return pack.unpack(found if rows else found[:, 0])


def _resolve(method: str | Integrator) -> str | Integrator:
    if not isinstance(method, str):
        return method
    if method in _METHODS:
        return _METHODS[method]
    known = ", ".join([*_ADAPTIVE, *_METHODS])
    if method in NOT_OFFERED:
        msg = f"method={method!r} {NOT_OFFERED[method]}; known: {known}"
        raise NotSupportedError(msg)
    msg = f"unknown method {method!r}: {close_match(method, [*_ADAPTIVE, *_METHODS])}"
    raise UnknownMethodError(msg)


def _check_t(t: object, *, alone: bool) -> None:
    """Check the times; `alone` says whether they are the grid."""
    if isinstance(t, Tensor) and t.is_floating_point():
        if alone and t.shape == (2,):
            msg = (
                "t is the grid, and two points would be one single step: say the step size, "
                'options={"step_size": 0.01}, or list every step, t = torch.linspace(t0, t1, steps + 1)'
            )
            raise InvalidGridError(msg)
        t = t + torch.arange(2, device=t.device) if t.shape == (1,) else t  # the start alone
    check_times(t, "t", steps=False)


def _grid(func: Callable[..., Any], y0: Any, t: Tensor, chosen: Mapping[str, Any]) -> Tensor:
    """Build the grid of the method as torchdiffeq does, in t's dtype."""
    size, constructor = chosen.get("step_size"), chosen.get("grid_constructor")
    check_choice("interp", chosen.get("interp", "linear"), ("linear", "cubic"))
    if size is not None and constructor is not None:
        msg = "step_size and grid_constructor both say the grid: give one of them"
        raise InvalidProblemError(msg)
    if size is not None:
        size = number("step_size", size)
        if not 0 < size < math.inf:
            msg = f"step_size must be positive and finite, also when t decreases; given {size:g}"
            raise InvalidProblemError(msg)
        sign = 1 if t[-1] > t[0] else -1
        count = int(torch.ceil(sign * (t[-1] - t[0]) / size + 1))
        steps = torch.arange(count, dtype=t.dtype, device=t.device) * size
        return torch.cat([(t[0] + sign * steps)[:-1], t[-1:]])  # the last step ends exactly at the end
    if constructor is None:
        return t
    grid = constructor(func, y0, t)
    ends = isinstance(grid, Tensor) and grid.ndim == 1 and len(grid) > 1 and grid[0] == t[0] and grid[-1] == t[-1]
    if not ends or not bool((grid.diff() * (t[-1] - t[0]) > 0).all()):
        msg = f"grid_constructor must return a monotone grid from t[0] to t[-1]; it returned {describe(grid)}"
        raise InvalidGridError(msg)
    return grid


def _drift(func: Callable[..., Any], pack: Pack, *, rows: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a drift of packed rows."""

    def packed(t: Tensor, x: Tensor) -> Tensor:
        return pack.pack(called(func, {"t": t, "y": pack.unpack(x)}))

    return packed if rows else rowwise(packed)
