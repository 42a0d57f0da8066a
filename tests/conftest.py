"""What every test gets: a Hypothesis profile, one thread per worker, the same random numbers each time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.type_checks import jaxtyped, without_type_checks

if TYPE_CHECKING:
    from tests.meters import Clocked

# deadline=None everywhere: the first call of a kernel is slow, and that is no failure.
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("nightly", max_examples=1000, deadline=None)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
settings.load_profile(PROFILE)

# Tests run in several processes; threads of their own would only fight over the cores. One thread also fixes the order
# of every sum, so that results are the same on each run.
torch.set_num_threads(1)

# Before picard is imported, whose functions it decorates.
jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed torch before each test, so that no test depends on which ones ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the run-time type checks off, for a test that hands over a wrong type to see what picard itself says."""
    with without_type_checks():
        yield


@pytest.fixture
def listed_under_grad() -> None:
    """Skip a test that needs to list numbers under `torch.func.grad` where this torch cannot."""
    try:
        torch.func.grad(lambda x: x.sum() + torch.zeros(1).tolist()[0])(torch.ones(1))
    except RuntimeError:
        pytest.skip("this torch cannot list numbers under torch.func.grad")


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import the pipeline of the digits example."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "digits"))
    yield import_module("pipeline")
    for name in ("pipeline", "model"):
        sys.modules.pop(name, None)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clocked]:
    """Make models that alone advance the clock by which latencies are measured."""
    from picard import latency  # not above: the run-time type checks must be in place before
    from tests.meters import Clocked

    def make(model: Callable[..., Tensor], cost: Callable[[int], float]) -> Clocked:
        made = Clocked(model, cost)
        monkeypatch.setattr(latency, "clock", made.clock)
        return made

    return make
