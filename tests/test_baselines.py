"""The baselines of the benchmarks: each ends at the sequential sample, and the table picks what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import picard
from benchmarks.baselines import Chain, chords, diagonal_newton, parataa, srds
from benchmarks.cases import cases
from benchmarks.problems import benchmarks
from benchmarks.rounds import Point, loosest, main, table
from benchmarks.seconds import main as seconds

CASE = cases(1, networks=False)["act32"]
STEPS = 20


def newton(chain: Chain, tolerance: float) -> Tensor:
    mixture, (alpha, sigma) = benchmarks()["act32"].mixture, chain.scales.unbind(1)
    return diagonal_newton(chain, tolerance, 8, lambda x, nodes: mixture.diagonal(x, alpha[nodes], sigma[nodes]))


BASELINES: dict[str, Callable[[Chain, float], Tensor]] = {
    "parataa": lambda chain, tolerance: parataa(chain, tolerance, 8),
    "srds": srds,
    "chords": chords,
    "newton": newton,
}


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("name", BASELINES)
def test_without_tolerance_a_baseline_ends_at_the_sequential_sample(name: str, method: str) -> None:
    problem = CASE.problems[0]
    chain = Chain(problem, STEPS, method)
    expected = picard.sequential(problem, STEPS, method=method).final[0]
    torch.testing.assert_close(BASELINES[name](chain, 0.0), expected, rtol=1e-7, atol=1e-7)
    assert chain.evaluations >= STEPS
    if name != "srds":  # which is done after as many fine solves as there are blocks, whatever it costs
        assert chain.rounds <= STEPS + 1


@pytest.mark.parametrize("name", BASELINES)
def test_a_loose_tolerance_costs_less_and_ends_near(name: str) -> None:
    problem = CASE.problems[0]
    expected = picard.sequential(problem, 100, method="ddpm").final[0]
    tight, loose = Chain(problem, 100, "ddpm"), Chain(problem, 100, "ddpm")
    BASELINES[name](tight, 0.0)
    final = BASELINES[name](loose, 0.05)
    assert loose.rounds < tight.rounds
    assert loose.evaluations < tight.evaluations
    assert float((final - expected).square().mean().sqrt()) < 0.1


def test_the_exact_diagonal_is_that_of_autograd() -> None:
    mixture = benchmarks()["act32"].mixture
    alpha, sigma = torch.tensor([0.6]).double(), torch.tensor([0.8]).double()
    x = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (full,) = torch.autograd.functional.jacobian(lambda z: mixture.data(z[None], alpha, sigma), (x,), vectorize=True)
    expected = full[0].diagonal()
    torch.testing.assert_close(mixture.diagonal(x[None], alpha, sigma)[0], expected)


def test_the_table_takes_the_loosest_tolerance_that_is_accurate_enough() -> None:
    points = [Point(4, 5, 50, 0.1, 0.2), Point(2, 7, 70, 0.009, 0.1), Point(1, 9, 90, 0.0009, 0.01)]
    assert loosest(points, 1e-2) == points[1]
    assert loosest(points, 1e-3) == points[2]
    assert loosest(points[:2], 1e-3) is None
    half = [Point(1, 3.5, 14, 0.001, 0.001)]
    printed = table({"one": {"ParaDiGMS": points, "half": half}})
    assert "| half | 0.01 | 0.50, 0.20 | 0.50, 0.20 |" in printed
    assert "| half | 0.001 | 0.39, 0.16 | 0.39, 0.16 |" in printed


def test_the_figures_of_a_run_are_kept_beside_those_before(tmp_path: Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    for method, more in (("ParaDiGMS", []), ("picard default", ["--plot", str(picture)])):
        main(["act32", "--seeds", "1", "--method", method, "--json", str(figures), *more])
    written = json.loads(figures.read_text(encoding="utf-8"))["problems"]["act32"]
    assert list(written) == ["ParaDiGMS", "picard default"]
    assert written["ParaDiGMS"][-1]["rounds"] > written["picard default"][-1]["rounds"]
    assert picture.stat().st_size > 1000


def test_seconds_are_printed_with_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.no_grad():
        seconds(["act32", "--runs", "1"])
    printed = capsys.readouterr().out
    assert "load " in printed
    assert "| act32 | sequential |" in printed
    assert "| act32 | picard default |" in printed
