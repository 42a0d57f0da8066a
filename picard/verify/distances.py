"""Total variation distances between Gaussians, exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from picard.device import check_data, fetch
from picard.errors import InvalidProblemError, describe
from picard.number import number

_NODES = 20001  # of the trapezoidal rule over the radius of each law; its error is below 1e-6


def gaussian_tv(mean_1: float | Tensor, std_1: float, mean_2: float | Tensor, std_2: float) -> float:
    """Compute the total variation distance between N(mean_1, std_1^2 I) and N(mean_2, std_2^2 I).

    In one dimension the densities cross at the roots of a quadratic, and the error function gives the mass between
    them. In n dimensions the difference of the means is one direction and the radius in the others is a chi variable:
    the distance is an integral over the radius of the one-dimensional formula with the two densities as weights.

    Args:
        mean_1: mean, a number or a vector of shape (n,).
        std_1: standard deviation of every coordinate, not negative.
        mean_2: mean of the second law, of the same shape.
        std_2: standard deviation of the second law.

    Returns:
        The distance, between 0 and 1; laws without width are points.

    Raises:
        InvalidProblemError: if a number is not finite, a standard deviation is negative or the means differ in shape.
    """
    std_1, std_2 = number("std_1", std_1), number("std_2", std_2)
    for name, mean in (("mean_1", mean_1), ("mean_2", mean_2)):
        if isinstance(mean, Tensor):
            check_data(name, mean)
        else:
            number(name, mean)
    first, second = (torch.as_tensor(mean, dtype=torch.float64, device="cpu").reshape(-1) for mean in (mean_1, mean_2))
    finite = bool(torch.isfinite(first).all() and torch.isfinite(second).all())
    if first.shape != second.shape or not finite or not (0 <= std_1 < math.inf and 0 <= std_2 < math.inf):
        msg = (
            "means must have one shape, standard deviations must not be negative, and all must be finite; given "
            f"{describe(mean_1)}, {std_1}, {describe(mean_2)}, {std_2}"
        )
        raise InvalidProblemError(msg)
    shift = float((first - second).norm())
    if std_1 == 0 or std_2 == 0:
        return 0.0 if std_1 == std_2 and shift == 0 else 1.0
    one = torch.ones(1, dtype=torch.float64, device="cpu")
    if len(first) == 1:
        return float(_excess(one, std_1, one, shift, std_2)[0])
    others = len(first) - 1
    near = torch.linspace(
        max(0.0, math.sqrt(others) - 12), math.sqrt(others) + 12, _NODES, dtype=torch.float64, device="cpu"
    )
    radius = torch.cat([std_1 * near, std_2 * near]).sort().values  # each law on its own scale
    weight_1, weight_2 = (_chi(radius, others, std) for std in (std_1, std_2))
    return float(torch.trapezoid(_excess(weight_1, std_1, weight_2, shift, std_2), radius))


def gaussian_tv_shared(mean_1: Tensor, mean_2: Tensor, covariance: Tensor) -> float:
    """Compute the total variation distance between Gaussians of the same covariance.

    It is erf(d / sqrt 8) with d the Mahalanobis distance of the means (Devroye, Mehrabian and Reddad, 2018).

    Args:
        mean_1: shape (n,).
        mean_2: shape (n,).
        covariance: positive definite, shape (n, n).

    Returns:
        The distance, between 0 and 1.

    Raises:
        InvalidProblemError: if the shapes do not fit, or the covariance is not positive definite.
    """
    if not all(isinstance(part, Tensor) for part in (mean_1, mean_2, covariance)):
        msg = (
            "means and covariance must be tensors; given "
            f"{describe(mean_1)}, {describe(mean_2)}, {describe(covariance)}: write torch.as_tensor(...)"
        )
        raise InvalidProblemError(msg)
    given = (mean_1, mean_2, covariance)
    mean_1, mean_2, covariance = (fetch(part) for part in given)
    dims, info = mean_1.numel(), torch.ones(1, device="cpu")
    if tuple(covariance.shape) == (dims, dims):
        info = torch.linalg.cholesky_ex(covariance).info
    if mean_1.shape != (dims,) or mean_2.shape != (dims,) or bool(info.any()):
        msg = (
            "means must have shape (n,) and the covariance, positive definite, (n, n); given "
            f"{', '.join(describe(part) for part in given)}"
        )
        raise InvalidProblemError(msg)
    shift = mean_1 - mean_2
    distance = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), shift[:, None], upper=False)
    return math.erf(float(distance.norm()) / math.sqrt(8))


def _chi(radius: Tensor, dims: int, std: float) -> Tensor:
    """Density of the norm of N(0, std^2 I) in `dims` dimensions."""
    r = radius / std
    log = (dims - 1) * r.log() if dims > 1 else torch.zeros_like(r)
    return torch.exp(log - r**2 / 2 - (dims / 2 - 1) * math.log(2) - math.lgamma(dims / 2)) / std


def _excess(weight_1: Tensor, std_1: float, weight_2: Tensor, shift: float, std_2: float) -> Tensor:
    """Integrate the positive part of weight_1 N(0, std_1^2) - weight_2 N(shift, std_2^2), for every pair of weights."""
    # The first law is ahead where a y^2 + b y + c > 0, the logarithm of the ratio of the two.
    a = 0.5 / std_2**2 - 0.5 / std_1**2
    b = -shift / std_2**2
    tiny = torch.finfo(torch.float64).tiny
    c = torch.log(weight_1.clamp_min(tiny) / weight_2.clamp_min(tiny)) + math.log(std_2 / std_1)
    c = c + shift**2 / (2 * std_2**2)
    if abs(a) * max(std_1, std_2, shift) ** 2 < 1e-13:  # equal widths: one crossing
        if b == 0:
            return (weight_1 - weight_2).clamp_min(0)
        low, high = torch.full_like(c, -math.inf), -c / b
        return _mass(low, high, weight_1, std_1, weight_2, shift, std_2)
    square = b * b - 4 * a * c
    q = 0.5 * (square.clamp_min(0).sqrt() - b)  # b is not positive, so nothing cancels
    crossing = (square > 0) & (q > 0)
    near, far = torch.where(crossing, c / q, 0), torch.where(crossing, q / a, 0)
    low, high = torch.minimum(near, far), torch.maximum(near, far)
    inside = _mass(low, high, weight_1, std_1, weight_2, shift, std_2)
    if a < 0:
        return inside
    return (weight_1 - weight_2) - inside


def _mass(
    low: Tensor, high: Tensor, weight_1: Tensor, std_1: float, weight_2: Tensor, shift: float, std_2: float
) -> Tensor:
    def between(mean: float, std: float) -> Tensor:
        return 0.5 * (torch.erf((high - mean) / (std * math.sqrt(2))) - torch.erf((low - mean) / (std * math.sqrt(2))))

    return weight_1 * between(0.0, std_1) - weight_2 * between(shift, std_2)
