"""Robot policies whose networks are on a device: both ways to run them give what the policy gives on the host."""

from __future__ import annotations

import pytest
import torch

from picard.adapters import parallelize
from tests.pretend import Device, OnDevice, place
from tests.test_policies import FAMILIES, build, scheduler

pytest.importorskip("diffusers")

STEPS, WINDOW = 10, 6  # few: every operation is looked at on its way


@pytest.mark.parametrize("mode", ["plan", "replay"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_policy_on_a_device_is_the_one_on_the_host(family: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    own = build(family, scheduler("ddpm"), STEPS)[1]
    torch.manual_seed(0)
    policy, sample = build(family, scheduler("ddpm"), STEPS, put=OnDevice)
    place(policy)
    torch.manual_seed(1)
    expected = own(2, None)
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())  # PyTorch makes none for this device
    with Device():
        parallelize(policy, window=WINDOW, mode=mode, tolerance=0.0)
        torch.manual_seed(1)
        found = sample(2, None)
    assert isinstance(found, OnDevice)
    torch.testing.assert_close(found.values_, expected, rtol=0, atol=1e-3)
