"""What has been learnt about a model, kept for as long as the model lives."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Value = TypeVar("Value")


class PerModel(Generic[Value]):
    """Values by model and key. A model is known by identity, and forgotten when nobody else holds it.

    A bound method is made anew at every access, so its object and its function stand for it.
    """

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[object, dict[object, dict[Hashable, Value]]] = WeakKeyDictionary()

    def __len__(self) -> int:
        """Count the models."""
        return len(self._of)

    def of(self, model: object) -> dict[Hashable, Value]:
        """Return the values of a model; what is put into them lasts if the model can be referred to weakly."""
        try:
            methods = self._of.setdefault(getattr(model, "__self__", model), {})
        except TypeError:
            return {}
        return methods.setdefault(getattr(model, "__func__", None), {})
