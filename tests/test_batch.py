"""Samples of a batch do not know of each other, and the rows of a call carry the right conditioning."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import picard
from picard.progress import RoundInfo
from tests.problems import Counted, diffusion, network, pendulum_drift, sde, start, times

F64 = torch.float64
Problem = picard.ODE | picard.SDE | picard.Diffusion
KINDS: dict[str, tuple[Any, str]] = {"ode": (times(30), "heun"), "sde": (times(30), "euler"), "diffusion": (25, "ddpm")}
BATCH = 4
each = pytest.mark.parametrize("kind", KINDS)


def problem(kind: str, samples: list[int]) -> Problem:
    """Build a problem from some samples of a batch whose members need different numbers of rounds."""
    gain = torch.linspace(0.5, 6, BATCH, dtype=F64)[samples]
    if kind == "ode":
        return picard.ODE(pendulum_drift, start(BATCH, 2)[samples], cond={"gain": gain})
    if kind == "sde":
        whole = sde(batch=BATCH)
        return picard.SDE(
            lambda t, x, gain: gain[:, None] * torch.sin(x),
            lambda t, x, gain: 0.2 * torch.cos(x),
            whole.x0[samples],
            noise=whole.noise.select(samples),
            cond={"gain": gain},
        )
    noise = diffusion().noise
    assert noise is not None
    made = diffusion(batch=BATCH, cond={"shift": gain})
    return replace(made, x_T=made.x_T[samples], noise=noise.select(samples), cond={"shift": gain})


def solve(kind: str, samples: list[int], **options: Any) -> tuple[picard.Solution, dict[int, list[tuple[int, ...]]]]:
    """Solve, and record what every sample did in every round."""
    seen: dict[int, list[tuple[int, ...]]] = {sample: [] for sample in samples}

    def watch(info: RoundInfo) -> None:
        for place, *did in zip(info.samples, info.begin, info.width, info.stride, strict=True):
            seen[samples[place]].append(tuple(did))

    grid, method = KINDS[kind]
    options = {"window": 9, "save": "all", "callback": watch, **options}
    return picard.solve(problem(kind, samples), grid, method=method, **options), seen


@each
@torch.no_grad()
def test_a_batch_equals_its_samples_alone(kind: str) -> None:
    together, seen = solve(kind, list(range(BATCH)))
    rounds, spent = set(), 0
    for sample in range(BATCH):
        alone, did = solve(kind, [sample])
        spent += alone.stats.evaluations
        torch.testing.assert_close(together.ys[:, [sample]], alone.ys, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.residual[[sample]], alone.residual, rtol=1e-6, atol=1e-12)
        assert seen[sample] == did[sample]
        rounds.add(len(did[sample]))
    assert len(rounds) > 1, "the samples should not all need the same number of rounds"
    assert together.stats.rounds == max(rounds)
    assert together.stats.evaluations == spent
    assert spent <= sum(
        width for did in seen.values() for _, width, _ in did
    )  # a diffusion model's windows are thinned


@each
@settings(max_examples=4)
@given(order=st.permutations(range(BATCH)))
def test_permuting_the_batch_permutes_the_result(kind: str, order: list[int]) -> None:
    straight, did = solve(kind, list(range(BATCH)))
    mixed, seen = solve(kind, order)
    torch.testing.assert_close(mixed.ys, straight.ys[:, order], rtol=1e-12, atol=1e-12)
    assert seen == did
    assert mixed.stats.evaluations == straight.stats.evaluations


@torch.no_grad()
def test_finished_samples_cost_nothing() -> None:
    """One sample at rest is through long before the others, and its rows are gone from then on."""
    drift = Counted(pendulum_drift)
    x0 = torch.tensor([[0.0, 0.0], [2.0, 3.0]], dtype=F64)

    def field(t: Tensor, x: Tensor, still: Tensor) -> Tensor:
        return torch.where(still[:, None], 0.0, drift(t, x))

    infos: list[RoundInfo] = []
    ode = picard.ODE(field, x0, cond={"still": torch.tensor([True, False])})
    solution = picard.solve(ode, times(60), method="euler", window=10, callback=infos.append)
    last = max(info.round for info in infos if 0 in info.samples)
    assert last < solution.stats.rounds
    assert all(info.samples == (1,) for info in infos[last:])
    assert drift.rows == [info.rows for info in infos]
    assert sum(drift.rows) == solution.stats.evaluations


@each
@pytest.mark.parametrize("most", [1, 5, 1000])
@torch.no_grad()
def test_max_rows_splits_calls_and_changes_nothing(kind: str, most: int) -> None:
    calls: list[int] = []

    def counted(made: Problem) -> Problem:
        if isinstance(made, picard.Diffusion):
            model = Counted(network(made.denoiser.schedule, "sample"))
            model.rows = calls
            return replace(made, denoiser=picard.Denoiser(model, made.denoiser.schedule, prediction="sample"))
        drift = Counted(made.drift)
        drift.rows = calls
        return replace(made, drift=drift)

    grid, method = KINDS[kind]
    infos: list[RoundInfo] = []
    whole, _ = solve(kind, list(range(BATCH)))
    split = picard.solve(
        counted(problem(kind, list(range(BATCH)))),
        grid,
        method=method,
        window=9,
        save="all",
        max_rows=most,
        callback=infos.append,
    )
    torch.testing.assert_close(split.ys, whole.ys, rtol=1e-13, atol=1e-13)
    assert (split.stats.rounds, split.stats.evaluations) == (whole.stats.rounds, whole.stats.evaluations)
    assert max(calls) <= most
    assert calls == [min(most, info.rows - first) for info in infos for first in range(0, info.rows, most)]


class Pair(NamedTuple):
    name: str
    twice: Tensor


@pytest.mark.parametrize("max_rows", [None, 4])
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_conditioning_is_repeated_per_row(batch: int, max_rows: int | None) -> None:
    """Every row must meet its own sample's entries, at any depth; everything else arrives untouched."""
    mark = torch.arange(float(batch), dtype=F64)
    weight, table = torch.eye(7), torch.zeros(batch + 1, 2)
    seen: list[int] = []

    def drift(t: Tensor, x: Tensor, mark: Tensor, deep: Any, name: str, weight: Tensor, scale: Tensor) -> Tensor:
        rows = len(x)
        seen.append(rows)
        assert torch.equal(mark, x[:, 0]), "the state carries its sample's mark"
        assert torch.equal(deep["inner"][0], mark + 10)
        assert torch.equal(deep["inner"][1]["image"][:, 0, 1], mark - 5)
        assert deep["inner"][1]["image"].shape == (rows, 2, 3)
        assert isinstance(deep["inner"], tuple)
        assert isinstance(deep["pair"], Pair)
        assert torch.equal(deep["pair"].twice, 2 * mark)
        assert deep["table"] is table
        assert weight is sent["weight"]
        assert scale.ndim == 0
        assert (name, deep["none"]) == ("euler", None)
        return torch.stack([0 * x[:, 0], torch.sin(x[:, 1]) + 1], 1)

    image = (mark - 5)[:, None, None].expand(batch, 2, 3)
    pair = Pair("pair", 2 * mark)
    deep = {"inner": (mark + 10, {"image": image}), "pair": pair, "table": table, "none": None}
    sent = {"mark": mark, "deep": deep, "name": "euler", "weight": weight, "scale": torch.tensor(3.0)}
    x0 = torch.stack([mark, torch.linspace(0, 2, batch, dtype=F64)], 1)
    picard.solve(picard.ODE(drift, x0, cond=sent), times(20), method="euler", window=6, max_rows=max_rows)
    assert max(seen) > batch or max_rows is not None


def test_a_tensor_bound_to_the_function_stays_whole() -> None:
    """Its first dimension happens to be the batch; in `cond` it would be repeated."""
    table = torch.linspace(0.5, 2, BATCH * 2, dtype=F64).view(BATCH, 2).requires_grad_()
    shapes = set()

    def drift(t: Tensor, x: Tensor, table: Tensor) -> Tensor:
        shapes.add(tuple(table.shape))
        return -x * table.sum(0)

    def gradient(table: Tensor) -> Tensor:
        problem = picard.ODE(partial(drift, table=table), start(BATCH, 2))
        final = picard.solve(problem, times(20), method="rk4", window=6, tolerance=0.0).final
        return torch.autograd.grad(final.sum(), table)[0]

    found = gradient(table)
    assert shapes == {(BATCH, 2)}
    span = times(20)[-1] - times(20)[0]
    expected = torch.autograd.grad((start(BATCH, 2) * torch.exp(-span * table.sum(0))).sum(), table)[0]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)  # RK4 with 20 steps
    picard.solve(picard.ODE(drift, start(BATCH, 2), cond={"table": table}), times(20), method="rk4")
    assert len(shapes) > 1
