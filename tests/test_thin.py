"""Thinning: fewer evaluations than nodes, where that changes the result by less than the tolerance."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import picard
from benchmarks.problems import benchmarks
from picard.prepare import prepare
from picard.progress import RoundInfo
from picard.thin import REACH, Thinning
from tests.problems import diffusion, rms

ACT = benchmarks()["act32"]
STEPS = 100


def solve(seed: int = 0, batch: int = 1, **options: Any) -> picard.Solution:
    options = {"method": "ddpm", "window": 20, **options}
    return picard.solve(ACT.problem(seed, batch), STEPS, **options)


def test_a_loose_tolerance_takes_fewer_evaluations_than_nodes() -> None:
    found = []
    for seed in range(8):
        solution = solve(seed, tolerance=2.0)
        expected = picard.sequential(ACT.problem(seed), STEPS, method="ddpm").final
        found.append((rms(solution.final - expected), solution.stats.evaluations, solution.stats.rounds))
    errors, evaluations, rounds = zip(*found, strict=True)
    assert statistics.median(errors) < 1e-2
    assert statistics.mean(evaluations) < STEPS
    assert statistics.mean(rounds) <= 7


def test_a_call_never_holds_more_rows_than_the_window() -> None:
    rows: list[RoundInfo] = []
    solve(tolerance=1.0, callback=rows.append)
    assert max(one.rows for one in rows) <= 20
    assert max(one.width[0] for one in rows) > 20, "a thinned window reaches farther"


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": 0.0},
        {"tolerance": 1.0, "linearization": "identity"},
        {"tolerance": 1.0, "linearization": "frozen"},
        {"tolerance": 1.0, "guess": "copy"},
        {"tolerance": 1.0, "method": "ddim"},
        {"tolerance": picard.FixedRounds(3)},
        {"tolerance": picard.TotalVariation(0.1)},
        {"tolerance": picard.RelAbs(1e-2, 1e-2)},
    ],
)
def test_every_node_is_evaluated_where_leaving_out_means_nothing(options: dict[str, Any]) -> None:
    rows: list[RoundInfo] = []
    solution = solve(callback=rows.append, **options)
    assert solution.stats.evaluations >= STEPS
    assert all(one.rows >= sum(one.width) for one in rows)


def test_a_tight_tolerance_ends_at_the_sequential_sample() -> None:
    problem = ACT.problem(3)
    expected = picard.sequential(problem, STEPS, method="ddpm").final
    torch.testing.assert_close(solve(3, tolerance=1e-9).final, expected, rtol=1e-7, atol=1e-7)


def foretold(problem: picard.Diffusion, off: float = 0.0) -> picard.Expected:
    """The field along the sequential solution, all of it off by the same."""
    values: list[Tensor] = []

    def noted(x: Tensor, t: Tensor) -> Tensor:
        values.append(denoiser.model(x, t))
        return values[-1]

    denoiser = problem.denoiser
    picard.sequential(replace(problem, denoiser=replace(denoiser, model=noted)), STEPS, method="ddpm")
    return picard.Expected(torch.stack(values) + off, same_noise=True)


def test_what_expected_values_foretell_is_left_out_and_what_they_do_not_is_evaluated() -> None:
    problem, counts = ACT.problem(4), []
    with torch.no_grad():
        right = picard.sequential(problem, STEPS, method="ddpm").final
        known = foretold(problem)
        wrong = replace(known, values=torch.randn(known.values.shape, generator=torch.Generator().manual_seed(0)))
        for guess in (known, foretold(problem, off=0.3), wrong, replace(known, same_noise=False)):
            solution = solve(4, tolerance=0.2, guess=guess)
            counts.append(solution.stats.evaluations)
            assert rms(solution.final - right) < 5e-3
        assert solve(4, tolerance=0.1, guess=known).stats.evaluations >= STEPS, "without leeway all are evaluated"
    assert max(counts[:2]) < 0.6 * STEPS
    assert min(counts[2:]) > counts[0]
    assert counts[2] > STEPS


def test_accepted_states_depend_on_earlier_noise_only() -> None:
    problem, later = diffusion(), 12
    noise = torch.randn(20, *problem.x_T.shape, dtype=problem.x_T.dtype, generator=torch.Generator().manual_seed(5))
    other = noise.clone()
    other[later:] += 1
    paths = [
        picard.solve(
            picard.Diffusion(problem.denoiser, problem.x_T, noise=picard.Noise.from_tensor(one)),
            20,
            method="ddpm",
            window=6,
            tolerance=5.0,
            save="all",
        )
        for one in (noise, other)
    ]
    assert paths[0].stats.evaluations < 20 * len(problem.x_T), "nodes were left out"
    torch.testing.assert_close(paths[0].ys[: later + 1], paths[1].ys[: later + 1], rtol=0, atol=0)
    assert not torch.equal(paths[0].ys[later + 1], paths[1].ys[later + 1])


@torch.no_grad()  # with gradients, every solve spends a row on what the model depends on
def test_a_batch_is_thinned_sample_by_sample() -> None:
    together = solve(2, batch=4, tolerance=1.0)
    denoiser = ACT.problem(2).denoiser
    x_T = ACT.problem(2, 4).x_T
    evaluations = 0
    for sample in range(4):
        noise = ACT.problem(2, 4).noise
        assert noise is not None
        alone = picard.solve(
            picard.Diffusion(denoiser, x_T[sample : sample + 1], noise=noise.select([sample])),
            STEPS,
            method="ddpm",
            window=20,
            tolerance=1.0,
        )
        torch.testing.assert_close(alone.final, together.final[sample : sample + 1], rtol=1e-9, atol=1e-9)
        evaluations += alone.stats.evaluations
    assert evaluations == together.stats.evaluations


def test_the_certificate_counts_what_was_left_out() -> None:
    dense, thin = (solve(batch=8, tolerance=tau, certify=True) for tau in (0.02, 1.0))
    assert dense.certificate is not None
    assert thin.certificate is not None
    assert isinstance(dense.certificate, picard.LawCertificate)
    assert isinstance(thin.certificate, picard.LawCertificate)
    assert 0 < float(dense.certificate.kl.mean()) < float(thin.certificate.kl.mean())
    assert thin.stats.evaluations < dense.stats.evaluations


@pytest.mark.parametrize(("excess", "limit", "asked"), [(0.9, 4, False), (1.5, 4, True), (2.5, 2, True)])
def test_a_gap_stops_the_window_only_past_twice_its_share(excess: float, limit: int, asked: bool) -> None:
    plan = prepare(ACT.problem(0), STEPS, "ddpm").plan
    thinning = Thinning(plan, budget=1.0, batch=1)
    begin, left, width = 40, 2, 4
    inside = np.ones((1, width), dtype=np.bool_)
    thinning._chosen = thinning._gaps.link(
        np.array([[begin]]), np.arange(width)[None] != left, inside, np.full((1, width), 0.5)
    )
    after = plan.yardstick[begin + left + 1] / plan.nodes**0.5  # type: ignore[index]
    spread = excess * after * 2**0.5 / (plan.b[begin + left, 0].abs() * plan.c[begin + left - 1])
    assert thinning.check(np.full((1, width), float(spread**2))).tolist() == [limit]
    assert thinning.asked[0, left] == asked


def test_nodes_are_chosen_as_by_going_through_them_one_by_one() -> None:
    plan, budget, rows, farthest = prepare(benchmarks()["gmm2"].problem(0), 1000, "ddpm").plan, 0.5, 40, 16
    begin, spreads = [0, 300, 900, 970], [0.5, 0.05, 0.2, 3.0]
    thinning = Thinning(plan, budget, len(begin))
    one = np.ones((len(begin), 1), dtype=np.bool_)
    thinning._chosen = thinning._gaps.link(np.array(begin)[:, None], one, one, np.array(spreads)[:, None])
    widths = thinning.slide([0] * len(begin), begin, [rows] * len(begin))
    assert plan.yardstick is not None
    share = budget * torch.cat([plan.yardstick[1:], plan.yardstick[-1:]]) / plan.nodes**0.5
    for sample, (first, spread) in enumerate(zip(begin, spreads, strict=True)):
        expected, cost, variance, length = [True], 0.0, 0.0, 1
        for node in range(first + 1, min(first + REACH * rows, plan.nodes)):
            variance, length = variance + float(plan.c[node - 1] ** 2), length + 1
            cost += abs(float(plan.b[node, 0])) * variance**0.5 * spread
            wanted = length > farthest or cost > float(share[node]) * length**0.5
            if wanted and sum(expected) == rows:
                break
            expected.append(wanted)
            cost, variance, length = (0.0, 0.0, 1) if wanted else (cost, variance, length)
        assert thinning.asked[sample, : widths[sample]].tolist() == expected
