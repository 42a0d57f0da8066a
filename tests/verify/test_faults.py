"""The kit finds every fault put into a solver, and none in the same solver without a fault."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from picard.verify import Case, VerificationError, check, strategies
from picard.verify.known import runaway_ode
from picard.verify.strategies import Kind
from tests.faulty_solver import FAULTS, faulty

LINEARIZATIONS = ["identity", "frozen"]
FEW = max(5, settings().max_examples // 5)


def cases(kind: Kind | str) -> Any:
    """Cases with the options that the small solver knows."""
    if kind == "runaway":
        grid = torch.linspace(0, 10, 21, dtype=torch.float64)
        return st.builds(lambda seed: Case(runaway_ode(seed), grid, "euler", {"window": 20}), strategies.seeds())
    options = st.fixed_dictionaries(
        {"window": strategies.windows(10), "linearization": st.sampled_from(LINEARIZATIONS)}
    )
    kinds: dict[str, Kind] = {"ode": "ode", "sde": "sde", "diffusion": "diffusion"}
    drawn = strategies.cases(kinds[kind], options=False, steps=7)
    return st.builds(lambda case, options: replace(case, options=options), drawn, options)


EVERYWHERE, NOISY = ["ode", "sde", "diffusion"], ["sde", "diffusion"]
# The kinds of problems on which the fault can show, and a property that must find it there.
FOUND_BY = {
    "stride_off_by_one": (EVERYWHERE, "equal_to_sequential"),
    "noise_shifted": (NOISY, "causal"),
    "noise_by_slot": (NOISY, "equal_to_sequential"),
    "copied_without_noise": (NOISY, "equal_to_sequential"),
    "stale_field": (EVERYWHERE, "equal_to_sequential"),
    "wrong_node": (EVERYWHERE, "prefix_exact"),
    "coupled_windows": (EVERYWHERE, "batch_independent"),
    "no_guard": (["runaway"], "equal_to_sequential"),
    "wrong_anchor": (["ode", "diffusion"], "equal_to_sequential"),
    "window_scalar": (NOISY, "causal"),
    "time_shifted": (EVERYWHERE, "equal_to_sequential"),
    "late_acceptance": (EVERYWHERE, "rounds_bounded"),
    "last_chunk_lost": (EVERYWHERE, "max_rows_independent"),
    "own_noise": (NOISY, "reproducible"),
    "squared_tolerance": (EVERYWHERE, "within_tolerance"),
    "tail_forgotten": (EVERYWHERE, "window_independent"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault: str) -> None:
    kinds, name = FOUND_BY[fault]
    options: dict[str, Any] = {"tolerance": 1e-6, "within": 1e-4} if fault == "squared_tolerance" else {}

    def fails(case: Case) -> bool:
        keywords = {**case.options, **options, "method": case.method, "solver": faulty(fault)}
        return not check(case.problem, case.grid, properties=[name], **keywords).passed

    search = settings(max_examples=100, phases=[Phase.generate], derandomize=True, database=None, deadline=None)
    case = find(st.one_of(*(cases(kind) for kind in kinds)), fails, settings=search)
    report = check(
        case.problem, case.grid, method=case.method, solver=faulty(fault), properties=[name], **case.options, **options
    )
    with pytest.raises(VerificationError, match=name.replace("_", " ")) as caught:
        report.raise_for_failures()
    assert f"solver={fault}" in str(caught.value)
    smallest = report[name].reproducer
    assert smallest is not None
    assert (smallest.case.steps or 0) <= (case.steps or 0)
    again = check(
        smallest.case.problem,
        smallest.case.grid,
        method=smallest.case.method,
        solver=faulty(fault),
        properties=[name],
        **{**options, **smallest.case.options},
    )
    assert not again.passed


def test_every_fault_is_listed() -> None:
    assert set(FOUND_BY) == set(FAULTS)


def verify_faultless(case: Case) -> None:
    report = check(case.problem, case.grid, method=case.method, solver=faulty(None), within=math.inf, **case.options)
    report.raise_for_failures()


@pytest.mark.parametrize("kind", [*EVERYWHERE, "runaway"])
def test_the_solver_without_a_fault_passes(kind: str) -> None:
    @settings(max_examples=FEW if kind != "runaway" else 3, phases=[Phase.reuse, Phase.generate])
    @given(cases(kind))
    def hold(case: Case) -> None:
        verify_faultless(case)

    hold()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", EVERYWHERE)
@settings(max_examples=1000, phases=[Phase.generate])
@given(st.data())
def test_the_solver_without_a_fault_passes_a_thousand_examples(kind: str, data: st.DataObject) -> None:
    verify_faultless(data.draw(cases(kind)))
