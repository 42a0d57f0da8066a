"""DDPM, the ancestral sampler of Ho et al. (2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from picard.errors import check_choice
from picard.grid import Levels, Times
from picard.plan import Plan

from .transition import diffusion_plan, require_levels, transition

Variance = Literal["fixed_small", "fixed_large"]


@dataclass(frozen=True)
class DDPM:
    """Denoising diffusion probabilistic models, ancestral sampling: order 1 (as an SDE method), one evaluation a step.

    The mean of a step is that of the posterior of x' given x and the data prediction (Ho et al., 2020, eq. 7), here for
    any alpha and sigma. A step that ends at clean data adds no noise (algorithm 2).

    Args:
        variance: variance of a step's noise (Ho et al., 2020, section 3.2): `fixed_small`, that of the posterior, exact
            for data at a point, or `fixed_large`, that of the forward step, `sigma^2 - (alpha / alpha')^2 sigma'^2`
            (beta if alpha^2 + sigma^2 = 1), exact for standard normal data.

    Raises:
        InvalidProblemError: if the variance is unknown.
        NotSupportedError: by `plan`, for a grid of times.
    """

    variance: Variance = "fixed_small"

    def __post_init__(self) -> None:
        """Check the variance."""
        check_choice("variance", self.variance, get_args(Variance))

    def plan(self, points: Times | Levels) -> Plan:
        """Write the method on these points as a plan."""
        levels = require_levels(points, "DDPM")
        state, data, std = transition(levels, eta=1.0)
        if self.variance == "fixed_large":
            kept = levels.alpha[:-1] / levels.alpha[1:] * levels.sigma[1:]
            std = (levels.sigma[:-1] ** 2 - kept**2).clamp_min(0).sqrt()
            std = std.masked_fill(levels.sigma[1:] == 0, 0.0)
        return diffusion_plan(levels, state, data, std)
