"""Higher derivatives: the gradient of a solve is differentiated as that of the sequential solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from picard.adjoint import unhooked
from picard.errors import NotSupportedError
from picard.prepare import Prepared
from picard.progress import Progress
from picard.sequential import follow
from picard.trajectory import Trajectory
from picard.transforms import asking, transforms

Maybe = Tensor | None
Many = tuple[Maybe, ...]


@dataclass(frozen=True, eq=False)
class Leaves:
    """Tensors a field depends on besides the state, to be differentiated by where they are.

    Attributes:
        tensors: leaves that ask for a gradient.
        transforms: transforms of `torch.func` that they were found in.
        outside: number of those of transforms around, or outside of all, to which the gradient does not lead.
        unchanged: checks that what else the field depends on is what it was.
    """

    tensors: Sequence[Tensor]
    transforms: int
    outside: int
    unchanged: Callable[[], None]

    def check(self, *, wanted: bool) -> None:
        """Check that they are still there.

        Args:
            wanted: whether a derivative by some of all these is.

        Raises:
            NotSupportedError: if they belonged to a transform that is over.
        """
        self.unchanged()
        if wanted and (self.outside or transforms() != self.transforms):
            msg = (
                "second derivatives of a solve by parameters or conditioning are not offered inside torch.func, which "
                "forgets these: write torch.autograd.grad(..., create_graph=True)"
            )
            raise NotSupportedError(msg)


@dataclass(frozen=True, eq=False)
class Sequentially:
    """The states that the sequential solver finds, as a function of the initial state.

    Attributes:
        prepared: the problem on its grid.
        save: as for `solve`.
        max_rows: rows one model call may hold.
        cond: conditioning, made of leaves.
        mixed: sets autocast to what it was in the solve.
    """

    prepared: Prepared
    save: Any
    max_rows: int | None
    cond: Mapping[str, Any]
    mixed: Callable[[], AbstractContextManager[Any]]

    def __call__(self, x0: Tensor) -> Many:
        """Return the states asked for, and the last one."""
        prepared = replace(self.prepared, problem=self.prepared.problem.alone)
        with self.mixed(), Progress(0, enabled=False) as bar:
            trajectory = Trajectory(prepared.plan, x0, self.save)
            solution, error = follow(prepared, x0, trajectory, bar, self.max_rows, self.cond)
        if error is not None:
            raise error
        return solution.ys, solution.final


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of a function by its arguments and by leaves, as a function of those and of the loss's gradient.

    Attributes:
        function: the function.
        arguments: how many it takes.
        leaves: what it depends on besides.
    """

    function: Callable[..., Many]
    arguments: int
    leaves: Leaves

    def __call__(self, *given: Any, create_graph: bool = True) -> Many:
        """Differentiate.

        Args:
            given: arguments that ask for a gradient and depend on nothing, then the loss's gradient by every result.
            create_graph: whether the gradient will be differentiated.
        """
        arguments, by = given[: self.arguments], given[self.arguments :]
        found = zip(self.function(*arguments), by, strict=True)
        pairs = [(out, one) for out, one in found if out is not None and one is not None and out.requires_grad]
        inputs = [*arguments, *self.leaves.tensors]
        there = [one for one in inputs if one is not None]
        if not pairs:
            return (None,) * len(inputs)
        results, by = zip(*pairs, strict=True)
        with unhooked(self.leaves.tensors):
            # What tensors in closures were made of may be asked for later.
            more: dict[str, Any] = {"create_graph": create_graph, "retain_graph": True, "allow_unused": True}
            gradients = iter(torch.autograd.grad(results, there, by, **more))
        return tuple(None if one is None else next(gradients) for one in inputs)


class Differentiable(torch.autograd.Function):
    """Forward: a gradient as it was found. Backward: the derivative of what the sequential solver has for it."""

    @staticmethod
    def forward(_: Gradient, found: Many, *__: Maybe) -> Many:
        """Pass on the gradient."""
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Many) -> None:  # noqa: ARG004
        """Keep what the gradient depends on: what it was given, and the leaves' originals."""
        ctx.gradient, _, *depends = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*depends)

    @staticmethod
    def backward(ctx: Any, *by: Maybe) -> Many:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Differentiate by all of that."""
        leaves: Leaves = ctx.gradient.leaves
        split = len(ctx.saved_tensors) - len(leaves.tensors) - leaves.outside
        leaves.check(wanted=any(ctx.needs_input_grad[2 + split :]))
        given, originals = (*ctx.saved_tensors[:split], *by), ctx.saved_tensors[split:]
        derivative = Gradient(ctx.gradient, split, leaves)
        with torch.enable_grad():
            stand_ins = [None if one is None else asking(one.detach()) for one in given]
            found = derivative(*stand_ins, create_graph=False)
        if torch.is_grad_enabled():
            found = differentiable(derivative, found, given, originals)
        return (None, None, *found, *[None] * leaves.outside)


class AsItWas(torch.autograd.Function):
    """An initial state with the value that it had in the solve; it may have been written over since."""

    @staticmethod
    def forward(_: Tensor, value: Tensor) -> Tensor:
        """Return the value."""
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(_: Any, by: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pass the gradient on to the state."""
        return by, None


def differentiable(gradient: Gradient, found: Many, given: Sequence[Maybe], originals: Sequence[Tensor]) -> Many:
    """Let a gradient that was found be differentiated.

    Args:
        gradient: the function that it is the value of.
        found: its value.
        given: what it was given.
        originals: what the leaves are copies of, or they themselves; and those outside.
    """
    apply: Any = Differentiable.apply
    return apply(gradient, found, *given, *originals)
