"""Rounds of adaptive solves against the calls of torchdiffeq's: `python -m benchmarks.adaptive [--method dopri5]`.

Both choose their steps by the same rule, for the same tolerances, on the hard problems without noise. Errors are
distances of the final state to that of torchdiffeq's dopri8 at 1e-12, relative to its largest number.
"""

# torchdiffeq carries no types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

import picard
from benchmarks.hard import geometric_mean
from benchmarks.hard_problems import Hard, hard_problems

RTOL, ATOL = 1e-6, 1e-8
SOLVERS: dict[str, dict[str, Any]] = {
    "default": {},
    "newton": {"linearization": "newton"},
    "newton, 256": {"linearization": "newton", "window": 256},
}


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

    final = torchdiffeq.odeint(drift, hard.y0, times, method=method, rtol=RTOL, atol=ATOL)[-1]
    found = {"torchdiffeq": Count(calls[0], calls[0], 0, error(final))}
    problem = hard.problem()
    for name, options in SOLVERS.items():
        solution = picard.adaptive(
            problem,  # type: ignore[arg-type]  # an ODE
            times,
            method={"adaptive_heun": "heun"}.get(method, method),
            rtol=RTOL,
            atol=ATOL,
            **options,
        )
        stats = solution.stats
        found[name] = Count(stats.rounds, stats.evaluations, solution.converged[0], error(solution.final[0]))
    return found


def table(names: Sequence[str], counts: Sequence[dict[str, Count]]) -> list[str]:
    """Write the counts as a table in Markdown."""
    head = ["problem", "torchdiffeq: calls", "steps", *[f"{name}: rounds" for name in SOLVERS]]
    head += [f"{name}: evaluations" for name in ("default", "newton")]
    head += [f"{name}: error" for name in ("torchdiffeq", "default", "newton")]
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    for name, found in zip(names, counts, strict=True):
        calls = found["torchdiffeq"].calls
        cells = [name, f"{calls}", f"{found['default'].steps}", *[f"{found[each].calls}" for each in SOLVERS]]
        cells += [f"{found[each].evaluations / calls:.1f}x" for each in ("default", "newton")]
        cells += [f"{found[each].error:.0e}" for each in ("torchdiffeq", "default", "newton")]
        lines.append(" | ".join(cells))
    means = [geometric_mean([one[each].calls / one["torchdiffeq"].calls for one in counts]) for each in SOLVERS]
    lines.append(" | ".join(["geometric mean, to torchdiffeq", "", "", *[f"{mean:.2f}" for mean in means], *[""] * 5]))
    return [f"| {line} |" for line in lines]


def main() -> None:
    """Parse the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dopri5")
    given = parser.parse_args()
    problems = [hard for hard in hard_problems() if hard.diffusion is None]
    counts = []
    for hard in problems:
        counts.append(count(hard, given.method))
        print(hard.name, {name: one.calls for name, one in counts[-1].items()}, flush=True)
    print("\n".join(table([hard.name for hard in problems], counts)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
