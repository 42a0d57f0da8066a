"""Every method beside every other: `python -m benchmarks.rounds [--seeds 16] [--json PATH] [--plot PATH] [NAME ...]`.

Every method is run at the tolerances 2^k of a fixed grid, from loose to tight, until the median over the seeds of the
root mean square distance to the sequential sample is below 5e-4. The table shows each method at the loosest tolerance
whose median distance is at most 1e-2, and 1e-3. Rounds and evaluations are means over the seeds. The distribution of
the distance has a heavy tail, see `benchmarks.preset`: its mean is printed too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

import picard
from benchmarks.baselines import Chain, chords, diagonal_newton, parataa, srds
from benchmarks.cases import Case, cases

TARGETS = (1e-2, 1e-3)
ENOUGH = 5e-4
RATIOS = tuple(2.0**k for k in range(6, -11, -1))  # of the noise of a step
DISTANCES = tuple(2.0**k for k in range(0, -17, -1))  # of final samples
PARADIGMS, DEFAULT = "ParaDiGMS", "picard default"
Count = tuple[Tensor, int, int]
"""Final sample, rounds, evaluations."""


@dataclass(frozen=True)
class Point:
    """One method at one tolerance: means over the seeds, and the median distance to the sequential sample."""

    tolerance: float
    rounds: float
    evaluations: float
    median_error: float
    mean_error: float


@dataclass(frozen=True)
class Method:
    """A method under test: `solve(case, index of the seed, tolerance)`, and its tolerances from loose to tight."""

    solve: Callable[[Case, int, float], Count]
    tolerances: Sequence[float]


def ours(**options: Any) -> Method:
    """Run `picard.solve` with options."""

    def solve(case: Case, index: int, tolerance: float) -> Count:
        given = {**options, "tolerance": tolerance, "window": case.window}
        solution = picard.solve(case.problems[index], case.steps, method=case.method, **given)
        return solution.final, solution.stats.rounds, solution.stats.evaluations

    return Method(solve, RATIOS)


def theirs(run: Callable[[Chain, float, Case], Tensor], tolerances: Sequence[float]) -> Method:
    """Run a baseline on the chain of a problem."""

    def solve(case: Case, index: int, tolerance: float) -> Count:
        chain = Chain(case.problems[index], case.steps, case.method)
        return run(chain, tolerance, case), chain.rounds, chain.evaluations

    return Method(solve, tolerances)


def _newton(chain: Chain, tolerance: float, case: Case) -> Tensor:
    if case.diagonal is None:
        msg = "the exact diagonal is known for exact scores only"
        raise ValueError(msg)
    return diagonal_newton(chain, tolerance, case.window, case.diagonal)


METHODS: Mapping[str, Method] = {
    PARADIGMS: ours(linearization="identity", guess="copy"),
    "ParaSolver's start": ours(linearization="identity", guess="hold"),
    "ParaTAA": theirs(lambda chain, tolerance, case: parataa(chain, tolerance, case.window), RATIOS),
    "SRDS": theirs(lambda chain, tolerance, _: srds(chain, tolerance), DISTANCES),
    "CHORDS": theirs(lambda chain, tolerance, _: chords(chain, tolerance), DISTANCES),
    "exact diagonal": theirs(_newton, RATIOS),
    DEFAULT: ours(),
}


def sweep(case: Case, method: Method) -> list[Point]:
    """Run a method over its tolerances until it is more accurate than anyone asks."""
    found: list[Point] = []
    for tolerance in method.tolerances:
        finals, rounds, evaluations = zip(
            *(method.solve(case, index, tolerance) for index in range(case.seeds)), strict=True
        )
        errors = case.errors(finals)
        found.append(Point(tolerance, fmean(rounds), fmean(evaluations), median(errors), fmean(errors)))
        if found[-1].median_error < ENOUGH:
            break
    return found


def loosest(points: Sequence[Point], target: float) -> Point | None:
    """Return the first point, from loose to tight, whose median error is small enough, if there is one."""
    return next((point for point in points if point.median_error <= target), None)


def table(found: Mapping[str, Mapping[str, Sequence[Point]]]) -> str:
    """Write what was found as two Markdown tables: the counts, and their ratios to ParaDiGMS'."""
    lines = ["| problem | error | method | tolerance | rounds | evaluations | median error | mean error |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, methods in found.items():
        for target in TARGETS:
            for method, points in methods.items():
                lines.append(f"| {name} | {target:g} | {method} {_cells(loosest(points, target))}")
    lines += ["", "| method | error | " + " | ".join(found) + " | geometric mean |"]
    lines.append("|---|---|" + "---|" * (len(found) + 1))
    for method in dict.fromkeys(method for methods in found.values() for method in methods):
        for target in TARGETS:
            pairs = [ratio(methods, method, target) for methods in found.values()]
            known = [pair for pair in pairs if pair]
            mean = [math.exp(fmean(math.log(value) for value in column)) for column in zip(*known, strict=True)]
            cells = [_pair(pair) for pair in (*pairs, mean or None)]
            lines.append(f"| {method} | {target:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(methods: Mapping[str, Sequence[Point]], method: str, target: float) -> tuple[float, float] | None:
    """Return a method's rounds and evaluations over ParaDiGMS' at the same error, if both reach it."""
    one, other = loosest(methods.get(method, ()), target), loosest(methods[PARADIGMS], target)
    return (one.rounds / other.rounds, one.evaluations / other.evaluations) if one and other else None


def _pair(pair: Sequence[float] | None) -> str:
    return f"{pair[0]:.2f}, {pair[1]:.2f}" if pair else "-"


def _cells(point: Point | None) -> str:
    if point is None:
        return "| not reached | | | | |"
    errors = f"{point.median_error:.1e} | {point.mean_error:.1e} |"
    return f"| {point.tolerance:g} | {point.rounds:.1f} | {point.evaluations:,.0f} | {errors}"


def plot(found: Mapping[str, Mapping[str, Sequence[Point]]], path: Path) -> None:
    """Plot rounds, and evaluations, against the median error; one line a method."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shape: dict[str, Any] = {"squeeze": False, "figsize": (3.3 * len(found), 6.2), "sharex": True}
    figure, axes = plt.subplots(2, len(found), **shape)
    for column, (name, methods) in enumerate(found.items()):
        for method, points in methods.items():
            index = list(METHODS).index(method)
            style: dict[str, Any] = {"color": f"C{index}", "marker": "o^sDvP*"[index % 7]}
            style |= {"linewidth": 2.2 if method == DEFAULT else 1.1, "markersize": 4, "label": method}
            errors = [point.median_error for point in points]
            axes[0, column].plot(errors, [point.rounds for point in points], **style)
            axes[1, column].plot(errors, [point.evaluations for point in points], **style)
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("median error")
        for row in (0, 1):
            axes[row, column].set_xscale("log")
            axes[row, column].set_yscale("log")
            axes[row, column].grid(visible=True, which="major", alpha=0.3)
    axes[0, 0].set_ylabel("rounds")
    axes[1, 0].set_ylabel("evaluations")
    handles = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="problems to run, or none for all")
    parser.add_argument("--seeds", type=int, default=16, help="seeds 0, 1, ... of every problem (default: 16)")
    parser.add_argument("--method", action="append", choices=METHODS, help="run this method only; may be repeated")
    parser.add_argument("--json", type=Path, help="write the figures to this file; others in it stay")
    parser.add_argument("--plot", type=Path, help="write a picture to this file")
    options = parser.parse_args(arguments)
    known = cases(options.seeds)
    kept: dict[str, Any] = {}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text(encoding="utf-8"))["problems"]
    found = {name: {m: [Point(**p) for p in points] for m, points in one.items()} for name, one in kept.items()}
    for name in options.names or known:
        for method in options.method or METHODS:
            if known[name].diagonal or method != "exact diagonal":
                found.setdefault(name, {})[method] = sweep(known[name], METHODS[method])
                if options.json:  # after every method: the whole takes long
                    _write(options.json, found, options.seeds)
    found = {name: _ordered(found[name], METHODS) for name in _ordered(found, known)}
    print(table(found))
    if options.json:
        _write(options.json, found, options.seeds)
    if options.plot:
        plot(found, options.plot)


def _ordered(found: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    return {name: found[name] for name in known if name in found}


def _write(path: Path, found: Mapping[str, Mapping[str, Sequence[Point]]], seeds: int) -> None:
    plain = {name: {m: [asdict(p) for p in points] for m, points in one.items()} for name, one in found.items()}
    written = {"picard": picard.__version__, "seeds": seeds, "problems": plain}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
