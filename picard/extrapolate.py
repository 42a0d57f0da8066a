"""Extrapolation: the guess that continues the field as a polynomial in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from picard.device import send
from picard.entering import Entering
from picard.hold import Hold
from picard.plan import Plan
from picard.propagate import product
from picard.shapes import Float, Int
from picard.tables import Tables

_DEGREES = 5  # 0 to 4; two more win 2 % of the rounds on the hard problems


@dataclass(frozen=True, eq=False)
class Extrapolate(Hold):
    """Run the recurrence on with the field continued as a polynomial in time.

    A new node's field value is extrapolated from the latest ones of the same stage, one a step. The degree is the one
    that would have predicted the latest step best from as far as the new nodes lie ahead, chosen anew for every sample
    and round, so the guess falls back to a constant where the field is rough or has not converged yet. Where a
    prediction is not finite the last value is held.

    Attributes:
        clock: time of every node, shape (nodes,), float64, on the CPU.
        stages: number of nodes a step.
    """

    clock: Tensor
    stages: int

    @classmethod
    def on(cls, plan: Plan, tables: Tables, state: tuple[int, ...]) -> Extrapolate:
        """Make the guess for a plan; see `Hold` for the other arguments."""
        stages = int((plan.step == 0).sum())
        pace = plan.times[stages:] - plan.times[:-stages]
        steady = bool((pace > 0).all()) or bool((pace < 0).all())
        return cls(tables, state, plan.times if steady else torch.arange(plan.nodes, device="cpu").double(), stages)

    def ahead(self, entering: Entering, held: Float[Tensor, "batch 1 dims"]) -> Float[Tensor, "batch held dims"]:
        """Return the field values assumed at the new nodes."""
        if entering.diffusion is not None:
            return held
        places = entering.places
        first = torch.tensor(places.end, device="cpu")
        start = (torch.tensor(places.old_begin, device="cpu") - entering.history)[:, None]
        enough = (first - start[:, 0].clamp_min(0)) // self.stages  # whole steps whose field values are known
        wanted = torch.tensor(places.begin, device="cpu") + torch.tensor(places.width, device="cpu") - 1 - first
        distance = torch.minimum(-(-wanted // self.stages), enough - _DEGREES).clamp_min(1)

        def at(nodes: Int[Tensor, "batch steps stages"]) -> Float[Tensor, "batch steps stages dims"]:
            slots = (nodes.flatten(1) - start).clamp_min(0)
            return entering.field.at(send(slots, held)).unflatten(1, nodes.shape[1:])

        kind = None if len(first) == 1 else _Kinds.of(first, distance)  # a single sample is spared 2 % of a round
        begun, far = (first, distance) if kind is None else (first[kind.one], distance[kind.one])

        def each(values: Tensor) -> Tensor:
            return values if kind is None else values[send(kind.every, values)]

        stage, new = torch.arange(self.stages, device="cpu"), torch.arange(entering.wanted, device="cpu")
        latest = (begun[:, None] - self.stages + stage)[:, None]  # nodes of the latest step
        past = latest - (torch.arange(_DEGREES, device="cpu") * self.stages)[:, None]
        source = past - (far * self.stages)[:, None, None]
        trial = each(send(self._weights(source.transpose(1, 2), latest[:, 0]).to(held.dtype), held))
        tests = product(trial.flatten(0, 1), at(each(source)).transpose(1, 2).flatten(0, 1))
        missed = tests.unflatten(0, (len(held), self.stages)) - at(each(latest)).transpose(1, 2)
        score = missed.square().sum((1, 3))
        tried = torch.arange(1, _DEGREES + 1, device="cpu") + distance[:, None] <= enough[:, None]
        score = torch.where(send(tried, score) & torch.isfinite(score), score, torch.inf)
        degree = torch.where(torch.isfinite(score).any(1), score.argmin(1), 0)

        weights = self._weights(past[..., new % self.stages].transpose(1, 2), begun[:, None] + new)
        weights = send(weights.to(held.dtype), held).transpose(1, 2).flatten(0, 1)  # of every kind and degree
        chosen = weights[degree if kind is None else degree + _DEGREES * send(kind.every, held)]
        own = send((new[:, None] % self.stages == stage).to(held.dtype), held)
        found = product((chosen[..., None] * own[:, None]).flatten(2), at(each(past)).flatten(1, 2))
        sound = torch.isfinite(found).flatten(1).all(1) & send(enough > 0, found)
        return torch.where(sound[:, None, None], found, held)

    def _weights(
        self, source: Int[Tensor, "batch wanted degrees"], wanted: Int[Tensor, "batch wanted"]
    ) -> Float[Tensor, "batch wanted degrees degrees"]:
        nodes = len(self.clock)
        return lagrange(self.clock[source.clamp_min(0)], self.clock[wanted.clamp_max(nodes - 1)])


class _Kinds(NamedTuple):
    """Samples at the same place, which share weights.

    Attributes:
        one: a sample of every kind, shape (kinds,).
        every: the kind of every sample, shape (batch,).
    """

    one: Int[Tensor, " kinds"]
    every: Int[Tensor, " batch"]

    @staticmethod
    def of(first: Int[Tensor, " batch"], distance: Int[Tensor, " batch"]) -> _Kinds:
        kinds, every = torch.unique(first * (distance.amax() + 1) + distance, return_inverse=True)
        return _Kinds(torch.zeros_like(kinds).scatter(0, every, torch.arange(len(every), device="cpu")), every)


def lagrange(
    points: Float[Tensor, "*batch degrees"], at: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch degrees degrees"]:
    """Return the weights that extrapolate polynomials through the latest values, by Lagrange's formula.

    Args:
        points: times of the known values, newest first.
        at: the time to extrapolate to.

    Returns:
        `weights[..., q, i]`, the weight of value i in the polynomial of degree q through the q + 1 newest values; not
        finite where times coincide.
    """
    count = points.shape[-1]
    ratio = (at[..., None, None] - points[..., None, :]) / (points[..., :, None] - points[..., None, :])
    square = torch.ones(count, count, dtype=torch.bool, device=points.device)
    weights = torch.where(square.triu().tril(), 1, ratio).cumprod(-1).transpose(-1, -2)
    return torch.where(square.tril(), weights, 0)
