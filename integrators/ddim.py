"""DDIM, the implicit sampler of Song et al. (2021)."""

from __future__ import annotations

from dataclasses import dataclass

from picard.errors import InvalidProblemError
from picard.grid import Levels, Times
from picard.number import keep_numbers, not_negative
from picard.plan import Plan

from .transition import diffusion_plan, require_levels, transition


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models: order 1, one evaluation a step.

    `x' = alpha' D + sqrt(sigma'^2 - s^2) eps + s xi` with `eps = (x - alpha D) / sigma` and `s = eta posterior_std`
    (Song et al., 2021, eq. 12 and 16), for variance-preserving, Karras and flow-matching levels alike.

    Args:
        eta: strength of the noise: 0 steps the probability-flow ODE, 1 the reverse SDE (then it equals `DDPM()`). More
            than 1 is possible as long as `s` does not exceed sigma' in any step.

    Raises:
        InvalidProblemError: if `eta` is negative, not finite, or, by `plan`, too large for the levels.
        NotSupportedError: by `plan`, for a grid of times.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        """Check eta."""
        keep_numbers(self, "eta", of=not_negative)

    def plan(self, points: Times | Levels) -> Plan:
        """Write the method on these points as a plan."""
        levels = require_levels(points, "DDIM")
        state, data, std = transition(levels, self.eta)
        if bool((std > levels.sigma[1:]).any()):
            msg = (
                "eta times the posterior standard deviation must not exceed the noise level a step ends at; "
                f"given eta={self.eta:g}: write eta=1.0 or less"
            )
            raise InvalidProblemError(msg)
        return diffusion_plan(levels, state, data, std)
