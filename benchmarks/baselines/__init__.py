"""Published parallel samplers, each written anew from its formulas, on one sample and one recurrence.

They exist to be counted beside `picard.solve` (`python -m benchmarks.rounds`), not to be used: one sample at a time,
whole trajectories in memory, Python loops.
"""

from benchmarks.baselines.chain import Chain
from benchmarks.baselines.chords import chords
from benchmarks.baselines.newton import diagonal_newton
from benchmarks.baselines.parataa import parataa
from benchmarks.baselines.srds import srds

__all__ = ["Chain", "chords", "diagonal_newton", "parataa", "srds"]
