"""Plan mode in half precision: no more rounds than in float32, a stop at the rounding, and the sequential result."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import contextlib
import logging
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from picard.adapters import parallelize
from tests.pipeline_cases import pair

library = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

denoisers: Any = import_module("picard.adapters.denoisers")
guidance: Any = import_module("picard.adapters.guidance")
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16, "autocast": torch.bfloat16}


def convert(pipe: Any, kind: str) -> contextlib.AbstractContextManager[Any]:
    """Have a pipeline compute in half precision, as a whole or within the returned context alone."""
    if kind == "autocast":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    pipe.to(HALF[kind])
    return contextlib.nullcontext()


def latents(pipe: Any, given: dict[str, Any], **more: Any) -> Any:
    output = pipe(**{"output_type": "latent", **given, **more})[0]
    return output.float().numpy() if torch.is_tensor(output) else np.asarray(output)


def difference(found: Any, expected: Any) -> float:
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def run(name: str, kind: str, steps: int, **options: Any) -> tuple[Any, float]:
    """Run a pipeline sequentially and in parallel; return what it cost and the relative difference."""
    pipe, given = pair(name)
    results = []
    with convert(pipe, kind):
        for parallel in (False, True):
            if parallel:
                parallelize(pipe, window=16, **options)
            seeds = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
            results.append(latents(pipe, given, num_inference_steps=steps, generator=seeds))
    return pipe.picard.stats, difference(results[1], results[0])


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize(
    ("name", "most"), [("sd-ddim-eta", 10), ("sd-euler-ancestral", 10), ("sd3", 8), ("wan-video", 10)]
)
def test_half_precision_takes_no_more_rounds_than_float32(name: str, kind: str, most: int) -> None:
    """Without the rounding of half precision these took 18 to 31 rounds of 30, or were replayed after them."""
    stats, error = run(name, kind, 30)
    assert stats.rounds <= most
    assert (stats.mode, stats.reason) == ("plan", "")
    assert stats.stalled  # 1e-4 is below the rounding of half precision
    assert error <= 4 * torch.finfo(HALF[kind]).eps


@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 2e-3), ("bfloat16", 1e-2)])
def test_a_tolerance_above_the_rounding_is_met(kind: str, tolerance: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="picard"):
        stats, error = run("sd3", kind, 20, tolerance=tolerance)
    assert (stats.mode, stats.stalled) == ("plan", False)
    assert "rounding noise" not in caplog.text
    assert stats.residual <= tolerance
    assert stats.rounds <= 7
    assert error <= 4 * torch.finfo(HALF[kind]).eps


@pytest.mark.parametrize("mode", ["plan", "replay"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_tolerance_below_the_rounding_is_warned_of(kind: str, mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="picard"):
        stats, _ = run("sd-no-guidance", kind, 20, mode=mode, tolerance=1e-4)
        assert caplog.text.count("rounding noise") == 1
        default, _ = run("sd-no-guidance", kind, 20, mode=mode)  # it has asked for nothing
        assert caplog.text.count("rounding noise") == 1
    assert stats.stalled
    assert default.stalled
    assert default.rounds == stats.rounds <= 15


def test_a_loop_that_is_not_the_plans_is_found_out_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Following the pipeline's states does not hide it."""
    right = guidance.Measurement.guidance

    def mistaken(measured: Any) -> Any:
        found = right(measured)
        return guidance.Guidance(torch.stack([found.weights[:, 0], 0.9 * found.weights[:, 1]], 1))

    monkeypatch.setattr(guidance.Measurement, "guidance", mistaken)
    stats, error = run("sd-ddim", "float16", 20)
    assert "is not the plan's" in stats.reason
    assert error <= 4 * torch.finfo(torch.float16).eps


def test_rounding_is_that_of_the_coarsest_numbers_of_a_call() -> None:
    """Weights of one byte are only kept so: no model computes in them."""
    module: Any = torch.nn.Linear(2, 2)
    output = torch.zeros(1, 2)
    for kinds, weights, coarsest in (
        ((torch.float32, torch.float32), torch.float32, torch.float32),
        ((torch.float32, torch.float32), torch.bfloat16, torch.bfloat16),
        ((torch.float16, torch.float32), torch.float8_e4m3fn, torch.float16),
        ((torch.float32, torch.float16), torch.uint8, torch.float16),
    ):
        module.dtype = weights
        known = denoisers.Denoisers([module])
        call = known.record(0, 0, 0, (output.to(kinds[0]), 1), {})
        assert known.eps(call, output.to(kinds[1])) == torch.finfo(coarsest).eps
        with torch.autocast("cpu", dtype=torch.bfloat16):
            call = known.record(0, 0, 0, (output.to(kinds[0]), 1), {})
        assert known.eps(call, output.to(kinds[1])) == torch.finfo(torch.bfloat16).eps


def draw(digits: Any, kind: str) -> tuple[Any, float]:
    """Draw digits in half precision, the states too; return what it cost and the relative difference."""

    class Half(digits.DigitsPipeline):  # type: ignore[misc]  # Diffusers is Any to type checkers
        @torch.no_grad()
        def __call__(self, labels: Any, num_inference_steps: int = 50, generator: Any = None) -> Any:
            dtype = self.unet.dtype
            own = torch.randn(len(labels), 1, 8, 8, generator=generator).to(dtype)
            self.scheduler.set_timesteps(num_inference_steps)
            x = own * self.scheduler.init_noise_sigma
            both = torch.cat([torch.full((len(labels),), 10), torch.tensor(labels)])
            for t in self.progress_bar(self.scheduler.timesteps):
                given = self.scheduler.scale_model_input(torch.cat([x, x]), t)
                without, with_label = self.unet(given, t, class_labels=both).sample.chunk(2)
                x = self.scheduler.step(without + 1.5 * (with_label - without), t, x).prev_sample
            return (x.float().numpy(),)

    pipe = Half(digits.load(), library.DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    with convert(pipe, kind):
        expected = pipe([3, 7], generator=torch.Generator().manual_seed(0))[0]
        found = parallelize(pipe, window=16)([3, 7], generator=torch.Generator().manual_seed(0))[0]
    return pipe.picard.stats, difference(found, expected)


@pytest.mark.parametrize("kind", HALF)
def test_a_trained_network_in_half_precision(digits: Any, kind: str) -> None:
    """Outputs that did not follow the pipeline's rounding let it grow until all was replayed: 56 rounds of 50 calls."""
    stats, error = draw(digits, kind)
    assert (stats.mode, stats.reason, stats.stalled) == ("plan", "", True)
    assert stats.rounds <= 13
    assert error <= 3 * torch.finfo(HALF[kind]).eps
