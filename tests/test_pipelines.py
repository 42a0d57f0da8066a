"""Whole pipelines of Diffusers, from tiny random components: in parallel they give the sequential images."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from picard import InvalidProblemError, NotSupportedError
from picard.adapters import parallelize, restore
from tests.pipeline_cases import CASES, STEPS, call, pair

library = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of Diffusers and transformers about each other


@pytest.mark.parametrize("name", CASES)
def test_images_are_the_sequential_ones(name: str) -> None:
    pipe, given = pair(name)
    expected, states = call(pipe, given)
    assert expected.std() > 0.05
    found, after = call(parallelize(pipe, window=8, mode="replay"), given)
    assert float(np.abs(found - expected).max()) <= 1 / 255
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))
    stats = pipe.picard.stats
    assert stats.rounds <= stats.sequential_evaluations
    assert stats.evaluations >= stats.sequential_evaluations * stats.rows


@pytest.mark.parametrize("name", [name for name in CASES if name not in {"ddpm", "ddim"}])
def test_latents_agree_to_rounding_at_zero_tolerance(name: str) -> None:
    pipe, given = pair(name)
    expected, _ = call(pipe, given, output_type="latent")
    found, _ = call(parallelize(pipe, window=6, tolerance=0.0, mode="replay"), given, output_type="latent")
    assert float(np.abs(found - expected).max()) <= 2e-5 * float(np.abs(expected).max())


def test_restore_and_context() -> None:
    pipe, given = pair("sd-ddim")
    kind, unet, scheduler = type(pipe), pipe.unet, pipe.scheduler
    with parallelize(pipe, window=8) as inside:
        assert inside is pipe
        assert isinstance(pipe, kind)
        assert type(pipe).__name__ == kind.__name__
        call(pipe, given)
        assert pipe.picard.stats.passes > 1
        assert "window=8" in repr(pipe.picard)
    assert type(pipe) is kind
    assert not hasattr(pipe, "picard")
    assert pipe.unet is unet
    assert pipe.scheduler is scheduler
    assert restore(pipe) is pipe
    assert type(restore(parallelize(parallelize(pipe)))) is kind


def test_every_window_and_max_rows_give_the_same() -> None:
    pipe, given = pair("sd-euler-ancestral")
    expected, _ = call(pipe, given)
    for window, max_rows in ((1, None), (3, None), (64, None), (64, 6)):
        found, _ = call(parallelize(pipe, tolerance=0.0, window=window, max_rows=max_rows, mode="replay"), given)
        assert float(np.abs(found - expected).max()) <= 1e-4
    call(parallelize(pipe, window=1, mode="replay"), given)
    assert pipe.picard.stats.rounds == pipe.picard.stats.sequential_evaluations


@pytest.mark.parametrize("name", ["sd-ddim", "sd-pndm"])
def test_latents_argument_and_one_generator(name: str) -> None:
    pipe, given = pair(name)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    before = latents.clone()
    more = {"latents": latents, "generator": None}
    expected, _ = call(pipe, given, **more)
    found, _ = call(parallelize(pipe), given, **more)
    assert float(np.abs(found - expected).max()) <= 1 / 255
    assert torch.equal(latents, before)


def test_callbacks_see_every_step_in_the_last_pass_and_may_change_the_state() -> None:
    pipe, given = pair("sd-ddim")
    seen: list[tuple[int, float]] = []

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if not hasattr(pipeline, "picard") or pipeline.picard.final:
            seen.append((step, float(values["latents"].double().abs().sum())))
        if step == 5:
            pipeline._guidance_scale = 2.0  # the way Diffusers documents to change guidance on the way
        return {"latents": values["latents"] * 0.9} if step == 7 else values

    expected, _ = call(pipe, given, callback_on_step_end=callback)
    sequential = seen.copy()
    seen.clear()
    found, _ = call(parallelize(pipe, tolerance=0.0), given, callback_on_step_end=callback)
    assert float(np.abs(found - expected).max()) <= 1e-4
    assert [step for step, _ in seen] == [step for step, _ in sequential] == list(range(STEPS))
    np.testing.assert_allclose([size for _, size in seen], [size for _, size in sequential], rtol=1e-4)


@pytest.mark.parametrize("source", ["numpy", "torch"])
def test_callbacks_may_draw_from_the_global_generators(source: str) -> None:
    sources: dict[str, Callable[[], float]] = {"numpy": np.random.random, "torch": lambda: float(torch.rand(()))}
    draw = sources[source]
    pipe, given = pair("sd-ddim")

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * (1 + draw())}

    def run() -> np.ndarray[Any, Any]:
        np.random.seed(1)  # noqa: NPY002  # the global one
        return call(pipe, given, output_type="latent", callback_on_step_end=callback)[0]

    expected = run()
    parallelize(pipe)
    assert float(np.abs(run() - expected).max()) <= 1e-4 * float(np.abs(expected).max())
    assert "another one" not in pipe.picard.stats.reason


@pytest.mark.parametrize("output", ["np", "latent"])
@pytest.mark.parametrize("mode", ["auto", "replay"])
def test_callbacks_that_draw_other_numbers_in_every_pass_are_warned_of(
    mode: Any, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipe, given = pair("sd-ddim")
    own = torch.Generator().manual_seed(0)

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        noise = torch.randn(values["latents"].shape, generator=own)
        return {"latents": values["latents"] + 0.2 * noise} if step == 6 else values

    parallelize(pipe, mode=mode)
    with caplog.at_level(logging.WARNING, logger="picard"):
        call(pipe, given, output_type=output, callback_on_step_end=callback)
    assert caplog.text.count("the state at denoiser call 7 is another one in the last pass") == 1
    assert pipe.picard.stats.mode == "replay"
    assert "random numbers" in pipe.picard.stats.reason


def test_the_progress_bar_is_one_and_only_moves_forward() -> None:
    pipe, given = pair("sd-ddim")
    opened: list[Any] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.total, self.closed = total, False
            self.updates: list[int] = []
            opened.append(self)

        def update(self, count: int) -> None:
            self.updates.append(count)

        def close(self) -> None:
            self.closed = True

    parallelize(pipe)
    pipe.picard.original.progress_bar = lambda self, iterable=None, total=None: Bar(total)
    try:
        call(pipe, given)
    finally:
        del pipe.picard.original.progress_bar
    assert len(opened) == 1
    assert opened[0].total == sum(opened[0].updates) == STEPS
    assert min(opened[0].updates) > 0
    assert opened[0].closed


def test_a_tolerance_below_rounding_does_not_crawl(caplog: pytest.LogCaptureFixture) -> None:
    pipe, given = pair("ddpm")
    with caplog.at_level(logging.WARNING, logger="picard"):
        call(parallelize(pipe, tolerance=0.0), given, num_inference_steps=30)
    assert pipe.picard.stats.rounds < 20
    if pipe.picard.stats.stalled:
        assert "rounding noise" in caplog.text


def test_encoders_run_once_and_the_decoder_once() -> None:
    pipe, given = pair("sd-img2img")
    counts = {"text": 0, "decode": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    pipe.text_encoder.register_forward_hook(count("text"))
    pipe.vae.decoder.register_forward_hook(count("decode"))
    call(pipe, given)
    sequential = dict(counts)
    call(parallelize(pipe, mode="replay"), given)
    assert pipe.picard.stats.passes > 3
    assert counts == {name: 2 * number for name, number in sequential.items()}


def test_errors_leave_the_pipeline_as_it_was() -> None:
    pipe, given = pair("sd-ddim")
    unet = pipe.unet
    parallelize(pipe)
    with pytest.raises(ValueError, match="height"):
        call(pipe, given, height=15)
    assert pipe.unet is unet
    call(pipe, given)


def test_a_denoiser_that_remembers_earlier_calls_is_refused() -> None:
    pipe, given = pair("flux")
    pipe.transformer.enable_cache(library.FirstBlockCacheConfig(threshold=0.1))
    parallelize(pipe)
    with pytest.raises(NotSupportedError, match="disable_cache"):
        call(pipe, given)
    pipe.transformer.disable_cache()
    call(pipe, given)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused() -> None:
    pipe: Any = pair("sd-ddim")[0]
    untyped: Any = parallelize
    with pytest.raises(InvalidProblemError, match="replay"):
        untyped(pipe, mode="repaly")
    with pytest.raises(InvalidProblemError, match="window"):
        parallelize(pipe, window=0)
    for wrong in (-1.0, True, "small", torch.ones(2)):
        with pytest.raises(InvalidProblemError, match="tolerance must be"):
            untyped(pipe, tolerance=wrong)
    with pytest.raises(InvalidProblemError, match="max_rows must be an integer of at least 1 and at most"):
        parallelize(pipe, max_rows=2**63)
    with pytest.raises(InvalidProblemError, match="unet"):
        parallelize(pipe, denoiser="uent")
    for other in (torch.nn.Linear(1, 1), None, "a name"):
        with pytest.raises(NotSupportedError, match="scheduler"):
            parallelize(other)
        assert restore(other) is other
    with pytest.raises(TypeError, match="widow"):
        untyped(pipe, widow=3)
