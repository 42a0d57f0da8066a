"""`window="auto"` beside the sequential solver and fixed windows: `python -m benchmarks.auto_window [--repeats 5]`.

Seconds are the least of runs that alternate. The models: networks whose batched calls cost little more than single
ones, others whose cost grows with their rows, exact scores, and a drift of a few operations. `--rounds` prints the
rounds of the benchmark problems over windows, and how well `picard.forecast.Forecast` predicts them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

import picard
from benchmarks.cases import Ballast, digit
from benchmarks.hard_problems import hard_problems
from benchmarks.problems import benchmarks
from picard import latency
from picard.forecast import Forecast
from picard.prepare import prepare

WINDOWS = (4, 8, 16, 32, 64, 128, 256)
BRIEF = 0.1  # seconds; first solves that take fewer are repeated ten times as often
LEARNING = 8  # solves after the first, whose rounds the next ones know


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, its grid and its method."""

    problem: picard.ODE | picard.SDE | picard.Diffusion
    grid: Any
    method: str
    tolerance: float | None = None

    def solve(self, window: Any) -> picard.Solution:
        """Solve with a window; 1 is the sequential solver."""
        if window == 1:
            return picard.sequential(self.problem, self.grid, method=self.method)
        return picard.solve(self.problem, self.grid, method=self.method, window=window, tolerance=self.tolerance)


def cases() -> dict[str, Case]:
    """Build the models."""
    mixtures = benchmarks()

    def carried(name: str, width: int, depth: int, batch: int) -> picard.Diffusion:
        problem = mixtures[name].problem(0, batch)
        torch.manual_seed(0)
        layers = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])
        model = Ballast(lambda x, _: layers(x), problem.denoiser.model, [torch.zeros(1, width)])
        return replace(problem, denoiser=replace(problem.denoiser, model=model))

    x0 = torch.ones(1, 100, dtype=torch.float64)
    return {
        "exact score, 1000 steps": Case(mixtures["gmm2"].problem(0), 1000, "ddpm"),
        "exact score, 1000 steps, tolerance 1": Case(mixtures["gmm2"].problem(0), 1000, "ddpm", 1.0),
        "exact score, DDIM-50": Case(mixtures["img256"].problem(0), 50, "ddim"),
        "wide network, one sample": Case(carried("act32", 2048, 6, 1), 100, "ddpm"),
        "wide network, 32 samples": Case(carried("act32", 1024, 6, 32), 100, "ddpm"),
        "small network, 64 samples": Case(carried("gmm2", 256, 4, 64), 200, "ddpm"),
        "digits U-Net, one sample": Case(digit(0), 100, "ddpm"),
        "a few operations": Case(picard.ODE(lambda _, x: torch.sin(3 * x), x0), torch.linspace(0, 2, 201), "rk4"),
    }


def compare(repeats: int, only: str) -> dict[str, Any]:
    """Take the time of every case at all windows, one after the other, several times, and print a table."""
    found: dict[str, Any] = {}
    print("| model | sequential | best fixed window | auto, knowing | to sequential | to the best | auto, measuring |")
    print("|---|---|---|---|---|---|---|")

    def time_of(case: Case, window: Any) -> tuple[float, picard.Stats]:
        started = time.perf_counter()
        stats = case.solve(window).stats
        return time.perf_counter() - started, stats

    for name, case in cases().items():
        if only not in name:
            continue
        case.solve(1)
        first, chosen = time_of(case, "auto")
        for _ in range(LEARNING):
            case.solve("auto")
        windows = [1, *(window for window in WINDOWS if window <= chosen.sequential_evaluations), "auto"]
        taken: dict[Any, list[float]] = {window: [] for window in windows}
        stats, order = chosen, random.Random(0)
        for _ in range(repeats if first > BRIEF else 10 * repeats):
            order.shuffle(windows)  # a solve is faster after one of its own kind
            for window in windows:
                seconds, counts = time_of(case, window)
                taken[window].append(seconds)
                stats = counts if window == "auto" else stats
        least = {window: min(each) for window, each in taken.items()}
        best = min((window for window in windows if window != "auto"), key=least.__getitem__)
        auto = least["auto"]
        ratios = f"{auto / least[1]:.2f} | {auto / least[best]:.2f}"
        print(
            f"| {name} | {1000 * least[1]:.1f} ms | {best}: {1000 * least[best]:.1f} ms "
            f"| {stats.window}: {1000 * auto:.1f} ms | {ratios} | {1000 * first:.1f} ms, {chosen.trials} calls |",
            flush=True,
        )
        found[name] = {"seconds": least, "first": first, "window": stats.window, "reason": stats.reason}
    return found


def rounds(seeds: int) -> dict[str, Any]:
    """Print the rounds over windows beside those predicted."""
    counted: dict[str, Mapping[int, float]] = {}
    errors: dict[bool, list[float]] = {True: [], False: []}

    def count(name: str, method: str, make: Callable[[int], Any], grid: Any, tau: float | None = None) -> None:
        cells: dict[int, float] = {}
        leeway = 0.0 if tau is None else picard.NoiseRatio(tau).leeway
        forecast = Forecast.of(prepare(make(0), grid, method).plan, leeway, latency.Latency())
        nodes = forecast.nodes
        for window in (2, *WINDOWS):
            if window > nodes:
                break
            options: dict[str, Any] = {"method": method, "window": window, "tolerance": tau, "throw": False}
            cells[window] = fmean(picard.solve(make(seed), grid, **options).stats.rounds for seed in range(seeds))
            errors[forecast.smooth].append(math.log(forecast.rounds(window) / cells[window]))
        text = ", ".join(f"{w}: {each:.0f} ({forecast.rounds(w):.0f})" for w, each in cells.items())
        method += "" if tau is None else f", tolerance {tau}"
        print(f"| {name} | {method} | {nodes} | {text} |", flush=True)
        counted[f"{name} {method} {nodes}"] = cells

    print("| problem | method | nodes | window: rounds (predicted) |\n|---|---|---|---|")
    for name, benchmark in benchmarks().items():
        for method, steps in (("ddpm", benchmark.steps), ("ddim", 100), ("dpmsolver++", 50)):
            count(name, method, benchmark.problem, steps)
        for tau in (0.2, 0.5, 1.0):
            count(name, "ddpm", benchmark.problem, benchmark.steps, tau)
    for method, steps in (("ddpm", 1000), ("ddpm", 100), ("ddim", 100)):
        count("digits", method, digit, steps)
    count("digits", "ddpm", digit, 1000, 1.0)
    for hard in hard_problems():
        count(hard.name, hard.method, lambda seed, hard=hard: hard.problem(seed=seed), hard.grid())  # type: ignore[misc]
    print("\nerror of the logarithm of the rounds")
    for kind, each in (("diffusion models", errors[True]), ("equations", errors[False])):
        size = fmean(abs(error) for error in each)
        print(f"{kind}: mean size {size:.2f}, mean {fmean(each):+.2f}, {min(each):.2f} to {max(each):.2f}")
    return {"rounds": counted}


def main() -> None:
    """Parse the arguments, run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of every window (default: 5)")
    parser.add_argument("--only", default="", help="part of the names of the models to run")
    parser.add_argument("--rounds", action="store_true", help="count rounds instead of timing")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ... to count rounds over (default: 2)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument(
        "--cpu", action="store_true", help="one thread, and its own time: what other processes do to it"
    )
    options = parser.parse_args()
    if options.cpu:
        torch.set_num_threads(1)
        time.perf_counter = latency.clock = time.process_time  # also for what the solver measures
    found = rounds(options.seeds) if options.rounds else compare(options.repeats, options.only)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
