"""Rounds of adaptive solves against torchdiffeq's calls: `python -m benchmarks.adaptive [--method dopri5] [--seconds]`.

Both choose their steps by the same rule, for the same tolerances, on the hard problems without noise. Errors are
distances of the final state to that of torchdiffeq's dopri8 at 1e-12, relative to its largest number.
"""

# torchdiffeq carries no types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

import picard
from benchmarks.hard import SOLVERS as FIXED
from benchmarks.hard import TIMED, alternating, geometric_mean, timings
from benchmarks.hard_problems import Function, Hard, hard_problems

RTOL, ATOL, THEIRS = 1e-6, 1e-8, "torchdiffeq"
SOLVERS = {name: FIXED[name] for name in TIMED}


@dataclass(frozen=True)
class Count:
    """What one solver needed.

    Attributes:
        calls: model calls, one after the other.
        evaluations: rows evaluated.
        steps: steps kept; 0 if it is not known.
        error: see above.
    """

    calls: int
    evaluations: int
    steps: int
    error: float


def count(hard: Hard, method: str = "dopri5", share: float = 1.0) -> dict[str, Count]:
    """Solve a problem by torchdiffeq and by every solver.

    Args:
        hard: the problem.
        method: the method, by torchdiffeq's name.
        share: share of its time to solve.
    """
    times, calls = torch.tensor([0, share * hard.end], dtype=torch.float64), [0]

    def drift(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return hard.drift(t, y)

    exact = torchdiffeq.odeint(hard.drift, hard.y0, times, method="dopri8", rtol=1e-12, atol=1e-12)[-1]

    def error(final: Tensor) -> float:
        return float((final - exact).abs().amax() / exact.abs().amax())

    ways = solvers(hard, drift, times, method)
    final = ways[THEIRS]()[-1]
    found = {THEIRS: Count(calls[0], calls[0], 0, error(final))}
    for name in SOLVERS:
        solution = ways[name]()
        stats = solution.stats
        found[name] = Count(stats.rounds, stats.evaluations, solution.converged[0], error(solution.final[0]))
    return found


def solvers(
    hard: Hard, drift: Function, times: Tensor, method: str, *, compiled: bool = False
) -> dict[str, Callable[[], Any]]:
    """Return every way of solving a problem, torchdiffeq's by a drift of its own, the others with compiled rounds."""
    problem: Any = hard.problem()
    limits: dict[str, Any] = {"rtol": RTOL, "atol": ATOL}
    more = {"compile": compiled, **limits}
    own = {"adaptive_heun": "heun"}.get(method, method)
    ways: dict[str, Callable[[], Any]] = {
        name: partial(picard.adaptive, problem, times, method=own, **more, **options)
        for name, options in SOLVERS.items()
    }
    return {THEIRS: lambda: torchdiffeq.odeint(drift, hard.y0, times, method=method, **limits), **ways}


def seconds(hard: Hard, method: str, *, compiled: bool = False) -> dict[str, list[float]]:
    """Time torchdiffeq and every solver, with compiled rounds if asked to."""
    times = torch.tensor([0, hard.end], dtype=torch.float64)
    return alternating(solvers(hard, hard.drift, times, method, compiled=compiled))


def table(names: Sequence[str], counts: Sequence[dict[str, Count]]) -> list[str]:
    """Write the counts as a table in Markdown."""
    head = ["problem", "torchdiffeq: calls", "steps", *[f"{name}: rounds" for name in SOLVERS]]
    head += [f"{name}: evaluations" for name in ("default", "newton")]
    head += [f"{name}: error" for name in ("torchdiffeq", "default", "newton")]
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    for name, found in zip(names, counts, strict=True):
        calls = found[THEIRS].calls
        cells = [name, f"{calls}", f"{found['default'].steps}", *[f"{found[each].calls}" for each in SOLVERS]]
        cells += [f"{found[each].evaluations / calls:.1f}x" for each in ("default", "newton")]
        cells += [f"{found[each].error:.0e}" for each in ("torchdiffeq", "default", "newton")]
        lines.append(" | ".join(cells))
    means = [geometric_mean([one[each].calls / one[THEIRS].calls for one in counts]) for each in SOLVERS]
    lines.append(" | ".join(["geometric mean, to torchdiffeq", "", "", *[f"{mean:.2f}" for mean in means], *[""] * 5]))
    return [f"| {line} |" for line in lines]


def main() -> None:
    """Parse the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dopri5")
    parser.add_argument(
        "--seconds", action="store_true", help="measure seconds instead, on a machine that does nothing else"
    )
    parser.add_argument("--compile", action="store_true", help="measure them with compiled rounds")
    given, counts = parser.parse_args(), []
    problems = [hard for hard in hard_problems() if hard.diffusion is None]
    if given.seconds:
        problems = [hard for hard in problems if hard.y0.numel() <= 64]  # Newton's method takes minutes for more
        timed = partial(seconds, method=given.method, compiled=given.compile)
        print("\n".join(timings({hard.name: timed(hard) for hard in problems}, THEIRS)))
        return
    for hard in problems:
        counts.append(count(hard, given.method))
        print(hard.name, {name: one.calls for name, one in counts[-1].items()}, flush=True)
    print("\n".join(table([hard.name for hard in problems], counts)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
