"""Pipelines whose networks are on a device: both ways to run them give what they give on the host."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from picard.adapters import parallelize
from tests.pipeline_cases import call, pair
from tests.pretend import Device, place

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("mode", ["plan", "replay"])
@pytest.mark.parametrize("name", ["ddpm", "sd-ddim-eta", "sd-unipc", "sdxl", "sd3"])
def test_a_pipeline_on_a_device_is_the_one_on_the_host(name: str, mode: str) -> None:
    """The first one leaves its timesteps on the host, as scalars may be."""
    pipe, given = pair(name)
    expected, _ = call(pipe, given)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            place(part)
    with Device():
        found, _ = call(parallelize(pipe, window=8, mode=mode), given)
    assert pipe.picard.stats.mode == mode
    assert float(np.abs(found - expected).max()) <= 1e-4
