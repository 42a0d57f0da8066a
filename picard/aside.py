"""What only some solves do besides a round's own work: thinning and certificates, which keep a state of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from picard.certify import Certifier
from picard.device import send
from picard.propagate import squared
from picard.shapes import Bool, Float, Int
from picard.thin import Thinning
from picard.tolerance import Tolerance, TotalVariation
from picard.window import Window

if TYPE_CHECKING:
    from picard.advance import Evaluated


@dataclass(eq=False)
class Aside:
    """Thinning and certification of one round.

    Attributes:
        window: the windows.
        nodes: node in every slot, none past the plan's last.
        thinning: leaves evaluations out, if any.
        certifier: certifies, if asked to.
        tolerance: the rule.
        carries_noise: whether guessed states hold the noise of the step before them.
        spread: what thinning measured, to be read with the counts of the round.
    """

    window: Window
    nodes: Int[Tensor, "batch nodes"]
    thinning: Thinning | None
    certifier: Certifier | None
    tolerance: Tolerance
    carries_noise: bool
    spread: Tensor | None = field(default=None, init=False)

    @property
    def path(self) -> bool:
        """Whether a path is certified, which takes a Lipschitz constant."""
        return self.certifier is not None and not self.certifier.law

    def measure(self, ratio: Float[Tensor, "batch nodes"]) -> None:
        """Note squared ratios of change of field to change of state."""
        if self.certifier is not None:
            self.certifier.measure(ratio)

    def fill(self, found: Evaluated, slope: Float[Tensor, "batch nodes"]) -> Evaluated:
        """Predict the field at the nodes left out."""
        if self.thinning is None:
            return found
        values, self.spread = self.thinning.fill(
            self.window.state.z[:, : self.window.nodes], found.values, slope, found.asked
        )
        return found._replace(values=values)

    def exact_only(self) -> Bool[Tensor, "batch nodes"]:
        """Say after which nodes the state is passed only with its field evaluated there."""
        if self.certifier is None:
            return torch.zeros_like(self.nodes, dtype=torch.bool)
        return self.certifier.exact_only((self.nodes + 1).clamp_max(self.certifier.plan.nodes - 1))

    def settled(
        self,
        mapped: Float[Tensor, "batch nodes dims"],
        stale: Float[Tensor, "batch nodes dims"],
        age: Int[Tensor, "batch nodes"],
    ) -> Bool[Tensor, "batch nodes"] | None:
        """Say which states are accepted as they stand, if the tolerance looks at the residual and not at the change.

        The residual of a state is minus the defect of the increment that leads to it, so it is certified for nothing.
        That of a guess without noise holds the step's own, which no acceptance may depend on: such a state waits for a
        round.
        """
        certifier, tolerance = self.certifier, self.tolerance
        if not isinstance(tolerance, TotalVariation) or certifier is None:
            return None
        samples = send(self.window.samples, self.nodes)
        square = squared(mapped - stale)
        share = (self.nodes + 1).to(square.dtype) / certifier.plan.nodes
        spent = certifier.kl[samples, None] + certifier.divergence(self.nodes, square).cumsum(1)
        within = (spent <= tolerance.budget * share) & self.window.state.inside(after=1) & ~self.exact_only()
        older = torch.cat([age[:, 1:] > 1, torch.zeros_like(within[:, :1])], 1)
        settled = (within & (older | self.carries_noise)).cumprod(1).bool()
        certifier.add(samples, self.nodes, settled, square)
        return settled
