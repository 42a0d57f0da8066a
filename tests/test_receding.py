"""Receding horizon: warm starts, the noise they use, the actions that count, and a bounded number of rounds."""

from __future__ import annotations

import math
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard import FixedRounds
from picard.adapters import parallelize, restore
from picard.tolerance import Candidates
from tests import policy_doubles as double
from tests.test_policies import build, scheduler

STEPS, WINDOW, BY, PLANS = 24, 12, 2, 4
receding: Any = import_module("picard.adapters.receding")


def drive(policy: Any, *, seed: int = 0, batch: int = 1, noise: list[Tensor] | None = None) -> list[Tensor]:
    """Plan again and again while the observation drifts; the same random numbers at every plan."""
    torch.manual_seed(seed)
    first, drift = torch.randn(2, batch, double.SEEN * double.STATES).unbind(0)
    plans = []
    with torch.no_grad():
        for i in range(PLANS):
            torch.manual_seed(100 + i)
            given = None if noise is None else noise[i]
            plans.append(policy.diffusion.conditional_sample(batch, first + 0.05 * i * drift, noise=given))
            if hasattr(policy, "picard"):
                policy.rounds.append(policy.picard.stats.rounds)
    return plans


def prepared(levels: str = "ddpm", **options: Any) -> Any:
    torch.manual_seed(0)
    policy, _ = build("lerobot", scheduler(levels), STEPS)
    policy.rounds = []
    return parallelize(policy, **{"window": WINDOW, **options}) if options else policy


@pytest.mark.parametrize("levels", ["ddpm", "ddim"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_warm_start_with_new_noise_changes_the_way_and_not_the_actions(levels: str, batch: int) -> None:
    right = drive(prepared(levels), batch=batch)
    policy = prepared(levels, warm_start=BY, tolerance=0.0)
    for plan, other in zip(drive(policy, batch=batch), right, strict=True):
        assert torch.allclose(plan, other, rtol=0, atol=1e-5)


def test_a_warm_start_takes_fewer_rounds_until_the_policy_is_reset() -> None:
    cold, warm = prepared(window=WINDOW, guess="hold"), prepared(warm_start=BY, guess="hold")
    drive(cold)
    drive(warm)
    assert warm.rounds[0] == cold.rounds[0]
    assert sum(warm.rounds[1:]) < sum(cold.rounds[1:])
    warm.reset()
    drive(warm)
    assert warm.rounds[PLANS] == cold.rounds[0]
    warm.picard.forget()
    drive(warm, batch=2)  # another batch starts cold, too
    assert warm.picard.stats.rows == 2


def test_used_noise_is_the_last_plans_moved_forward_with_new_noise_at_the_end() -> None:
    """For a deterministic sampler the noise is the start alone, which LeRobot's loop takes as an argument."""
    shape = (1, double.HORIZON, double.ACTIONS)
    expected: list[Tensor] = []
    for i in range(PLANS):
        torch.manual_seed(100 + i)
        new = torch.randn(shape)
        expected.append(new if i == 0 else torch.cat([expected[-1][:, BY:], new[:, -BY:]], 1))
    right = drive(prepared("ddim"), noise=expected)
    policy = prepared("ddim", warm_start=BY, fresh_noise=False, tolerance=0.0)
    for plan, other in zip(drive(policy), right, strict=True):
        assert torch.allclose(plan, other, rtol=0, atol=1e-5)
    seen = picard.adapters.parallelize_policy(policy, warm_start="shift", fresh_noise=False, tolerance=0.0)
    assert seen.picard.options.warm_start == "shift"


def test_used_noise_makes_successive_plans_agree() -> None:
    def disagreement(**options: Any) -> float:
        plans = drive(prepared(warm_start=BY, **options))
        pairs = pairwise(plans)
        return sum(float((b[:, :-BY] - a[:, BY:]).square().mean()) for a, b in pairs)

    assert disagreement(fresh_noise=False) < disagreement(fresh_noise=True)


def test_used_noise_is_standard_normal_and_new_where_known_actions_hid_it() -> None:
    policy, _ = build("unet-inpaint", scheduler(), steps=8)
    parallelize(policy, window=WINDOW, warm_start=3, fresh_noise=False)
    starts, noises = [], []
    with torch.no_grad():
        for i in range(40):
            torch.manual_seed(i)
            known, mask, _ = policy.arranged(torch.randn(8, double.SEEN, double.STATES))
            policy.conditional_sample(known, mask)
            past = policy.picard._past
            starts.append(past.x[~mask])
            noises.append(past.drawn[0][~mask])
            assert float(past.x[mask].abs().max()) == 0
    for values in (torch.cat(starts), torch.cat(noises)):
        assert abs(float(values.mean())) < 0.05
        assert abs(float(values.std()) - 1) < 0.05


def ahead(policy: Any, *, early: bool = True, batch: int = 1, seed: int = 0) -> Tensor:
    """Plan from a condition, and before that, if wanted, from one a little earlier; `seed` is that of the noise."""
    torch.manual_seed(0)
    now, drift = torch.randn(2, batch, double.SEEN * double.STATES).unbind(0)
    torch.manual_seed(seed)
    with torch.no_grad():
        if early:
            with policy.picard.ahead():
                policy.diffusion.conditional_sample(batch, now - 0.05 * drift)
        plan: Tensor = policy.diffusion.conditional_sample(batch, now)
    return plan


@pytest.mark.parametrize(("levels", "warm", "fresh"), [("ddpm", None, True), ("ddpm", BY, False), ("ddim", BY, True)])
def test_planning_ahead_changes_the_way_and_not_the_actions(levels: str, warm: int | None, fresh: bool) -> None:
    options = {"warm_start": warm, "fresh_noise": fresh, "tolerance": 0.0}
    plain, policy = prepared(levels, **options), prepared(levels, **options)
    for i in range(2):  # the second time there is a last plan, too
        right, state = ahead(plain, early=False, seed=i), torch.get_rng_state()
        found = ahead(policy, seed=i)
        assert policy.picard.prepared
        assert not plain.picard.prepared
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.allclose(found, right, rtol=0, atol=1e-5)


def test_planning_ahead_takes_fewer_rounds_and_starts_from_a_plan_ahead_itself() -> None:
    policy = prepared(window=WINDOW)
    ahead(policy, early=False)
    cold, evaluations = policy.picard.stats.rounds, policy.picard.stats.evaluations
    ahead(policy)
    assert policy.picard.stats.rounds < cold
    assert policy.picard.stats.evaluations < evaluations
    torch.manual_seed(0)
    condition = torch.randn(1, double.SEEN * double.STATES)
    with torch.no_grad(), policy.picard.ahead():
        for prepared_before in (False, True):
            torch.manual_seed(1)
            policy.diffusion.conditional_sample(1, condition)
            assert policy.picard.prepared == prepared_before
    assert policy.picard.stats.rounds < cold


def test_planning_ahead_inside_planning_ahead_goes_on_after_it() -> None:
    policy, state = prepared(window=WINDOW), torch.get_rng_state()
    condition = torch.randn(1, double.SEEN * double.STATES)
    with torch.no_grad(), policy.picard.ahead():
        with policy.picard.ahead():
            policy.diffusion.conditional_sample(1, condition)
        drawn = torch.get_rng_state()
        policy.diffusion.conditional_sample(1, condition)
        assert torch.equal(torch.get_rng_state(), drawn)  # still not executed
    torch.set_rng_state(state)


def test_a_prepared_plan_is_held_to_a_share_of_its_rule_unless_rounds_are_fixed() -> None:
    fixed = (FixedRounds(2), 1.0, 1.0, 0.0)
    for tolerance, first, later, leeway in ((0.2, 0.2, 0.6, 0.05), fixed):
        policy = prepared(tolerance=tolerance)
        options, plan = policy.picard.options, picard.integrators.DDPM().plan(picard.Schedule.cosine(40).levels(40))
        size = torch.linspace(0.1, 1, 39)[None]
        given = Candidates(size, torch.arange(39)[None] % 4, size)
        share = torch.where(given.age > 1, later, first)
        bound = options.rule(plan, None).bound(given)
        for prepares, ahead_itself in ((True, False), (False, True), (True, True)):
            rule = options.rule(plan, None, prepared=prepares, ahead=ahead_itself)
            assert torch.allclose(rule.bound(given), share * bound)
            assert rule.leeway == pytest.approx(0 if ahead_itself else leeway)
    ahead(policy)
    assert policy.picard.prepared


def test_a_plan_that_left_evaluations_out_is_kept_whole_for_the_next_one() -> None:
    policy, right = (prepared(warm_start=BY, fresh_noise=False, tolerance=tau) for tau in (1.0, 0.0))
    for seed in range(3):
        found, expected = ahead(policy, batch=2, seed=seed), ahead(right, batch=2, seed=seed, early=False)
        assert policy.picard.prepared
        assert policy.picard.stats.evaluations < 2 * 40
        assert bool(torch.isfinite(policy.picard._past.values).all())
        assert float((found - expected).abs().max()) < 0.2


def test_what_a_plan_left_out_is_filled_in_along_what_was_expected() -> None:
    right = torch.randn(6, 2, 3, 1, generator=torch.Generator().manual_seed(0))
    seen = right.clone()
    seen[2, 0] = seen[3, 0] = seen[5, 1] = math.nan
    held = receding.filled(seen, None)
    assert torch.equal(held[2:4, 0], right[1, 0].expand(2, 3, 1))
    assert torch.equal(held[5, 1], right[4, 1])
    assert torch.equal(held[~seen.isnan()], right[~seen.isnan()])
    torch.testing.assert_close(receding.filled(seen, right + 0.5), right)


def test_a_plan_made_ahead_is_used_for_its_own_noise_and_form_only() -> None:
    policy = prepared(window=WINDOW)
    right = ahead(policy, early=False)
    cold = policy.picard.stats.rounds

    def early() -> None:
        torch.manual_seed(0)
        with torch.no_grad(), policy.picard.ahead():
            policy.diffusion.conditional_sample(1, torch.randn(1, double.SEEN * double.STATES))

    for seed, batch in ((5, 1), (0, 2)):
        early()
        ahead(policy, early=False, seed=seed, batch=batch)
        assert not policy.picard.prepared
    early()
    policy.diffusion.num_inference_steps = 30
    ahead(policy, early=False)
    assert not policy.picard.prepared
    policy.diffusion.num_inference_steps = STEPS
    for forget in (policy.reset, policy.picard.forget):
        early()
        forget()
        assert torch.equal(ahead(policy, early=False), right)
        assert policy.picard.stats.rounds == cold
    with torch.no_grad():
        with policy.picard.ahead():
            torch.manual_seed(3)
            policy.diffusion.conditional_sample(1, torch.randn(1, double.SEEN * double.STATES))
        assert not policy.picard._early
    assert torch.equal(ahead(policy, early=False), right)  # the noise is that of another seed


def test_planning_ahead_works_with_known_actions_and_needs_a_plan() -> None:
    policy, _ = build("unet-inpaint", scheduler(), steps=12)
    rounds = []
    with torch.no_grad():
        seen = torch.randn(2, double.SEEN, double.STATES, generator=torch.Generator().manual_seed(1))
        known, mask, _ = policy.arranged(seen)
        right = policy.conditional_sample(known, mask, generator=torch.Generator().manual_seed(2))
        parallelize(policy, window=WINDOW, tolerance=0.0)
        for early in (False, True):
            source = torch.Generator().manual_seed(2)
            if early:
                with policy.picard.ahead():
                    policy.conditional_sample(0.9 * known, mask, generator=source)
            found = policy.conditional_sample(known, mask, generator=source)
            assert policy.picard.prepared == early
            assert torch.allclose(found, right, rtol=0, atol=1e-5)
            rounds.append(policy.picard.stats.rounds)
        assert rounds[1] <= rounds[0]
        parallelize(policy, mode="replay")
        with pytest.raises(picard.NotSupportedError, match="planning ahead needs a plan"), policy.picard.ahead():
            policy.conditional_sample(known, mask)


def test_actions_that_are_not_executed_need_not_meet_the_tolerance() -> None:
    watched, whole = prepared(actions=2), prepared(window=WINDOW)
    right = drive(prepared())
    plans = drive(watched)
    drive(whole)
    assert sum(watched.rounds) <= sum(whole.rounds)
    first = double.SEEN + 2
    assert max(float((a - b)[:, :first].abs().max()) for a, b in zip(plans, right, strict=True)) < 0.05
    exact = drive(prepared(actions=double.HORIZON, tolerance=0.0))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(exact, right, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("warm", [None, BY])
def test_fixed_rounds_bound_the_calls_of_the_network(count: int, warm: int | None) -> None:
    policy = prepared(tolerance=FixedRounds(count), warm_start=warm)
    drive(policy)
    most = 1 + count * math.ceil(40 / WINDOW)
    assert max(policy.rounds) <= most
    assert all(rounds == policy.rounds[-1] for rounds in policy.rounds[1:])


def problem(steps: int = 40) -> tuple[picard.ODE, Tensor]:
    grid = torch.linspace(0, 4, steps + 1, dtype=torch.float64)
    start = torch.tensor([[1.0, -0.5], [0.3, 2.0], [0.1, 0.2]], dtype=torch.float64)
    return picard.ODE(lambda t, x: torch.sin(3 * x) - x + torch.cos(t)[:, None], start), grid


def expectation(ode: picard.ODE, grid: Tensor) -> Tensor:
    """The field along the right solution."""
    states = picard.sequential(ode, grid, method="euler", save="all").ys
    return torch.stack([ode.drift(t.expand(len(x)), x) for t, x in zip(grid, states[:-1], strict=False)])


def test_right_expectations_need_a_round_a_window() -> None:
    ode, grid = problem()
    guess = picard.Expected(expectation(ode, grid))
    right = picard.sequential(ode, grid, method="euler").final
    solution = picard.solve(ode, grid, method="euler", window=10, tolerance=1e-10, guess=guess)
    assert solution.stats.rounds == 4
    assert torch.allclose(solution.final, right, rtol=0, atol=1e-12)


def test_constant_expectations_hold_and_wrong_ones_are_harmless() -> None:
    ode, grid = problem()
    options: dict[str, Any] = {"method": "euler", "window": 10, "tolerance": 1e-9}
    right = picard.sequential(ode, grid, method="euler").final
    held = picard.solve(ode, grid, guess="hold", **options)
    constant = picard.solve(ode, grid, guess=picard.Expected(torch.ones(40, 3, 2, dtype=torch.float64)), **options)
    assert abs(constant.stats.rounds - held.stats.rounds) <= 2
    wild = picard.solve(ode, grid, guess=picard.Expected(100 * torch.randn(40, 3, 2)), **options)
    for solution in (constant, wild):
        assert torch.allclose(solution.final, right, rtol=0, atol=1e-7)


def test_expectations_must_fit(unchecked: None) -> None:
    ode, grid = problem()
    for values, match in (
        (torch.ones(39, 3, 2), "one a node"),
        (torch.full((40, 3, 2), math.nan), "finite"),
    ):
        with pytest.raises(picard.InvalidProblemError, match=match):
            picard.solve(ode, grid, method="euler", guess=picard.Expected(values))
    with pytest.raises(picard.InvalidProblemError, match="floating tensor"):
        picard.Expected(torch.ones(3, dtype=torch.int64))
    policy = prepared(warm_start=BY)
    drive(policy)
    assert restore(policy) is policy
