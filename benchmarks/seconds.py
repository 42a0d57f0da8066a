"""Seconds beside the sequential solver's: `python -m benchmarks.seconds [--runs 7] [--json PATH] [NAME ...]`.

Each run solves one seed's problem by every method, one after the other, so that whatever else the machine does falls on
all alike; ratios are taken within a run, and the table shows their medians over the runs. The load of the machine is
printed: with other busy processes the figures mean little. On a GPU the sequential solver also runs with the model
captured as a CUDA graph.
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
from statistics import median
from typing import Any

import torch
from torch import Tensor

import picard
from benchmarks.cases import Case, cases

SEQUENTIAL, CAPTURED = "sequential", "sequential, captured"


def methods(case: Case, tolerance: float) -> dict[str, Callable[[picard.Diffusion], picard.Solution]]:
    """List what is timed, by name."""
    given: dict[str, Any] = {"method": case.method, "window": case.window, "tolerance": tolerance}
    return {
        SEQUENTIAL: lambda problem: picard.sequential(problem, case.steps, method=case.method),
        "ParaDiGMS": lambda problem: picard.solve(problem, case.steps, **{**picard.presets.PARADIGMS, **given}),
        "picard default": lambda problem: picard.solve(problem, case.steps, **given),
    }


def placed(value: Any, device: torch.device) -> Any:
    """Move every tensor and module in a problem's parts to a device."""
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    if isinstance(value, Mapping):
        return {name: placed(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def moved(problem: picard.Diffusion, device: torch.device) -> picard.Diffusion:
    """Move a problem to a device, if its model is a module."""
    model = problem.denoiser.model
    if device.type != "cpu" and not isinstance(model, torch.nn.Module):
        msg = f"only a torch.nn.Module can be moved to {device}; this problem's model is {type(model).__name__}"
        raise TypeError(msg)
    denoiser = replace(problem.denoiser, model=placed(model, device))
    return replace(problem, denoiser=denoiser, x_T=placed(problem.x_T, device), cond=placed(problem.cond, device))


def captured(problem: picard.Diffusion) -> picard.Diffusion:
    """Capture the model's call on one row as a CUDA graph, replayed at every call of that shape."""
    model = problem.denoiser.model
    x = problem.x_T.clone()
    t = torch.zeros(1, dtype=torch.int64, device=x.device)
    held: dict[str, Any] = {}
    cuda: Any = torch.cuda  # parts of it have no types
    stream = cuda.Stream()
    with cuda.stream(stream):
        for _ in range(3):
            model(x, t, **problem.cond)
    cuda.current_stream().wait_stream(stream)
    graph: Any = cuda.CUDAGraph()
    with cuda.graph(graph):
        held["out"] = model(x, t, **problem.cond)

    def replay(rows: Tensor, times: Tensor, **cond: Any) -> Tensor:
        del cond  # of the one sample the graph was captured with
        x.copy_(rows)
        t.copy_(times)
        graph.replay()
        return held["out"].clone()

    return replace(problem, denoiser=replace(problem.denoiser, model=replay))


def timed(solve: Callable[[picard.Diffusion], picard.Solution], problem: picard.Diffusion) -> float:
    """Return the seconds a solve takes, the device's work included."""
    cuda: Any = torch.cuda  # parts of it have no types
    wait: Callable[[], None] = cuda.synchronize if problem.x_T.is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    solve(problem)
    wait()
    return time.perf_counter() - started


def measure(case: Case, runs: int, tolerance: float, device: torch.device) -> dict[str, Any]:
    """Time every method on a case, alternating; the first run warms up and does not count."""
    ways = methods(case, tolerance)
    seconds: dict[str, list[float]] = {}
    for run in range(runs + 1):
        problem = moved(case.problems[run % case.seeds], device)
        problems = [(name, way, problem) for name, way in ways.items()]
        if device.type == "cuda":
            problems.append((CAPTURED, ways[SEQUENTIAL], captured(problem)))
        for name, way, one in problems if run % 2 else reversed(problems):
            spent = timed(way, one)
            if run:
                seconds.setdefault(name, []).append(spent)
    plain = seconds[SEQUENTIAL]
    return {
        name: {
            "seconds": median(seconds[name]),
            "faster": median(before / after for before, after in zip(plain, seconds[name], strict=True)),
        }
        for name in seconds
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="problems to run (default: digits and policy)")
    parser.add_argument("--runs", type=int, default=7, help="runs that count (default: 7)")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of every method (default: 0.1)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="where to run (default: cpu)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    known = cases(options.runs)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, {torch.get_num_threads()} threads")
    print("| problem | method | seconds | times faster than sequential |\n|---|---|---|---|")
    found: dict[str, Any] = {}
    for name in options.names or ("digits", "policy"):
        found[name] = measure(known[name], options.runs, options.tolerance, options.device)
        for method, one in found[name].items():
            print(f"| {name} | {method} | {one['seconds']:.3f} | {one['faster']:.2f} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
