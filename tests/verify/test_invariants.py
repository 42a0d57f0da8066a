"""What a solver returns on problems whose solution is known without solving them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import picard
from picard.verify import LipschitzODE, strategies

F64 = torch.float64
FEW = max(5, settings().max_examples // 3)
options_drawn = st.fixed_dictionaries(
    {
        "window": strategies.windows(),
        "linearization": st.sampled_from(["secant", "frozen", "identity", "newton"]),
        "guess": st.sampled_from(["hold", "eager", "copy"]),
    }
)
each = st.tuples(strategies.time_grids(), strategies.methods("ode"), options_drawn)


def solve(problem: picard.ODE, given: tuple[Tensor, str, dict[str, Any]], **more: Any) -> picard.Solution:
    grid, method, options = given
    return picard.solve(problem, grid, method=method, save="all", **options, **more)


@settings(max_examples=FEW)
@given(each, strategies.seeds())
def test_a_zero_field_stays_where_it_is(given: tuple[Tensor, str, dict[str, Any]], seed: int) -> None:
    x0 = torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    solution = solve(picard.ODE(lambda _, x: torch.zeros_like(x), x0), given)
    assert torch.equal(solution.ys, x0.expand_as(solution.ys))


@settings(max_examples=FEW)
@given(each)
def test_a_field_of_time_alone_is_a_quadrature(given: tuple[Tensor, str, dict[str, Any]]) -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.cos(t)[:, None].expand_as(x)

    problem = picard.ODE(drift, torch.zeros(1, 2, dtype=F64))
    solution = solve(problem, given, tolerance=0.0)
    wanted = picard.sequential(problem, given[0], method=given[1], save="all")
    torch.testing.assert_close(solution.ys, wanted.ys, rtol=1e-12, atol=1e-12)
    assert solution.stats.rounds <= wanted.stats.rounds


@settings(max_examples=FEW)
@given(each, strategies.lipschitz_odes())
def test_time_may_run_backwards(given: tuple[Tensor, str, dict[str, Any]], problem: LipschitzODE) -> None:
    grid, method, options = given
    mirrored = picard.ODE(lambda t, x: -problem.drift(-t, x), problem.x0)
    forth, back = solve(problem, given), solve(mirrored, (-grid, method, options))
    torch.testing.assert_close(back.ys, forth.ys, rtol=1e-12, atol=1e-12)
    assert back.stats.rounds == forth.stats.rounds


@settings(max_examples=FEW)
@given(each, strategies.dtypes(half=True), strategies.dtypes())
def test_the_drift_sees_the_dtypes_it_was_given(
    given: tuple[Tensor, str, dict[str, Any]], state: torch.dtype, time: torch.dtype
) -> None:
    seen = set()

    def drift(t: Tensor, x: Tensor) -> Tensor:
        seen.add((t.dtype, x.dtype))
        return -x

    grid, method, options = given
    solution = solve(picard.ODE(drift, torch.ones(2, 3, dtype=state)), (grid.to(time), method, options))
    assert seen == {(time, state)}
    assert (solution.ts.dtype, solution.ys.dtype) == (time, state)


@settings(max_examples=FEW)
@given(each, strategies.lipschitz_odes())
def test_progress_never_goes_back(given: tuple[Tensor, str, dict[str, Any]], problem: LipschitzODE) -> None:
    seen: list[tuple[int, ...]] = [(0,) * len(problem.x0)]

    def watch(info: picard.RoundInfo) -> None:
        assert all(a <= b for a, b in zip(seen[-1], info.converged, strict=True))
        assert all(stride >= 1 for stride in info.stride)
        seen.append(info.converged)

    solution = solve(problem, given, callback=watch)
    assert seen[-1] == solution.converged == (len(given[0]) - 1,) * len(problem.x0)
