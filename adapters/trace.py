"""Tracing: a scheduler's whole loop, read off as a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from picard.device import on_host
from picard.errors import NotSupportedError, PicardError
from picard.grid import Levels
from picard.plan import Plan

from .course import FAILURES, Course
from .probe import Clip, Output, Tap, advance, model_input, probe_output

_EXACT = 1e-8  # what a band may miss, relative to the row
_ROUNDING = 1e-12  # what it misses at best: the rounding of float64
_MOST = 6  # states and predictions a node may use: more than any scheduler does


@dataclass(frozen=True, eq=False)
class Trace:
    """A scheduler's loop over given timesteps as a plan, with all that is needed to run it on the scheduler's model.

    The plan's state is the model's input: Diffusers' state times the input scale of the node. Its field is the data
    prediction D = u y + w m for the model's output m; where the scheduler clips, a weighted sum of D and clip(D).

    Attributes:
        plan: the recurrence.
        timesteps: what the model is given as time, as the scheduler has it.
        scale: scale from Diffusers' state to the plan's before every node and at the end, shape (nodes + 1,).
        init_noise_sigma: scale from standard normal latents to Diffusers' first state.
        u: shape (nodes,).
        w: shape (nodes,).
        clip: what the data prediction is clipped with, or `None`.
        shares: shares of the plain and the clipped prediction in the field, shape (nodes, 2).
        independent: whether a draw of noise enters one node only.
    """

    plan: Plan
    timesteps: Tensor
    scale: Tensor
    init_noise_sigma: float
    u: Tensor
    w: Tensor
    clip: Clip | None
    shares: Tensor
    independent: bool


def trace_loop(course: Course) -> Trace:
    """Trace a scheduler's loop; see `picard.adapters.diffusers.trace`."""
    _refuse(course.scheduler)
    try:
        with on_host():
            return _trace(course)
    except FAILURES as error:
        if isinstance(error, PicardError):
            raise
        why = f"its loop fails on probe values ({type(error).__name__}: {error})"
        raise _not_affine(course.scheduler, why) from error


def _trace(course: Course) -> Trace:
    scheduler, timesteps = course.scheduler, course.timesteps
    output = probe_output(course)
    init = float(getattr(scheduler, "init_noise_sigma", 1.0))
    rows, shares = _rows(course, output)
    bands, independent = _bands(scheduler, rows, len(timesteps))
    plan = _plan(bands, output, timesteps)
    clip = output.clip if bool((shares[:, 1] != 0).any()) else None
    return Trace(plan, timesteps, output.scale, init, output.u, output.w, clip, shares, independent)


def _refuse(scheduler: Any) -> None:
    """Refuse what is known not to be affine, naming the key of the configuration."""
    variance = str(scheduler.config.get("variance_type") or vars(scheduler).get("variance_type", ""))
    if variance.startswith("learned"):
        msg = (
            f"{type(scheduler).__name__} with variance_type={variance!r} lets the model choose the noise, so its loop "
            "is not affine in the outputs: parallelize the pipeline (mode='replay'), or use variance_type='fixed_small'"
        )
        raise NotSupportedError(msg)


def _rows(course: Course, output: Output) -> tuple[Tensor, Tensor]:
    """Run the loop on basis columns: start, one data prediction a node, one noise a draw.

    Returns:
        The state of every node in terms of the columns, shape (nodes + 1, 1 + nodes + draws), float64; and every node's
        shares of the plain and the clipped prediction in its column, shape (nodes, 2).
    """
    scheduler, twin, nodes = course.scheduler, course.twin(), len(output.u)
    columns = 1 + 4 * nodes  # start, predictions, clipped predictions, up to two draws a node
    shape = torch.Size([1, 1, 1, columns])

    def unit(column: int) -> Tensor:
        one = torch.zeros(shape, dtype=torch.float64)
        one[..., column] = 1
        return one

    node = 0
    tap = Tap(shape, lambda draw: unit(1 + 2 * nodes + draw), lambda _: unit(1 + nodes + node))
    tap.attach(twin)
    x = unit(0)
    rows = [x.flatten() * output.scale[0]]
    with torch.no_grad(), tap:
        for node, t in enumerate(course.timesteps):
            m = (unit(1 + node) - output.u[node] * model_input(twin, x, t)) / output.w[node]
            x, _ = advance(twin, m, t, x, course.step)
            if tap.seen and not torch.allclose(tap.seen.pop()[0], unit(1 + node), atol=1e-6):
                raise _not_affine(scheduler, "it clips something else than its data prediction")
            rows.append(x.flatten() * output.scale[node + 1])
            if tap.draws > 2 * nodes:
                raise _not_affine(scheduler, "it draws noise more than twice a step")
    table = torch.stack(rows)
    if table.shape[1] != columns or not bool(torch.isfinite(table).all()):
        raise _not_affine(scheduler, "its coefficients are not finite")
    _check_affine(scheduler, table)
    merged, shares = _merge_clipped(table[:, 1 : 1 + nodes], table[:, 1 + nodes : 1 + 2 * nodes])
    if merged is None:
        raise _not_affine(scheduler, "clipped and unclipped predictions enter in more than one proportion")
    return torch.cat([table[:, :1], merged, table[:, 1 + 2 * nodes :]], 1), shares


def _merge_clipped(raw: Tensor, clipped: Tensor) -> tuple[Tensor | None, Tensor]:
    """Write the columns of D and clip(D) of every node as shares of one column; `None` if there are no such shares."""
    nodes = raw.shape[1]
    shares = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(nodes, 1)
    if not bool((clipped != 0).any()):
        return raw, shares
    own, size = (raw + clipped)[1:].diagonal(), clipped[1:].diagonal()
    whole = torch.where(own.abs() > 1e-6 * size.abs(), own, size)  # a step may cancel D but not its clipping
    used = whole != 0
    whole = torch.where(used, whole, 1.0)
    shares = torch.stack([raw[1:].diagonal() / whole, clipped[1:].diagonal() / whole], 1)
    shares[~used] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    merged = torch.where(shares[:, 1] != 0, clipped / torch.where(shares[:, 1] != 0, shares[:, 1], 1.0), raw)
    fits = torch.allclose(raw, shares[:, 0] * merged, atol=1e-7) and torch.allclose(clipped, shares[:, 1] * merged)
    return (merged if fits else None), shares


def _check_affine(scheduler: Any, table: Tensor) -> None:
    """A state must not know what comes later; a constant or a product of probes would show there."""
    nodes = len(table) - 1
    late = torch.arange(nodes)[None] >= torch.arange(nodes + 1)[:, None]
    if bool((table[:, 1 : 1 + nodes][late] != 0).any()):
        raise _not_affine(scheduler, "its step is not affine")


def _bands(scheduler: Any, rows: Tensor, nodes: int) -> tuple[list[tuple[Tensor, Tensor, float]], bool]:
    """Write every state in terms of the last few states and predictions: weights, and the scale of the noise."""
    bands, independent = [], True
    for node in range(nodes):
        band, lone = _band(rows, node, nodes)
        if band is None:
            msg = (
                f"{type(scheduler).__name__} needs more than the last {_MOST} states and predictions at node {node}, "
                "so it has no banded recurrence: parallelize the pipeline (mode='replay'); PNDM has one with "
                "skip_prk_steps=True"
            )
            raise NotSupportedError(msg)
        bands.append(band)
        independent &= lone
    return bands, independent


def _band(rows: Tensor, node: int, nodes: int) -> tuple[tuple[Tensor, Tensor, float] | None, bool]:
    """Find the shortest band that is exact, or else as good as possible; and whether the node's noise is its own."""
    target = rows[node + 1]
    size = float(target.abs().max()) or 1.0
    best, found = _EXACT, None
    noise = (rows[: node + 1, 1 + nodes :] != 0).any(0)  # draws that earlier states know
    for order in range(1, min(_MOST, node + 1) + 1):
        free = slice(1 + node - order + 1, 1 + node + 1)  # the predictions this node may use
        for lone in (True, False):
            known = torch.ones(rows.shape[1], dtype=torch.bool)
            known[free] = False
            known[1 + nodes :] = noise if lone else False
            for states in range(1, order + 1):
                past = rows[[node - p for p in range(states)]]
                a = _least_squares(past[:, known], target[known])
                rest = target - a @ past
                error = float(rest[known].abs().max()) / size
                if error <= min(best, _EXACT) and (found is None or error < best / 100):
                    a = torch.cat([a, a.new_zeros(order - states)])
                    best, found = error, ((a, rest[free].flip(0), float(rest[1 + nodes :].norm())), lone)
                if found is not None and best <= _ROUNDING:
                    return found
    return found or (None, True)


def _least_squares(past: Tensor, target: Tensor) -> Tensor:
    scale = past.abs().amax(1).clamp_min(1e-300)
    scaled = (past / scale[:, None]).T
    return torch.linalg.lstsq(scaled, target[:, None], rcond=1e-12, driver="gelsd").solution[:, 0] / scale


def _plan(bands: list[tuple[Tensor, Tensor, float]], output: Output, timesteps: Tensor) -> Plan:
    nodes, order = len(bands), max(len(a) for a, _, _ in bands)
    a, b = torch.zeros(nodes, order, dtype=torch.float64), torch.zeros(nodes, order, dtype=torch.float64)
    for node, (states, values, _) in enumerate(bands):
        a[node, : len(states)], b[node, : len(values)] = states, values
    c = torch.tensor([noise for _, _, noise in bands], dtype=torch.float64)
    alpha, sigma = output.levels.unbind(1)
    known = bool(torch.isfinite(output.levels).all() and (sigma > 0).all() and (alpha >= 0).all())
    yardstick, factor = None, torch.stack([a[:, 0], b[:, 0]], 1)
    if known:
        one = torch.ones(1, dtype=torch.float64)
        levels = Levels(timesteps.double(), torch.cat([alpha, one]), torch.cat([sigma, 0 * one]))
        yardstick = _filled(levels.posterior_std().nan_to_num(0.0))
        whole = torch.stack([levels.sigma[1:] / sigma, levels.alpha[1:] - alpha * levels.sigma[1:] / sigma], 1)
        several = (a[:, 1:] != 0).any(1) | (b[:, 1:] != 0).any(1)
        factor = torch.where((several & (whole[:, 1] != 0))[:, None], whole, factor)
        if not bool((yardstick > 0).all()):
            yardstick = None
    return Plan(
        times=timesteps.double(),
        a=a,
        b=b,
        c=torch.where(c > _EXACT, c, 0),
        step=torch.arange(nodes),
        factor=factor,
        yardstick=yardstick,
        scales=output.levels if known else None,
    )


def _filled(values: Tensor) -> Tensor:
    """Replace zeros by the last positive value before them, or the first after."""
    places = torch.where(values > 0, torch.arange(len(values)), -1).cummax(0).values
    first = values[values > 0][:1] if bool((values > 0).any()) else values[:1]
    return torch.where(places >= 0, values[places.clamp_min(0)], first)


def _not_affine(scheduler: Any, why: str) -> NotSupportedError:
    bends = [key for key in ("clip_sample", "thresholding", "clip_denoised") if scheduler.config.get(key)]
    hint = f" (its configuration has {', '.join(f'{key}=True' for key in bends)})" if bends else ""
    return NotSupportedError(
        f"{type(scheduler).__name__} cannot be written as a plan here: {why}{hint}. Parallelize the pipeline "
        "(mode='replay'), which needs no plan"
    )
