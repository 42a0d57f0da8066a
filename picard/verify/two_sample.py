"""Two-sample tests: whether two sets of samples come from one law, and how far apart the laws are at least."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from picard.device import fetch
from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.number import check_count, number
from picard.shapes import Bool, Float
from picard.verify.seeded import seeded

_MOST = 10**6  # relabellings, each an order of all samples


@dataclass(frozen=True)
class TwoSample:
    """The outcome of a two-sample test.

    Attributes:
        estimate: the statistic; for `histogram_test` and `classifier_test` an estimate of a lower bound of the total
            variation distance, for `energy_test` the energy distance.
        error: its standard error; for `energy_test` the standard deviation of the statistic when the laws are equal.
        p_value: probability of a statistic as large as this if the laws are equal.
        bounds: whether the estimate is one of a lower bound of the total variation distance.
    """

    estimate: float
    error: float
    p_value: float
    bounds: bool = True

    def lower(self, sigmas: float = 3.0) -> float:
        """Return a lower confidence bound of the total variation distance.

        Args:
            sigmas: standard errors below the estimate.

        Returns:
            The bound, at least 0.

        Raises:
            NotSupportedError: if the estimate is no such bound: the energy distance is in units of the samples, never
                negative, and its error is that of equal laws.
        """
        if not self.bounds:
            msg = "the energy distance gives no bound: use its p_value, or histogram_test or classifier_test"
            raise NotSupportedError(msg)
        return max(0.0, self.estimate - number("sigmas", sigmas) * self.error)


def histogram_test(
    x: Float[Tensor, "n dims"], y: Float[Tensor, "m dims"], *, bins: int = 8, seed: int = 0
) -> TwoSample:
    """Estimate the total variation distance in low dimension from a grid of cells.

    The first halves of both samples choose the cells in which the first law has more mass; the second halves measure
    the difference of the masses of their union. That is an unbiased estimate of a lower bound of the distance, where
    the usual plug-in estimate is biased upwards.

    Args:
        x: samples of the first law, in random order.
        y: samples of the second law.
        bins: number of intervals in every dimension, of equal mass in the pooled first halves.
        seed: seed of the split.

    Returns:
        The estimate and a one-sided p-value from the normal approximation.

    Raises:
        InvalidProblemError: if the samples do not fit together, or there are too few bins or too many cells.
    """
    bins = check_count("bins", bins, least=2)
    (x_fit, x_test), (y_fit, y_test) = _halves(x, y, seed)
    dims = x.shape[1]
    if bins**dims > 10**6:
        msg = f"{bins} bins in {dims} dimensions are too many cells: use classifier_test in high dimension"
        raise InvalidProblemError(msg)
    levels = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device="cpu")[1:-1]
    edges = torch.cat([x_fit, y_fit]).quantile(levels, dim=0).T.contiguous()

    def cells(points: Tensor) -> Tensor:
        index = torch.searchsorted(edges, points.T.contiguous())
        return sum((index[d] * bins**d for d in range(dims)), start=points.new_zeros(len(points), dtype=torch.int64))

    mass_x, mass_y = (cells(points).bincount(minlength=bins**dims) / len(points) for points in (x_fit, y_fit))
    ahead = mass_x > mass_y
    return _masses(ahead[cells(x_test)], ahead[cells(y_test)])


def classifier_test(x: Float[Tensor, "n dims"], y: Float[Tensor, "m dims"], *, seed: int = 0) -> TwoSample:
    """Test by a classifier whether two samples can be told apart, in any dimension (Lopez-Paz and Oquab, 2017).

    A logistic regression on the coordinates and their squares is fitted to the first halves. Of the second halves, one
    point of every pair is drawn by a fair coin, so that the number of right answers is exactly binomial if the laws are
    equal. Twice the accuracy minus one is a lower bound of the total variation distance.

    Args:
        x: samples of the first law.
        y: samples of the second law.
        seed: seed of the split and of the coins.

    Returns:
        The estimate `2 accuracy - 1` and the exact one-sided binomial p-value.

    Raises:
        InvalidProblemError: if the samples do not fit together.
    """
    (x_fit, x_test), (y_fit, y_test) = _halves(x, y, seed)
    pooled = torch.cat([x_fit, y_fit])
    center, scale = pooled.mean(0), pooled.std(0).clamp_min(1e-12)

    def features(points: Tensor) -> Tensor:
        z = (points - center) / scale
        return torch.cat([z, z**2 - 1, torch.ones_like(z[:, :1])], 1)

    labels = torch.cat([torch.ones(len(x_fit), device="cpu"), torch.zeros(len(y_fit), device="cpu")]).double()
    weights = _logistic(features(pooled), labels)
    count = min(len(x_test), len(y_test))
    coins = torch.randint(2, (count,), generator=seeded(seed, 1), device="cpu").bool()
    points = torch.where(coins[:, None], x_test[:count], y_test[:count])
    right = int((((features(points) @ weights) > 0) == coins).sum())
    accuracy = right / count
    error = 2 * math.sqrt(max(accuracy * (1 - accuracy), 1 / count) / count)
    return TwoSample(2 * accuracy - 1, error, _binomial_tail(right, count))


def energy_test(
    x: Float[Tensor, "n dims"],
    y: Float[Tensor, "m dims"],
    *,
    permutations: int = 199,
    most: int = 500,
    seed: int = 0,
) -> TwoSample:
    """Test by the energy distance `2 E|X-Y| - E|X-X'| - E|Y-Y'|` and random permutations (Szekely and Rizzo, 2013).

    Args:
        x: samples of the first law.
        y: samples of the second law.
        permutations: number of random relabellings; the p-value is exact for any.
        most: samples of each law to use; time and memory grow with the square.
        seed: seed of the choice and of the relabellings.

    Returns:
        The energy distance of those samples, and the share of relabellings with one as large. There is no `lower()`.

    Raises:
        InvalidProblemError: if the samples do not fit together, or `permutations` is less than 2 or `most` less than 4.
    """
    permutations = check_count("permutations", permutations, least=2, most=_MOST)
    most = check_count("most", most, least=4)
    generator = seeded(seed)
    x, y = (points[torch.randperm(len(points), generator=generator, device="cpu")[:most]] for points in _checked(x, y))
    pooled = torch.cat([x, y])
    distances = torch.cdist(pooled, pooled)
    sign = torch.cat([x.new_full((len(x),), 1 / len(x)), x.new_full((len(y),), -1 / len(y))]).double()
    orders = [torch.randperm(len(sign), generator=generator, device="cpu") for _ in range(permutations)]
    signs = torch.stack([sign, *(sign[order] for order in orders)])
    statistics = -((signs @ distances) * signs).sum(1)
    larger = int((statistics[1:] >= statistics[0]).sum())
    p_value = (1 + larger) / (1 + permutations)
    return TwoSample(float(statistics[0]), float(statistics[1:].std()), p_value, bounds=False)


def _checked(x: Tensor, y: Tensor) -> list[Tensor]:
    """Check samples, and take them to the host in float64, where the tests are made."""
    tensors = isinstance(x, Tensor) and isinstance(y, Tensor) and not x.is_complex() and not y.is_complex()
    if not tensors or x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 4:
        msg = (
            "samples must have shapes (n, dims) and (m, dims), at least four of each; given "
            f"{describe(x)} and {describe(y)}: write x.flatten(1)"
        )
        raise InvalidProblemError(msg)
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        msg = f"samples must be finite; given {describe(x)} and {describe(y)} with values that are not"
        raise InvalidProblemError(msg)
    return [fetch(x), fetch(y)]


def _halves(x: Tensor, y: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = seeded(seed)

    def halve(points: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(points), generator=generator, device="cpu")
        half = len(points) // 2
        return points[order[:half]], points[order[half:]]

    return [halve(points) for points in _checked(x, y)]


def _masses(in_x: Bool[Tensor, " n"], in_y: Bool[Tensor, " m"]) -> TwoSample:
    p, q = float(in_x.double().mean()), float(in_y.double().mean())
    variance = p * (1 - p) / len(in_x) + q * (1 - q) / len(in_y)
    error = math.sqrt(max(variance, 1 / len(in_x) ** 2 + 1 / len(in_y) ** 2))
    return TwoSample(p - q, error, 0.5 * math.erfc((p - q) / error / math.sqrt(2)))


def _logistic(features: Float[Tensor, "n k"], labels: Float[Tensor, " n"]) -> Float[Tensor, " k"]:
    """Fit a logistic regression by a few damped Newton steps, with a small ridge."""
    weights = features.new_zeros(features.shape[1])
    ridge = 1e-2 * torch.eye(len(weights), dtype=features.dtype, device="cpu") * math.sqrt(len(labels))
    for _ in range(8):
        probability = torch.sigmoid(features @ weights)
        slope = features.T @ (labels - probability) - ridge @ weights
        curve = features.T @ (features * (probability * (1 - probability))[:, None]) + ridge
        step = torch.linalg.solve(curve, slope)
        weights = weights + step * min(1.0, 3.0 / max(float(step.norm()), 1e-12))
    return weights


def _binomial_tail(right: int, count: int) -> float:
    """Probability of at least `right` heads in `count` fair coins."""
    k = torch.arange(right, count + 1, dtype=torch.float64, device="cpu")
    size = torch.tensor(float(count), dtype=torch.float64, device="cpu")
    log = torch.lgamma(size + 1) - torch.lgamma(k + 1) - torch.lgamma(size - k + 1) - size * math.log(2)
    return min(1.0, float(torch.logsumexp(log, 0).exp()))
