"""A-priori bounds on Picard iteration, against what it does."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import picard
from picard.verify import (
    History,
    LipschitzODE,
    elementary_symmetric,
    factorial_bound,
    picard_bound,
    rounds_needed,
    strategies,
    tanh_ode,
)

gains_drawn = st.lists(st.floats(0, 2), min_size=1, max_size=7).map(lambda values: torch.tensor(values).double())


@given(gains_drawn, st.integers(0, 8))
def test_elementary_symmetric_polynomials_are_sums_of_products(values: Tensor, degree: int) -> None:
    for n in range(len(values) + 1):
        wanted = sum(math.prod(chosen) for chosen in combinations(values[:n].tolist(), degree))
        assert float(elementary_symmetric(values, degree)[n]) == pytest.approx(wanted, rel=1e-12, abs=1e-300)


@given(gains_drawn, st.integers(1, 9))
def test_the_factorial_bound_holds_on_every_grid(gains: Tensor, rounds: int) -> None:
    assert float(picard_bound(gains, rounds).max()) <= factorial_bound(1.0, float(gains.sum()), rounds) * (1 + 1e-12)


def test_a_uniform_grid_gives_binomial_coefficients() -> None:
    bound = picard_bound(torch.full((10,), 0.3, dtype=torch.float64), 4)
    wanted = [math.comb(max(n - 1, 0), 4) * 0.3**4 for n in range(11)]
    torch.testing.assert_close(bound, torch.tensor(wanted, dtype=torch.float64))


@given(strategies.lipschitz_odes(), strategies.time_grids())
def test_the_bound_holds_in_every_round_and_ends_after_as_many_as_there_are_nodes(
    problem: LipschitzODE, grid: Tensor
) -> None:
    wanted = picard.sequential(problem, grid, method="euler", save="all").ys.flatten(2)
    gains = (problem.lipschitz * grid.diff()).abs()
    steps, scale = len(gains), wanted.abs().max()
    initial = (wanted[1:] - problem.x0.flatten(1)).norm(dim=2).amax(0)  # of the copies of the start

    def watch(info: picard.RoundInfo) -> None:
        bound = picard_bound(gains, info.round)
        assert float(bound[: info.round + 1].max()) == 0  # finite termination
        for row, sample in enumerate(info.samples):
            first, width = info.begin[row] + 1, info.width[row]
            error = (info.states[row, :width].flatten(1) - wanted[first : first + width, sample]).norm(dim=1)
            assert bool((error <= initial[sample] * bound[first : first + width] + 1e-12 * scale).all())

    picard.solve(
        problem,
        grid,
        method="euler",
        linearization="identity",
        guess="copy",
        tolerance=0.0,
        window=steps,
        callback=watch,
    )


@given(gains_drawn, st.floats(0, 1))
def test_rounds_needed_is_the_first_that_suffices(gains: Tensor, factor: float) -> None:
    rounds = rounds_needed(gains, factor)
    assert rounds <= len(gains)
    assert float(picard_bound(gains, rounds).max()) <= factor
    assert rounds == 0 or float(picard_bound(gains, rounds - 1).max()) > factor


@pytest.mark.parametrize(
    ("gains", "factor", "says"),
    [
        ([1.0, 1.0], -1.0, "gains and factor must be given and not negative"),
        ([], 0.1, "gains and factor must be given and not negative"),
        ([-1.0], 0.1, "gains must be a one-dimensional tensor of numbers, and must not be negative"),
        ([math.nan], 0.1, "gains must be a one-dimensional tensor of numbers, and must not be negative"),
    ],
)
def test_what_would_never_be_reached_is_refused(gains: list[float], factor: float, says: str) -> None:
    with pytest.raises(picard.InvalidProblemError, match=says):
        rounds_needed(torch.tensor(gains, dtype=torch.float64), factor)


def test_bounds_that_are_not_numbers_or_too_large() -> None:
    assert factorial_bound(1e9, 1.0, 100) == math.inf
    assert factorial_bound(0.0, 1.0, 0) == 1 > factorial_bound(0.0, 1.0, 1) == 0
    for lipschitz in (math.nan, math.inf):
        with pytest.raises(picard.InvalidProblemError, match=r"lipschitz \* length must be finite"):
            factorial_bound(lipschitz, 1.0, 1)
    with pytest.raises(picard.InvalidProblemError, match="rounds must be an integer of at least 0; given -1"):
        factorial_bound(1.0, 1.0, -1)
    with pytest.raises(picard.InvalidProblemError, match="degree must be an integer of at least 0; given -1"):
        elementary_symmetric(torch.ones(3), -1)


def test_negative_gains_are_refused() -> None:
    with pytest.raises(picard.InvalidProblemError, match="must not be negative"):
        picard_bound(torch.tensor([-1.0]).double(), 1)


def test_the_history_shows_a_contraction_that_shrinks_with_the_lipschitz_constant() -> None:
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    found = []
    for lipschitz in (0.25, 2.0):
        history = History()
        problem = tanh_ode(0, lipschitz=lipschitz)
        picard.solve(
            problem,
            grid,
            method="euler",
            linearization="identity",
            guess="copy",
            tolerance=1e-8,
            callback=history,
        )
        found.append(history.contraction())
    assert 0 < found[0] < found[1] < 1


def test_a_history_without_two_rounds_says_nothing() -> None:
    assert math.isnan(History().contraction())
