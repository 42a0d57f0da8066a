"""Philox: the draws of NumPy's counter-based generator, short ones many at once, number for number the same."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_SHORT = 16  # numbers of a draw up to which many are made at once; of longer ones too many need the ziggurat's edges
_MANY = 100  # draws from which on that pays
_CHUNK = 1 << 12  # blocks of four words at a time, for what is computed to stay in the cache
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], dtype=np.uint64)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def standard_normal(keys: Words, steps: Words, count: int) -> NDArray[np.float32]:
    """Draw standard normal numbers from streams of their own, in float32.

    Args:
        keys: keys of the streams, shape (n, 2).
        steps: where in each the draw begins: the counter's third word, shape (n,).
        count: numbers of a draw.

    Returns:
        What `numpy.random.Generator` returns for each by itself, shape (n, count).
    """
    if count > _SHORT or len(keys) < _MANY or not _known():
        return _one_by_one(keys, steps, count)
    values = np.empty((len(keys), count), dtype=np.float32)
    sure = np.empty(len(keys), dtype=bool)
    rows = max(1, 8 * _CHUNK // max(count, 8))
    for start in range(0, len(keys), rows):
        part = slice(start, start + rows)
        values[part], sure[part] = _at_once(keys[part], steps[part], count)
    rest = ~sure
    values[rest] = _one_by_one(keys[rest], steps[rest], count)
    return values


def _one_by_one(keys: Words, steps: Words, count: int) -> NDArray[np.float32]:
    """Draw by NumPy's generator, set to one stream after the other."""
    values = np.empty((len(keys), count), dtype=np.float32)
    bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
    generator, state = np.random.Generator(bits), bits.state
    counter, key = state["state"]["counter"], state["state"]["key"]
    for row in range(len(keys)):
        key[:], counter[2] = keys[row], steps[row]
        bits.state = state  # the first state has an empty buffer, so this restarts the stream at the counter
        generator.standard_normal(dtype=np.float32, out=values[row])
    return values


def _at_once(keys: Words, steps: Words, count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw by the ziggurat's inner part (Marsaglia and Tsang, 2000), where 98.5 % of numbers come from.

    Returns:
        The numbers, shape (n, count), and whether all of a draw came from there, shape (n,).
    """
    width, inner = _ziggurat()
    words = _words(keys, steps, -(-count // 8))[:, :count]
    layer, size = words & 0xFF, words >> 9
    values = size.astype(np.float32) * width[layer]
    np.negative(values, out=values, where=(words >> 8) & 1 == 1)
    return values, np.all(size < inner[layer], axis=1)


def _words(keys: Words, steps: Words, blocks: int) -> NDArray[np.uint32]:
    """Return the first words of streams, shape (n, 8 * blocks): Philox4x64-10 (Salmon et al., 2011)."""
    first = np.broadcast_to(np.arange(1, blocks + 1, dtype=np.uint64), (len(keys), blocks))
    x = [first, np.zeros_like(first), np.broadcast_to(steps[:, None], first.shape), np.zeros_like(first)]
    for turn in range(_ROUNDS):
        key = keys + np.uint64(turn) * _WEYL  # modulo 2^64
        (high, low), (other, rest) = _product(_MULTIPLIERS[0], x[0]), _product(_MULTIPLIERS[1], x[2])
        x = [other ^ x[1] ^ key[:, :1], rest, high ^ x[3] ^ key[:, 1:], low]
    return np.stack(x, -1).astype("<u8").view("<u4").reshape(len(keys), 8 * blocks)


def _product(factor: int, x: Words) -> tuple[Words, Words]:
    """Multiply words, and return the high and the low word of the product."""
    a, b = np.uint64(factor >> 32), np.uint64(factor & 0xFFFFFFFF)
    high, low = x >> _HALF, x & _LOW
    middle = a * low + (b * low >> _HALF)
    carried = b * high + (middle & _LOW)
    return a * high + (middle >> _HALF) + (carried >> _HALF), np.uint64(factor) * x


@cache
def _ziggurat() -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Return the width of a unit of every layer, and the units that are inside it for certain, shape (256,) each."""
    end = 3.6541528853610088  # where the tail begins, for 256 parts of equal area

    def bell(x: float) -> float:
        return math.exp(-0.5 * x * x)

    area = end * bell(end) + math.sqrt(math.pi / 2) * math.erfc(end / math.sqrt(2))
    edges = np.zeros(256)
    edges[255] = end
    for layer in range(254, 0, -1):
        edges[layer] = math.sqrt(-2 * math.log(area / edges[layer + 1] + bell(edges[layer + 1])))
    width = np.concatenate([[area / bell(end)], edges[1:]])
    share = np.concatenate([[end], edges[:-1]]) / width
    return (width / 2**23).astype(np.float32), np.floor(share * 2**23).astype(np.uint32)


@cache
def _known() -> bool:
    """Say whether NumPy draws as is assumed here: its versions need not agree on it."""
    keys, steps = np.arange(512, dtype=np.uint64).reshape(256, 2), np.arange(256, dtype=np.uint64)
    values, sure = _at_once(keys, steps, 8)
    return bool(sure.any()) and np.array_equal(values[sure], _one_by_one(keys, steps, 8)[sure])
