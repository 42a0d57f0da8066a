"""Classifier-free guidance is one doubled batch a round and equals two calls combined by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard.convert import Prediction
from picard.guidance import Guidance
from picard.schedule import Schedule
from tests.problems import Counted, network, start

F64 = torch.float64
SCHEDULE = Schedule.linear()


def conditioned(prediction: Prediction) -> Any:
    """Build a network that listens to a label and to a nested embedding."""
    plain = network(SCHEDULE, prediction)

    def model(x: Tensor, t: Tensor, label: Tensor, extra: dict[str, Tensor], scale: float) -> Tensor:
        return plain(x, t) + scale * (torch.sin(x) * label[:, None] + extra["embedding"])

    return model


COND = {
    "label": torch.tensor([1.0, 2.0, 3.0], dtype=F64),
    "extra": {"embedding": torch.linspace(0, 1, 9, dtype=F64).reshape(3, 3)},
    "scale": 0.1,
}
NONE = {"label": torch.zeros(3, dtype=F64), "extra": {"embedding": torch.zeros(3, 3, dtype=F64)}}


def sample(model: Any, cond: dict[str, Any], guidance: Guidance | None = None, **options: Any) -> picard.Solution:
    denoiser = picard.Denoiser(model, SCHEDULE, prediction="epsilon", guidance=guidance)
    problem = picard.Diffusion(denoiser, start(3, 3), noise=picard.Noise.from_seed(0), cond=cond)
    return picard.solve(problem, 20, method="ddpm", window=8, tolerance=0.0, **options)


@pytest.mark.parametrize("max_rows", [None, 5])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_equals_two_calls(rescale: float, max_rows: int | None) -> None:
    model = conditioned("epsilon")

    def by_hand(x: Tensor, t: Tensor, cond: dict[str, Any], uncond: dict[str, Any]) -> Tensor:
        with_label, without = model(x, t, **cond), model(x, t, **{**cond, **uncond})
        guided = without + 3.0 * (with_label - without)
        matched = guided * (with_label.std(1, keepdim=True) / guided.std(1, keepdim=True))
        return rescale * matched + (1 - rescale) * guided

    expected = sample(by_hand, {"cond": COND, "uncond": NONE})
    guided = sample(model, COND, Guidance(3.0, NONE, rescale=rescale), max_rows=max_rows)
    torch.testing.assert_close(guided.final, expected.final, rtol=1e-10, atol=1e-10)
    assert guided.stats.rounds == expected.stats.rounds


@torch.no_grad()
def test_guidance_is_one_doubled_batch_a_round() -> None:
    model = Counted(conditioned("epsilon"))
    rows: list[int] = []
    sample(model, COND, Guidance(3.0, NONE), callback=lambda info: rows.append(info.rows))
    assert model.rows == [2 * count for count in rows]


def test_a_part_of_the_conditioning_may_stay_the_same() -> None:
    """What `uncond` does not name is given to both halves."""
    model = conditioned("epsilon")
    whole = sample(model, COND, Guidance(2.0, {"label": NONE["label"], "extra": COND["extra"]}))
    part = sample(model, COND, Guidance(2.0, {"label": NONE["label"]}))
    assert torch.equal(whole.final, part.final)


def test_a_scale_of_one_is_no_guidance() -> None:
    model = conditioned("epsilon")
    torch.testing.assert_close(sample(model, COND, Guidance(1.0, NONE)).final, sample(model, COND).final)


def test_sequential_guides_alike() -> None:
    denoiser = picard.Denoiser(
        conditioned("epsilon"), SCHEDULE, prediction="epsilon", guidance=Guidance(3.0, NONE, rescale=0.5)
    )
    problem = picard.Diffusion(denoiser, start(3, 3), noise=picard.Noise.from_seed(0), cond=COND)
    expected = picard.sequential(problem, 20, method="ddpm").final
    found = picard.solve(problem, 20, method="ddpm", window=8, tolerance=0.0).final
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_table_as_long_as_a_call_is_not_taken_for_conditioning() -> None:
    """Three samples times eight nodes are 24 rows, which says nothing about a table of 24 lines."""
    plain = network(SCHEDULE, "epsilon")

    def model(x: Tensor, t: Tensor, table: Tensor, label: Tensor) -> Tensor:
        assert table.shape == (24, 2)
        assert len(label) == len(x)
        return plain(x, t)

    sample(model, {"table": torch.zeros(24, 2), "label": torch.ones(3)}, Guidance(2.0, {"label": torch.zeros(3)}))
