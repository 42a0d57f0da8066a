"""What a policy's own code does up to its first network call: draw the start, and say how the network is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from picard.errors import NotSupportedError

from .calls import identity
from .network import answered_by

DATA, MASK, GENERATOR = "condition_data", "condition_mask", "generator"


@dataclass(frozen=True)
class Context:
    """What a network call depends on besides its arguments.

    Attributes:
        grad: whether gradients are enabled.
        inference: whether inference mode is.
        mixed: whether autocast is.
        training: whether the network is in training mode.
    """

    grad: bool
    inference: bool
    mixed: bool
    training: bool

    @staticmethod
    def now(owner: Any, network: Any) -> Context:
        """Look at how a network would be called now."""
        return Context(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled(device_of(owner)),
            bool(getattr(network, "training", False)),
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have gradients and inference mode as they were, which one line around a policy's loop decides."""
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.grad):
            yield


def device_of(owner: Any) -> str:
    """Name the kind of device a policy is on."""
    return next((parameter.device.type for parameter in owner.parameters()), "cpu")


class Caught(BaseException):
    """Ends a policy's loop at its first network call; no handler of the policy's own should catch it."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> None:
        super().__init__()
        self.inputs, self.context = (args, kwargs), context


@dataclass(frozen=True, eq=False)
class Start:
    """What a policy gives its network first, and what the loop goes on with.

    Attributes:
        x: the noisy actions, shape (batch, horizon, actions), conditioning already put in.
        t: the time, as the policy gives it.
        args: the network's positional arguments after the state and the time.
        kwargs: its keyword arguments.
        context: how it is called.
        mask: where the conditioning fixes the state, shape of `x`; `None` if it does nowhere.
        known: the state there.
        generator: what draws the noise of the steps; `None` for PyTorch's global one.
    """

    x: Tensor
    t: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    context: Context
    mask: Tensor | None
    known: Tensor | None
    generator: Generator | list[Generator] | None


def bind(method: Callable[..., Any], owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a method's call, defaults included; those of `**kwargs` under "step"."""
    signature = _signature(method)
    bound = signature.bind(owner, *args, **kwargs)
    bound.apply_defaults()
    named = dict(list(bound.arguments.items())[1:])  # without `self`
    rest = [name for name, one in signature.parameters.items() if one.kind is inspect.Parameter.VAR_KEYWORD]
    named["step"] = named.pop(rest[0]) if rest else {}
    return named


def unbound(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments, see `bind`, as keyword arguments."""
    return {key: value for key, value in named.items() if key != "step"} | dict(named["step"])


def kind_of(argument: Any) -> Any:
    """Return what of an argument a loop may depend on: of most its value, of tensors whether they are there."""
    return type(argument) if isinstance(argument, (Tensor, Generator)) else identity(argument)


@functools.cache
def _signature(method: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(method)


def catch(owner: Any, network: str, loop: Callable[[], Any], named: Mapping[str, Any]) -> Start:
    """Run a policy's own loop up to its first network call, which draws the start as the policy does.

    Raises:
        NotSupportedError: if the network is not called as `network(x, t, ...)`, or otherwise than it would be outside.
    """
    own = getattr(owner, network)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    outside = inside = Context.now(owner, own)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise Caught(args, kwargs, Context.now(owner, own))

    with answered_by(owner, network, stop):
        try:
            loop()
        except Caught as caught:
            (args, kwargs), inside = caught.inputs, caught.context
    name = type(owner).__name__
    if len(args) < 2 or not isinstance(args[0], Tensor) or args[0].ndim < 2:
        msg = f"{name} must call its network as {network}(x, t, ...), with x (batch, horizon, actions)"
        raise NotSupportedError(msg)
    if (inside.mixed, inside.training) != (outside.mixed, outside.training):
        what = "under autocast" if inside.mixed != outside.mixed else "in another mode (train or eval)"
        msg = f"{name} calls its network {what} inside its loop only, so it is no plan: use mode='replay'"
        raise NotSupportedError(msg)
    x, mask = args[0].detach().clone(), named.get(MASK)
    given = (x, args[1], args[2:], kwargs, inside)
    if not isinstance(mask, Tensor) or not bool(mask.any()):
        return Start(*given, None, None, named.get(GENERATOR))
    known = torch.where(mask, named[DATA], 0).to(x)
    return Start(*given, mask.expand_as(x), known, named.get(GENERATOR))


def projected(start: Start, free: Tensor) -> Tensor:
    """Put the known actions back in."""
    return free if start.mask is None or start.known is None else torch.where(start.mask, start.known, free)
