"""The denoiser: any diffusion network, turned into a prediction of the clean data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from picard.convert import FromPrediction, Prediction
from picard.device import check_data
from picard.errors import InvalidProblemError, NotSupportedError, check_choice, describe
from picard.guidance import Guidance
from picard.noted import called
from picard.number import keep_numbers, one_number, share
from picard.problem import check_callable
from picard.schedule import Schedule
from picard.shapes import Float

_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")


@dataclass(frozen=True)
class DynamicThreshold:
    """Dynamic thresholding of the data prediction (Saharia et al., 2022, sec. 2.3).

    Attributes:
        ratio: quantile of the absolute values of one row.
        most: largest threshold; the smallest is 1.

    Raises:
        InvalidProblemError: if `ratio` is not a share.
    """

    ratio: float = 0.995
    most: float = 1.0

    def __post_init__(self) -> None:
        """Check the quantile and the threshold."""
        keep_numbers(self, "ratio", of=share)
        keep_numbers(self, "most")
        if math.isnan(self.most):
            msg = "most must be a number, the largest threshold; given nan: write e.g. most=1.0"
            raise InvalidProblemError(msg)

    def __call__(self, data: Tensor) -> Tensor:
        """Clamp every row to its own quantile and divide by it."""
        flat = data.flatten(1).float() if data.dtype in (torch.float16, torch.bfloat16) else data.flatten(1)
        limit = torch.quantile(flat.abs(), self.ratio, dim=1).clamp(1.0, max(self.most, 1.0)).to(data.dtype)
        limit = limit.reshape(-1, *[1] * (data.ndim - 1))
        return data.clamp(-limit, limit) / limit


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A diffusion network with its schedule and its kind of prediction.

    Attributes:
        model: called as `model(x, t, **cond)` with x (rows, *state) and t (rows,); returns (rows, *state).
        schedule: the noise levels the network was trained on.
        prediction: what the network predicts: the noise `epsilon`, the clean `sample`, `v_prediction` (Salimans and
            Ho, 2022, alpha * noise - sigma * data) or the `flow` velocity noise - data.
        clip: bound of the data prediction: a number c clamps it to [-c, c]; `DynamicThreshold()` or any function of
            the data prediction works as well.
        guidance: classifier-free guidance.

    Raises:
        InvalidProblemError: if an argument has the wrong form.
    """

    model: Callable[..., Tensor]
    schedule: Schedule
    prediction: Prediction = field(default="epsilon", kw_only=True)
    clip: float | Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    guidance: Guidance | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_callable("model", self.model, "x, t, **cond")
        if not isinstance(self.schedule, Schedule):
            msg = (
                f"the schedule must be a picard.Schedule; given {describe(self.schedule)}: write e.g. Schedule.linear()"
            )
            raise InvalidProblemError(msg)
        if not isinstance(getattr(self.schedule, "discrete", None), bool):
            msg = (
                "a schedule must say whether the model's time is an integer; "
                f"{type(self.schedule).__name__} does not: write discrete = False (or True) in the class"
            )
            raise InvalidProblemError(msg)
        check_choice("prediction", self.prediction, _PREDICTIONS)
        bound = one_number(self.clip) and self.clip > 0
        if self.clip is not None and not bound and (isinstance(self.clip, type) or not callable(self.clip)):
            msg = (
                "clip must be positive, a function of the data prediction, or None; given "
                f"{describe(self.clip)}: write e.g. clip=1.0 or clip=DynamicThreshold()"
            )
            raise InvalidProblemError(msg)
        if bound:
            keep_numbers(self, "clip")
        if self.guidance is not None and not isinstance(self.guidance, Guidance):
            msg = (
                f"guidance must be a Guidance or None; given {describe(self.guidance)}: "
                "write Guidance(scale, uncond=dict(label=none))"
            )
            raise InvalidProblemError(msg)

    def check(self, alpha: Tensor) -> None:
        """Check that the data can be recovered from the prediction at every level.

        Raises:
            NotSupportedError: if the network predicts noise at a level without signal.
        """
        if self.prediction == "epsilon" and not bool((alpha > 0).all()):
            msg = (
                "a noise prediction says nothing about the data where alpha is 0, as this schedule's first level is: "
                "use a network with prediction='v_prediction' or 'sample', or start at a later timestep"
            )
            raise NotSupportedError(msg)

    @property
    def conversion(self) -> FromPrediction:
        """How the clean data follows from an output."""
        return FromPrediction(self.prediction, self.clip)

    def output(
        self, x: Float[Tensor, "rows *state"], t: Tensor, cond: Mapping[str, Any]
    ) -> Float[Tensor, "rows *state"]:
        """Return the network's output, guided.

        Args:
            x: noisy states.
            t: model times.
            cond: the network's keyword arguments, repeated per row; with guidance, those of the unconditional half
                in front, see `double`.
        """
        if self.guidance is None:
            return self._call(x, t, cond)
        halves = self._call(torch.cat([x, x]), torch.cat([t, t]), cond).chunk(2)
        return self.guidance.combine(halves[0], halves[1])

    def _call(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        output: object = called(self.model, {"x": x, "t": t}, cond)
        fix = "unpack outputs such as `.sample`, and drop learned variance channels, in a small wrapper"
        if isinstance(output, Tensor):
            if output.is_floating_point() and output.shape == x.shape and output.device == x.device:
                check_data("what the model returns", output)
                return output
            if output.shape[1:] == x.shape[1:] and len(output) != len(x):
                fix = "pass what has one row a sample in cond, as tensors, which are repeated for the rows of a call"
        msg = (
            f"the model must return a floating tensor shaped and placed as its input, {describe(x)}; "
            f"it returned {describe(output)}: {fix}"
        )
        raise InvalidProblemError(msg)
