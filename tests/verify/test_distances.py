"""Distances between laws: exact ones against quadrature, tests against their nominal rates."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import picard
from picard.verify import TwoSample, classifier_test, energy_test, gaussian_tv, gaussian_tv_shared, histogram_test
from tests.pretend import Device, OnDevice

F64 = torch.float64
means, stds = st.floats(-2, 2), st.floats(0.1, 3)


def density(y: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-(((y - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


@given(means, stds, means, stds)
def test_one_dimension_agrees_with_quadrature(m: float, s: float, n: float, t: float) -> None:
    y = torch.linspace(-32, 32, 200_001, dtype=F64)
    wanted = 0.5 * torch.trapezoid((density(y, m, s) - density(y, n, t)).abs(), y)
    assert gaussian_tv(m, s, n, t) == pytest.approx(float(wanted), abs=1e-6)


@given(st.integers(2, 64), means, stds, stds)
def test_more_dimensions_lie_between_a_marginal_and_pinsker(dims: int, shift: float, s: float, t: float) -> None:
    mean = torch.full((dims,), shift, dtype=F64)
    found = gaussian_tv(mean, s, torch.zeros(dims, dtype=F64), t)
    kl = dims * (math.log(t / s) + (s**2 + shift**2) / (2 * t**2) - 0.5)
    assert gaussian_tv(shift, s, 0.0, t) - 1e-5 <= found <= min(1.0, math.sqrt(kl / 2)) + 1e-5
    assert found == pytest.approx(gaussian_tv(torch.zeros(dims, dtype=F64), t, mean, s), abs=1e-5)


@given(st.integers(1, 16), means, stds)
def test_equal_widths_agree_with_the_formula_for_a_shared_covariance(dims: int, shift: float, std: float) -> None:
    zero, mean = torch.zeros(dims, dtype=F64), torch.full((dims,), shift, dtype=F64)
    wanted = gaussian_tv_shared(zero, mean, std**2 * torch.eye(dims, dtype=F64))
    assert gaussian_tv(zero, std, mean, std) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("dims", [2, 3, 8, 64])
@pytest.mark.parametrize("ratio", [1.2, 20.0, 1e3, 1e5])
def test_widths_of_different_size_agree_with_the_chi_square_law(dims: int, ratio: float) -> None:
    """Of one centre, the narrow law is ahead within a ball, whose masses are incomplete gamma functions."""
    square = 2 * dims * math.log(ratio) / (1 - ratio**-2)
    inside, other = torch.special.gammainc(
        torch.tensor(dims / 2, dtype=F64), torch.tensor([square / 2, square / 2 / ratio**2], dtype=F64)
    ).tolist()
    zero = torch.zeros(dims, dtype=F64)
    assert gaussian_tv(zero, 1.0, zero, ratio) == pytest.approx(inside - other, abs=1e-6)
    assert gaussian_tv(zero, ratio, zero, 1.0) == pytest.approx(inside - other, abs=1e-6)


def test_a_monte_carlo_estimate_agrees_in_eight_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1.2 * torch.randn(200_000, 8, generator=generator, dtype=F64) + 0.3
    log = -(x**2).sum(1) / 2 + ((x - 0.3) ** 2).sum(1) / (2 * 1.44) + 8 * math.log(1.2)
    estimate = (1 - log.exp()).clamp_min(0)
    found = gaussian_tv(torch.full((8,), 0.3), 1.2, torch.zeros(8), 1.0)
    assert abs(float(estimate.mean()) - found) < 5 * float(estimate.std()) / math.sqrt(len(x))


def test_laws_without_width_are_points() -> None:
    assert gaussian_tv(0.0, 0.0, 0.0, 0.0) == 0
    assert gaussian_tv(0.0, 0.0, 1.0, 0.0) == gaussian_tv(0.0, 0.0, 0.0, 1.0) == 1
    with pytest.raises(picard.InvalidProblemError, match="must not be negative"):
        gaussian_tv(0.0, -1.0, 0.0, 1.0)


Test = Callable[[Tensor, Tensor, int], TwoSample]
TESTS: dict[str, Test] = {
    "histogram": lambda x, y, seed: histogram_test(x, y, bins=4, seed=seed),
    "classifier": lambda x, y, seed: classifier_test(x, y, seed=seed),
    "energy": lambda x, y, seed: energy_test(x, y, permutations=39, most=100, seed=seed),
}


def pair(seed: int, count: int, shift: float, dims: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, count, dims, generator=generator, dtype=F64).exp()  # far from Gaussian
    return x[0], x[1] + shift


@pytest.mark.parametrize("name", TESTS)
def test_equal_laws_are_rejected_at_the_nominal_rate(name: str) -> None:
    trials, level = 400, 0.1
    p_values = torch.tensor([TESTS[name](*pair(seed, 200, 0.0), seed).p_value for seed in range(trials)])
    error = math.sqrt(level * (1 - level) / trials)
    rate = float((p_values <= level).double().mean())
    assert abs(rate - level) < 3 * error + 0.02  # the exact tests are discrete: their rate may be a little less
    assert 0.4 < float(p_values.mean()) < 0.62


@pytest.mark.parametrize("name", TESTS)
def test_a_shift_is_detected(name: str) -> None:
    found = [TESTS[name](*pair(seed, 1000, 0.5), seed) for seed in range(5)]
    assert all(one.p_value < 0.05 for one in found)
    assert all(one.estimate > 0 for one in found)


@pytest.mark.parametrize("name", ["histogram", "classifier"])
def test_the_estimate_is_a_lower_bound_of_the_distance(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20_000, 1, generator=generator, dtype=F64)
    found = TESTS[name](x, 1.5 * y + 0.5, 0)
    wanted = gaussian_tv(0.0, 1.0, 0.5, 1.5)
    assert wanted - 0.07 < found.estimate < wanted + 3 * found.error
    assert found.lower() < wanted


@pytest.mark.parametrize("name", TESTS)
def test_samples_on_a_device_without_float64(name: str) -> None:
    x, y = (points.float() for points in pair(0, 100, 0.5))
    with Device():
        found = TESTS[name](OnDevice(x), OnDevice(y), 0)
    assert found == TESTS[name](x, y, 0)


def test_the_energy_distance_gives_no_bound() -> None:
    with pytest.raises(picard.NotSupportedError, match="histogram_test"):
        energy_test(*pair(0, 20, 0.0)).lower()


def test_numbers_that_say_nothing_are_refused() -> None:
    x, y = pair(0, 20, 0.0)
    for mean, std in ((math.inf, 1.0), (math.nan, 1.0), (0.0, math.nan), (0.0, math.inf)):
        with pytest.raises(picard.InvalidProblemError, match="all must be finite"):
            gaussian_tv(mean, std, 0.0, 1.0)
    with pytest.raises(picard.InvalidProblemError, match="positive definite"):
        gaussian_tv_shared(x[0], x[1], -torch.eye(2, dtype=F64))
    with pytest.raises(picard.InvalidProblemError, match="positive definite"):
        gaussian_tv_shared(x[0], x[1, :1], torch.eye(2, dtype=F64))
    with pytest.raises(picard.InvalidProblemError, match="bins must be an integer of at least 2; given 0"):
        histogram_test(x, y, bins=0)
    for name in ("permutations", "most"):
        with pytest.raises(picard.InvalidProblemError, match=f"{name} must be an integer of at least"):
            energy_test(x, y, **{name: 0})


def test_samples_that_do_not_fit_together_are_refused() -> None:
    x = torch.randn(10, 2, dtype=F64)
    with pytest.raises(picard.InvalidProblemError, match="samples must have shapes"):
        energy_test(x, x[:, :1])
    for test in TESTS.values():
        with pytest.raises(picard.InvalidProblemError, match="must be finite"):
            test(x, x / 0, 0)
    with pytest.raises(picard.InvalidProblemError, match="too many cells"):
        histogram_test(torch.randn(10, 9, dtype=F64), torch.randn(10, 9, dtype=F64))
