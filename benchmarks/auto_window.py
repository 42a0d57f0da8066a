"""`window="auto"` beside the sequential solver and fixed windows: `python -m benchmarks.auto_window [--repeats 5]`.

Seconds are medians over runs that alternate. The models: networks whose batched calls cost little more than single
ones, others whose cost grows with their rows, exact scores, and a drift of a few operations. `--rounds` prints the
rounds of the benchmark problems over windows, and how well `picard.choice.predicted_rounds` predicts them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

import picard
from benchmarks.cases import digit
from benchmarks.hard_problems import hard_problems
from benchmarks.problems import benchmarks
from picard.choice import predicted_rounds

WINDOWS = (4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, its grid and its method."""

    problem: picard.ODE | picard.SDE | picard.Diffusion
    grid: Any
    method: str

    def solve(self, window: Any) -> picard.Solution:
        """Solve with a window; 1 is the sequential solver."""
        if window == 1:
            return picard.sequential(self.problem, self.grid, method=self.method)
        return picard.solve(self.problem, self.grid, method=self.method, window=window)


class Carried(nn.Module):
    """A network that carries the cost, and an exact denoiser that gives the answer."""

    def __init__(self, width: int, depth: int, model: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])
        self.width, self.exact = width, model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute both, return the answer."""
        self.layers(torch.zeros(len(x), self.width))
        return self.exact(x, t)


def cases() -> dict[str, Case]:
    """Build the models."""
    mixtures = benchmarks()

    def carried(name: str, width: int, depth: int, batch: int) -> picard.Diffusion:
        given = mixtures[name].problem(0, batch)
        model = Carried(width, depth, mixtures[name].model)
        denoiser = picard.Denoiser(model, mixtures[name].schedule, prediction="sample")
        return picard.Diffusion(denoiser, given.x_T, noise=given.noise)

    x0 = torch.ones(1, 100, dtype=torch.float64)
    return {
        "exact score, 1000 steps": Case(mixtures["gmm2"].problem(0), 1000, "ddpm"),
        "exact score, DDIM-50": Case(mixtures["img256"].problem(0), 50, "ddim"),
        "wide network, one sample": Case(carried("act32", 2048, 6, 1), 100, "ddpm"),
        "wide network, 32 samples": Case(carried("act32", 1024, 6, 32), 100, "ddpm"),
        "small network, 64 samples": Case(carried("gmm2", 256, 4, 64), 200, "ddpm"),
        "digits U-Net, one sample": Case(digit(0), 100, "ddpm"),
        "a few operations": Case(picard.ODE(lambda _, x: torch.sin(3 * x), x0), torch.linspace(0, 2, 201), "rk4"),
    }


def compare(repeats: int, only: str) -> dict[str, Any]:
    """Time every case at all windows, one after the other, several times, and print a table."""
    found: dict[str, Any] = {}
    print("| model | sequential | best fixed window | auto, knowing | to sequential | to the best | auto, measuring |")
    print("|---|---|---|---|---|---|---|")
    for name, case in cases().items():
        if only not in name:
            continue
        started = time.perf_counter()
        chosen = case.solve("auto").stats
        first = time.perf_counter() - started
        stats = case.solve("auto").stats  # with what the first solve measured and learnt
        windows = [1, *(window for window in WINDOWS if window <= chosen.sequential_evaluations), "auto"]
        taken: dict[Any, list[float]] = {window: [] for window in windows}
        for _ in range(repeats):
            for window in windows:
                started = time.perf_counter()
                case.solve(window)
                taken[window].append(time.perf_counter() - started)
        seconds = {window: median(each) for window, each in taken.items()}
        best = min((window for window in windows if window != "auto"), key=seconds.__getitem__)
        auto = seconds["auto"]
        ratios = f"{auto / seconds[1]:.2f} | {auto / seconds[best]:.2f}"
        print(
            f"| {name} | {seconds[1]:.3f} s | {best}: {seconds[best]:.3f} s | {stats.window}: {auto:.3f} s "
            f"| {ratios} | {first:.3f} s, {chosen.trials} calls |",
            flush=True,
        )
        found[name] = {"seconds": seconds, "first": first, "window": stats.window, "reason": stats.reason}
    return found


def rounds(seeds: int) -> dict[str, Any]:
    """Print the rounds over windows beside those predicted."""
    counted: dict[str, Mapping[int, float]] = {}
    errors = []

    def count(name: str, method: str, make: Callable[[int], Any], grid: Any) -> None:
        cells: dict[int, float] = {}
        nodes = 0
        for window in (2, *WINDOWS):
            stats = [
                picard.solve(make(seed), grid, method=method, window=window, throw=False).stats for seed in range(seeds)
            ]
            nodes = stats[0].sequential_evaluations
            if window <= nodes:
                cells[window] = fmean(each.rounds for each in stats)
                errors.append(math.log(predicted_rounds(nodes, window) / cells[window]))
        text = ", ".join(f"{w}: {each:.0f} ({predicted_rounds(nodes, w):.0f})" for w, each in cells.items())
        print(f"| {name} | {method} | {nodes} | {text} |", flush=True)
        counted[f"{name} {method} {nodes}"] = cells

    print("| problem | method | nodes | window: rounds (predicted) |\n|---|---|---|---|")
    for name, benchmark in benchmarks().items():
        for method, steps in (("ddpm", benchmark.steps), ("ddim", 100), ("dpmsolver++", 50)):
            count(name, method, benchmark.problem, steps)
    for method, steps in (("ddpm", 1000), ("ddpm", 100), ("ddim", 100)):
        count("digits", method, digit, steps)
    for hard in hard_problems():
        count(hard.name, hard.method, lambda seed, hard=hard: hard.problem(seed=seed), hard.grid())  # type: ignore[misc]
    size = fmean(abs(error) for error in errors)
    ends = f"{min(errors):.2f} to {max(errors):.2f}"
    print(f"\nerror of the logarithm: mean size {size:.2f}, mean {fmean(errors):+.2f}, {ends}")
    return {"rounds": counted, "error": size}


def main() -> None:
    """Parse the arguments, run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of every window (default: 5)")
    parser.add_argument("--only", default="", help="part of the names of the models to run")
    parser.add_argument("--rounds", action="store_true", help="count rounds instead of timing")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ... to count rounds over (default: 2)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    found = rounds(options.seeds) if options.rounds else compare(options.repeats, options.only)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
