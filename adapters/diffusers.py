"""Diffusers: any scheduler's loop as a plan, and sampling from a model with a scheduler, parallel in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError
from picard.number import check_flags, check_generator, check_limit
from picard.permodel import PerModel
from picard.plan import Plan
from picard.problem import check_callable, check_cond, check_state
from picard.sequential import sequential
from picard.solution import Solution
from picard.solve import solve
from picard.uncompiled import uncompiled

from .course import Course, sort_options, trace_once
from .scheduled import Scheduled, draw_noise
from .trace_check import traced

__all__ = ["sample", "trace"]


def trace(scheduler: Any, steps: int | None, *, scheduler_options: Mapping[str, Any] | None = None) -> Plan:
    """Read a Diffusers scheduler's whole loop off as a plan, by running a copy of it once on probe values.

    For fixed timesteps a scheduler's loop is affine in the start, the model's outputs and the noise. The plan's state
    is the model's input (after `scale_model_input`), its field the data prediction, its times what the model is given.
    Every model call is one node and one step. Clipping of the data prediction is left out: it belongs to the denoiser.

    Args:
        scheduler: any scheduler with the usual `set_timesteps` and `step`; it is not changed.
        steps: number of inference steps; `None` will do where `scheduler_options` list timesteps or sigmas.
        scheduler_options: more arguments of `set_timesteps` or `step`, for example `{"eta": 0.5}` or `{"mu": 1.0}`.

    Returns:
        The plan.

    Raises:
        NotSupportedError: if the scheduler's loop has no such form; says why, and which setting causes it.
        InvalidProblemError: if the number of steps is none, or the options have no names.
        TypeError: if an option is unknown.
    """
    found = traced(Course.of(scheduler, check_limit("steps", steps), sort_options(scheduler, scheduler_options)))
    if not found.independent:
        msg = (
            f"{type(scheduler).__name__} lets one draw of noise enter several steps, which a plan cannot say: "
            "use picard.adapters.diffusers.sample, which takes the noise as the scheduler draws it"
        )
        raise NotSupportedError(msg)
    return found.plan


@uncompiled
def sample(
    model: Callable[..., Any],
    scheduler: Any,
    latents: Tensor,
    *,
    num_inference_steps: int | None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    cond: Mapping[str, Any] | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    parallel: bool = True,
    **solve_options: Any,
) -> Solution:
    """Sample from a model with a Diffusers scheduler, parallel in time.

    The result is that of the scheduler's own loop, `model(scheduler.scale_model_input(x, t), t)`, `scheduler.step`,
    within the `tolerance` of `picard.solve`: 0.1 by default, of which deterministic schedulers want a tenth.

    Args:
        model: called as `model(x, t, **cond)` with x (rows, *state), t (rows,); returns a tensor, a tuple with the
            tensor first, or an output with `.sample`, as the models of Diffusers do.
        scheduler: any scheduler that `trace` understands; it is not changed.
        latents: standard normal start, shape (batch, *state), scaled here by the scheduler's `init_noise_sigma`.
        num_inference_steps: number of steps; `None` will do where `scheduler_options` list timesteps or sigmas.
        generator: draws the noise of stochastic schedulers in the scheduler's own order, so that the same generator
            gives the same sample as the sequential loop; one, or a list with one a sample.
        cond: keyword arguments of the model; tensors whose first dimension is the batch are repeated per row.
        scheduler_options: more arguments of `set_timesteps` or `step`, for example `{"eta": 0.5}`.
        parallel: whether to solve in parallel; otherwise one model call after the other, on the same plan.
        **solve_options: options of `picard.solve`.

    Returns:
        The solution; `final` is the scheduler's last sample, `ys` are its states, `ts` the model's times.

    Raises:
        NotSupportedError: if the scheduler cannot be traced.
        PicardError: as `picard.solve`.
    """
    if hasattr(model, "scheduler") and hasattr(model, "components"):
        msg = (
            f"model must be a network, called as model(x, t, **cond); given a pipeline, {type(model).__name__}: write "
            "its network, such as pipe.unet or pipe.transformer, or picard.adapters.parallelize(pipe), which keeps all "
            "that the pipeline does"
        )
        raise InvalidProblemError(msg)
    check_callable("model", model, "x, t, **cond")
    check_state("latents", latents)
    check_flags(parallel=parallel)
    if generator is not None:
        check_generator(generator)
    steps = check_limit("num_inference_steps", num_inference_steps)  # without them, a grid of the caller's own says it
    course = Course.of(scheduler, steps, sort_options(scheduler, scheduler_options))
    found = trace_once(_LAST.of(scheduler), traced, course)
    noise = draw_noise(course, found, latents, generator)
    cond = check_cond({} if cond is None else cond)
    problem = Scheduled(model, found, latents * found.init_noise_sigma, noise=noise, cond=cond)
    run = solve if parallel else sequential
    solution = run(problem, found.plan.nodes, method=problem.method, **solve_options)
    return problem.unscaled(solution)


_LAST: PerModel[Any] = PerModel()
