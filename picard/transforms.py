"""Transforms: what gradients of a solve need to know of `torch.func`, where it does not tell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from picard.errors import NotSupportedError


def asking(tensor: Tensor) -> Tensor:
    """Make a fresh tensor ask for a gradient, also while a `torch.func` transform is active.

    Transforms forbid it, lest users expect a captured tensor to be tracked; here the tensor never leaves this package.
    """
    try:
        from torch._functorch.eager_transforms import enable_inplace_requires_grad
    except ImportError:  # private to torch: without it, only gradients inside torch.func are lost
        return tensor.requires_grad_()
    with enable_inplace_requires_grad(True):
        return tensor.requires_grad_()


def transforms() -> int:
    """Count the transforms of `torch.func` that are active."""
    try:
        from torch._C._functorch import maybe_current_level
    except ImportError:  # private to torch
        return 0
    return maybe_current_level() or 0


def unwrapped(value: Tensor) -> list[Tensor]:
    """Return a tensor as every transform around the innermost one knows it, and as it is outside of all."""
    try:
        from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
    except ImportError:  # private to torch
        return []
    found = []
    while is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
        found.append(value)
    return found


def check_single(*tensors: Tensor | None) -> None:
    """Refuse many gradients at once, as `torch.func.vmap` and `is_grads_batched` have them.

    Raises:
        NotSupportedError: with a way to have them.
    """
    try:
        from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
    except ImportError:  # private to torch
        return
    if any(one is not None and (is_batchedtensor(one) or is_legacy_batchedtensor(one)) for one in tensors):
        raise many_at_once()


def many_at_once() -> NotSupportedError:
    """Make the error for many solves or gradients in one."""
    return NotSupportedError(
        "a solve, and its backward solve, go one at a time, without vmap over them: write torch.func.jacrev(f, "
        "chunk_size=1) or torch.autograd.functional.jacobian(f, x) for a Jacobian, torch.autograd.functional.hessian "
        "for a Hessian, and a batch for many initial states"
    )


def forwards() -> NotSupportedError:
    """Make the error for forward-mode derivatives."""
    return NotSupportedError(
        "forward-mode derivatives (jvp, jacfwd, torch.func.hessian) of a parallel solve are not offered: write "
        "picard.sequential in its place, or take them in reverse mode (torch.autograd.grad, "
        "torch.autograd.functional.hessian)"
    )


def check_tracked(inputs: Sequence[Tensor]) -> None:
    """Check that tensors still ask for a gradient: those of `torch.func` do so inside of its transforms only.

    Raises:
        NotSupportedError: if they do not.
    """
    with torch.enable_grad():
        tracked = all(one.view_as(one).requires_grad for one in inputs)  # which they say of themselves ever after
    if not tracked:
        msg = (
            "torch.func.vjp and jacrev go backward once their tensors are no longer tracked, so gradients of a solve "
            "by parameters or conditioning would be lost: write torch.func.grad, or torch.autograd.grad"
        )
        raise NotSupportedError(msg)
