"""The guess that goes along expected field values, such as those of a similar problem solved before."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from picard.device import check_data, send
from picard.entering import Entering
from picard.errors import InvalidProblemError, describe
from picard.hold import Hold
from picard.number import check_flags
from picard.plan import Plan
from picard.shapes import Float
from picard.tables import Tables


@dataclass(frozen=True, eq=False)
class Expected:
    """What field values to expect, as `guess=` of `solve`: the result is the same, the way to it may be shorter.

    The recurrence is run on along these values, shifted by what the last one evaluated was off. So only their
    differences between nodes matter, except at the very start; where they are constant this is `"hold"`.

    Attributes:
        values: field value at every node, shape (nodes, batch, *state); for diffusion models data predictions.
        same_noise: whether they were found with the noise of this solve, and move as it does. Then a tolerance with
            leeway leaves out evaluations that are foretold by them, instead of those foretold by the noise.

    Raises:
        InvalidProblemError: if it has no such form.
    """

    values: Tensor
    same_noise: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the form."""
        if not isinstance(self.values, Tensor) or self.values.ndim < 3 or not self.values.is_floating_point():
            msg = f"expected values must be a floating tensor (nodes, batch, *state); given {describe(self.values)}"
            raise InvalidProblemError(msg)
        check_data("expected values", self.values)
        check_flags(same_noise=self.same_noise)

    def along(self, plan: Plan, tables: Tables, x0: Tensor, wide: torch.dtype) -> Along:
        """Make the guess for a plan.

        Raises:
            InvalidProblemError: if the values do not fit it.
        """
        wanted = (plan.nodes, *x0.shape)
        if tuple(self.values.shape) != wanted or not bool(torch.isfinite(self.values).all()):
            msg = f"expected values must be finite, of shape {wanted}, one a node; given {describe(self.values)}"
            raise InvalidProblemError(msg)
        return Along(tables, tuple(x0.shape[1:]), self.values.to(x0.device, wide).flatten(2), self.same_noise)


@dataclass(frozen=True, eq=False)
class Along(Hold):
    """Run the recurrence on along expected field values.

    Attributes:
        expected: shape (nodes, batch, dims).
        same_noise: see `Expected`.
    """

    expected: Tensor
    same_noise: bool

    @property
    def opens(self) -> bool:
        """Say that first windows are full: the first expected values are as good as later ones."""
        return True

    def ahead(self, entering: Entering, held: Float[Tensor, "batch 1 dims"]) -> Float[Tensor, "batch count dims"]:
        """Return the field values assumed at the new nodes: the last one's difference to the expected one is held."""
        nodes, samples = entering.new().clamp_max(len(self.expected) - 1), send(entering.places.samples, held)[:, None]
        met = entering.end > 0  # before the first evaluation there is no last value
        off = torch.where(met[..., None], held - self.expected[(entering.end - 1).clamp_min(0), samples], 0)
        return self.expected[nodes, samples] + off
