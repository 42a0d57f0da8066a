"""The guidance of a pipeline, measured from its calls for plan mode."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from picard.adapters import parallelize
from tests.pipeline_cases import call, pair

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

guidance: Any = import_module("picard.adapters.guidance")


def measured(make: Any, samples: int = 2, steps: int = 3) -> Any:
    one = guidance.Measurement()
    for _ in range(steps):
        parts = [torch.randn(samples, 4, 8, 8) for _ in range(2)]
        one.add(parts, make(*parts))
    return one.guidance()


def test_guidance_is_measured() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    plain = measured(lambda none, text: none + 7.5 * (text - none))
    torch.testing.assert_close(plain.weights, torch.tensor([[-6.5, 7.5]]).double().expand(3, -1), rtol=0, atol=1e-5)
    assert plain.rescale == 0

    def rescaled(none: Any, text: Any) -> Any:
        return rescale_noise_cfg(none + 5 * (text - none), text, guidance_rescale=0.7)

    for samples in (1, 3):
        found = measured(rescaled, samples)
        assert found.rescale == pytest.approx(0.7, abs=1e-4)
        parts = [torch.randn(4, 4, 8, 8) for _ in range(2)]
        torch.testing.assert_close(
            found.combine(parts, torch.tensor([0, 2, 1, 0])), rescaled(*parts), rtol=1e-4, atol=1e-4
        )
    for bent, why in (
        (lambda none, text: text.tanh(), "not a weighted sum"),
        (lambda none, text: text * text.abs().amax((1, 2, 3), keepdim=True), "neither a weighted sum"),
        (lambda none, text: text * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), "neither a weighted sum"),
        (lambda none, text: none + torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1) * (text - none), "the same for all"),
    ):
        with pytest.raises(guidance.Unplanned, match=why):
            measured(bent)


def test_guidance_that_changes_on_the_way_stays_on_the_plan() -> None:
    pipe, given = pair("sd-ddim")

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = 60.0 if step >= 3 else 7.5
        return values

    more = {"callback_on_step_end": callback, "output_type": "latent"}
    expected, _ = call(pipe, given, **more)
    usual, _ = call(pipe, given, output_type="latent")
    found, _ = call(parallelize(pipe, mode="plan"), given, **more)
    size = float(np.abs(expected).max())
    assert float(np.abs(usual - expected).max()) > 1e-3 * size
    assert float(np.abs(found - expected).max()) <= 2e-5 * size
