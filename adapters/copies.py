"""Copies of tensors that somebody else may write into."""

from __future__ import annotations

import torch
from torch import Tensor

from picard.conditioning import version


class Copy:
    """The values of a tensor at one time.

    Args:
        original: the tensor; kept, too.

    Attributes:
        value: what it was.
    """

    def __init__(self, original: Tensor) -> None:
        self._original, self.value = original, original.detach().clone()
        self._version = version(original)

    def holds(self, tensor: object) -> bool:
        """Whether this is the original, and nobody has written into it."""
        if not isinstance(tensor, Tensor) or tensor is not self._original:
            return False
        if tensor.is_inference():  # which does not count its changes
            return torch.equal(tensor, self.value)
        return version(tensor) == self._version

    def put_back(self) -> None:
        """Give the original its values back, where somebody has written into it."""
        if not self.holds(self._original):
            with torch.no_grad():
                self._original.copy_(self.value)
            self._version = version(self._original)
