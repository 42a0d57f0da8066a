"""Draws made at once are those of NumPy's generator, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from picard import philox


def numpy_draws(keys: NDArray[np.uint64], steps: NDArray[np.uint64], count: int) -> NDArray[np.float32]:
    """Draw from a generator made anew for every stream."""
    rows = []
    for key, step in zip(keys, steps, strict=True):
        bits = np.random.Philox(key=key, counter=np.array([0, 0, step, 0], dtype=np.uint64))
        rows.append(np.random.Generator(bits).standard_normal(count, dtype=np.float32))
    return np.stack(rows)


def streams(n: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return keys and steps from all of their range, both ends included."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, (n, 2), dtype=np.uint64)
    keys[:4] = [[0, 0], [0, 2**64 - 1], [2**64 - 1, 0], [2**64 - 1, 2**64 - 1]]
    steps = rng.integers(0, 2**40, n, dtype=np.uint64)
    steps[:3] = 0, 1, 2**32
    return keys, steps


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, philox._SHORT, philox._SHORT + 1])
def test_draws_are_those_of_numpy(count: int) -> None:
    for n in (1, philox._MANY, 5_000):
        keys, steps = streams(max(n, 4))
        drawn = philox.standard_normal(keys[:n], steps[:n], count)
        assert drawn.dtype == np.float32
        assert np.array_equal(drawn, numpy_draws(keys[:n], steps[:n], count))


def test_nothing_is_drawn_where_nothing_is_wanted() -> None:
    keys, steps = streams(philox._MANY)
    assert philox.standard_normal(keys, steps, 0).shape == (philox._MANY, 0)
    assert philox.standard_normal(keys[:0], steps[:0], 3).shape == (0, 3)


def test_most_are_made_at_once() -> None:
    """And the rest is what the ziggurat's edges give: 1.5 % of numbers."""
    sure = philox._at_once(*streams(20_000), 8)[1]
    assert philox._known()
    assert sure.mean() == pytest.approx((1 - 0.0149) ** 8, abs=0.01)


def test_another_numpy_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    width, inner = philox._ziggurat()
    monkeypatch.setattr(philox, "_ziggurat", lambda: (width * np.float32(1 + 1e-6), inner))
    philox._known.cache_clear()
    try:
        assert not philox._known()
        keys, steps = streams(philox._MANY)
        assert np.array_equal(philox.standard_normal(keys, steps, 4), numpy_draws(keys, steps, 4))
    finally:
        philox._known.cache_clear()
