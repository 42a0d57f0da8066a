"""Guidance: how a pipeline makes one prediction of a step's several denoiser outputs, measured and repeated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 64  # units in the last place a measured number may miss by
_HALF = 8  # by which sums of weights may in half precision: its units are so large that 64 would hide a rescaling
_CLEAR = 0.05  # a ratio this close to one says nothing about rescaling


class Unplanned(Exception):  # noqa: N818  # no failure: the pipeline is replayed instead
    """Says why a pipeline is not run on a plan."""


@dataclass(frozen=True, eq=False)
class Guidance:
    """A prediction as a weighted sum of denoiser outputs, perhaps rescaled to the spread of one of them.

    Classifier-free guidance (Ho and Salimans, 2022) has the weights 1 - w and w, without it the only weight is 1. The
    rescaling is that of Lin et al. (2023), section 3.4: a share `rescale` of the sum is given the standard deviation of
    the conditional output.

    Attributes:
        weights: of every output in every step, shape (steps, parts), float64.
        rescale: the share.
        text: which output is the conditional one.
    """

    weights: Tensor
    rescale: float = 0.0
    text: int = 0

    def combine(self, parts: list[Tensor], step: Tensor) -> Tensor:
        """Make the prediction of rows that belong to the given steps.

        Args:
            parts: the denoiser's outputs, each of shape (rows, *state).
            step: shape (rows,).
        """
        wide = torch.promote_types(parts[0].dtype, torch.float32)
        weights = self.weights.to(parts[0].device, wide)[step]
        shape = (-1, *[1] * (parts[0].ndim - 1))
        total = weights[:, 0].reshape(shape) * parts[0]
        for k, part in enumerate(parts[1:], 1):
            total = total + weights[:, k].reshape(shape) * part
        if self.rescale:
            spread = _spread(parts[self.text].to(wide)) / _spread(total)
            total = total * (self.rescale * spread + 1 - self.rescale).reshape(shape)
        return total


class Measurement:
    """Measures a guidance from what goes in and comes out, step by step, without waiting for the device."""

    def __init__(self) -> None:
        self._products: list[Tensor] = []
        self._eps, self._dims = 0.0, 1

    def add(self, parts: list[Tensor], made: Tensor) -> None:
        """Take note of a step: outputs and prediction, each of shape (samples, *state)."""
        self._eps = max(torch.finfo(made.dtype).eps, *(torch.finfo(part.dtype).eps for part in parts))
        rows = torch.stack([*parts, made, torch.ones_like(made)], 1).flatten(2)
        rows = (rows.cpu() if rows.device.type == "mps" else rows).double()
        self._dims = rows.shape[2]
        self._products.append(rows @ rows.mT / self._dims)

    def guidance(self) -> Guidance:
        """Find the guidance.

        Raises:
            Unplanned: if the prediction is made in another way.
        """
        products = torch.stack(self._products).cpu()  # (steps, samples, parts + 2, parts + 2)
        square, mixed, mean = products[..., :-2, :-2], products[..., :-2, -2], products[..., :-2, -1]
        try:
            weights = torch.linalg.solve(square, mixed)
        except RuntimeError as error:
            msg = "its denoiser's outputs are too small to tell the guidance"
            raise Unplanned(msg) from error
        size = (weights.abs() * square.diagonal(dim1=-2, dim2=-1).sqrt()).sum(-1)
        rest = (products[..., -2, -2] - (weights * mixed).sum(-1)).clamp_min(0).sqrt()
        if not bool((rest <= _ROUNDING * self._eps * size).all()):
            msg = "what it makes of the denoiser's outputs is not a weighted sum of them"
            raise Unplanned(msg)
        near = _ROUNDING * self._eps * float(weights.abs().sum(-1).max()) / self._dims**0.5
        total = weights.sum(-1)
        units = _HALF if self._eps > torch.finfo(torch.float32).eps else _ROUNDING
        if float(total.max() - total.min()) <= near * units / _ROUNDING:
            return Guidance(_common(weights, near))
        directions = _common(weights / total[..., None], 4 * near)
        covariance = square - mean[..., None] * mean[..., None, :]
        own = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        spread = torch.einsum("nk,nskl,nl->ns", directions, covariance, directions).sqrt()
        found = []
        for text in range(own.shape[-1]):
            ratio = own[..., text] / spread - 1
            clear = ratio.abs() > _CLEAR
            share = ((total - 1) / ratio)[clear]
            if len(share) > 1 and float(share.max() - share.min()) <= max(near / _CLEAR, 1e-4):
                found.append((float(share.max() - share.min()), float(share.median()), text))
        if found:
            _, rescale, text = min(found)
            return Guidance(directions, rescale, text)
        msg = "its guidance changes in a way that is neither a weighted sum nor `guidance_rescale`"
        raise Unplanned(msg)


def _common(weights: Tensor, near: float) -> Tensor:
    """Take the weights all samples share."""
    if float((weights.amax(1) - weights.amin(1)).max()) > near:
        msg = "its guidance is not the same for all samples"
        raise Unplanned(msg)
    return weights.mean(1)


def _spread(value: Tensor) -> Tensor:
    """Standard deviation of every row."""
    return value.flatten(1).std(1)
