"""A made-up network, to run loops on that are to be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import copied, leaves
from .trace import Trace


class MadeUp:
    """A made-up network, which notes how it is called.

    Attributes:
        count: calls so far.
        odd: what about the calls no plan can say, if anything.
        shape: shape of the first state.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.count, self.odd = 0, ""
        self.shape: torch.Size | None = None
        self._given: Any = None

    def __call__(self, x: Tensor, t: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """Predict data that schedulers clip here and there, with a dependence between neighbours, and no steep one."""
        found = self._trace
        node, self.count = min(self.count, found.plan.nodes - 1), self.count + 1
        times = torch.as_tensor(t, device="cpu") if isinstance(t, (int, float, Tensor)) else None
        if self.shape is None:
            self.shape, self._given = x.shape, copied((args, kwargs))
        elif not _same(self._given, (args, kwargs)):
            self.odd = "gives its network other arguments from step to step"
        if times is None or not bool((times == found.timesteps[node]).all()):
            self.odd = "gives its network another time than its scheduler's"
        return (1.2 * torch.sin(0.5 * x + 0.3 * x.roll(1, 1)) - float(found.u[node]) * x) / float(found.w[node])


def _same(some: Any, others: Any) -> bool:
    """Say whether the arguments of two calls are equal."""
    one, other = dict(leaves(some)), dict(leaves(others))

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 0, 0, equal_nan=True))
        return a is b or (type(a) is type(b) and (a == b) is True)

    return one.keys() == other.keys() and all(equal(one[path], other[path]) for path in one)
