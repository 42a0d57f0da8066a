"""Calls that run out of memory are split, and the solve is not lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import picard
from picard.memory import out_of_memory
from tests.problems import F64, diffusion, start, times

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Small:
    """A drift on a device that holds a number of rows."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.rows, self.failed = most, error, list[int](), 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        if len(x) > self.most:
            self.failed += 1
            raise self.error
        self.rows.append(len(x))
        return torch.sin(3 * x)


@torch.no_grad()
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), RuntimeError(CPU), MemoryError()],
    ids=["gpu", "cpu", "host"],
)
@pytest.mark.parametrize("max_rows", [None, 30])
def test_the_call_is_halved_until_it_fits_and_the_model_is_remembered(error: Exception, max_rows: int | None) -> None:
    drift = Small(10, error)
    problem = picard.ODE(drift, start(2, 3))
    options: dict[str, Any] = {"method": "euler", "window": 32, "save": "all"}
    solution = picard.solve(problem, times(100), max_rows=max_rows, **options)
    whole = picard.ODE(lambda t, x: torch.sin(3 * x), start(2, 3))
    assert torch.equal(solution.ys, picard.solve(whole, times(100), **options).ys)
    assert 0 < drift.failed <= 4
    assert solution.stats.max_rows == max(drift.rows) <= 10
    failed = drift.failed
    again = picard.solve(problem, times(100), **options)
    assert drift.failed == failed, "nothing is tried that is known to fail"
    assert torch.equal(again.ys, solution.ys)


@torch.no_grad()
def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="20 GiB"):
        picard.solve(picard.ODE(Small(0, torch.OutOfMemoryError("20 GiB")), start(1, 2)), times(10), method="euler")


@torch.no_grad()
def test_a_call_whose_time_has_been_changed_is_not_tried_again() -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        t.mul_(2)
        if len(x) > 10:
            raise torch.OutOfMemoryError("20 GiB")
        return torch.cos(t)[:, None] * x

    with pytest.raises(torch.OutOfMemoryError, match="20 GiB"):
        picard.solve(picard.ODE(drift, start(1, 2)), times(100), method="euler", window=32)


@torch.no_grad()
def test_two_methods_of_an_object_are_two_models() -> None:
    class Pair:
        def heavy(self, t: Tensor, x: Tensor) -> Tensor:
            if len(x) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return -x

        def light(self, t: Tensor, x: Tensor) -> Tensor:
            return -x

    pair = Pair()
    options: dict[str, Any] = {"method": "euler", "window": 32}
    for drift, most in ((pair.heavy, 10), (pair.light, None), (pair.heavy, 10)):
        limit = picard.solve(picard.ODE(drift, start(2, 3)), times(100), **options).stats.max_rows
        assert limit is None if most is None else limit is not None and limit <= most


@torch.no_grad()
def test_what_fits_is_known_whether_the_network_is_asked_alone_or_not() -> None:
    source = diffusion(prediction="epsilon")

    def model(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return source.denoiser.model(x, t)

    problem = picard.Diffusion(picard.Denoiser(model, source.denoiser.schedule), source.x_T, noise=source.noise)
    found = [picard.solve(problem, 30, method="ddpm", window=8, sync_every=count) for count in (2, 1)]
    assert found[0].stats.max_rows == found[1].stats.max_rows == 4
    torch.testing.assert_close(found[0].final, found[1].final)


@torch.no_grad()
def test_other_errors_pass() -> None:
    drift = Small(10, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        picard.solve(picard.ODE(drift, start(2, 2)), times(100), method="euler", window=32)
    assert drift.failed == 1


@torch.no_grad()
def test_a_window_is_chosen_where_memory_is_short() -> None:
    drift = Small(10, torch.OutOfMemoryError("20 GiB"))
    solution = picard.solve(picard.ODE(drift, start(1, 2)), times(100), method="euler", window="auto")
    assert solution.success


def test_the_backward_pass_is_split_too() -> None:
    class Heavy(torch.autograd.Function):
        """Its derivative takes the memory."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.sin(3 * x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            (x,) = ctx.saved_tensors
            if len(x) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 3 * torch.cos(3 * x) * gradient

    def gradient(drift: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        x0 = start(1, 3).requires_grad_()
        solution = picard.solve(picard.ODE(drift, x0), times(60), method="euler", window=32, tolerance=1e-12)
        return torch.autograd.grad(solution.final.sum(), x0)[0]

    apply: Any = Heavy.apply
    torch.testing.assert_close(gradient(lambda t, x: apply(x)), gradient(lambda t, x: torch.sin(3 * x)))


def test_what_counts_as_out_of_memory() -> None:
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"))
    assert out_of_memory(RuntimeError(CPU))
    assert not out_of_memory(RuntimeError("invalid argument"))
    assert not out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=F64)
    assert out_of_memory(caught.value)
