"""The trained robot policies of examples/metaworld: same actions as their own loop, and what they cost.

Observations were recorded in closed loop, so that no simulator is needed here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import picard
from examples.metaworld.methods import METHODS, parallel, sequential
from examples.metaworld.policy import load
from examples.metaworld.problem import problem, recorded
from examples.metaworld.tasks import TASKS

each_task = pytest.mark.parametrize("task", TASKS)
PLANS = 8  # their mean rounds and evaluations are compared with bounds


@each_task
@torch.no_grad()
def test_parallel_policy_gives_the_sequential_actions(task: str) -> None:
    policy = load(task)
    observations = {"obs": recorded(task)[0][:3]}
    torch.manual_seed(1)
    right = policy.predict_action(observations)
    for tolerance, off in ((0.0, 1e-5), (0.1, 0.3)):
        picard.adapters.parallelize(policy, window=20, tolerance=tolerance)
        torch.manual_seed(1)
        found = policy.predict_action(observations)
        for name in ("action", "action_pred"):
            assert float((found[name] - right[name]).abs().max()) <= off
        picard.adapters.restore(policy)


@each_task
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
