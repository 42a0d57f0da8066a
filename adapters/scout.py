"""Scouts: a pass of a pipeline on made-up denoiser outputs, which shows what the pipeline does with them."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from picard.device import send
from picard.errors import PicardError
from picard.noise import Noise

from .calls import Call, main_tensor, with_main_tensor
from .copies import Copy
from .course import FAILURES, Course, number
from .denoisers import Denoisers
from .guidance import Measurement, Unplanned
from .phase import Phase
from .replay import Ended, Stop
from .scheduled import Scheduled
from .secant import overlap
from .trace import Trace

_ROUNDING = 256  # units in the last place by which a step may miss the plan's
_LOUD = 0.3  # size of the made-up part of an output, relative to an output


class Turned(Stop):
    """Ends the pass where the pipeline does what no plan can say."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Scout:
    """Answers for a pipeline's components in one pass, and compares every step with the scheduler's plan.

    Denoiser outputs are those at which the data prediction is zero, plus noise that tells them apart: states stay
    small, the guidance shows, and what a step adds on its own is the noise of the sequential run.

    Attributes:
        index: denoiser calls so far.
        steps: scheduler steps so far.
        first: the first call and its true output, once there is one.
        phases: the calls of a step.
        measured: the guidance, as far as it shows.
        problem: the pipeline's loop as a problem without a model, once the first step is made.
        fold: how often the pipeline holds every sample: DiT keeps its state twice.
    """

    exact = finishing = False

    def __init__(self, denoisers: Denoisers, max_rows: int | None, trace: Callable[[Course], Trace]) -> None:
        self._denoisers, self._max_rows, self._trace = denoisers, max_rows, trace
        self.index = self.steps = 0
        self.first: tuple[Call, Any] | None = None
        self.phases: list[Phase] = []
        self.measured = Measurement()
        self.problem: Scheduled | None = None
        self.fold = 1
        self._made: list[tuple[Call, Tensor]] = []
        self._generator = torch.Generator().manual_seed(0)
        self._options: dict[str, Any] = {}
        self._result: Copy | None = None
        self._past: deque[Tensor] = deque()
        self._data: deque[Tensor] = deque()
        self._noise: list[Tensor] = []
        self._missed: list[Tensor] = []

    def call(self, module: int, *args: Any, **kwargs: Any) -> Any:
        """Answer a denoiser call; only the first one is evaluated, to see the form of an output."""
        call = self._denoisers.record(module, len(self._made), self.steps, args, kwargs)
        if self.first is None:
            self.first = (call, self._denoisers.evaluate([call], self._max_rows)[0])
        known = torch.nan_to_num(main_tensor(self.first[1]), posinf=0.0, neginf=0.0)
        loud = _LOUD * known.float().square().mean().sqrt().clamp_min(1e-3)
        noise = torch.randn((call.rows, *known.shape[1:]), generator=self._generator, dtype=torch.float32, device="cpu")
        value = loud * noise.to(known.device)
        if self.problem is None:
            value = value + (known if len(known) == call.rows else 0)
        elif self.steps < self.problem.trace.plan.nodes:
            part = overlap(call.x, value)
            slope = -float(self.problem.trace.u[self.steps] / self.problem.trace.w[self.steps])
            value[part] += slope * call.x[part]
        value = value.to(known.dtype)
        self._made.append((call, value))
        self.index += 1
        return with_main_tensor(self.first[1], value.clone())

    def step(self, scheduler: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a step of the scheduler, and look at everything that went into it."""
        try:
            return self._step(scheduler, original, args, kwargs)
        except (Unplanned, PicardError) as error:
            raise Turned(str(error)) from error
        except FAILURES as error:  # if the pipeline is at fault, replay meets it, too
            why = f"its scheduler is unlike those of Diffusers ({type(error).__name__}: {error})"
            raise Turned(why) from error

    def before_result(self) -> None:
        """End the pass: its result is of no use."""
        raise Ended

    def noise(self) -> Noise | None:
        """Return what every step added on its own.

        Raises:
            Unplanned: if the loop ended before the plan does, or a step was not the plan's.
        """
        if self.problem is None or self.steps != self.problem.trace.plan.nodes or self._made:
            msg = f"its loop makes {self.steps} steps, which is not what the scheduler lists"
            raise Unplanned(msg)
        if self._missed and float(torch.stack(self._missed).max()) > _ROUNDING:
            msg = "a step of the scheduler is not what its trace says"
            raise Unplanned(msg)
        return Noise.from_tensor(torch.stack(self._noise)) if self._noise else None

    def _step(self, scheduler: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        given = inspect.signature(type(scheduler).step).bind(scheduler, *args, **kwargs).arguments
        del given[next(iter(given))]  # self
        options = {**given, **given.pop("kwargs", {})}
        output, t, x = (options.pop(name, None) for name in ("model_output", "timestep", "sample"))
        options = {name: value for name, value in options.items() if name not in ("generator", "return_dict", "kwargs")}
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):
            msg = "it does not give its scheduler a state and an output"
            raise Unplanned(msg)
        if any(isinstance(value, Tensor) for value in options.values()):
            msg = "it gives the scheduler's step tensors of its own"
            raise Unplanned(msg)
        if self.problem is None:
            self._begin(scheduler, t, x, output, options)
        elif self._result is not None and not self._result.holds(x) and not torch.equal(x, self._result.value):
            msg = "the pipeline, or a callback, changes the state between two steps"
            raise Unplanned(msg)
        if self.problem is None or options != self._options:
            msg = "the arguments of the scheduler's step change"
            raise Unplanned(msg)
        found, node = self.problem.trace, self.steps
        if node == found.plan.nodes or float(number(t)) != float(found.timesteps[node]):
            msg = "its loop does not visit the timesteps that the scheduler lists"
            raise Unplanned(msg)
        x, m = self._folded(x), self._folded(output)
        self._see_calls(x * float(found.scale[node]), m)
        result = original(*args, **kwargs)
        made = result[0] if isinstance(result, tuple) else result.prev_sample
        self._result = Copy(made)
        self._compare(x, m, self._folded(made))
        self._made = []
        self.steps += 1
        return result

    def _begin(self, scheduler: Any, t: Any, x: Tensor, output: Tensor, options: dict[str, Any]) -> None:
        """Trace the scheduler before its first step."""
        half = len(x) // 2
        twice = len(x) % 2 == 0 and self._made[0][0].rows == len(x) and output.shape == x.shape
        if twice and torch.equal(x[:half], x[half:]) and torch.equal(output[:half], output[half:]):
            self.fold = 2
        self._options = options
        course = Course.running(scheduler, t, options)
        start = self._folded(x).clone()  # the pipeline may write into it
        self.problem = Scheduled(self.call, self._trace(course), start)

    def _folded(self, value: Tensor) -> Tensor:
        """Take every sample once."""
        part = len(value) // self.fold
        if self.fold > 1 and not torch.equal(value[:part], value[part:]):
            msg = "its samples influence each other"
            raise Unplanned(msg)
        return value[:part]

    def _see_calls(self, y: Tensor, m: Tensor) -> None:
        """Look at the calls of a step, and how the prediction follows from their outputs."""
        if self.steps == 0:
            self.phases = [Phase(call, y) for call, _ in self._made]
        else:
            if len(self._made) != len(self.phases):
                msg = "its steps call the denoiser a different number of times"
                raise Unplanned(msg)
            for phase, (call, _) in zip(self.phases, self._made, strict=True):
                phase.add(call, y)
        outputs = [value for _, value in self._made]
        if not outputs or any(one.ndim != m.ndim or one.shape[2:] != m.shape[2:] for one in outputs):
            msg = "the prediction has another shape than the denoiser's output"
            raise Unplanned(msg)
        self.measured.add([part for one in outputs for part in _blocks(one, m)], m)

    def _compare(self, x: Tensor, m: Tensor, result: Tensor) -> None:
        """Compare a step with the plan's; where that adds noise, the difference is the noise."""
        if self.problem is None:
            return
        problem, node = self.problem, self.steps
        found, plan = problem.trace, problem.trace.plan
        wide = problem.x0.dtype
        z = x.to(wide) * float(found.scale[node])
        self._past.appendleft(z)
        self._data.appendleft(problem.data(z, m.to(wide), send([node], x)))
        terms = [a * one for a, one in zip(plan.a[node].tolist(), self._past, strict=False)]
        terms += [b * one for b, one in zip(plan.b[node].tolist(), self._data, strict=False)]
        rest = result.to(wide) * float(found.scale[node + 1]) - torch.stack(terms).sum(0)
        while len(self._past) > plan.order:
            self._past.pop()
            self._data.pop()
        scale = float(plan.c[node])
        if bool((plan.c != 0).any()):
            self._noise.append(rest / scale if scale else torch.zeros_like(rest))
        if not scale:
            terms.append(float(plan.b[node].abs().sum() * found.u[node].abs()) * z)  # what a small D was rounded from
            size = torch.stack(terms).abs().amax()
            self._missed.append(rest.abs().amax() / (size * torch.finfo(m.dtype).eps))


def _blocks(output: Tensor, like: Tensor) -> list[Tensor]:
    """Cut an output into blocks of rows, each shaped as a prediction; channels beyond it are dropped."""
    return list(output[:, : like.shape[1]].unflatten(0, (-1, len(like))).unbind(0))
