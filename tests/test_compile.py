"""Compiled rounds: the same solve, one graph without a break, and clear words where that cannot be."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import picard
from picard import functions
from tests.compiled_solves import CASES, OTHERS, POLICIES
from tests.problems import diffusion

ROOT = Path(__file__).parents[1]


def run(*arguments: str, module: str = "compiled_solves") -> Any:
    command = [sys.executable, "-m", f"tests.{module}", *arguments]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(400)  # it compiles for half a minute, and for minutes on a machine that is slow and busy
def test_a_compiled_solve_is_the_same_solve_and_a_round_is_one_graph() -> None:
    """The same rounds, evaluations and host waits; the states up to the order of sums.

    Windows shrink towards the end and samples drop out: forty rounds and more, a handful of shapes that differ. A batch
    of one is other code to a compiler, as are windows no longer than the method's order, and sizes that happen to be
    the same. The backend runs every captured graph as it is.
    """
    found = run("eager")
    assert found.keys() == {*CASES, *OTHERS}
    for name, one in found.items():
        assert len({str(counts) for counts in one["counts"]}) == 1, name
        assert one["difference"] <= (1e-5 if name in POLICIES else 1e-12), name
        assert one["breaks"] == 0, name
        assert 1 <= one["graphs"] <= (1 if name in POLICIES else 3), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiler_of_machine_code_finds_the_same() -> None:
    cases = ("diffusion", "order", "sde", "polynomial", "newton", "newton, noise", "steps")
    for name, one in run("inductor", *cases).items():
        assert one["counts"][0] == one["counts"][1], name
        assert one["difference"] <= 1e-10, name


@pytest.mark.timeout(200)
def test_a_compiler_of_the_code_around_steps_over_a_solve() -> None:
    found = run(module="compiled_around")
    for name, one in found["around"].items():
        assert one["same"], name
        # What is around is compiled, and nothing of the solve.
        assert {"add", "mul", "sin"} <= set(one["compiled"]) <= {"add", "mul", "sin", "getitem", "double"}, name
    assert found["inside"]["network"] >= 1, "what is compiled inside stays so"
    assert found["inside"]["rounds"] >= 1


@pytest.mark.parametrize("door", [picard.solve, picard.sequential, picard.adaptive, picard.odeint, picard.sdeint])
def test_a_door_is_still_the_function_it_was(door: Any) -> None:
    assert pickle.loads(pickle.dumps(door)) is door
    assert inspect.getdoc(door)
    assert "method" in inspect.signature(door).parameters
    assert door.__module__ == f"picard.{door.__name__}"


def test_the_compiler_is_not_imported_before_it_is_used() -> None:
    code = "import sys, torch; before = set(sys.modules); import picard; print(*(set(sys.modules) - before))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "torch._dynamo" not in done.stdout.split()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", ["yes", 1, None])
def test_options_must_be_a_mapping(given: Any) -> None:
    with pytest.raises(picard.InvalidProblemError, match="compile must be True, False or keyword arguments"):
        picard.solve(diffusion(), 10, method="ddpm", compile=given)


def test_a_rule_that_reads_numbers_cannot_be_compiled() -> None:
    class Reading(picard.NoiseRatio):
        def bound(self, candidates: Any) -> Any:
            return super().bound(candidates) * float(candidates.size.max() > 0)

    with pytest.raises(picard.NotSupportedError, match="cannot be compiled"):
        picard.solve(diffusion(), 10, method="ddpm", tolerance=Reading(0.1), compile={"backend": "eager"})


def test_rounds_that_certify_are_not_compiled() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError

    solution = picard.solve(diffusion(), 10, method="ddpm", certify=True, compile={"backend": refuse})
    assert solution.certificate is not None
    assert torch.isfinite(solution.final).all()


def test_large_systems_of_newtons_method_are_not_compiled() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError

    for shape, window in (((1, 40), 32), ((1, 40), "auto"), ((1100, 1), 32)):  # "auto" may be larger
        problem = picard.ODE(lambda t, x: -x, torch.ones(shape, dtype=torch.float64))
        options: dict[str, Any] = {"method": "euler", "window": window, "linearization": "newton"}
        solution = picard.solve(problem, torch.linspace(0, 1, 51), **options, compile={"backend": refuse})
        assert solution.success


def test_code_is_made_for_two_kinds_of_windows_and_no_more() -> None:
    made = run("eager", "windows")["windows"]
    assert made[:2] == [1, 1]  # these sizes, and any
    assert made[2:] == [0] * 4  # whole steps or not, few nodes or many


def test_a_compiler_that_counts_is_asked_anew() -> None:
    """It makes code for so many kinds of sizes and no more: those of other solves do not count, nor end this one."""
    from torch._dynamo import config, exc

    if not hasattr(exc, "FailOnRecompileLimitHit") or not hasattr(config, "recompile_limit"):
        pytest.skip("this torch does not say that it is about the count")

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    with config.patch(recompile_limit=2):
        for _ in range(3):
            call = functions._compile(double, {"backend": "eager", "dynamic": False})
            for size in range(2, 7):
                assert torch.equal(call(torch.ones(size)), torch.full((size,), 2.0))
