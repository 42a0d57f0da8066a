"""The hard problems: never a NaN, never more rounds than nodes, and fewer rounds than plain Picard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import picard
from benchmarks import hard as benchmark
from benchmarks.hard import DEFAULT, PLAIN, SOLVERS, count, geometric_mean, main
from benchmarks.hard_problems import Hard, hard_problems

PROBLEMS = {hard.name: hard for hard in hard_problems()}
STEPS = 24  # the whole grids are for `-m slow`


@pytest.fixture(scope="module", params=PROBLEMS)
def hard(request: pytest.FixtureRequest) -> Hard:
    return PROBLEMS[request.param]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_finite_bounded_and_right(hard: Hard, solver: str, dtype: torch.dtype) -> None:
    grid, problem = hard.grid(2 * STEPS // 3).to(dtype), hard.problem(dtype)
    expected = picard.sequential(problem, grid, method=hard.method, save="all")
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    solution = picard.solve(problem, grid, method=hard.method, tolerance=tolerance, save="all", **SOLVERS[solver])
    assert bool(torch.isfinite(solution.ys).all())
    assert solution.stats.rounds <= solution.stats.sequential_evaluations == expected.stats.rounds
    size = float(expected.ys.abs().max())
    distance = float((solution.ys - expected.ys).abs().max())
    assert distance <= 1e3 * tolerance * size  # errors accepted early grow along the path


@pytest.mark.parametrize("window", [3, 1000])
def test_any_window(hard: Hard, window: int) -> None:
    grid, problem = hard.grid(STEPS), hard.problem()
    expected = picard.sequential(problem, grid, method=hard.method)
    solution = picard.solve(problem, grid, method=hard.method, tolerance=0.0, window=window)
    assert solution.stats.rounds <= expected.stats.rounds
    torch.testing.assert_close(solution.final, expected.final, rtol=1e-7, atol=1e-9)


def test_the_default_beats_plain_picard_on_short_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SOLVERS", {name: SOLVERS[name] for name in (PLAIN, DEFAULT)})
    ratios = {name: count(hard, 2 * STEPS).ratio for name, hard in PROBLEMS.items()}
    assert max(ratios.values()) <= 1.1, ratios
    assert geometric_mean(list(ratios.values())) <= 0.65


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_default_beats_plain_picard() -> None:
    found = {name: count(hard) for name, hard in PROBLEMS.items()}
    for counts in found.values():
        assert all(one.finite and one.rounds <= counts.sequential for one in counts.found.values())
    assert max(counts.ratio for counts in found.values()) <= 1.1
    assert geometric_mean([counts.ratio for counts in found.values()]) <= 0.5


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--steps", "8", "--markdown", str(tmp_path / "page.md")])
    printed = capsys.readouterr().out
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert printed.strip() in page
    assert all(name in page for name in (*PROBLEMS, PLAIN, DEFAULT))


def test_seconds_are_told_beside_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--steps", "4", "--seconds"])
    first, *lines = capsys.readouterr().out.strip().splitlines()
    assert "load" in first
    assert len(lines) == 2 + len(PROBLEMS)
    assert all(line.count("|") == 6 for line in lines)
