"""Plan mode and replay on a trained network: equally accurate, and no crawl below its rounding."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from picard.adapters import parallelize, restore

library = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("name", "steps"), [("DPMSolverMultistep", 50), ("DDPM", 60)])
def test_plan_and_replay_are_equally_accurate_on_a_trained_network(digits: Any, name: str, steps: int) -> None:
    pipe = digits.DigitsPipeline(digits.load(), getattr(library, f"{name}Scheduler")())
    pipe.set_progress_bar_config(disable=True)

    def draw() -> Any:
        return pipe([3, 8], steps, generator=torch.Generator().manual_seed(1)).images

    expected, rounds = draw(), {}
    for mode in ("replay", "plan"):
        found = draw() if parallelize(pipe, mode=mode) else None
        rounds[mode] = pipe.picard.stats.rounds
        assert pipe.picard.stats.mode == mode
        assert float(np.abs(found - expected).max()) <= 1e-3
        restore(pipe)
    assert rounds["plan"] <= rounds["replay"] + 3 <= steps / 2


def test_a_tolerance_below_rounding_is_said_to_have_stalled(digits: Any, caplog: pytest.LogCaptureFixture) -> None:
    pipe = digits.DigitsPipeline(digits.load(), library.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    for tolerance, stalled in ((1e-3, False), (0.0, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="picard"):
            parallelize(pipe, mode="plan", tolerance=tolerance)([3], 30, generator=torch.Generator().manual_seed(1))
        assert pipe.picard.stats.stalled == stalled
        assert caplog.text.count("rounding noise") == stalled
        assert pipe.picard.stats.rounds < 20
