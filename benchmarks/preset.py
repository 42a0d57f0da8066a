"""The ParaDiGMS preset beside the default options: `python -m benchmarks.preset [--digits] [--seeds 8] [--json PATH]`.

Every solve is compared with the sequential sample of the same noise. Rounds and evaluations are counts, hardly
dependent on the machine. The error has a heavy tail: once in a while a sample of a mixture ends in another mode. Its
median and its mean over the seeds are therefore both printed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

import picard
from benchmarks.cases import Case, cases

OPTIONS: Mapping[str, dict[str, Any]] = {"ParaDiGMS preset": picard.presets.PARADIGMS, "default": {}}
TAUS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Cost:
    """What a method costs on a case, and how far it ends from the sequential samples (root mean square)."""

    rounds: float
    evaluations: float
    median_error: float
    mean_error: float


def measure(given: Case, options: Mapping[str, Any]) -> Cost:
    """Solve every problem of a case on its own, and average."""
    solutions = [
        picard.solve(problem, given.steps, method=given.method, window=given.window, **options)
        for problem in given.problems
    ]
    errors = given.errors([solution.final for solution in solutions])
    return Cost(
        fmean(solution.stats.rounds for solution in solutions),
        fmean(solution.stats.evaluations for solution in solutions),
        median(errors),
        fmean(errors),
    )


def mixtures(seeds: int) -> dict[str, dict[str, Any]]:
    """Run the three problems with exact scores, both methods at their own tolerance of 0.1, and print a table."""
    print("| problem | steps | window | options | rounds | evaluations | median error | mean error |")
    print("|---|---|---|---|---|---|---|---|")
    found: dict[str, dict[str, Any]] = {}
    for name, case in cases(seeds, networks=False).items():
        for label, options in OPTIONS.items():
            cost = measure(case, options)
            found.setdefault(name, {})[label] = asdict(cost)
            print(f"| {name} | {case.steps} | {case.window} | {label} {_cells(cost)}", flush=True)
    return found


def digits(seeds: int) -> dict[str, Any]:
    """Run one digit of the trained U-Net at a time, over a range of tolerances, and compare at equal error."""
    case = cases(seeds)["digits"]
    print("\n| tau | options | rounds | evaluations | median error | mean error |\n|---|---|---|---|---|---|")
    sweep: dict[str, list[Cost]] = {}
    for label, options in OPTIONS.items():
        for tau in TAUS:
            sweep.setdefault(label, []).append(measure(case, {**options, "tolerance": tau}))
            print(f"| {tau:g} | {label} {_cells(sweep[label][-1])}", flush=True)
    preset, default = (sweep[label] for label in OPTIONS)
    columns = "rounds, preset to default | evaluations | ratio of rounds | ratio of evaluations"
    print(f"\n| equal error | over seeds | {columns} |")
    print("|---|---|---|---|---|---|")
    equal = []
    for which in ("median_error", "mean_error"):
        for error in (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5):
            pairs = [
                (_at(preset, which, error, what), _at(default, which, error, what))
                for what in ("rounds", "evaluations")
            ]
            if any(math.isnan(value) for pair in pairs for value in pair):
                continue
            ratios = [new / old for old, new in pairs]
            spent = f"{pairs[0][0]:.1f} to {pairs[0][1]:.1f} | {pairs[1][0]:,.0f} to {pairs[1][1]:,.0f}"
            print(f"| {error:g} | {which[:-6]} | {spent} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
            equal.append({"error": error, "over_seeds": which, "rounds": ratios[0], "evaluations": ratios[1]})
    return {
        "taus": TAUS,
        "sweep": {label: [asdict(cost) for cost in costs] for label, costs in sweep.items()},
        "equal": equal,
    }


def _at(costs: Sequence[Cost], which: str, error: float, what: str) -> float:
    """Interpolate a count at an error, linearly in the error's logarithm; NaN outside the measured range."""
    points = sorted((math.log(getattr(cost, which)), getattr(cost, what)) for cost in costs)
    x, y = zip(*points, strict=True)
    return float(np.interp(math.log(error), x, y, left=math.nan, right=math.nan))


def _cells(cost: Cost) -> str:
    return f"| {cost.rounds:.1f} | {cost.evaluations:,.0f} | {cost.median_error:.1e} | {cost.mean_error:.1e} |"


def main() -> None:
    """Parse the arguments, run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="seeds 0, 1, ... to average over (default: 8)")
    parser.add_argument("--digits", action="store_true", help="also run the digits U-Net, about ten minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    found: dict[str, Any] = {"picard": picard.__version__, "torch": torch.__version__, "seeds": options.seeds}
    found["mixtures"] = mixtures(options.seeds)
    if options.digits:
        found["digits"] = digits(options.seeds)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
