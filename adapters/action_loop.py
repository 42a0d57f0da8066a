"""A policy's sampling loop as a plan, read off its scheduler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from picard.errors import NotSupportedError
from picard.noise import Noise
from picard.plan import Plan
from picard.rows import Rows

from .conversion import FromOutput, unwrap
from .course import Course, sort_options, takes_generator
from .network import call_padded
from .probe import advance
from .scheduled import Indexed, Scheduled
from .start import GENERATOR, Start
from .trace import Trace, trace_loop


@dataclass(frozen=True, eq=False)
class Ready:
    """A plan as an integrator, made once and used at every call."""

    source: Plan

    def plan(self, points: Any) -> Plan:
        """Return the plan."""
        return self.source


@dataclass(frozen=True, eq=False)
class ActionLoop:
    """A policy's loop over its scheduler's timesteps, as a plan.

    Attributes:
        trace: the scheduler's loop.
        draws: whether the scheduler draws noise at every node.
        method: the plan once more, checked, with the index of the node as time.
    """

    trace: Trace
    draws: tuple[bool, ...]
    method: Ready

    @staticmethod
    def of(scheduler: Any, steps: int, options: Mapping[str, Any]) -> ActionLoop:
        """Read the loop off a scheduler.

        Args:
            scheduler: the policy's; it is not changed.
            steps: number of inference steps.
            options: what the policy passes to `scheduler.step` beside the usual.

        Raises:
            NotSupportedError: if it is not affine.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            try:
                course = Course.of(scheduler, steps, sort_options(scheduler, options))
            except TypeError as error:  # the policy's own loop will say the same
                raise NotSupportedError(str(error)) from error
            trace = trace_loop(course)
            return ActionLoop(trace, _draws(course, trace), Ready(Indexed(trace.plan).plan(None)))

    def noise(self, start: Start) -> list[Tensor | None]:
        """Draw the noise of every node, in the scheduler's order."""
        x = start.x

        def drawer(shape: torch.Size, generator: Generator | None) -> Callable[[], Tensor]:
            device = x.device if generator is None else generator.device
            draw = functools.partial(torch.randn, shape, generator=generator, device=device, dtype=x.dtype)
            return draw if device == x.device else lambda: draw().to(x.device)

        if isinstance(start.generator, list):  # one a sample, as Diffusers has it
            each = [drawer(x[:1].shape, generator) for generator in start.generator]
            return [torch.cat([draw() for draw in each]) if drawn else None for drawn in self.draws]
        draw = drawer(x.shape, start.generator)
        return [draw() if drawn else None for drawn in self.draws]

    def problem(
        self, start: Start, drawn: list[Tensor | None], model: Callable[..., Any], counts: tuple[int, ...] = ()
    ) -> Actions:
        """Put a start, the noise of the nodes and a network together.

        Args:
            start: what the policy's loop starts from.
            drawn: the noise, see `noise`.
            model: called as `model(x, t, *args, **kwargs)`.
            counts: numbers of rows a call may have, ascending; any if empty.
        """
        x, mask, noise = start.x, start.mask, None
        if bool((self.trace.plan.c != 0).any()):
            values = torch.stack([torch.zeros_like(x) if one is None else one for one in drawn])
            noise = Noise.from_tensor(values if mask is None else values.masked_fill(mask, 0))
        free = x if mask is None else x.masked_fill(mask, 0)
        cond = {"args": start.args, "kwargs": start.kwargs, "mask": mask, "known": start.known}
        cond["sample"] = torch.arange(len(x), device=x.device)
        return Actions(model, self.trace, free, noise=noise, cond=cond, counts=counts, ready=self.method)


@dataclass(frozen=True, eq=False)
class Actions(Scheduled):
    """Sampling of actions, some of which may be known.

    The policy puts the known ones into the state before every network call and at the end. Here the state is zero
    there and stays so, since the start, the field and the noise are; the network sees the known ones in their place.

    Attributes:
        ready: the loop's plan.
        counts: numbers of rows a call may have, ascending; any if empty.
        seen: where to note the data prediction last made at every node that is evaluated, if anywhere, shape (nodes,
            batch, *state).
    """

    ready: Ready = field(kw_only=True)
    counts: tuple[int, ...] = field(default=(), kw_only=True)
    seen: Tensor | None = field(default=None, kw_only=True)

    @property
    def conversion(self) -> FromOutput | None:
        """That of the trace, where the field is nothing else."""
        return super().conversion if self.seen is None and self.cond["mask"] is None else None

    @property
    def parts(self) -> tuple[object, ...]:
        """The network and the loop, unless what is evaluated is noted."""
        return (self,) if self.seen is not None else (self.model, self.trace, self.counts, self.start.dtype)

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate the data prediction where the state is free."""
        held = rows.cond.tensors()
        output, mask = self.output(replace(rows, t=self.clock[rows.t])), held["mask"]
        data = self.data(rows.x, output, rows.t)
        if mask is not None:
            data = data.masked_fill(mask, 0)
        if self.seen is not None:
            self.seen[rows.t, held["sample"]] = data.detach()
        return data, None

    def output(self, rows: Rows) -> Tensor:
        """Evaluate the network, which sees the known actions."""
        held = rows.cond.tensors()
        mask = held["mask"]
        x = rows.x if mask is None else torch.where(mask, held["known"].to(rows.x), rows.x)
        given = x.to(self.start.dtype)
        if self.counts:
            output = call_padded(self.model, self.counts, given, rows.t, held["args"], held["kwargs"])
        else:
            output = self.model(given, rows.t, *held["args"], **held["kwargs"])
        return unwrap(output).to(x.dtype)


def _draws(course: Course, trace: Trace) -> tuple[bool, ...]:
    """Find the nodes at which a scheduler draws noise, by running a copy of it."""
    generator = torch.Generator().manual_seed(0)
    twin = course.twin()
    step = dict(course.step) | ({GENERATOR: generator} if takes_generator(twin) else {})
    x, found = torch.zeros(1, 2, 2, device="cpu"), []
    for t in course.timesteps:
        before = generator.get_state()
        x = advance(twin, torch.zeros_like(x), t, x, step)[0]
        found.append(not torch.equal(before, generator.get_state()))
    if trace.plan.nodes != len(found) or not trace.independent:
        msg = f"{type(twin).__name__} draws noise that enters several steps: use mode='replay'"
        raise NotSupportedError(msg)
    return tuple(found)
