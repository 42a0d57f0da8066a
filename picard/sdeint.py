"""The door of torchsde: `sdeint`, with its names, shapes and fixed-step methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picard.device import fetch
from picard.doors import SOLVER_OPTIONS, check_constant, check_options, reached
from picard.equation import channels_of, functions_of, types_of
from picard.errors import (
    InvalidGridError,
    InvalidProblemError,
    NotSupportedError,
    UnknownMethodError,
    check_names,
    close_match,
    describe,
)
from picard.grid import NoiseKind, check_times
from picard.interpolate import Readout
from picard.noise import Noise
from picard.number import check_flags, number
from picard.problem import check_state
from picard.rowwise import rowwise
from picard.sde import SDE
from picard.solve import solve
from picard.stepped import (
    MilsteinNoise,
    PathNoise,
    SteppedSDE,
    WholeNoise,
    check_diagonal,
    with_milstein,
)
from picard.tolerance import RelAbs
from picard.uncompiled import uncompiled

_OPTIONS = ("rows", "grad_free", *SOLVER_OPTIONS)
_METHODS = {"ito": ("euler", "milstein"), "stratonovich": ("heun", "midpoint", "milstein")}
_REFUSED = ("srk", "euler_heun", "reversible_heun", "adjoint_reversible_heun", "log_ode")
_KEEP = 256  # answers of a Brownian path kept: more than a window holds


@uncompiled
def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,  # torchsde's signature
    rtol: float = 1e-7,
    atol: float = 1e-9,
    dt_min: float | None = None,  # noqa: ARG001  # the same
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    *,
    logqp: bool = False,
    extra: bool = False,
) -> Tensor:
    """Integrate dy = f(t, y) dt + g(t, y) dW parallel in time, as torchsde's `sdeint` does step by step.

    On the same Brownian path the result agrees with torchsde's for the same method within `rtol` and `atol`. f and g
    are lifted to many times at once by `rowwise`; y0, batch included, is solved as one trajectory.

    Args:
        sde: an object with methods `f(t, y)` and `g(t, y)`, or `f_and_g(t, y)`, and attributes `noise_type`
            (`diagonal`, `scalar`, `additive` or `general`) and `sde_type` (`ito` or `stratonovich`).
        y0: initial states, shape (batch, d).
        ts: times of the result, strictly increasing.
        bm: a Brownian path of torchsde, of shape (batch, channels), or a `Noise`; one seeded by torch's global
            generator if not given.
        method: `"euler"` (Ito), `"milstein"` (all noise but general), `"heun"` or `"midpoint"` (Stratonovich). Not
            given, it is torchsde's default where that is offered: euler for Ito and general noise, midpoint for
            Stratonovich.
        dt: step size; steps start at ts[0] and do not stop at the others, between which the result is linear.
        adaptive: not supported.
        rtol: relative part of the largest change at which a state is accepted; see `RelAbs`.
        atol: absolute part.
        dt_min: not used, as for all fixed steps.
        options: `rows=True` if f and g take rows themselves, t (rows,) and y (rows, d), which gives every sample its
            own window; and of `solve`: `window`, `max_rows`, `max_rounds`, `tolerance`, `linearization`, `guess`,
            `sync_every`, `compile`, `cuda_graph`, `callback`, `progress`, `throw`; with `throw=False` the states after
            a failure are NaN.
        names: names of the methods of `sde`, by `drift`, `diffusion` or `drift_and_diffusion`.
        logqp: not supported.
        extra: not supported.

    Returns:
        The states at ts, shape (len(ts), batch, d).

    Raises:
        TypeError: if an option is unknown.
        NotSupportedError: if torchsde offers what this library does not.
        PicardError: as `solve` does.
    """
    chosen = check_options(options, _OPTIONS, "sdeint")
    unusual = {"adaptive": adaptive, "logqp": logqp, "extra": extra, "grad_free": chosen.get("grad_free", False)}
    rows = chosen.get("rows", False)
    check_flags(rows=rows, **unusual)
    if any(unusual.values()):
        given = ", ".join(f"{name}={value!r}" for name, value in unusual.items() if value)
        msg = f"sdeint takes fixed steps and returns states only; given {given}: leave it out"
        raise NotSupportedError(msg)
    noise_type, sde_type = types_of(sde)
    method = _resolve(method, sde_type, noise_type)
    if isinstance(y0, Tensor) and y0.ndim > 2:
        msg = f"y0 must be a floating tensor of shape (batch, d); given {describe(y0)}: write y0.flatten(1)"
        raise InvalidProblemError(msg)
    check_state("y0", y0)
    ts = _check_ts(ts, y0)
    check_constant("ts", ts)
    both, diffusion = functions_of(sde, check_names("names", {} if names is None else names, 'names={"drift": "h"}'))
    channels = channels_of(both, ts, y0, noise_type, rows=rows)
    x0, shape = (y0, (channels,)) if rows else (y0[None], (len(y0), channels))
    if not rows:
        both, diffusion = rowwise(both), rowwise(diffusion)
    grid = _grid(ts, dt)
    noise = _noise(bm, y0, channels, grid, rows=rows)
    if method == "milstein" and noise_type != "additive":
        diagonal = noise_type == "diagonal"
        if diagonal:
            check_diagonal(diffusion, ts[:1].expand(len(x0)), x0)
        both = with_milstein(both, diffusion, noise_type)
        noise = MilsteinNoise(noise, fetch(grid), sde_type == "ito", diagonal)
        shape = (*shape, 2) if diagonal else (*shape[:-1], 2)
    many = method in ("heun", "midpoint")  # the increment is the same at all their stages, as with additive noise
    kind: NoiseKind = "additive" if many else "multiplicative"
    problem = SteppedSDE(SDE(diffusion, diffusion, x0, noise=noise), grid, noise, shape, both, kind)
    readout = Readout(grid, ts)
    keywords = {name: chosen[name] for name in SOLVER_OPTIONS if name in chosen}
    keywords.setdefault("tolerance", RelAbs(number("rtol", rtol), number("atol", atol)))
    plan = method if many else "euler"
    solution = solve(problem, grid, method=plan, save=readout.points, **keywords)
    found = readout.linear(reached(solution, readout.points))
    return found if rows else found[:, 0]


def _resolve(method: str | None, sde_type: str, noise_type: str) -> str:
    known = [name for name in _METHODS[sde_type] if name != "milstein" or noise_type != "general"]
    offered = f"for {sde_type} SDEs with {noise_type} noise there are: {', '.join(known)}"
    if method is None:
        if sde_type == "stratonovich":
            return "midpoint"
        if noise_type == "general":
            return "euler"
        msg = f"torchsde's default here is srk, which is not offered; {offered}: say which, e.g. method={known[-1]!r}"
        raise NotSupportedError(msg)
    if not isinstance(method, str):
        msg = f"method must be a name; given {describe(method)}: write method={known[-1]!r}"
        raise UnknownMethodError(msg)
    if method in known:
        return method
    if method in _REFUSED or any(method in names for names in _METHODS.values()):
        msg = f"method {method!r} is not offered for this SDE; {offered}"
        raise NotSupportedError(msg)
    msg = f"unknown method {method!r}: {close_match(method, known)}"
    raise UnknownMethodError(msg)


def _check_ts(ts: Any, y0: Tensor) -> Tensor:
    if isinstance(ts, (list, tuple)):
        ts = [number("every time of ts", one) for one in ts]
        ts = torch.tensor(ts, dtype=torch.promote_types(y0.dtype, torch.float32), device=y0.device)
    check_times(ts, "ts", steps=False)
    if ts.dtype == torch.bfloat16:
        msg = "ts in bfloat16 is too coarse for steps: write ts.float(); y0 may stay as it is"
        raise InvalidGridError(msg)
    if ts[1] < ts[0]:
        msg = "ts must increase, as noise is not reversed: write ts.flip(0), with f and g of the reversed equation"
        raise InvalidGridError(msg)
    return ts


def _grid(ts: Tensor, dt: float | Tensor) -> Tensor:
    """Add up steps in the dtype of ts, one after the other, as torchsde does; the last one ends at ts[-1]."""
    size = number("dt", dt)
    values = np.array(ts.tolist(), str(ts.dtype).removeprefix("torch."))  # torch.func hides memory from .numpy()
    if not size > 0:
        msg = f"dt must be positive; given {size:g}"
        raise InvalidGridError(msg)
    count = int(np.ceil(1.001 * (values[-1] - values[0]) / size)) + 2
    steps = np.full(count, size, dtype=values.dtype)
    steps[0] = values[0]
    grid = np.add.accumulate(steps)
    inside = grid[grid < values[-1]]
    if len(inside) > 1 and not inside[-1] > inside[-2]:
        msg = f"dt must change the time; {size:g} is lost in the rounding of {ts.dtype} at {values[-1]:g}: use float64"
        raise InvalidGridError(msg)
    return torch.from_numpy(np.append(inside, values[-1:])).to(ts.device)


def _noise(bm: Any, y0: Tensor, channels: int, grid: Tensor, *, rows: bool) -> Noise:
    """Make the realization: a path of torchsde, a `Noise`, or one from torch's generator."""
    batch, times = len(y0), fetch(grid)
    if bm is None:
        bm = Noise.from_seed(int(torch.randint(2**62, (), device="cpu")))
    if isinstance(bm, Noise):
        noise = bm.on(times)
        noise.check(batch, len(grid) - 1, (channels,))
        return noise if rows else WholeNoise(noise, batch)
    if not callable(bm) or tuple(getattr(bm, "shape", (batch, channels))) != (batch, channels):
        size = getattr(bm, "shape", None) if callable(bm) else None  # tensors are described with theirs
        given = describe(bm) if size is None else f"{describe(bm)} of shape {tuple(size)}"
        fix = f"picard.Noise.from_seed({bm if isinstance(bm, int) else 0}) for noise by a seed"
        msg = (
            f"bm must be a Noise, or a Brownian path of shape {(batch, channels)}; given {given}: write {fix}, or "
            f"torchsde.BrownianInterval(ts[0], ts[-1], size={(batch, channels)})"
        )
        raise InvalidProblemError(msg)
    path: Any = bm
    return PathNoise(path, (batch, channels), times, _KEEP, not rows)
