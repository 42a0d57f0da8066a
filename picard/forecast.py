"""The forecast of a solve: the rounds a window will take, and their seconds."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from picard.latency import Latency
from picard.plan import Plan
from picard.solution import Stats

_STRIDE, _NEWTON = 50, 200  # nodes a round slides on at most, where nothing is known of an equation; by Newton's method
_WASTE = 1.3  # rounds of small windows over the fewest possible, there
_RAMP = 2.0  # how much smaller than the window its rounds are: at the start and the end few nodes are in flight
_NEWS = 0.05  # by how much a solve must change its own forecast for another window to be chosen
_BRIEF = 0.1  # seconds; the sequential solver takes so long at least for its measurement to be trusted
_FAR = 4  # unless windows are so many times as fast
_TRIES = 3  # whole solves that replace it
_DOUBT = 0.1  # of the seconds: predictions err by more, but a larger one costs more solves than it saves (simulated)
_HOPE = 0.7  # of the seconds; rounds are off by so much where nodes are left out


@dataclass(eq=False)
class Taken:
    """What solves with one window took.

    Attributes:
        rounds: rounds, on average.
        width: nodes evaluated a round and sample, on average.
        seconds: the fewest.
        solves: their number.
    """

    rounds: float = 0.0
    width: float = 0.0
    seconds: float = math.inf
    solves: int = 0

    def add(self, rounds: int, width: float, seconds: float) -> None:
        """Take in another solve."""
        self.solves += 1
        self.rounds += (rounds - self.rounds) / self.solves
        self.width += (width - self.width) / self.solves
        self.seconds = min(self.seconds, seconds)


@dataclass(frozen=True, eq=False)
class Forecast:
    """Predicted rounds and seconds by window.

    Fitted on the benchmark problems with the default options, 50 to 8,000 nodes, windows 2 to 256: exact scores with
    DDPM, DDIM and DPM-Solver++, a trained U-Net, and the hard equations, which take more rounds the farther they
    are from contracting. What earlier solves took is known better, and corrects the rest. See
    `benchmarks.auto_window --rounds`.

    Attributes:
        nodes: nodes of the plan.
        smooth: whether it samples a diffusion model, for which a window as long as the grid converges in a few rounds.
        evaluated: share of the nodes that is evaluated.
        latency: measured seconds.
        newton: whether by Newton's method.
        taken: what earlier solves of the kind took, by window.
        choices: those last made by it, by what was asked.
    """

    nodes: int
    smooth: bool
    evaluated: float
    latency: Latency
    newton: bool = False
    taken: dict[int, Taken] = field(default_factory=dict)
    choices: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, leeway: float, latency: Latency, *, newton: bool = False) -> Forecast:
        """Make the forecast of a plan, whose nodes are thinned if `leeway` is positive; see `Tolerance`."""
        return cls(plan.nodes, plan.yardstick is not None, evaluated_share(leeway), latency, newton)

    def rounds(self, window: int) -> float:
        """Predict the rounds: those to slide over all nodes, those to converge, and what others took more than that.

        `evaluated * nodes / window + log2(window)` for diffusion models. The mean error of the logarithm is 0.13.
        Equations slide on by at most some 50 nodes a round, 200 by Newton's method; there it is 0.42 and 0.34, until a
        solve has shown more.
        """
        if window in self.taken:
            return self.taken[window].rounds
        near = self._nearest(window)
        if near:
            return max(1.0, self._least(window) + self.taken[near].rounds - self._least(near))
        if self.smooth:
            return self._least(window)
        return self._least(window) + self.nodes * ((_WASTE - 1) / window + 1 / (_NEWTON if self.newton else _STRIDE))

    def width(self, window: int) -> float:
        """Predict the nodes that a round evaluates on average; the share of those left out is that of other windows."""
        if window in self.taken:
            return self.taken[window].width
        near = self._nearest(window)
        scale = self.taken[near].width / self._usual(near) if near and self.evaluated < 1 else 1.0
        return min(float(window), scale * self._usual(window))

    def seconds(self, window: int) -> float:
        """Predict the seconds of a solve."""
        return self.tempo(window) * self.rounds(window) * self.latency.seconds(self.width(window))

    def hoped(self, window: int) -> float:
        """Predict the seconds, but hope for fewer where only a try can tell; see `_hope`."""
        return self.seconds(window) * (self._hope(window) if window in self.latency.rounds else 1.0)

    def tempting(self, window: int) -> float:
        """Predict the seconds, but hope for the fewer the more rarely it was tried: so all that come close are tried.

        And tried again, if they were disturbed. The bound grows and shrinks as in UCB1 (Auer, Cesa-Bianchi and Fischer,
        2002).
        """
        solves = self.taken[window].solves if window in self.taken else 0
        tries = sum(taken.solves for taken in self.taken.values())
        return self.hoped(window) * (1 - _DOUBT * math.sqrt(math.log2(1 + tries) / (1 + solves)))

    def at_best(self, window: int) -> float:
        """Bound the seconds of a solve from below, for a window larger than those measured."""
        least = self.tempo(window) * self.rounds(window) * self.latency.at_best(self.width(window))
        return self._hope(window) * least

    def alone(self) -> float:
        """Predict the seconds of the sequential solver."""
        if 1 in self.taken:
            return self.taken[1].seconds
        return self.nodes * self.latency.step * min([1.0, *map(self.tempo, self.taken)])  # the machine was busy then

    def unsure(self, window: int) -> bool:
        """Say whether solves so brief that measurements cannot tell them apart should be tried sequentially, too."""
        alone = self.alone()
        tries = self.taken[1].solves if 1 in self.taken else 0
        return window in self.taken and alone < _BRIEF and _FAR * self.seconds(window) > alone and tries < _TRIES

    def tempo(self, window: int) -> float:
        """Return the seconds that solves took over those predicted for their rounds.

        A first solve that took long may have been disturbed.
        """
        near = self._nearest(window)
        if not near:
            return 1.0
        taken = self.taken[near]
        tempo = taken.seconds / (taken.rounds * self.latency.seconds(taken.width))
        return min(tempo, 1.0) if taken.solves == 1 else tempo

    def learn(self, window: int, stats: Stats, seconds: float) -> None:
        """Take in what a solve took; what was chosen before it holds on if its forecast was right.

        Args:
            window: its window, 1 for the sequential solver.
            stats: its counts.
            seconds: its own seconds, without those of measurements.
        """
        predict = self.alone if window == 1 else partial(self.seconds, window)
        before = predict()
        width = stats.evaluations / (stats.rounds * stats.batch)
        self.taken.setdefault(window, Taken()).add(stats.rounds, width, seconds)
        solves = self.taken[window].solves
        rare = solves.bit_count() == 1  # 4, 8, 16, ...: others, tried more rarely, may be tempting now
        if solves <= _TRIES or rare or abs(predict() - before) > _NEWS * before:
            self.choices.clear()

    def _least(self, window: int) -> float:
        return self.evaluated * self.nodes / window + math.log2(window) + (0 if self.smooth else 1)

    def _usual(self, window: int) -> float:
        return self.evaluated * window / (1 + _RAMP * self.evaluated * window / self.nodes)

    def _hope(self, window: int) -> float:
        """Return the share of the predicted seconds to believe in: less for a larger window, where nodes are left out.

        It may take half of the rounds predicted, hardly more of them than a smaller one, and only a try can tell.
        """
        near = self._nearest(window)
        if self.evaluated == 1 or window in self.taken or not 0 < near < window:
            return 1.0
        cost = self.latency.seconds(self.width(window)) / self.latency.seconds(self.taken[near].width)
        return _HOPE if cost * _HOPE <= 1 else 1.0

    def _nearest(self, window: int) -> int:
        """Return the window nearest to one among those tried, 0 if none was."""
        tried = (other for other in self.taken if other > 1)
        return min(tried, key=lambda other: abs(math.log(other / window)), default=0)


def evaluated_share(leeway: float) -> float:
    """Return the share of the nodes that a solve with a tolerance's `leeway` evaluates, fitted on `benchmarks`."""
    return min(1.0, 1 / 3 + 0.012 / leeway) if leeway > 0 else 1.0
