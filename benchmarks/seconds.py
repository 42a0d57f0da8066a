"""Seconds beside the sequential solver's: `python -m benchmarks.seconds [--runs 7] [--json PATH] [NAME ...]`.

Each run solves one seed's problem by every method, one after the other, so that whatever else the machine does falls on
all alike; ratios are taken within a run, and the table shows their medians over the runs. The load of the machine is
printed: with other busy processes the figures mean little. With `--device cuda` the sequential solver also runs with
the model captured as a CUDA graph, and the parallel one with captured rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

import picard
from benchmarks.cases import Case, cases, costly

SEQUENTIAL, CAPTURED = "sequential", "sequential, captured"
Way = Callable[[picard.Diffusion], picard.Solution]


def methods(case: Case, tolerance: float, device: torch.device) -> dict[str, Way]:
    """List what is timed, by name."""
    given: dict[str, Any] = {"method": case.method, "window": case.window, "tolerance": tolerance}

    def sequential(problem: picard.Diffusion) -> picard.Solution:
        return picard.sequential(problem, case.steps, method=case.method)

    def parallel(**options: Any) -> Way:
        return lambda problem: picard.solve(problem, case.steps, **{**options, **given})

    ways = {
        SEQUENTIAL: sequential,
        "ParaDiGMS": parallel(**picard.presets.PARADIGMS),
        "picard default": parallel(),
    }
    if device.type == "cuda":
        kept: dict[str, Any] = {"cuda_graph": picard.CudaGraphs()}
        ways |= {
            CAPTURED: CapturedModel(sequential),
            "compiled": parallel(compile=True),
            "captured in every solve": parallel(cuda_graph=True),
            "captured once": parallel(**kept),
            "captured once, ParaDiGMS": parallel(**picard.presets.PARADIGMS, **kept),
            "captured once, compiled": parallel(**kept, compile=True),
            "captured once, compiled, read every 3 rounds": parallel(**kept, compile=True, sync_every=3),
        }
    return ways


class CapturedModel:
    """A way to solve with the model's call on one row captured as a CUDA graph, at the first problem."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.replay: Callable[..., Tensor] | None = None
        self.cond: Mapping[str, Any] = {}

    def __call__(self, problem: picard.Diffusion) -> picard.Solution:
        """Solve."""
        if self.replay is None:
            self.cond = placed(problem.cond, problem.x_T.device)
            self.replay = captured(problem.denoiser.model, problem.x_T, self.cond)
        for old, new in zip(self.cond.values(), problem.cond.values(), strict=True):
            old.copy_(new)
        return self.way(replace(problem, denoiser=replace(problem.denoiser, model=self.replay)))


def placed(value: Any, device: torch.device) -> Any:
    """Copy every tensor and module in a problem's parts to a device."""
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    if isinstance(value, Mapping):
        return {name: placed(one, device) for name, one in value.items()}
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def moved(problems: Sequence[picard.Diffusion], device: torch.device) -> list[picard.Diffusion]:
    """Move problems of one network to a device: all are given the first one's, which is moved once."""
    if device.type == "cpu":
        return list(problems)
    first = problems[0].denoiser
    if not isinstance(first.model, torch.nn.Module):
        msg = f"only a torch.nn.Module can be moved to {device}; this problem's model is {type(first.model).__name__}"
        raise TypeError(msg)
    denoiser = replace(first, model=placed(first.model, device))
    return [
        replace(one, denoiser=denoiser, x_T=placed(one.x_T, device), cond=placed(one.cond, device)) for one in problems
    ]


def captured(model: Callable[..., Tensor], like: Tensor, cond: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Capture a model's call on one row as a CUDA graph, replayed at every call; conditioning is read where it is."""
    x = like.clone()
    t = torch.zeros(1, dtype=torch.int64, device=x.device)
    held: dict[str, Any] = {}
    cuda: Any = torch.cuda  # parts of it have no types
    stream = cuda.Stream()
    with cuda.stream(stream):
        for _ in range(3):
            model(x, t, **cond)
    cuda.current_stream().wait_stream(stream)
    graph: Any = cuda.CUDAGraph()
    with cuda.graph(graph):
        held["out"] = model(x, t, **cond)

    def replay(rows: Tensor, times: Tensor, **cond: Any) -> Tensor:
        del cond  # those of the graph are read
        x.copy_(rows)
        t.copy_(times)
        graph.replay()
        return held["out"].clone()

    return replay


def timed(solve: Way, problem: picard.Diffusion) -> tuple[float, picard.Solution]:
    """Return the seconds a solve takes, the device's work included."""
    cuda: Any = torch.cuda  # parts of it have no types
    wait: Callable[[], None] = cuda.synchronize if problem.x_T.is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    solution = solve(problem)
    wait()
    return time.perf_counter() - started, solution


def measure(case: Case, methods: Mapping[str, Way], runs: int, device: torch.device) -> dict[str, Any]:
    """Time methods on a case, alternating; the first run warms up and does not count."""
    ways = list(methods.items())
    problems = moved(case.problems, device)
    seconds: dict[str, list[float]] = {}
    rounds: dict[str, list[int]] = {}
    errors: dict[str, list[float]] = {}
    for run in range(runs + 1):
        problem = problems[run % case.seeds]
        finals: dict[str, Tensor] = {}
        for name, way in ways if run % 2 else reversed(ways):
            spent, solution = timed(way, problem)
            finals[name] = solution.final
            if run:
                seconds.setdefault(name, []).append(spent)
                rounds.setdefault(name, []).append(solution.stats.rounds)
        for name, final in finals.items():
            errors.setdefault(name, []).append(float((final - finals[SEQUENTIAL]).square().mean().sqrt()))
    plain, best = seconds[SEQUENTIAL], seconds.get(CAPTURED, seconds[SEQUENTIAL])
    return {
        name: {
            "rounds": fmean(rounds[name]),
            "error": max(errors[name]),
            "seconds": median(taken),
            "faster": median(before / after for before, after in zip(plain, taken, strict=True)),
            "faster than captured": median(before / after for before, after in zip(best, taken, strict=True)),
        }
        for name, taken in ((name, seconds[name]) for name in methods)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="problems to run (default: digits and policy)")
    parser.add_argument("--method", action="append", help="run this method beside the sequential one; may be repeated")
    parser.add_argument("--runs", type=int, default=7, help="runs that count (default: 7)")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of every method (default: 0.1)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="where to run (default: cpu)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    known = {**cases(options.runs), **costly(options.runs)}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, {torch.get_num_threads()} threads")
    on_gpu = options.device.type == "cuda"
    more = " | than sequential, captured" if on_gpu else ""
    print(f"| problem | method | rounds | largest error | seconds | times faster than sequential{more} |")
    print("|---|---|---|---|---|---|" + "---|" * on_gpu)
    found: dict[str, Any] = {}
    for name in options.names or ("digits", "policy"):
        case = known[name]
        ways = methods(case, options.tolerance, options.device)
        chosen = {each: way for each, way in ways.items() if each in {SEQUENTIAL, *(options.method or ways)}}
        found[name] = measure(case, chosen, options.runs, options.device)
        for method, one in found[name].items():
            more = f" | {one['faster than captured']:.2f}" if on_gpu else ""
            counts = f"{one['rounds']:.1f} | {one['error']:.1e}"
            print(f"| {name} | {method} | {counts} | {one['seconds']:.4f} | {one['faster']:.2f}{more} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
