"""A device that is not there: tensors that say they are on it, compute on the CPU, and mix with nothing else.

What would fail on a GPU fails here: tensors of the host beside tensors of the device, and, as on Apple's GPUs, float64
and copies of the host's memory that do not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("mps", 0)
HOST = torch.device("cpu")
_MOVES = ("_to_copy", "copy_")  # may take a tensor of either place


class OnDevice(Tensor):
    """A tensor on the device that is not there. PyTorch's core takes it for one of the host, whose kernels it has.

    Attributes:
        values_: where its numbers are.
    """

    values_: Tensor

    @staticmethod
    def __new__(cls: type[OnDevice], inner: Tensor) -> OnDevice:  # noqa: PYI034  # beartype cannot read Self
        shape, layout = inner.shape, {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        make: Any = Tensor._make_wrapper_subclass
        made: OnDevice = make(cls, shape, dtype=inner.dtype, device=HOST, **layout)
        made.values_ = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.values_})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.tolist, Tensor.numpy):
            if function is Tensor.numpy:
                msg = "can't convert a tensor of the device to numpy"
                raise TypeError(msg)
            return args[0].values_.detach().tolist()
        if function is torch.autograd.grad:  # what runs inside comes by here again
            return torch._C._skip_one_hop_torch_function(function, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if function is Tensor.to:
                return _move(*args, **kwargs)
            if function is Tensor.cpu:
                return _move(args[0], HOST)
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # as torch documents it
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """Makes the device exist, for tensors made on it and moved to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def place(module: nn.Module) -> nn.Module:
    """Put a module's parameters and buffers on the device; its modules have no method that could."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(OnDevice(parameter.detach()), requires_grad=False))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, OnDevice(buffer))
    return module


def _move(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do what `Tensor.to` does."""
    device, dtype = tensor.device, tensor.dtype
    for one in (*args, *kwargs.values()):
        if isinstance(one, Tensor):
            device, dtype = one.device, one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, (torch.device, str)):
            device = torch.device(one)
    if device.type == tensor.device.type and dtype == tensor.dtype and not kwargs.get("copy", False):
        return tensor
    moved: Tensor = torch.ops.aten._to_copy(tensor, dtype=dtype, device=device)
    return moved


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Find the tensors among the arguments of an operation: by themselves or in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Change a value, or each one in a list. Several times as fast as what PyTorch has for trees of every kind."""
    return type(value)([_mapped(change, one) for one in value]) if type(value) in (list, tuple) else change(value)


def _inner(value: Any) -> Any:
    return value.values_ if isinstance(value, OnDevice) else value


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the host after checking where its tensors say they are."""
    name = function.__name__.split(".")[0]
    leaves = list(_tensors([*args, *kwargs.values()]))
    on_device = any(isinstance(leaf, OnDevice) for leaf in leaves)
    asked = kwargs.get("device")
    stays = on_device if asked is None or (name != "_to_copy" and on_device) else torch.device(asked).type != "cpu"
    if name in ("index", "index_put", "index_put_"):  # whose indices may be on the host
        leaves = [args[0], *leaves[-1:]] if name.startswith("index_put") else [args[0]]
    strangers = [leaf for leaf in leaves if not isinstance(leaf, OnDevice) and leaf.ndim > 0]
    if on_device and strangers and name not in _MOVES:
        msg = f"{name}: expected all tensors to be on the same device; one of {tuple(strangers[0].shape)} is not"
        raise RuntimeError(msg)
    if kwargs.get("non_blocking") and stays and not on_device:
        msg = f"{name}: a copy that goes on alone reads memory that may be freed by then"
        raise RuntimeError(msg)
    bare = {key: _mapped(_inner, value) for key, value in kwargs.items()} | ({} if asked is None else {"device": HOST})
    out = function(*_mapped(_inner, tuple(args)), **bare)
    if name.endswith("_") and not name.endswith("__"):
        return args[0]

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not stays:
            return leaf
        if leaf.dtype in (torch.float64, torch.complex128):
            msg = f"{name}: the device has no float64"
            raise TypeError(msg)
        return OnDevice(leaf)

    return _mapped(wrap, out)
