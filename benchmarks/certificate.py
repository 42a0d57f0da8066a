"""Certificate against the exact distance on Gaussian data: `python -m benchmarks.certificate docs/certificate.svg`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

from benchmarks.gaussian import F64, Setting, exact

EXAMPLES = 200
EXACT_TO = 1e-9  # below this both numbers are rounding


def measure() -> list[tuple[float, float]]:
    """Draw settings of dimension 1-64, 10-1000 steps and 1-20 rounds; return pairs of distance and certificate."""
    draw, pairs = random.Random(7), []  # no secrets here
    for _ in range(EXAMPLES):
        steps = round(10 ** (1 + 2 * draw.random()))
        given = Setting(
            dims=draw.randint(1, 64),
            steps=steps,
            rounds=draw.randint(1, 20),
            window=max(4, round(draw.choice([0.2, 0.5, 1.0]) * min(steps, 100))),
            linearization=draw.choice(["identity", "frozen"]),
            guess=draw.choice(["hold", "copy"]),
            cosine=draw.random() < 0.5,
            std=draw.choice([0.1, 0.5, 1.0, 2.0]),
            seed=draw.randrange(2**16),
        )
        mean = torch.randn(given.dims, generator=torch.Generator().manual_seed(given.seed + 1), dtype=F64)
        pairs.append((exact(given, mean), given.certificate(mean).tv))
    return pairs


def plot(pairs: list[tuple[float, float]], file: Path) -> None:
    """Draw the pairs, and the distribution of their ratio."""
    import matplotlib.pyplot as plt

    shown = [(tv, bound) for tv, bound in pairs if tv > EXACT_TO]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(*zip(*shown, strict=True), ".", alpha=0.6)
    left.axline((1e-6, 1e-6), (1, 1), color="black", linewidth=1)
    left.set(xlabel="exact total variation distance", ylabel="certificate", title="no point lies below the line")
    right.hist(
        [bound / tv for tv, bound in shown], bins=[10 ** (i / 8) for i in range(-1, 33)], color="tab:blue", alpha=0.8
    )
    right.axvline(1, color="black", linewidth=1)
    right.set(xscale="log", xlabel="certificate / exact distance", ylabel="settings")
    right.set_title(f"{len(shown)} of {len(pairs)} settings (others: rounding)")
    figure.savefig(file)


if __name__ == "__main__":
    with torch.no_grad():
        plot(measure(), Path(sys.argv[1]))
