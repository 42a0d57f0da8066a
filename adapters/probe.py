"""Probing a Diffusers scheduler: its own `step`, run on basis columns instead of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from picard.device import on_host

from .course import Course

Clip = Callable[[Tensor], Tensor]

_NOTHING = 1e-12


@dataclass(frozen=True)
class Clamp:
    """Clipping between bounds.

    Attributes:
        low: lower bound, if any.
        high: upper bound, if any.
    """

    low: Any
    high: Any

    def __call__(self, data: Tensor) -> Tensor:
        """Clip."""
        return torch.clamp(data, self.low, self.high)


def _clamp(min: Any = None, max: Any = None) -> Clamp:  # noqa: A002  # PyTorch's names
    return Clamp(min, max)


class Tap(TorchFunctionMode):
    """Runs a scheduler on probes: noise and clipping are replaced, and probes stay in float64.

    Attributes:
        draws: number of noise draws so far.
        seen: the values about to be clipped, and the clipping, since last asked.
    """

    def __init__(self, shape: torch.Size, noise: Callable[[int], Tensor], clipped: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shape, self.noise, self.clipped = shape, noise, clipped
        self.draws = 0
        self.seen: list[tuple[Tensor, Clip]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a torch call made by the scheduler."""
        kwargs = kwargs or {}
        if func in (torch.randn, torch.randn_like):
            return self.draw()
        if args and isinstance(args[0], Tensor) and args[0].shape == self.shape:
            if func in (Tensor.clamp, torch.clamp, Tensor.clip, torch.clip):
                return self.clip(args[0], _clamp(*args[1:], **kwargs))
            result = func(*args, **kwargs)
            narrowed = isinstance(result, Tensor) and result.is_floating_point() and result.dtype != torch.float64
            return args[0] if narrowed and func in (Tensor.to, Tensor.float, Tensor.type) else result
        return func(*args, **kwargs)

    def draw(self, *_: Any) -> Tensor:
        """Give the next draw's column, whoever asks."""
        self.draws += 1
        return self.noise(self.draws - 1)

    def clip(self, data: Tensor, how: Clip) -> Tensor:
        """Note what is clipped, and give what stands for the result."""
        self.seen.append((data, how))
        return self.clipped(data)

    def attach(self, scheduler: Any) -> None:
        """Take over what a scheduler does by methods of its own: thresholding and Brownian noise."""
        if hasattr(scheduler, "_threshold_sample"):
            own = scheduler._threshold_sample  # the one place where Diffusers thresholds
            scheduler._threshold_sample = lambda data: self.clip(data, own)
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = self.draw


def model_input(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
    """Scale a state for the model, where the scheduler does."""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def advance(
    scheduler: Any, output: Tensor, t: Tensor, x: Tensor, step: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Step a scheduler; return the next state and its data prediction, if it tells."""
    with on_host():
        result = scheduler.step(output, t.expand(len(x)) if hasattr(scheduler, "_alpha_cumprod") else t, x, **step)
    data = getattr(result, "pred_original_sample", None)
    return result[0], data if isinstance(data, Tensor) else None


@dataclass(frozen=True, eq=False)
class Output:
    """How every node's data prediction follows from the model: D = u y + w m, y the model's input.

    Attributes:
        scale: input scale c, y = c x with x the scheduler's state, shape (nodes + 1,), 1 at the end.
        u: shape (nodes,).
        w: shape (nodes,).
        levels: signal and noise scale (alpha, sigma) of y, shape (nodes, 2); NaN where unknown.
        clip: what the scheduler clips the data prediction with, if it does.
    """

    scale: Tensor
    u: Tensor
    w: Tensor
    levels: Tensor
    clip: Clip | None

    @property
    def slope(self) -> Tensor:
        """Slope of the model's output in its input when the data prediction is held, shape (nodes,)."""
        return -self.u / self.w


def probe_output(course: Course) -> Output:
    """Find every node's input scale and data prediction."""
    scheduler = course.twin()
    x, m = torch.zeros(2, 1, 1, 1, 2, dtype=torch.float64).unbind(0)
    x, m = x.clone(), m.clone()
    x[..., 0], m[..., 1] = 1, 1
    tap = Tap(x.shape, lambda _: torch.zeros_like(x), lambda data: data)
    tap.attach(scheduler)
    rows, clips = [], []
    with torch.no_grad(), tap:
        for node, t in enumerate(course.timesteps, course.start):
            scale = float(model_input(scheduler, x, t)[..., 0])
            alpha, sigma = _known_level(scheduler, node, t, scale)
            _, data = advance(scheduler, m, t, x, course.step)
            if tap.seen:
                data, how = tap.seen.pop()
                clips.append(how)
            if data is None:
                data = _convert(scheduler, node, x, m, alpha / scale, sigma / scale)
            u, w = data.flatten().tolist()
            if not (math.isfinite(u) and math.isfinite(w)) or abs(w) < _NOTHING:  # the output says nothing of the data
                u, w = 0.0, 1.0
            rows.append([scale, u / scale, w, *_level(scheduler, u / scale, w, alpha, sigma)])
    table = torch.tensor(rows, dtype=torch.float64)
    end = torch.ones(1, dtype=torch.float64)
    return Output(torch.cat([table[:, 0], end]), table[:, 1], table[:, 2], table[:, 3:], clips[0] if clips else None)


def _known_level(scheduler: Any, node: int, t: Tensor, scale: float) -> tuple[float, float]:
    """Read the level (alpha, sigma) of the model's input off the tables a scheduler may have; NaN if it has none."""
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) > node:
        sigma = sigmas[node].double()
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            pair = scheduler._sigma_to_alpha_sigma_t(sigma)  # there is no public way
            return float(pair[0]) * scale, float(pair[1]) * scale
        if kind in ("flow_prediction", "flow") and float(sigmas.max()) <= 1:
            return 1 - float(sigma), float(sigma)
        return scale, float(sigma) * scale
    if hasattr(scheduler, "alphas") and hasattr(scheduler, "ets") and not hasattr(scheduler, "alphas_cumprod"):
        return float(scheduler.alphas[node]), float(scheduler.betas[node])  # IPNDM
    bars = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(bars, Tensor) and t.ndim == 0 and 0 <= float(t) <= len(bars) - 1:
        bar = float(bars[round(float(t))])
        return bar**0.5, (1 - bar) ** 0.5
    return float("nan"), float("nan")


def _convert(scheduler: Any, node: int, x: Tensor, m: Tensor, alpha: float, sigma: float) -> Tensor:
    """Predict the data by the kind of prediction; where that is unknown, give the output itself."""
    if hasattr(scheduler, "precondition_outputs"):
        return scheduler.precondition_outputs(x, m, scheduler.sigmas[node])
    kind = scheduler.config.get("prediction_type", "epsilon" if hasattr(scheduler, "ets") else "flow_prediction")
    data = m
    if kind == "epsilon" and alpha > 0:
        data = (x - sigma * m) / alpha
    elif kind == "v_prediction":
        data = (alpha * x - sigma * m) / (alpha**2 + sigma**2)
    elif kind in ("flow_prediction", "flow"):
        data = x - sigma * m
    return data if bool(torch.isfinite(data).all()) else m


def _level(scheduler: Any, u: float, w: float, alpha: float, sigma: float) -> tuple[float, float]:
    """Find the level (alpha, sigma) of the model's input from its data prediction."""
    kind = scheduler.config.get("prediction_type", "epsilon" if hasattr(scheduler, "ets") else "flow_prediction")
    if hasattr(scheduler, "precondition_outputs"):
        return alpha, sigma
    if kind == "epsilon" and u > 0:
        return 1 / u, -w / u
    if kind == "v_prediction":
        return u, -w
    if kind in ("flow_prediction", "flow") and w < 0:
        return 1 + w, -w
    return alpha, sigma
