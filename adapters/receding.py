"""Receding horizon: a policy plans, some actions are executed, and it plans again; or it plans ahead."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from picard.errors import InvalidProblemError
from picard.expected import Expected
from picard.plan import Plan
from picard.shapes import Bool, Float
from picard.tolerance import Candidates, Tolerance

from .start import Start


@dataclass(frozen=True, eq=False)
class PastPlan:
    """What is kept of the last plan; states and values are zero where actions were known.

    Attributes:
        x: the noise it started from, shape (batch, horizon, actions).
        drawn: the noise of every node, `None` where there was none.
        known: where actions were known, shape of `x`, or `None`.
        values: data prediction at every node, as last evaluated, shape (nodes, batch, horizon, actions); the last one
            is the plan itself.
    """

    x: Tensor
    drawn: list[Tensor | None]
    known: Bool[Tensor, "batch horizon actions"] | None
    values: Float[Tensor, "nodes batch horizon actions"]

    def fits(self, start: Start, drawn: list[Tensor | None]) -> bool:
        """Whether the next plan has the same form, as many nodes, and noise at the same ones."""
        same = self.x.shape == start.x.shape and self.x.dtype == start.x.dtype and self.x.device == start.x.device
        return same and [one is None for one in self.drawn] == [one is None for one in drawn]

    def shares_noise(self, start: Start, drawn: list[Tensor | None]) -> bool:
        """Whether the next plan has this one's start and noise, so that data predictions differ by observation only."""
        if not self.fits(start, drawn):
            return False
        free = start.x if start.mask is None else start.x.masked_fill(start.mask, 0)
        pairs = [(a, b) for a, b in zip(self.drawn, drawn, strict=True) if a is not None and b is not None]
        old, new = (
            torch.stack([x, *noise]) for x, noise in ((self.x, [a for a, _ in pairs]), (free, [b for _, b in pairs]))
        )
        return torch.equal(old, new)

    def again(self, start: Start) -> Expected:
        """Expect the same data predictions again, except where the next plan knows the actions."""
        values = self.values if start.mask is None else self.values.masked_fill(start.mask, 0)
        return Expected(values, same_noise=True)

    def expected(self, by: int, start: Start, *, same_noise: bool) -> Expected:
        """Expect the data predictions of the last plan, moved forward, except where the next plan knows the actions.

        With other noise they say little about each other. Then, and for the actions at the end, which the last plan did
        not reach, the plan itself is expected at every node, so that what the new plan finds is held.
        """
        plan = _forward(self.values[-1], by)
        plan[..., -by:, :] = self.values[-1, ..., -1:, :]
        values = plan.expand_as(self.values).clone()
        if same_noise:
            values[..., :-by, :] = self.values[..., by:, :]
        return Expected(values if start.mask is None else values.masked_fill(start.mask, 0))

    def same_noise(self, start: Start, drawn: list[Tensor | None], by: int) -> tuple[Start, list[Tensor | None]]:
        """Put the last plan's noise, moved forward, in place of new noise, where there is any."""
        old = torch.ones_like(start.x, dtype=torch.bool) if self.known is None else ~self.known
        old = _forward(old, by)
        old[..., -by:, :] = False
        if start.mask is not None:
            old &= ~start.mask

        def reuse(new: Tensor | None, before: Tensor | None) -> Tensor | None:
            return new if new is None or before is None else torch.where(old, _forward(before, by), new)

        x = torch.where(old, _forward(self.x, by), start.x)
        return replace(start, x=x), [reuse(new, before) for new, before in zip(drawn, self.drawn, strict=True)]


def filled(
    seen: Float[Tensor, "nodes batch horizon actions"], expected: Float[Tensor, "nodes batch horizon actions"] | None
) -> Float[Tensor, "nodes batch horizon actions"]:
    """Fill in the data predictions of nodes left out, which are not numbers.

    Args:
        seen: data predictions as evaluated, or not.
        expected: those that were expected, along which the last one evaluated is moved on; it is held if `None`.
    """
    nodes = torch.arange(len(seen), device=seen.device)[:, None]
    last = torch.where(seen.flatten(2).isnan().any(2), 0, nodes).cummax(0).values  # the first node never is left out
    off = seen if expected is None else seen - expected
    held = off[last, torch.arange(seen.shape[1], device=seen.device)]
    return held if expected is None else expected + held


def check_shift(by: int | None, horizon: int) -> int:
    """Check that something of the last plan is left after the actions executed since, and return their number.

    Raises:
        InvalidProblemError: if not, or if the policy does not say how many they are.
    """
    if by is None:
        msg = (
            'warm_start="shift" takes the number of actions executed between two plans from the policy, which has no '
            f"`n_action_steps`: write the number, from 1 to {horizon - 1}"
        )
        raise InvalidProblemError(msg)
    if not 0 < by < horizon:
        msg = (
            f"warm_start must be the number of actions executed between two plans, from 1 to {horizon - 1} for this "
            f"horizon of {horizon}; given {by}: write warm_start=None where plans do not overlap"
        )
        raise InvalidProblemError(msg)
    return by


@dataclass(frozen=True)
class Watched(Tolerance):
    """Another rule, which sees the leading part of every state only, or of which a share is taken up.

    Attributes:
        rule: the rule.
        leading: how many numbers of a state it sees; all if `None`.
        share: what part of its bound a change may take up.
        first: the same for the change of a state in its first round, from the guess.
        leeway: see `Tolerance`; the rule's own is not used.
    """

    rule: Tolerance
    leading: int | None
    share: float = 1.0
    first: float = 1.0
    leeway: float = 0.0

    def bound(self, candidates: Candidates) -> Float[Tensor, "batch nodes"]:
        """Return the share of what the rule says."""
        bound = self.rule.bound(candidates)
        return torch.where(candidates.age > 1, self.share * bound, self.first * bound)

    def watched(self, change: Float[Tensor, "batch nodes dims"]) -> Float[Tensor, "batch nodes watched"]:
        """Return the leading part."""
        return change[..., : self.leading]

    def check(self, plan: Plan) -> None:
        """Check what the rule checks."""
        self.rule.check(plan)


def _forward(x: Tensor, by: int) -> Tensor:
    """Move actions forward in time; what stands in the last places then means nothing."""
    return x.roll(-by, -2)
