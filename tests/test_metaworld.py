"""The trained robot policies of examples/metaworld: same actions as their own loop, and what they cost.

Observations were recorded in closed loop, so that no simulator is needed here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import picard
from examples.metaworld.methods import METHODS, parallel, planned_ahead, sequential
from examples.metaworld.policy import load
from examples.metaworld.problem import problem, recorded, recorded_early
from examples.metaworld.tasks import TASKS
from picard.adapters import parallelize, restore

each_task = pytest.mark.parametrize("task", TASKS)
# The others run the same code on other weights, for seconds each.
first_task = pytest.mark.parametrize(
    "task", [task if task == TASKS[0] else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]
)
PLANS = 8  # their mean rounds and evaluations are compared with bounds


@each_task
@torch.no_grad()
def test_parallel_policy_gives_the_sequential_actions(task: str) -> None:
    policy = load(task)
    observations = {"obs": recorded(task)[0][:2]}
    torch.manual_seed(1)
    right = policy.predict_action(observations)
    for tolerance, off in ((0.0, 1e-5), (0.1, 0.3)):
        parallelize(policy, window=20, tolerance=tolerance)
        torch.manual_seed(1)
        found = policy.predict_action(observations)
        for name in ("action", "action_pred"):
            assert float((found[name] - right[name]).abs().max()) <= off
        restore(policy)


@first_task
@torch.no_grad()
def test_costs(task: str) -> None:
    """The published counts of the preset (Shih et al., 2023: 25 rounds, 390 evaluations), and bounds of the default."""
    policy = load(task)
    observations = recorded(task)[0][::8][:PLANS]
    condition, seeds = policy.condition(observations), range(PLANS)
    cost: dict[str, tuple[float, float]] = {}
    for method in ("ParaDiGMS preset", "default", "default, window 40"):
        options: Any = METHODS[method]
        plans = parallel(policy, condition, seeds, options)
        cost[method] = float(plans.rounds.double().mean()), float(plans.evaluations.double().mean())
    rounds, evaluations = cost["ParaDiGMS preset"]
    assert abs(rounds - 25) <= 2
    assert abs(evaluations - 390) <= 25
    assert cost["default"][0] <= 14
    assert cost["default"][1] <= 220
    assert cost["default, window 40"][0] <= 11
    assert cost["default, window 40"][1] <= 285


@torch.no_grad()
def test_warm_start_costs() -> None:
    """With the last plan to start from, a wide window pays: four fifths of the default's rounds at most."""
    policy, (observations, episode) = load(TASKS[0]), recorded(TASKS[0])
    later = [i for i in range(1, len(episode)) if episode[i] == episode[i - 1]][:PLANS]
    condition, seeds = policy.condition(observations), range(PLANS)
    last = sequential(policy, condition[[i - 1 for i in later]], seeds).trajectories
    rounds = {
        method: parallel(policy, condition[later], seeds, METHODS[method] or {}, last).rounds.double().mean()
        for method in ("warm start", "warm start, window 40", "default")
    }
    assert rounds["warm start, window 40"] <= 0.8 * rounds["default"]
    assert rounds["warm start"] <= 1.05 * rounds["default"]  # its gain was the first window, which is full anyway now


@first_task
@torch.no_grad()
def test_costs_after_planning_ahead(task: str) -> None:
    """A control step early most of the predictions are known, and nearly all where the next observation is foreseen."""
    policy, (*seen, episode) = load(task), recorded_early(task)
    later = [i for i in range(1, len(episode)) if episode[i] == episode[i - 1]][:PLANS]
    early, now = (policy.condition(one[later]) for one in seen)
    seeds = range(PLANS)
    usual = parallel(policy, now, seeds, METHODS["default"] or {})
    right = policy.actions(sequential(policy, now, seeds).trajectories)
    for method, most in (("planned ahead", 0.8), ("planned ahead, foreseen", 0.5)):
        found = planned_ahead(policy, METHODS[method] or {})(now, seeds, seeds, early)
        assert found.rounds.double().mean() <= most * usual.rounds.double().mean(), method
        assert found.evaluations.double().mean() <= most * usual.evaluations.double().mean(), method
        off, usually_off = ((policy.actions(plans.trajectories) - right).abs() for plans in (found, usual))
        assert float(off.median()) <= max(1e-3, 1.5 * float(usually_off.median())), method
        assert float(off.max()) <= 0.1, method


@pytest.mark.parametrize("method", ["default", "warm start, window 40"])
@torch.no_grad()
def test_evaluated_method_is_the_parallel_policy(method: str) -> None:
    """What is counted for many episodes at once is what `parallelize` makes of the same options, two plans in a row."""
    policy, plain, options = load(TASKS[0]), load(TASKS[0]), METHODS[method] or {}
    parallelize(policy, **options)
    unknown, last = torch.zeros(1, 16, 4), None
    for i, condition in enumerate(plain.condition(recorded(TASKS[0])[0][:2])[:, None]):
        generator = torch.Generator().manual_seed(i)
        found = policy.conditional_sample(unknown, unknown.bool(), global_cond=condition, generator=generator)
        plans = parallel(plain, condition, [i], options, last)
        last = plans.trajectories
        torch.testing.assert_close(found, last, rtol=0, atol=1e-3)
        cost: Any = policy.picard
        assert (cost.stats.rounds, cost.stats.evaluations) == (int(plans.rounds), int(plans.evaluations))


@torch.no_grad()
def test_a_plan_does_not_depend_on_its_batch() -> None:
    policy = load(TASKS[0])
    condition = policy.condition(recorded(TASKS[0])[0][:3])
    options: Any = METHODS["default"]
    together = parallel(policy, condition, [5, 6, 7], options)
    alone = parallel(policy, condition[1:2], [6], options)
    torch.testing.assert_close(together.trajectories[1:2], alone.trajectories, rtol=0, atol=1e-4)
    assert (together.rounds[1], together.evaluations[1]) == (alone.rounds[0], alone.evaluations[0])


@each_task
@torch.no_grad()
def test_problem_is_the_policy(task: str) -> None:
    """The loader for benchmarks solves what the policy's scheduler samples."""
    policy = load(task, num_inference_steps=20)
    given = problem(task, seeds=[3, 4])
    found = picard.sequential(given, 20, method="ddpm").final
    condition = given.cond["global_cond"]
    noise = given.noise
    assert noise is not None
    draws = [noise.draw([0, 1], [step, step], (16, 4)) for step in range(20)]
    x = given.x_T
    policy.noise_scheduler.set_timesteps(20)
    for t, z in zip(policy.noise_scheduler.timesteps, draws, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, z=z, **__: z)
            x = policy.noise_scheduler.step(policy.model(x, t, global_cond=condition), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)
    assert float(found.abs().max()) <= 1
    assert sequential(policy, condition, [0, 1]).trajectories.shape == found.shape
