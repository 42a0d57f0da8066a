"""The two pictures of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

import picard

ACCEPTED = "#d9d9d9"
mpl.use("Agg")


@dataclass(frozen=True)
class Comparison:
    """A sampler's sequential and parallel samples of the same noise."""

    sampler: str
    sequential: picard.Solution
    parallel: picard.Solution


@dataclass
class Recorder:
    """A callback that keeps the change of every step of one sample, round by round.

    Attributes:
        sample: its index in the batch.
        steps: number of steps.
        changes: one array a round, shape (steps,), NaN outside the window.
        begins: first step of the window, one number a round.
    """

    sample: int
    steps: int
    changes: list[np.ndarray] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)

    def __call__(self, info: picard.RoundInfo) -> None:
        """Copy one round."""
        if self.sample not in info.samples:
            return  # it is finished, others are not
        i = info.samples.index(self.sample)
        begin, width = info.begin[i], info.width[i]
        column = np.full(self.steps, np.nan)
        column[begin : begin + width] = info.change[i, :width].numpy()
        self.changes.append(column)
        self.begins.append(begin)


def draw_samples(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw sequential samples, parallel samples and their difference, a column a digit."""
    count = len(comparisons[0].sequential.final)
    lines = 3 * len(comparisons)
    figure, axes = plt.subplots(lines, count, figsize=(1.08 * count + 3.0, 1.12 * lines + 0.7), squeeze=False)
    figure.subplots_adjust(left=0.13, right=0.90, top=0.93, bottom=0.02, wspace=0.06, hspace=0.10)
    norm = LogNorm(1e-5, 1e-1)
    for group, one in enumerate(comparisons):
        parallel, sequential = one.parallel.final[:, 0].numpy(), one.sequential.final[:, 0].numpy()
        labels = (
            f"{one.sampler}\nsequential\n{one.sequential.stats.rounds:,} rounds",
            f"{one.sampler}\nparallel\n{one.parallel.stats.rounds:,} rounds",
            f"{one.sampler}\n|difference|",
        )
        for line, images in enumerate((sequential, parallel, np.abs(parallel - sequential))):
            for column in range(count):
                panel = axes[3 * group + line, column]
                if line < 2:
                    panel.imshow(images[column], cmap="gray_r", vmin=-1, vmax=1)
                else:
                    panel.imshow(np.maximum(images[column], 1e-5), cmap="viridis", norm=norm)
                panel.set(xticks=[], yticks=[])
            axes[3 * group + line, 0].set_ylabel(labels[line], rotation=0, ha="right", va="center", labelpad=8)
    figure.suptitle("Digits of the trained U-Net: the same start and noise, sampled sequentially and parallel in time")
    bar = figure.colorbar(
        ScalarMappable(norm, "viridis"), cax=figure.add_axes((0.915, 0.12, 0.013, 0.71)), extend="both"
    )
    bar.set_label("absolute difference per pixel (pixels lie in [-1, 1])")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_rounds(recorders: Mapping[str, Mapping[str, Recorder]], path: Path) -> None:
    """Draw the change of every step over the rounds, a line a sampler; what is accepted is grey."""
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    figure.suptitle("One sample: how far every state in the window still moves, round by round")
    norm = LogNorm(1e-5, 1.0)
    parts = figure.subfigures(len(recorders), 1, squeeze=False)[:, 0]
    for part, (sampler, solvers) in zip(parts, recorders.items(), strict=True):
        lengths = [len(recorder.changes) for recorder in solvers.values()]
        axes = part.subplots(1, len(solvers), sharey=True, width_ratios=lengths)
        for panel, (solver, recorder) in zip(axes, solvers.items(), strict=True):
            _draw_panel(panel, recorder, norm)
            panel.set(title=f"{solver}: {len(recorder.changes)} rounds", xlabel="round")
        axes[0].set_ylabel(f"step of {sampler}")
        axes[-1].legend(
            handles=[
                Patch(facecolor=ACCEPTED, edgecolor="tab:cyan", label="accepted"),
                Patch(facecolor="white", edgecolor="0.6", label="not yet in the window"),
            ],
            loc="lower right",
        )
        bar = part.colorbar(ScalarMappable(norm, "magma"), ax=list(axes), extend="both", pad=0.01)
        bar.set_label("change (root mean square over pixels)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(panel: Axes, recorder: Recorder, norm: LogNorm) -> None:
    changes, begins = np.stack(recorder.changes, axis=1), np.array(recorder.begins)
    rounds = len(begins)
    extent = (0.5, rounds + 0.5, -0.5, recorder.steps - 0.5)
    accepted = np.where(np.arange(recorder.steps)[:, None] < begins, 0.0, np.nan)
    panel.imshow(accepted, cmap=ListedColormap([ACCEPTED]), origin="lower", aspect="auto", extent=extent)
    panel.imshow(
        np.maximum(changes, 1e-9),  # the first state of a window no longer moves
        cmap="magma",
        norm=norm,
        origin="lower",
        aspect="auto",
        extent=extent,
        interpolation="nearest",
    )
    panel.stairs(begins - 0.5, np.arange(rounds + 1) + 0.5, color="tab:cyan", linewidth=1.5, baseline=None)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
