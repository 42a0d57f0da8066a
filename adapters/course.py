"""Courses: a scheduler's loop about to be run, over which timesteps, from where, with which arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from picard.device import on_host
from picard.errors import NotSupportedError, close_match
from picard.problem import check_cond

# What a scheduler may fail with on values that it is not made for.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_SCHEDULER_STEP = {"model_output", "timestep", "sample", "return_dict"}
Traced = TypeVar("Traced")


@dataclass(frozen=True)
class Options:
    """A scheduler's extra arguments, sorted by the method they belong to."""

    set_timesteps: Mapping[str, Any]
    step: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Course:
    """A scheduler's loop that has not begun.

    Attributes:
        scheduler: a scheduler with its timesteps set; only copies of it are run.
        timesteps: what the loop visits, one model call each.
        start: index of the first of them in the scheduler's own tables.
        step: more arguments of its `step`.
    """

    scheduler: Any
    timesteps: Tensor
    start: int
    step: Mapping[str, Any]

    def twin(self) -> Any:
        """Copy the scheduler, to be run."""
        return copy.deepcopy(self.scheduler)

    @property
    def likeness(self) -> object:
        """What its trace depends on: courses whose likenesses are equal have the same one."""
        kind, options = type(self.scheduler), {name: _told(value) for name, value in self.step.items()}
        state = {name: _told(value) for name, value in vars(self.scheduler).items()}
        return kind, getattr(kind, "step", None), state, self.timesteps.tolist(), self.start, options

    @staticmethod
    def of(scheduler: Any, steps: int | None, options: Options) -> Course:
        """Set the timesteps of a copy of a scheduler; the original is left alone.

        Raises:
            NotSupportedError: if the scheduler fails to.
        """
        twin = copied(scheduler)
        own_grid = {"timesteps", "sigmas"} & options.set_timesteps.keys()
        try:
            with on_host():
                twin.set_timesteps(None if own_grid else steps, **options.set_timesteps)
        except FAILURES as error:
            msg = (
                f"{type(scheduler).__name__} cannot be written as a plan here: its loop fails before it begins "
                f"({type(error).__name__}: {error})"
            )
            raise NotSupportedError(msg) from error
        return Course(twin, _visited(twin), 0, options.step)

    @staticmethod
    def running(scheduler: Any, first: Any, step: Mapping[str, Any]) -> Course:
        """Copy a scheduler that is about to make its first step, to the CPU.

        Args:
            scheduler: the scheduler, its timesteps set; it is left alone.
            first: the timestep of that step.
            step: more arguments of its `step`.

        Raises:
            NotSupportedError: if the scheduler does not list that timestep.
        """
        twin, first = copied(scheduler), number(first)
        listed = _visited(twin)
        places = (listed == first).nonzero()
        if places.numel() == 0:
            msg = f"{type(scheduler).__name__} does not list the timestep {first}"
            raise NotSupportedError(msg)
        begin = vars(twin).get("_begin_index")
        start = int(places[0]) if begin is None else int(begin)
        return Course(twin, listed[start:], start, step)


def trace_once(last: dict[Any, Any], trace: Callable[[Course], Traced], course: Course) -> Traced:
    """Trace a loop, unless the one before was like it, which `last` keeps."""
    likeness = course.likeness
    if last.get("likeness") != likeness:
        last["trace"], last["likeness"] = trace(course), likeness
    found: Traced = last["trace"]
    return found


def copied(scheduler: Any) -> Any:
    """Copy a scheduler to the CPU."""
    twin = copy.deepcopy(scheduler)
    for name, value in vars(twin).items():
        if isinstance(value, Tensor):
            setattr(twin, name, value.cpu())
    return twin


def _told(value: Any) -> object:
    """Return the numbers and words in a value; objects of other kinds are equal to themselves alone."""
    if isinstance(value, Mapping):
        return {name: _told(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(one) for one in value]
    if isinstance(value, (Tensor, np.ndarray)):
        return str(value.dtype), value.tolist()
    return value


def number(t: Any) -> Tensor:
    """Read a timestep, whatever it is given as."""
    found = t if isinstance(t, Tensor) else torch.as_tensor(t, device="cpu")
    return found.flatten()[0].cpu()


def sort_options(scheduler: Any, options: Mapping[str, Any] | None) -> Options:
    """Sort extra arguments between `set_timesteps` and `step`, by their signatures.

    Raises:
        TypeError: if neither takes an argument of that name.
        InvalidProblemError: if the options have no names.
        NotSupportedError: if the scheduler has no usual `step`.
    """
    name, given = type(scheduler).__name__, check_cond({} if options is None else options, "scheduler_options")
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        msg = f"{name} has no `set_timesteps` and `step`, so its loop cannot be traced"
        raise NotSupportedError(msg)
    step = inspect.signature(scheduler.step).parameters
    grid = inspect.signature(scheduler.set_timesteps).parameters
    taken = {key: value for key, value in given.items() if key in grid}
    passed = {key: value for key, value in given.items() if key in step and key not in grid}
    for key in given.keys() - taken.keys() - passed.keys():
        known = (set(grid) | set(step)) - _SCHEDULER_STEP
        msg = f"{name} takes no option {key!r}: {close_match(key, known)}"
        raise TypeError(msg)
    usual = _SCHEDULER_STEP - {"return_dict"}
    if not usual <= step.keys():
        msg = (
            f"{name}.step must take model_output, timestep and sample, by these names, for its loop to be traced; it "
            f"takes {', '.join(step)}: rename its parameters"
        )
        raise NotSupportedError(msg)
    needed = {
        key for key, one in step.items() if one.default is inspect.Parameter.empty and one.kind < one.VAR_POSITIONAL
    }
    missing = needed - _SCHEDULER_STEP - passed.keys()
    if missing:
        msg = (
            f"{name}.step needs {sorted(missing)} from its own pipeline's loop, so it cannot be traced alone: "
            "parallelize the pipeline, whose replay mode needs no trace"
        )
        raise NotSupportedError(msg)
    return Options(taken, passed)


def takes_generator(scheduler: Any) -> bool:
    """Whether a scheduler's `step` has a generator."""
    return "generator" in inspect.signature(scheduler.step).parameters


def _visited(scheduler: Any) -> Tensor:
    """List the timesteps that the loop of the scheduler's pipelines visits."""
    listed: Tensor = scheduler.timesteps
    ends = scheduler.config.get("prediction_type") == "trigflow" or hasattr(scheduler, "_alpha_cumprod")
    return (listed[:-1] if ends else listed).clone()  # SCM and Wuerstchen list the end of the last step, too
