"""Certificates against the truth: exact laws on Gaussian data, two-sample estimates on mixtures, the published case."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import picard
from benchmarks.gaussian import Setting, exact
from benchmarks.problems import benchmarks
from picard.certificate import LawCertificate, PathCertificate
from picard.grid import Levels, Times
from picard.integrators import DDPM
from picard.plan import Plan
from picard.verify import Mixture, histogram_test, mixture_diffusion, tanh_sde

F64 = torch.float64


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
        guess=st.sampled_from(["hold", "eager", "copy"]),
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


def test_the_error_of_the_bound_is_capped_with_it() -> None:
    def of(*kl: float) -> tuple[float, float]:
        certificate = LawCertificate(torch.tensor(kl, dtype=F64))
        return certificate.tv, certificate.tv_error

    assert of(0.0, 0.0) == (0.0, 0.0)
    # kl 0.08 +- 0.02: the bound is 0.2, its derivative 1 / (4 * 0.2)
    assert of(0.06, 0.1) == pytest.approx((0.2, 0.02 / 0.8))
    # kl 2.42 +- 0.5: Pinsker's bound is 1.1 +- 0.5 / 4.4, which reaches down to 0.9864
    assert of(1.92, 2.92) == pytest.approx((1.0, 1 - (1.1 - 0.5 / 4.4)))
    assert of(1000.0, 1100.0) == (1.0, 0.0)
    assert of(0.1, float("inf")) == (1.0, 0.0)
    assert of(0.1)[1] == float("inf")


def test_a_field_that_is_no_number_at_an_accepted_state_bounds_nothing() -> None:
    """It was finite where the state was guessed; only the evaluation for the certificate meets the failure."""
    plain, calls, fails = mixture_diffusion(Mixture.random(0), picard.Schedule.cosine(50), seed=0), [0], [0]

    def model(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        failing = (t > 0) & (calls[0] == fails[0])
        return torch.where(failing[:, None], math.nan, plain.denoiser.model(x, t))

    problem = picard.Diffusion(replace(plain.denoiser, model=model), plain.x_T, noise=plain.noise)
    options: dict[str, Any] = {"window": 20, "tolerance": picard.FixedRounds(2), "certify": True}
    for fails_last in (False, True):
        calls[0] = 0
        with torch.no_grad():
            solution = picard.solve(problem, 20, method="ddpm", **options)
        assert isinstance(solution.certificate, LawCertificate)
        assert bool(solution.certificate.kl.isinf().all()) is fails_last
        fails[0] = calls[0]  # the last call is of the last node, at time 0, and of all states accepted before


@dataclass(frozen=True)
class NoiseTwice:
    """DDPM with half of every step's noise added at a node of its own, after the model has been called."""

    def plan(self, points: Times | Levels) -> Plan:
        whole = DDPM().plan(points)
        a, b, c = (torch.stack([one, one], 1).flatten(0, 1) for one in (whole.a, whole.b, whole.c / 2))
        a[1::2], b[1::2] = 1, 0
        return Plan(whole.times.repeat_interleave(2), a, b, whole.step.repeat_interleave(2), c)


def test_noise_that_no_bound_is_known_for_is_refused() -> None:
    problem = mixture_diffusion(Mixture.random(0), picard.Schedule.cosine(50), seed=0)
    with pytest.raises(picard.NotSupportedError, match="enters at one node of a step"):
        picard.solve(problem, 5, method=NoiseTwice(), tolerance=picard.FixedRounds(2), certify=True)
    grid = torch.linspace(0, 1, 5, dtype=F64)
    with pytest.raises(picard.NotSupportedError, match="noise of a known scale in every step"):
        picard.solve(tanh_sde(0), grid, method="euler", certify=True)
    with pytest.raises(picard.NotSupportedError, match="needs a stochastic sampler such as ddpm"):
        picard.solve(problem, 5, method="ddim", tolerance=picard.TotalVariation(0.05))


def act32(seeds: int = 32) -> picard.Diffusion:
    return benchmarks()["act32"].problem(0, seeds)


@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_a_path_certificate_bounds_the_distance_and_knows_the_field(method: str, tolerance: float) -> None:
    matrix = torch.tensor([[-0.5, 0.9], [-0.9, 0.2]], dtype=F64)  # in every direction it stretches by 0.5 to 1.1
    least, most = torch.linalg.svdvals(matrix).flip(0).tolist()
    x0 = torch.tensor([[1.0, -0.4], [0.3, 2.0]], dtype=F64)
    problem: Any = picard.ODE(lambda t, x: x @ matrix.T, x0)
    grid: Any = torch.linspace(0, 2, 41, dtype=F64)
    if method in ("ddim", "dpmsolver++"):
        grid = 40
        network = picard.Denoiser(lambda x, t: x @ matrix.T / 4, picard.Schedule.cosine(40), prediction="sample")
        problem, least, most = picard.Diffusion(network, x0), least / 4, most / 4
    options: dict[str, Any] = {"method": method, "window": 12, "tolerance": picard.RelAbs(tolerance, 0.0)}
    solution = picard.solve(problem, grid, certify=True, **options)
    certificate = solution.certificate
    assert isinstance(certificate, PathCertificate)
    assert least * 0.999 <= certificate.lipschitz_estimate <= most * 1.001
    distance = (solution.final - picard.sequential(problem, grid, method=method).final).norm(dim=1)
    assert bool((certificate.residual > 0).all())
    for lipschitz in (None, most):
        assert bool((distance <= certificate.trajectory_bound(lipschitz)).all())
    again = picard.solve(problem, grid, certify=True, **{**options, "tolerance": picard.RelAbs(0.0, 0.0)}).certificate
    assert isinstance(again, PathCertificate)
    assert "tensor" not in repr(again)  # a line a node would fill the screen
    assert float(again.residual.max()) < 1e-13


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


def test_what_was_not_reached_is_not_certified() -> None:
    matrix = torch.tensor([[-0.5, 0.9], [-0.9, 0.2]], dtype=F64)
    ode = picard.ODE(lambda t, x: torch.where(x > 5, math.nan, x @ matrix), torch.tensor([[1.0, 0], [9, 0]], dtype=F64))
    grid: Any = torch.linspace(0, 2, 41, dtype=F64)
    for problem, points, method in ((ode, grid, "heun"), (act32(2), 100, "ddpm")):
        options: dict[str, Any] = {"method": method, "window": 8, "certify": True, "throw": False}
        stopped = picard.solve(problem, points, callback=lambda info: info.round == 3, **options)
        for certificate in (picard.solve(problem, points, max_rounds=3, **options).certificate, stopped.certificate):
            if isinstance(certificate, LawCertificate):
                assert certificate.tv == 1
            else:
                assert isinstance(certificate, PathCertificate)
                assert torch.isinf(certificate.trajectory_bound(1.0)).all()
                assert torch.isinf(certificate.residual).all()
    certificate = picard.solve(ode, grid, method="heun", window=8, certify=True, throw=False).certificate
    assert isinstance(certificate, PathCertificate)
    assert torch.isinf(certificate.trajectory_bound()).tolist() == [False, True]
