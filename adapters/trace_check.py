"""A check that a plan traced from a scheduler is its loop: both are run on a made-up model."""

from __future__ import annotations

import torch

from picard.device import on_host
from picard.errors import NotSupportedError
from picard.sequential import sequential

from .course import FAILURES, Course, takes_generator
from .made_up import MadeUp
from .probe import advance, model_input
from .scheduled import Scheduled, draw_noise
from .standin import RandomState
from .trace import Trace, trace_loop

_MISSED = 1e-3  # above single precision at a signal of nearly zero (3e-4), far below any difference between two loops
_SHAPE = (2, 3, 4, 4)


def traced(course: Course) -> Trace:
    """Trace a scheduler's loop, and compare; what is not affine may still look so where most numbers are zero.

    Raises:
        NotSupportedError: if it has no such form, or is another one than its plan.
    """
    found, random = trace_loop(course), RandomState(())
    try:
        with on_host(), torch.no_grad():
            missed = _missed(course, found)
    except FAILURES as error:
        why = f"fails on made-up values ({type(error).__name__}: {error})"
        raise _refused(course, why) from error
    finally:
        random.restore()
    if not missed <= _MISSED:
        raise _refused(course, f"is not affine: on a made-up model its result differs from its plan's by {missed:.1e}")
    return found


def _missed(course: Course, found: Trace) -> float:
    """Return the largest difference between the scheduler's own loop and its plan."""
    latents = 3 * torch.randn(_SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    start = latents * found.init_noise_sigma
    torch.manual_seed(0)
    noisy = bool((found.plan.c != 0).any())
    noise = draw_noise(course, found, latents, torch.Generator().manual_seed(1)) if noisy else None
    model = MadeUp(found)
    problem = Scheduled(lambda y, t: model(y, t[0]), found, start, noise=noise)
    planned = problem.unscaled(sequential(problem, found.plan.nodes, method=problem.method)).final
    torch.manual_seed(0)
    twin, x, model = course.twin(), start, MadeUp(found)
    step = dict(course.step) | ({"generator": torch.Generator().manual_seed(1)} if takes_generator(twin) else {})
    for t in course.timesteps:
        x = advance(twin, model(model_input(twin, x, t), t), t, x, step)[0]
    return float((planned - x).abs().max() / x.abs().max().clamp_min(1))


def _refused(course: Course, why: str) -> NotSupportedError:
    return NotSupportedError(
        f"{type(course.scheduler).__name__} cannot be written as a plan here: its loop {why}. Run it step by step, or "
        "in a pipeline made parallel by picard.adapters.parallelize(pipe, mode='replay'), which needs no plan"
    )
