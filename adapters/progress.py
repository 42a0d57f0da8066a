"""A progress bar that does not notice how often a pipeline runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any


class Bars:
    """The progress bars of one parallel call: every bar of the pipeline is opened once and only moves forward.

    Args:
        make: the pipeline's own `progress_bar`, called as that, without an iterable.
        exact: whether every denoiser call so far in this pass was answered with its final output.
    """

    def __init__(self, make: Callable[..., Any], exact: Callable[[], bool]) -> None:
        self._make, self.exact = make, exact
        self._shown: list[Any] = []
        self._done: list[int] = []
        self._totals: list[int] = []
        self._next = 0

    def rewind(self) -> None:
        """Start another pass."""
        self._next = 0

    def bar(self, iterable: Iterable[Any] | None, total: int | None, *args: Any, **kwargs: Any) -> Bar:
        """Give the next bar of this pass; what else is given goes to the pipeline's own."""
        i, self._next = self._next, self._next + 1
        listed = None if iterable is None else list(iterable)
        if i == len(self._shown):
            total = len(listed) if listed is not None else total
            self._shown.append(self._make(None, total, *args, **kwargs))
            self._done.append(0)
            self._totals.append(total or 0)
        return Bar(self, i, listed)

    def show(self, share: float) -> None:
        """Show that a share of the last bar's steps is through."""
        if self._shown:
            self.advance(len(self._shown) - 1, int(share * self._totals[-1]))

    def advance(self, i: int, count: int) -> None:
        """Show that a bar has come to a number of steps."""
        if count > self._done[i]:
            self._shown[i].update(count - self._done[i])
            self._done[i] = count

    def close(self) -> None:
        """Close all bars."""
        for bar in self._shown:
            bar.close()


class Bar:
    """One bar in one pass: counts the updates, and shows those that are final."""

    def __init__(self, bars: Bars, place: int, listed: list[Any] | None) -> None:
        self._bars, self._place, self._listed = bars, place, listed
        self._count = 0

    def update(self, count: int = 1) -> None:
        """Count steps."""
        self._count += count
        if self._bars.exact():
            self._bars.advance(self._place, self._count)

    def __iter__(self) -> Iterator[Any]:
        """Iterate as tqdm does, counting."""
        for item in self._listed or ():
            yield item
            self.update()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._listed or ())

    def __enter__(self) -> Bar:  # noqa: PYI034  # beartype cannot check Self on a method
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar open for the next pass."""

    def __getattr__(self, name: str) -> Any:
        """Take what else a tqdm bar can do, and do nothing."""
        return lambda *_, **__: None
