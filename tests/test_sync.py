"""Rounds that the device runs before the host reads: the same solve with fewer waits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import picard
from picard.convert import Prediction
from picard.progress import RoundInfo
from tests.compiled_solves import CASES
from tests.problems import (
    F64,
    PREDICTIONS,
    SCHEDULES,
    Counted,
    diffusion,
    network,
    pendulum,
    solve_failing,
    start,
    times,
)

each_count = pytest.mark.parametrize("count", [2, 3, 7])


@each_count
@pytest.mark.parametrize("name", CASES)
def test_the_same_solve_with_fewer_waits(name: str, count: int) -> None:
    make, grid, options = CASES[name]
    plain = picard.solve(make(), grid, **options)
    ahead = picard.solve(make(), grid, sync_every=count, **options)
    assert float((ahead.ys - plain.ys).abs().max()) <= 1e-12 * float(plain.ys.abs().max())
    assert (ahead.stats.rounds, ahead.status) == (plain.stats.rounds, plain.status)
    if name != "cut":  # there windows grow again, which takes the host
        assert ahead.stats.host_syncs == math.ceil(plain.stats.rounds / count)


@each_count
def test_no_more_is_evaluated_than_the_windows_slots(count: int) -> None:
    problem, window = diffusion(batch=3), 10
    rows: list[RoundInfo] = []
    with torch.no_grad():
        solution = picard.solve(problem, 50, method="ddpm", window=window, sync_every=count, callback=rows.append)
    known, cost = sum(one.rows for one in rows), solution.stats
    past = count * cost.host_syncs - cost.rounds  # rounds that were under way when the last sample was through
    assert known <= cost.evaluations <= known + past * 3 * window
    assert known <= 3 * window * cost.rounds
    assert [one.round for one in rows] == list(range(1, solution.stats.rounds + 1))
    assert sum(sum(one.stride) for one in rows) == 3 * 50


def test_a_callback_ends_the_solve_where_it_stands() -> None:
    plain = picard.solve(diffusion(), 50, method="ddpm", window=10, save="all", callback=lambda info: info.round == 3)
    ahead = picard.solve(
        diffusion(), 50, method="ddpm", window=10, save="all", sync_every=4, callback=lambda info: info.round == 3
    )
    assert ahead.status == plain.status
    assert ahead.converged == plain.converged
    torch.testing.assert_close(ahead.ys, plain.ys, rtol=1e-12, atol=1e-12)


def test_rows_that_ran_before_a_callback_ended_the_solve_are_counted() -> None:
    model = Counted(network(SCHEDULES["linear"], "sample"))
    denoiser = picard.Denoiser(model, SCHEDULES["linear"], prediction="sample")
    problem = picard.Diffusion(denoiser, start(2, 3), noise=picard.Noise.from_seed(0))
    with torch.no_grad():
        solution = picard.solve(problem, 50, method="ddpm", window=10, sync_every=4, callback=lambda info: True)
    assert solution.stats.evaluations == sum(model.rows)


@each_count
def test_a_callback_is_told_the_same_field(count: int) -> None:
    told: list[list[torch.Tensor]] = []
    for every in (1, count):
        fields: list[torch.Tensor] = []

        def note(info: RoundInfo, fields: list[torch.Tensor] = fields) -> None:
            rows = zip(info.field(), info.stride, strict=True)
            fields.append(torch.cat([row[:accepted] for row, accepted in rows]).clone())

        options: dict[str, Any] = {"method": "rk4", "window": 16, "sync_every": every, "callback": note}
        picard.solve(pendulum(), times(40), **options)
        told.append(fields)
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_rounds_are_not_exceeded() -> None:
    solution = picard.solve(diffusion(), 50, method="ddpm", window=10, sync_every=4, max_rounds=5, throw=False)
    assert solution.stats.rounds == 5
    assert solution.stats.host_syncs == 2
    assert set(solution.status) == {picard.Status.MAX_ROUNDS}


@pytest.mark.parametrize("throw", [True, False])
def test_a_failing_model_is_named_as_ever(throw: bool) -> None:
    plain, ahead = solve_failing(throw=throw), solve_failing(throw=throw, sync_every=3)
    assert ahead.status == plain.status
    assert picard.Status.NON_FINITE in plain.status
    assert ahead.converged == plain.converged
    torch.testing.assert_close(ahead.final, plain.final, rtol=1e-12, atol=1e-12)


CLIPS = {"none": None, "bounds": 0.5, "threshold": picard.DynamicThreshold(most=0.5)}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_outputs_become_the_same_data(prediction: Prediction, clip: str) -> None:
    """The round converts what the network returns, and the problem does where it clips in a way of its own."""
    problem = diffusion(prediction=prediction, clip=CLIPS[clip])
    plain = picard.solve(problem, 30, method="ddpm", window=8)
    ahead = picard.solve(problem, 30, method="ddpm", window=8, sync_every=2)
    assert ahead.stats.rounds == plain.stats.rounds
    torch.testing.assert_close(ahead.final, plain.final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_may_answer_in_a_dtype_of_its_own(dtype: torch.dtype) -> None:
    source = diffusion(prediction="epsilon")
    model = source.denoiser.model
    denoiser = picard.Denoiser(lambda x, t: model(x, t).to(dtype), source.denoiser.schedule)
    problem = picard.Diffusion(denoiser, source.x_T.float(), noise=source.noise)
    plain, ahead = (picard.solve(problem, 30, method="ddpm", window=8, sync_every=count) for count in (1, 2))
    torch.testing.assert_close(ahead.final, plain.final)


def test_half_precision_is_rounded_the_same() -> None:
    source = diffusion(prediction="epsilon")
    problem = picard.Diffusion(source.denoiser, source.x_T.half(), noise=source.noise)
    plain, ahead = (picard.solve(problem, 30, method="ddpm", window=8, sync_every=count) for count in (1, 2))
    assert torch.equal(ahead.final, plain.final)


@pytest.mark.parametrize("config", [{}, {"clip_sample": False}, {"thresholding": True, "clip_sample": False}], ids=str)
def test_a_traced_scheduler_samples_the_same(config: dict[str, Any]) -> None:
    library = pytest.importorskip("diffusers")
    from picard.adapters import diffusers as adapter

    scheduler = library.DDPMScheduler(num_train_timesteps=100, **config)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * (t[:, None, None] / 100 + 0.1)

    def sample(**options: Any) -> picard.Solution:
        given = {"num_inference_steps": 20, "generator": torch.Generator().manual_seed(1), "window": 8, **options}
        return adapter.sample(model, scheduler, torch.linspace(-2, 2, 12).reshape(2, 3, 2), **given)

    plain, ahead = sample(), sample(sync_every=2)
    assert ahead.stats.rounds == plain.stats.rounds
    torch.testing.assert_close(ahead.final, plain.final)


@pytest.mark.parametrize(
    "options",
    [{"certify": True}, {"guess": torch.zeros(41, 2, 2, dtype=F64)}],
    ids=", ".join,
)
def test_what_takes_the_host_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(picard.NotSupportedError, match=r"sync_every=2 leaves decisions to the device"):
        picard.solve(pendulum(), times(40), method="euler", sync_every=2, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", [0, -1, True, 1.5, None, "auto"])
def test_the_count_must_be_a_positive_integer(given: Any) -> None:
    with pytest.raises(picard.InvalidProblemError, match="sync_every must be an integer of at least 1"):
        picard.solve(diffusion(), 10, method="ddpm", sync_every=given)
