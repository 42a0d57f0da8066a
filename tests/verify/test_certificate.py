"""Certificates against the truth: exact laws on Gaussian data, two-sample estimates on mixtures, the published case."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import picard
from benchmarks.problems import benchmarks
from picard.certificate import LawCertificate
from picard.schedule import TrainedSchedule
from picard.tolerance import Candidates
from picard.verify import Mixture, gaussian_tv, histogram_test, mixture_diffusion

F64 = torch.float64


@dataclass(frozen=True)
class ExactRounds(picard.FixedRounds):
    """`FixedRounds` without its exception for states that rounding alone still moves, which makes it affine."""

    def bound(self, candidates: Candidates) -> Tensor:
        return torch.where(candidates.age >= self.rounds, math.inf, -math.inf).to(candidates.size.dtype)


@dataclass(frozen=True)
class Setting:
    """Gaussian data N(mean, std^2 I), a sampler, and a fixed number of rounds."""

    dims: int
    steps: int
    rounds: int
    window: int
    linearization: str
    guess: str
    cosine: bool
    std: float
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        rule = ExactRounds(self.rounds)
        return {"tolerance": rule, "window": self.window, "linearization": self.linearization, "guess": self.guess}

    @property
    def schedule(self) -> TrainedSchedule:
        train = max(self.steps, 50)
        return (
            picard.Schedule.cosine(train) if self.cosine else picard.Schedule.linear(train, 1e-4, min(0.5, 20 / train))
        )

    def problem(self, mean: Tensor, start: Tensor, noise: Tensor) -> picard.Diffusion:
        data = Mixture(mean[None], torch.full((1, len(mean)), self.std, dtype=F64), torch.ones(1, dtype=F64))
        return picard.Diffusion(data.denoiser(self.schedule), start, noise=picard.Noise.from_tensor(noise))

    def laws(self) -> tuple[tuple[Tensor, float], tuple[Tensor, float]]:
        """Means of coordinates whose data have mean 0 and 1, and the standard deviation: parallel, sequential.

        Coordinates do not interact and every map is affine: a coordinate's result is a sum of fixed weights times its
        start and noise, plus a constant affine in its mean. A random sample (which no rule finds converged by chance)
        and its copies, each with one input raised by 1, show all weights.
        """
        generator = torch.Generator().manual_seed(self.seed)
        inputs = torch.randn(self.steps + 1, 1, 2, generator=generator, dtype=F64).repeat(1, self.steps + 2, 1)
        inputs[torch.arange(self.steps + 1), torch.arange(self.steps + 1) + 1] += 1
        problem = self.problem(torch.tensor([0.0, 1.0], dtype=F64), inputs[0], inputs[1:])

        def law(final: Tensor) -> tuple[Tensor, float]:
            weights = final[1:] - final[0]
            return final[0] - (weights * inputs[:, 0]).sum(0), float(weights[:, 0].norm())

        return (
            law(picard.solve(problem, self.steps, method="ddpm", certify=True, **self.options).final),
            law(picard.sequential(problem, self.steps, method="ddpm").final),
        )

    def certificate(self, mean: Tensor) -> LawCertificate:
        generator = torch.Generator().manual_seed(self.seed)
        batch = max(16, min(256, 2048 // self.dims))
        start = torch.randn(batch, self.dims, generator=generator, dtype=F64)
        noise = torch.randn(self.steps, batch, self.dims, generator=generator, dtype=F64)
        solution = picard.solve(
            self.problem(mean, start, noise), self.steps, method="ddpm", certify=True, **self.options
        )
        assert isinstance(solution.certificate, LawCertificate)
        return solution.certificate


def exact(given: Setting, mean: Tensor) -> float:
    (shift_1, std_1), (shift_2, std_2) = given.laws()
    means = [shift[0] + (shift[1] - shift[0]) * mean for shift in (shift_1, shift_2)]
    return gaussian_tv(means[0], std_1, means[1], std_2)


def gaussian_settings(decades: float) -> st.SearchStrategy[Setting]:
    """Settings of 10 steps to so many decades more, as many in each of them."""
    return st.builds(
        lambda dims, u, rounds, share, **rest: Setting(
            dims=dims,
            steps=(steps := round(10 ** (1 + decades * u))),
            rounds=rounds,
            window=max(4, round(share * min(steps, 100))),
            **rest,
        ),
        st.integers(1, 64),
        st.floats(0, 1),
        st.integers(1, 20),
        st.sampled_from([0.2, 0.5, 1.0]),
        linearization=st.sampled_from(["identity", "frozen"]),
        guess=st.sampled_from(["hold", "copy"]),
        cosine=st.booleans(),
        std=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
        seed=st.integers(0, 2**16),
    )


def certificate_covers(given: Setting) -> None:
    mean = torch.randn(given.dims, generator=torch.Generator().manual_seed(given.seed + 1), dtype=F64)
    tv, certificate = exact(given, mean), given.certificate(mean)
    assert certificate.tv >= tv - 1e-9, (tv, certificate.tv, certificate.tv_error)


@settings(max_examples=max(5, settings().max_examples // 3), phases=[Phase.reuse, Phase.generate])
@given(gaussian_settings(decades=0.8))
def test_the_certificate_covers_the_exact_distance_on_gaussian_data(given: Setting) -> None:
    certificate_covers(given)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=200, phases=[Phase.generate])
@given(gaussian_settings(decades=2))
def test_the_certificate_covers_the_exact_distance_in_long_solves(given: Setting) -> None:
    certificate_covers(given)


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.5}, {"tolerance": picard.TotalVariation(0.2)}], ids=str)
def test_the_certificate_covers_an_estimate_on_a_mixture(options: dict[str, Any]) -> None:
    mixture = Mixture(
        torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]], dtype=F64),
        torch.full((3, 2), 0.2, dtype=F64),
        torch.tensor([0.2, 0.3, 0.5], dtype=F64),
    )
    schedule = picard.Schedule.cosine(40)
    problems = [mixture_diffusion(mixture, schedule, seed, batch=20_000) for seed in (0, 1)]
    parallel = picard.solve(problems[0], 10, method="ddpm", window=5, certify=True, **options)
    other = picard.sequential(problems[1], 10, method="ddpm").final
    estimate = histogram_test(parallel.final, other, bins=12)
    assert isinstance(parallel.certificate, LawCertificate)
    assert parallel.certificate.tv >= estimate.lower()
    if options:
        assert 0.01 < parallel.certificate.tv < 1  # loose enough to say something, tight enough to mean something


def act32(seeds: int = 32) -> picard.Diffusion:
    return benchmarks()["act32"].problem(0, seeds)


def test_the_published_setting_is_certified() -> None:
    """The paper's rule promises eps = tau T sqrt(D) / 2 = 28 here, which is no bound for a probability."""
    solution = picard.solve(act32(), 100, method="ddpm", window=20, certify=True, **picard.presets.PARADIGMS)
    assert isinstance(solution.certificate, LawCertificate)
    assert solution.certificate.tv <= 0.15


def test_a_total_variation_budget_is_kept_at_little_cost() -> None:
    usual = picard.solve(act32(), 100, method="ddpm", window=20, certify=True)
    within = picard.solve(act32(), 100, method="ddpm", window=20, tolerance=picard.TotalVariation(0.05))
    assert isinstance(within.certificate, LawCertificate)
    assert within.certificate.tv <= 0.05
    assert within.stats.evaluations <= 1.2 * usual.stats.evaluations
