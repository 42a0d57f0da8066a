"""Progress: what a callback is told every round, and the bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

from torch import Tensor

from picard.entering import Linearized
from picard.errors import MissingDependencyError


@dataclass(frozen=True, eq=False)
class RoundInfo:
    """One round, as a callback sees it; tensors are views, valid until the callback returns.

    Attributes:
        round: number of the round, from 1.
        samples: indices in the batch of the samples that took part.
        begin: first node of every sample's window.
        width: nodes every sample evaluated.
        stride: nodes every sample accepted.
        converged: grid steps converged, of every sample of the batch.
        steps: grid steps of the whole solve.
        rows: rows evaluated this round.
        change: root mean square change of the state after every node, shape (samples, nodes); entries past a
            sample's width mean nothing.
        states: the new states, shape (samples, nodes, *state), likewise.
    """

    round: int
    samples: tuple[int, ...]
    begin: tuple[int, ...]
    width: tuple[int, ...]
    stride: tuple[int, ...]
    converged: tuple[int, ...]
    steps: int
    rows: int
    change: Tensor
    states: Tensor
    _field: Linearized | None = field(repr=False)  # `None` only where rounds are timed

    def field(self) -> Tensor:
        """Work out the field at the nodes, at their new states as far as the round can tell.

        Returns:
            Its values, shape (samples, nodes, *state), likewise.
        """
        return cast("Linearized", self._field).nodes().unflatten(2, self.states.shape[2:])


Callback = Callable[[RoundInfo], object]
"""Called after every round; a true return value ends the solve and keeps what has converged."""


class Progress:
    """A tqdm bar in steps converged, summed over the batch; it does nothing unless it is enabled."""

    def __init__(self, total: int, *, enabled: bool, unit: str = "step") -> None:
        """Open the bar.

        Args:
            total: what it counts up to.
            enabled: whether there is a bar.
            unit: what it counts.

        Raises:
            MissingDependencyError: if it is enabled and tqdm is not installed.
        """
        self._bar: Any = None
        if enabled:
            try:
                from tqdm.auto import tqdm
            except ImportError as error:
                raise MissingDependencyError("tqdm") from error
            self._bar = tqdm(total=total, unit=unit)

    def show(self, done: Callable[[], int]) -> None:
        """Show how much is done in all, which is worked out only for a bar."""
        if self._bar is not None:
            self._bar.update(done() - self._bar.n)

    def __enter__(self) -> Progress:  # noqa: PYI034  # beartype cannot read Self on a method
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
