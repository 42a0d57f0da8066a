"""What every test gets: a Hypothesis profile, one thread per worker, the same random numbers each time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import torch
from hypothesis import settings
from jaxtyping import config
from torch import Tensor

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


# What checks the types of a function costs far more than most functions do. For one defined inside another it is made
# anew with each of them: once in a test is enough.
_jaxtyped = jaxtyping.jaxtyped
_inner: set[tuple[str, str]] = set()
_REPEATED = pytest.StashKey[bool]()


def _jaxtyped_once_in_a_test(*given: Any, **options: Any) -> Callable[[Any], Any]:
    decorate = _jaxtyped(*given, **options)

    def check(made: Any) -> Any:
        name = (made.__module__, made.__qualname__)
        if "<locals>" in made.__qualname__:
            if config.jaxtyping_disable or name in _inner:
                return made
            _inner.add(name)
        return decorate(made)

    return check


jaxtyping.jaxtyped = _jaxtyped_once_in_a_test  # type: ignore[assignment]


@contextmanager
def _without_type_checks() -> Iterator[None]:
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Find the cases that show the type checks nothing new: each value of their parameters was in a case before.

    Types depend on what kind of method, noise or scheduler there is, hardly ever on how these are combined; and small
    solves take three times as long with the checks. Nightly all cases are checked.
    """
    seen: set[tuple[str, str, int]] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        values = {(test, name, id(value)) for name, value in parameters.items()}
        item.stash[_REPEATED] = bool(values) and values <= seen and PROFILE != "nightly"
        seen |= values


@pytest.fixture(autouse=True)
def _types_checked_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check types at run time where that shows something new."""
    _inner.clear()
    if request.node.stash[_REPEATED]:
        with _without_type_checks():
            yield
    else:
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed torch before each test, so that no test depends on which ones ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the run-time type checks off, for a test that hands over a wrong type to see what picard itself says."""
    with _without_type_checks():
        yield


@pytest.fixture
def listed_under_grad() -> None:
    """Skip a test that needs to list numbers under `torch.func.grad` where this torch cannot."""
    try:
        torch.func.grad(lambda x: x.sum() + torch.zeros(1).tolist()[0])(torch.ones(1))
    except RuntimeError:
        pytest.skip("this torch cannot list numbers under torch.func.grad")


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
