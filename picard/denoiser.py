"""The denoiser: any diffusion network, turned into a prediction of the clean data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import map_tensors
from picard.convert import FromPrediction, Prediction
from picard.errors import InvalidProblemError, NotSupportedError, close_match, describe
from picard.number import number, one_number
from picard.schedule import Schedule
from picard.shapes import Float

_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans, 2022), computed as one doubled batch.

    Attributes:
        scale: guidance scale w, one for all samples; the output is `uncond + w * (cond - uncond)`.
        uncond: conditioning of the unconditional half, named and shaped as the problem's `cond`.
        rescale: share of the rescaling that keeps the conditional output's standard deviation (Lin et al., 2024, 3.4).

    Raises:
        InvalidProblemError: if the scale is not one number or `rescale` is not a share.
    """

    scale: float
    uncond: Mapping[str, Any] = field(default_factory=dict)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not one_number(self.scale):
            msg = (
                f"guidance scale must be one number; given {describe(self.scale)}: write e.g. Guidance(3.0, uncond), "
                "or, for a scale a sample, combine both outputs in the model and pass the scales in cond"
            )
            raise InvalidProblemError(msg)
        if not 0 <= number("rescale", self.rescale, "rescale=0.7") <= 1:
            msg = f"guidance rescale must be between 0 and 1; given {self.rescale}"
            raise InvalidProblemError(msg)

    def combine(self, uncond: Tensor, cond: Tensor) -> Tensor:
        """Combine the two halves of the network's output, each (rows, *state)."""
        guided = uncond + self.scale * (cond - uncond)
        if not self.rescale:
            return guided
        dims = tuple(range(1, cond.ndim))
        matched = guided * (cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
        return self.rescale * matched + (1 - self.rescale) * guided


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
        """Check the quantile."""
        if not 0 <= number("ratio", self.ratio, "ratio=0.995") <= 1:
            msg = f"ratio must be a quantile between 0 and 1; given {self.ratio:g}: write 0.995 for 99.5 percent"
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
        if not callable(self.model):
            msg = f"the model must be callable as model(x, t, **cond); given {describe(self.model)}"
            raise InvalidProblemError(msg)
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
        if self.prediction not in _PREDICTIONS:
            msg = f"unknown prediction {self.prediction!r}: {close_match(str(self.prediction), _PREDICTIONS)}"
            raise InvalidProblemError(msg)
        bound = one_number(self.clip) and self.clip > 0  # type: ignore[operator]  # it is a number
        if self.clip is not None and not bound and (isinstance(self.clip, type) or not callable(self.clip)):
            msg = (
                "clip must be positive, a function of the data prediction, or None; given "
                f"{describe(self.clip)}: write e.g. clip=1.0 or clip=DynamicThreshold()"
            )
            raise InvalidProblemError(msg)
        if not isinstance(self.guidance, (Guidance, NoneType)):
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
        output: object = self.model(x, t, **cond)
        fits = isinstance(output, Tensor) and output.shape == x.shape and output.device == x.device
        if not isinstance(output, Tensor) or not fits or output.is_complex():
            fix = "unpack outputs such as `.sample`, and drop learned variance channels, in a small wrapper"
            if isinstance(output, Tensor) and output.shape[1:] == x.shape[1:] and len(output) != len(x):
                fix = "pass what has one row a sample in cond, as tensors, which are repeated for the rows of a call"
            msg = (
                f"the model must return a real tensor shaped and placed as its input, {describe(x)}; "
                f"it returned {describe(output)}: {fix}"
            )
            raise InvalidProblemError(msg)
        return output


def check_halves(name: str, uncond: Any, cond: Any, batch: int) -> None:
    """Check that the two halves of guidance differ in rows of samples only: all else, one call gives to both.

    Args:
        name: the argument's, for the message.
        uncond: its value in the unconditional half.
        cond: its value in the conditional one.
        batch: number of samples.

    Raises:
        InvalidProblemError: if they differ in something else.
    """
    if isinstance(cond, Mapping) and isinstance(uncond, Mapping) and cond.keys() == uncond.keys():
        for key, value in cond.items():
            check_halves(f"{name}[{key!r}]", uncond[key], value, batch)
    elif isinstance(cond, (list, tuple)) and isinstance(uncond, (list, tuple)) and len(cond) == len(uncond):
        for i, value in enumerate(cond):
            check_halves(f"{name}[{i}]", uncond[i], value, batch)
    elif isinstance(cond, Tensor) and isinstance(uncond, Tensor) and cond.shape == uncond.shape:
        if (cond.ndim == 0 or len(cond) != batch) and uncond is not cond and not torch.equal(uncond, cond):
            msg = (
                f"guidance's uncond may differ from cond in tensors with one row a sample only; given "
                f"{describe(uncond)} for {name} and {batch} samples: write value.expand({batch}, *value.shape) for both"
            )
            raise InvalidProblemError(msg)
    elif isinstance(cond, (Tensor, Mapping, list, tuple)) or (uncond is not cond and uncond != cond):
        msg = (
            f"guidance's uncond must be shaped as cond, and differ in tensors only; given {describe(uncond)} for "
            f"{name}, cond has {describe(cond)}: write a tensor with one row a sample, e.g. uncond.expand_as(cond)"
        )
        raise InvalidProblemError(msg)


def double(uncond: Any, cond: Any, original: Any, batch: int) -> Any:
    """Put the rows of the unconditional half before those of the conditional one.

    Args:
        uncond: repeated per row.
        cond: repeated per row.
        original: the same before it was repeated; tensors whose first dimension is the batch have rows.
        batch: number of samples.
    """

    def both(one: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second]) if one.ndim and len(one) == batch else second

    return map_tensors(original, both, uncond, cond)
