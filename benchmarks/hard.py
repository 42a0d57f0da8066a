"""Rounds and evaluations on the hard problems, for every linearization, against sequential solving.

Run `python -m benchmarks.hard`; `--markdown FILE` writes the table as a page.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import picard
from benchmarks.hard_problems import Hard, hard_problems
from picard.tolerance import RelAbs

TOLERANCE = RelAbs(1e-6, 1e-8)
SOLVERS: dict[str, dict[str, Any]] = {
    "plain Picard": {"linearization": "identity", "guess": "copy"},
    "identity": {"linearization": "identity"},
    "frozen": {"linearization": "frozen"},
    "secant, hold": {"guess": "hold"},
    "default": {},
    "newton": {"linearization": "newton"},
    "newton, 256": {"linearization": "newton", "window": 256},
}
PLAIN, DEFAULT, NEWTON = "plain Picard", "default", "newton"
SEQUENTIAL, TIMED = "sequential", (DEFAULT, NEWTON, "newton, 256")


@dataclass(frozen=True)
class Count:
    """What one solver needed for one problem.

    Attributes:
        rounds: batched model calls.
        evaluations: rows evaluated.
        error: largest distance of the final state to the sequential one, relative to its largest number.
        finite: whether all states are finite.
    """

    rounds: int
    evaluations: int
    error: float
    finite: bool


@dataclass(frozen=True)
class Counts:
    """What every solver needed for one problem, and the evaluations of the sequential solver."""

    hard: Hard
    sequential: int
    found: dict[str, Count]

    @property
    def ratio(self) -> float:
        """Rounds of the default over those of plain Picard."""
        return self.found[DEFAULT].rounds / self.found[PLAIN].rounds


def count(hard: Hard, steps: int | None = None, window: int | None = None) -> Counts:
    """Solve a problem by every solver.

    Args:
        hard: the problem.
        steps: steps of its grid to take; all by default.
        window: nodes in flight; the library's default if not given.
    """
    grid, found = hard.grid(steps), {}
    expected = picard.sequential(hard.problem(), grid, method=hard.method)
    for name, options in SOLVERS.items():
        solution = picard.solve(
            hard.problem(),
            grid,
            method=hard.method,
            tolerance=TOLERANCE,
            save="all",
            **{"window": window, **options},
        )
        distance = (solution.final - expected.final).abs().amax() / expected.final.abs().amax()
        finite = bool(torch.isfinite(solution.ys).all())
        found[name] = Count(solution.stats.rounds, solution.stats.evaluations, float(distance), finite)
    return Counts(hard, expected.stats.rounds, found)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def table(all_counts: Sequence[Counts]) -> list[str]:
    """Write the counts as a table in Markdown."""
    counted = [PLAIN, DEFAULT, NEWTON]
    head = ["problem", "method", "sequential", *SOLVERS, "default / plain"]
    head += [f"evaluations, {name}" for name in counted] + [f"error, {name}" for name in counted[1:]]
    lines = [" | ".join(head), " | ".join(["---", "---", *["---:"] * (len(head) - 2)])]
    for counts in all_counts:
        of = [counts.found[name] for name in counted]
        cells = [
            counts.hard.name,
            counts.hard.method,
            f"{counts.sequential}",
            *[f"{one.rounds}" for one in counts.found.values()],
            f"{counts.ratio:.2f}",
            *[f"{one.evaluations / counts.sequential:.1f}x" for one in of],
            *[f"{one.error:.0e}" for one in of[1:]],
        ]
        lines.append(" | ".join(cells))
    mean = geometric_mean([counts.ratio for counts in all_counts])
    empty = ["", "", *[""] * len(SOLVERS)]
    lines.append(" | ".join(["geometric mean", *empty, f"{mean:.2f}", *[""] * (2 * len(counted) - 1)]))
    return [f"| {line} |" for line in lines]


PAGE = """# Hard problems

Rounds (batched model calls, one after the other) on {count} problems: smooth and stiff, oscillating, chaotic and noisy
ones. `sequential` is the number of model calls of the sequential solver. `plain Picard` is
`linearization="identity", guess="copy"`. `identity` and `frozen` are linearizations with the default guess, `secant,
hold` is the default linearization with `guess="hold"`, and `default` has neither option. `newton` is
`linearization="newton"` with the default guess. All have the default window of 64 nodes, but for `newton, 256`, and the
tolerance `RelAbs(1e-6, 1e-8)`, in float64. Evaluations are rows evaluated, as multiples of the sequential count: what
the fewer rounds are paid with. `error` is the largest difference of a number of the final state to the sequential
solver's, relative to the largest number there.

This page is written by `python -m benchmarks.hard --markdown docs/hard-problems.md`.

{table}

How to read it:

* A round moves by a window at most: fewer rounds than the sequential count divided by the window are not possible.
* Where trajectories oscillate (rotation, Kepler, Lotka-Volterra, Van der Pol) one slope a node says little about the
  derivative of the field. There the guess helps: it continues the field as a polynomial in time.
* The last four problems are stochastic. Their field is rough, and the guess of the default is `hold`.
* In chaotic problems (Lorenz) errors grow exponentially in time whatever the solver: the error is that of the
  tolerance, amplified.
* The heat equation has slopes from 0 to -4 / dx^2 in one state, and no single slope fits them.
* Newton's method knows the whole derivative. It evaluates a row for every number of a state, once to four times over:
  worth it where states are small or rows cost nothing. What it accepts has converged quadratically, so its error is far
  below the tolerance. It also makes use of larger windows, which the others hardly do.
* A round costs more than a sequential step: it evaluates up to 64 rows. On a GPU with an expensive model that is often
  almost free. These drifts of a few operations on one core of a CPU take less than what is around them: `--seconds`
  found the default 0.07 to 1.8 times as fast as the sequential solver, which is not compiled, and Newton's method 0.01
  to 3.0 times. With rounds compiled before (`compile=True`, `--seconds --compile`), the default was 2.1 to 4.0 times
  as fast on all but the heat equation (0.12), and Newton's method 0.01 to 6.1 times.
"""


def seconds(
    hard: Hard, steps: int | None = None, window: int | None = None, runs: int = 3, *, compiled: bool = False
) -> dict[str, list[float]]:
    """Time the sequential solver and the others, alternating; the first run warms up and does not count.

    Args:
        hard: the problem.
        steps: steps of its grid to take; all by default.
        window: nodes in flight; the library's default if not given.
        runs: runs that count.
        compiled: whether the solver's rounds are.
    """
    given: tuple[Any, ...] = hard.problem(), hard.grid(steps)
    ways: dict[str, Callable[[], Any]] = {SEQUENTIAL: partial(picard.sequential, *given, method=hard.method)}
    for name in TIMED:
        options = {"window": window, "compile": compiled, **SOLVERS[name]}
        ways[name] = partial(picard.solve, *given, method=hard.method, tolerance=TOLERANCE, **options)
    return alternating(ways, runs)


def alternating(ways: Mapping[str, Callable[[], Any]], runs: int = 3) -> dict[str, list[float]]:
    """Time several ways in turns; the first run of each warms up and does not count."""
    taken = {name: list[float]() for name in ways}
    for _ in range(runs + 1):
        for name, solve in ways.items():
            started = time.perf_counter()
            solve()
            taken[name].append(time.perf_counter() - started)
    return {name: found[1:] for name, found in taken.items()}


def timings(all_seconds: Mapping[str, Mapping[str, Sequence[float]]], first: str = SEQUENTIAL) -> list[str]:
    """Write a table: the median seconds of the first solver, and how many times faster others were in a run."""
    lines = [
        ["problem", first, *(f"{name}, times faster" for name in TIMED)],
        ["---", *["---:"] * (1 + len(TIMED))],
    ]
    for problem, taken in all_seconds.items():
        faster = [
            median(before / after for before, after in zip(taken[first], taken[name], strict=True)) for name in TIMED
        ]
        lines.append([problem, f"{1000 * median(taken[first]):.0f} ms", *(f"{one:.2f}" for one in faster)])
    return [f"| {' | '.join(line)} |" for line in lines]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the page if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hard", description=__doc__)
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    parser.add_argument("--steps", type=int, help="take only so many steps of every grid")
    parser.add_argument("--window", type=int, help="nodes in flight (default: the library's)")
    parser.add_argument(
        "--seconds", action="store_true", help="measure seconds instead, on a machine that does nothing else"
    )
    parser.add_argument("--compile", action="store_true", help="measure them with compiled rounds")
    options = parser.parse_args(arguments)
    if options.seconds:
        print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
        timed = partial(seconds, steps=options.steps, window=options.window, compiled=options.compile)
        print("\n".join(timings({hard.name: timed(hard) for hard in hard_problems()})))
        return
    all_counts = [count(hard, options.steps, options.window) for hard in hard_problems()]
    lines = table(all_counts)
    print("\n".join(lines))
    if options.markdown:
        page = PAGE.format(count=len(all_counts), table="\n".join(lines))
        options.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
