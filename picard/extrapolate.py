"""Extrapolation: the guess that continues the field as a polynomial in time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from picard.entering import Entering
from picard.hold import Hold
from picard.propagate import finite, product
from picard.shapes import Float, Int

_DEGREES = 5  # 0 to 4; two more win 2 % of the rounds on the hard problems


@dataclass(frozen=True, eq=False)
class Extrapolate(Hold):
    """Run the recurrence on with the field continued as a polynomial in time.

    A new node's field value is extrapolated from the latest ones of the same stage, one a step. The degree is the one
    that would have predicted the latest step best from as far as the new nodes lie ahead, chosen anew for every sample
    and round, so the guess falls back to a constant where the field is rough or has not converged yet. Where a
    prediction is not finite the last value is held.

    Attributes:
        stages: number of nodes a step.
    """

    stages: int

    def ahead(self, entering: Entering, held: Float[Tensor, "batch 1 dims"]) -> Float[Tensor, "batch held dims"]:
        """Return the field values assumed at the new nodes."""
        if entering.diffusion is not None:
            return held
        stages, first = self.stages, entering.end
        start = entering.begin - entering.history  # the node whose field value is the first one known
        enough = (first - start.clamp_min(0)) // stages  # whole steps whose field values are known
        distance = torch.minimum((entering.final - first + stages - 1) // stages, enough - _DEGREES).clamp_min(1)
        stage, step = (torch.arange(count, device=first.device) for count in (stages, _DEGREES))
        # The latest steps, newest first, to go on from; and steps as far before them as the new nodes lie ahead, from
        # which to predict the latest.
        back = torch.stack([step.expand(len(first), -1), step + distance], 1)
        nodes = (first - stages)[..., None, None] + stage[:, None] - stages * back[:, :, None]
        slots = (nodes.flatten(1) - start).clamp_min(0)
        values = entering.field.at(slots).unflatten(1, nodes.shape[1:])
        # Of whole steps, and of one more than needed: a compiler would make other code where none is left over.
        new = first + torch.arange((entering.wanted // stages + 1) * stages, device=first.device)
        times = self._times(torch.cat([nodes.flatten(1), new], 1))
        points, at = times[:, : slots.shape[1]].unflatten(1, nodes.shape[1:]), times[:, slots.shape[1] :]
        points, earlier_points = points[..., None, :].unbind(1)
        latest, earlier = values.unbind(1)

        trial = lagrange(earlier_points, points[..., 0], step)
        missed = _combined(trial, earlier).sub_(latest[:, :, :1])
        score = missed.square().sum((1, 3))
        fits = (step + 1 + distance <= enough) & finite(score)
        degree = torch.where(fits, score, torch.inf).argmin(1)[:, None, None]  # the first one if none fits

        weights = lagrange(points, at.unflatten(1, (-1, stages)).transpose(1, 2), degree)
        found = _combined(weights, latest).transpose(1, 2).flatten(1, 2)[:, : entering.wanted]
        sound = finite(found).flatten(1).all(1, keepdim=True) & (enough > 0)
        return torch.where(sound[..., None], found, held)

    def _times(self, nodes: Int[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes"]:
        """Return times of nodes, from the first one (0) to the last one (1)."""
        instants = self.tables.instants
        found = instants[nodes.clamp(0, len(instants) - 1)]
        since = (found - found[:, :1]).sum(2)
        return since / since[:, -1:]


def _combined(
    weights: Float[Tensor, "batch stages wanted degrees"], values: Float[Tensor, "batch stages degrees dims"]
) -> Float[Tensor, "batch stages wanted dims"]:
    """Add up weighted values, stage by stage."""
    return product(weights.flatten(0, 1), values.flatten(0, 1)).unflatten(0, weights.shape[:2])


def lagrange(
    points: Float[Tensor, "*#batch degrees"], at: Float[Tensor, "*#batch"], degree: Int[Tensor, "*#batch"]
) -> Float[Tensor, "*batch degrees"]:
    """Return the weights that extrapolate polynomials through the latest values, by Lagrange's formula.

    Args:
        points: times of the known values, newest first.
        at: the time to extrapolate to, none of those.
        degree: degree of the polynomial, which goes through one value more.

    Returns:
        The weight of every value; not finite where times coincide.
    """
    count = torch.arange(points.shape[-1], device=points.device)
    used = count <= degree[..., None]
    gaps = points[..., :, None] - points[..., None, :]
    scale = torch.where(used[..., None, :] & (count[:, None] != count), gaps, 1).prod(-1)
    ahead = at[..., None] - points
    whole = torch.where(used, ahead, 1).prod(-1, keepdim=True)
    return torch.where(used, whole / (ahead * scale), 0)
