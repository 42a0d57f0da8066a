"""A traced scheduler's loop as a problem, and the noise that it draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from picard.device import check_data
from picard.errors import InvalidProblemError, describe
from picard.grid import Levels
from picard.noise import Noise
from picard.noted import called
from picard.plan import Plan
from picard.problem import Problem
from picard.rows import Rows
from picard.solution import Solution

from .conversion import FromOutput, unwrap
from .course import Course, takes_generator
from .probe import advance, model_input
from .trace import Trace


@dataclass(frozen=True, eq=False)
class Scheduled(Problem):
    """Sampling with a traced scheduler. States are the model's inputs, in float32 at least.

    Attributes:
        model: as for `sample`.
        trace: the scheduler's loop.
        start: the scheduler's first state, shape (batch, *state).
        noise: the realization, by node.
        cond: keyword arguments of the model.
    """

    model: Callable[..., Any]
    trace: Trace
    start: Tensor
    noise: Noise | None = field(default=None, kw_only=True)
    cond: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    x0: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Scale the start, and bring the numbers of every node to its device."""
        wide = torch.promote_types(self.start.dtype, torch.float32)
        device, found = self.start.device, self.trace
        object.__setattr__(self, "x0", self.start.to(wide) * float(found.scale[0]))
        numbers = torch.stack([found.u, found.w, *found.shares.unbind(1)], 1).to(device, wide)
        object.__setattr__(self, "_numbers", numbers)
        every = bool((found.shares == torch.tensor([0.0, 1.0], device="cpu")).all())
        object.__setattr__(self, "_from_output", FromOutput(found.clip, every))
        object.__setattr__(self, "_timesteps", found.timesteps.to(device))

    @property
    def callee(self) -> object:
        """The model."""
        return self.model

    @property
    def parts(self) -> tuple[object, ...]:
        """The model and how data follows from its output, if this can be compared."""
        conversion = self.conversion
        return (self,) if conversion is None else (self.model, conversion, self.start.dtype)

    @property
    def method(self) -> Indexed:
        """The plan, its times replaced by the index of the node."""
        return Indexed(self.trace.plan)

    def points(self, grid: Any) -> Levels:
        """Count the nodes from one on, so that every point is known by its number."""
        count = torch.arange(1, self.trace.plan.nodes + 1, dtype=torch.float64, device="cpu")
        ones = torch.ones(len(count) + 1, dtype=torch.float64, device="cpu")
        return Levels(count, ones, ones)

    def time_dtype(self, grid: Any) -> torch.dtype:
        """Return int64: time is the index of the node."""
        return torch.int64

    @property
    def conversion(self) -> FromOutput | None:
        """That of the trace, if it clips as others do, or not at all."""
        found: FromOutput = self._from_output  # type: ignore[attr-defined]  # set in __post_init__
        return found if found.comparable else None

    @property
    def numbers(self) -> Tensor:
        """Weights of input and output in the data prediction, and its shares, shape (nodes, 4)."""
        return self._numbers  # type: ignore[attr-defined]  # set in __post_init__

    @property
    def clock(self) -> Tensor:
        """What the model is given as time at every node."""
        return self._timesteps  # type: ignore[attr-defined]  # set in __post_init__

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate the data prediction."""
        return self.data(rows.x, self.output(replace(rows, t=self.clock[rows.t])), rows.t), None

    def output(self, rows: Rows) -> Tensor:
        """Evaluate the model."""
        given = {"x": rows.x.to(self.start.dtype), "t": rows.t}
        output = unwrap(called(self.model, given, rows.cond.tensors()))
        if output.shape != rows.x.shape or not output.is_floating_point():
            msg = (
                f"the model must return a floating tensor shaped as its input {tuple(rows.x.shape)}; it returned "
                f"{describe(output)}: drop learned variance channels in a small wrapper"
            )
            raise InvalidProblemError(msg)
        check_data("what the model returns", output)
        return output.to(rows.x.dtype)

    def data(self, y: Tensor, output: Tensor, node: Tensor) -> Tensor:
        """Predict the data from the model's input and output, clipped as the scheduler does."""
        found: FromOutput = self._from_output  # type: ignore[attr-defined]  # set in __post_init__
        return found(y, output, node, None, self.numbers)

    def unscaled(self, solution: Solution) -> Solution:
        """Turn a solution's states back into the scheduler's, and its times into those of the model."""
        scale, last = self.trace.scale.to(solution.ys), len(self.trace.scale) - 1
        point = torch.where(solution.ts == 0, last + 1, solution.ts).long() - 1
        timesteps = torch.cat([self.trace.timesteps, torch.zeros_like(self.trace.timesteps[:1])])
        ys = solution.ys / scale[point.to(scale.device)].reshape(-1, *[1] * self.x0.ndim)
        kind = self.start.dtype
        return replace(solution, ts=timesteps[point.cpu()], ys=ys.to(kind), final=solution.final.to(kind))


@dataclass(frozen=True, eq=False)
class Indexed:
    """A plan as an integrator, its times being the index of the node: the problem knows what the model is given."""

    source: Plan

    def plan(self, points: Any) -> Plan:
        """Return the plan."""
        return replace(self.source, times=torch.arange(self.source.nodes, dtype=torch.float64, device="cpu"))


@torch.no_grad()
def draw_noise(
    course: Course, found: Trace, latents: Tensor, generator: torch.Generator | list[torch.Generator] | None
) -> Noise | None:
    """Draw the noise of every node as the scheduler's own loop would: by running a copy of it on zeros.

    Args:
        course: the loop.
        found: its trace.
        latents: what the loop starts from; shape, dtype and device count.
        generator: as for `sample`; advanced exactly as by the sequential loop.

    Returns:
        The realization, or `None` for a deterministic loop.
    """
    twin, plan = course.twin(), found.plan
    step = dict(course.step) | ({"generator": generator} if takes_generator(twin) else {})
    wide = torch.promote_types(latents.dtype, torch.float32)
    scale, c = found.scale.tolist(), plan.c.tolist()
    past = [torch.zeros_like(latents)]
    drawn = []
    for node, t in enumerate(course.timesteps):
        x = past[-1]
        y = model_input(twin, x, t)
        m = -(found.u[node] / found.w[node]).to(x) * y  # so that the data prediction is zero
        past = [*past[-plan.order :], advance(twin, m, t, x, step)[0]]
        if not any(c):  # a deterministic loop may still draw, and the generator must know
            continue
        forcing = past[-1].to(wide) * scale[node + 1]
        for p, a in enumerate(plan.a[node].tolist()[: len(past) - 1]):
            forcing = forcing - a * past[-2 - p].to(wide) * scale[node - p]
        drawn.append(forcing / c[node] if c[node] else torch.zeros_like(forcing))
    return Noise.from_tensor(torch.stack(drawn)) if drawn else None
