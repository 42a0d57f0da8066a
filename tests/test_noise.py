"""One realization, drawn once: the same for a sample and a step whatever is around them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import picard
from picard import Noise
from picard.sde import NoiseType
from tests.problems import CHANNELS, diffusion, diffusion_of, sde, start, times

F64 = torch.float64
torchsde = pytest.importorskip("torchsde")


def pairs(batch: int, steps: int) -> tuple[list[int], list[int]]:
    """List all pairs of sample and step."""
    return [b for b in range(batch) for _ in range(steps)], list(range(steps)) * batch


def draw(noise: Noise, batch: int, steps: int, *shape: int) -> Tensor:
    """Draw everything, shape (batch, steps, *shape)."""
    return noise.draw(*pairs(batch, steps), shape).unflatten(0, (batch, steps))


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    chosen=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6)), min_size=1, max_size=6),
)
def test_a_draw_depends_on_sample_and_step_alone(seeds: list[int], chosen: list[tuple[int, int]]) -> None:
    chosen = [(sample % len(seeds), step) for sample, step in chosen]
    for noise in (Noise.from_seed(seeds), Noise.from_seed(seeds[0])):
        together = noise.draw([s for s, _ in chosen], [i for _, i in chosen], (2, 3))
        assert together.dtype == torch.float32
        for value, (sample, step) in zip(together, chosen, strict=True):
            assert torch.equal(noise.draw([sample], [step], (2, 3))[0], value)


def test_seeds() -> None:
    one, many = Noise.from_seed(5), Noise.from_seed([5, 6, 5])
    assert torch.equal(draw(one, 2, 4, 3), draw(Noise.from_seed(5), 3, 4, 3)[:2]), "whatever the batch"
    values = draw(many, 3, 4, 3)
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[0], draw(one, 1, 4, 3)[0])
    assert torch.equal(values[1], draw(Noise.from_seed([6]), 1, 4, 3)[0])
    drawn = draw(one, 3, 4, 3)
    assert len({float(value) for value in drawn.flatten()}) == drawn.numel(), "no two streams are alike"
    assert not torch.equal(draw(Noise.from_seed(2**64 - 1), 1, 1, 3), draw(Noise.from_seed(0), 1, 1, 3))


def test_seeds_of_numpy(unchecked: None) -> None:
    one: Any = np.int64(5)
    assert Noise.from_seed(one) == Noise.from_seed(5)
    assert (
        Noise.from_seed(np.array([5, 6]).tolist()) == Noise.from_seed(list(np.array([5, 6]))) == Noise.from_seed([5, 6])
    )


def test_select() -> None:
    for noise in (Noise.from_seed(5), Noise.from_seed([1, 2, 3]), Noise.from_tensor(torch.randn(4, 3, 2))):
        whole, part = draw(noise, 3, 4, 2), draw(noise.select([2, 0]), 2, 4, 2)
        assert torch.equal(part, whole[[2, 0]])
        assert torch.equal(draw(noise.select([2, 0]).select([1]), 1, 4, 2), whole[[0]])


def test_generators() -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    assert torch.equal(
        draw(Noise.from_generator(generator(1)), 2, 3, 4), draw(Noise.from_generator(generator(1)), 2, 3, 4)
    )
    running = generator(1)
    first, second = (draw(Noise.from_generator(running), 2, 3, 4) for _ in range(2))
    assert not torch.equal(first, second), "a generator goes on"
    listed = draw(Noise.from_generator([generator(1), generator(2)]), 2, 3, 4)
    assert torch.equal(listed[[1]], draw(Noise.from_generator([generator(2)]), 1, 3, 4))
    torch.manual_seed(3)
    first = draw(Noise.from_generator(), 2, 3, 4)
    torch.manual_seed(3)
    assert torch.equal(first, draw(Noise.from_generator(), 2, 3, 4))


def test_a_diffusion_problem_without_noise_obeys_the_global_seed() -> None:
    def sample() -> Tensor:
        problem = picard.Diffusion(diffusion().denoiser, start(2, 3))
        once, again = (picard.solve(problem, 10, method="ddpm").final for _ in range(2))
        assert torch.equal(once, again), "the realization belongs to the problem"
        return once

    torch.manual_seed(1)
    first = sample()
    assert not torch.equal(first, sample())
    torch.manual_seed(1)
    assert torch.equal(first, sample())


def test_tensor_noise_is_used_as_it_is() -> None:
    values, grid = torch.randn(5, 2, 3, dtype=F64), times(5)
    zero = picard.SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), start(2, 3), noise=Noise.from_tensor(values))
    ys = picard.solve(zero, grid, method="euler", save="all").ys
    torch.testing.assert_close(ys.diff(dim=0), values * grid.diff().sqrt()[:, None, None])


@pytest.mark.parametrize("noise_type", CHANNELS)
def test_the_realization_does_not_depend_on_how_it_is_solved(noise_type: NoiseType) -> None:
    grid, whole = times(20), sde(noise_type, batch=3)
    expected = picard.sequential(whole, grid, method="euler", save="all")
    for window, max_rows in ((1, None), (4, 3), (30, None)):
        found = picard.solve(whole, grid, method="euler", window=window, max_rows=max_rows, tolerance=0.0, save="all")
        torch.testing.assert_close(found.ys, expected.ys, rtol=1e-11, atol=1e-11)
    part = picard.SDE(whole.drift, whole.diffusion, whole.x0[[2]], noise=whole.noise.select([2]), noise_type=noise_type)
    alone = picard.solve(part, grid, method="euler", tolerance=0.0, save="all")
    torch.testing.assert_close(alone.ys, expected.ys[:, [2]], rtol=1e-11, atol=1e-11)
    reused = picard.SDE(
        whole.drift, whole.diffusion, whole.x0, noise=expected.noise or Noise.from_seed(0), noise_type=noise_type
    )
    assert torch.equal(picard.sequential(reused, grid, method="euler", save="all").ys, expected.ys)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("factor", [1, 3, 6])
def test_coarse_increments_are_sums_of_fine_ones(factor: int, even: bool) -> None:
    fine = torch.linspace(0, 2, 13, dtype=F64) if even else times(12)
    for noise in (Noise.from_seed(2), Noise.from_tensor(torch.randn(12, 2, 3, dtype=F64))):
        increments = draw(noise, 2, 12, 3).double() * fine.diff().sqrt()[None, :, None]
        coarse = noise.coarsen(factor) if even else noise.coarsen(factor, fine)
        coarse.check(2, 12 // factor, (3,))  # a fine grid that just suffices
        grid = fine[::factor]
        found = draw(coarse, 2, 12 // factor, 3).double() * grid.diff().sqrt()[None, :, None]
        expected = increments.unflatten(1, (-1, factor)).sum(2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        twice = noise.coarsen(2).coarsen(3) if even else noise.coarsen(2, fine).coarsen(3, fine[::2])
        once = noise.coarsen(6) if even else noise.coarsen(6, fine)
        torch.testing.assert_close(draw(twice, 2, 2, 3), draw(once, 2, 2, 3), rtol=1e-5, atol=1e-6)


def test_the_draws_are_standard_normal_and_independent() -> None:
    values = draw(Noise.from_seed(11), 100, 100, 3).double()
    n = values.numel()
    ordered = values.flatten().sort().values
    normal = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    ranks = torch.arange(n + 1, dtype=F64) / n
    distance = max(float((normal - ranks[:-1]).max()), float((ranks[1:] - normal).max()))
    assert distance < 1.63 / math.sqrt(n), "Kolmogorov-Smirnov, 1 %"
    for first, second in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1]), (values[..., 1], values[..., 0])):
        assert abs(float((first * second).mean())) < 4 / math.sqrt(first.numel()), "uncorrelated"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("noise_type", CHANNELS)
def test_torchsde_on_the_same_brownian_path(noise_type: NoiseType, seed: int) -> None:
    batch, dims = 3, 4
    channels = CHANNELS[noise_type] or dims
    grid, x0, strength = times(16), start(batch, dims), diffusion_of(noise_type)

    class Theirs(torch.nn.Module):
        sde_type = "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.sin(2 * y) - y * t

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return strength(t.expand(len(y)), y)

    Theirs.noise_type = noise_type  # type: ignore[attr-defined]
    path = torchsde.BrownianInterval(0.0, 2.0, size=(batch, channels), dtype=F64, entropy=seed)
    steps = [torchsde.sdeint(Theirs(), x0, grid[:2], bm=path, method="euler", dt=10.0)]
    for first in range(1, 16):  # torchsde steps by a constant dt: one call for every uneven step
        steps.append(
            torchsde.sdeint(Theirs(), steps[-1][-1], grid[first : first + 2], bm=path, method="euler", dt=10.0)
        )
    expected = torch.stack([x0, *[one[-1] for one in steps]])
    ours = picard.SDE(
        lambda t, x: torch.sin(2 * x) - x * t[:, None],
        strength,
        x0,
        noise=Noise.from_brownian(path),
        noise_type=noise_type,
    )
    found = picard.solve(ours, grid, method="euler", window=5, tolerance=0.0, save="all")
    torch.testing.assert_close(found.ys, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(picard.sequential(ours, grid, method="euler", save="all").ys, found.ys)


def test_a_brownian_path_backward_in_time_and_its_samples() -> None:
    path = torchsde.BrownianInterval(0.0, 2.0, size=(3, 2), dtype=F64, entropy=1)
    grid = times(8)
    forward, backward = Noise.from_brownian(path).on(grid), Noise.from_brownian(path).on(grid.flip(0))
    there, back = draw(forward, 3, 8, 2), draw(backward, 3, 8, 2)
    torch.testing.assert_close(there, -back.flip(1))
    assert torch.equal(draw(forward.select([2, 0]), 2, 8, 2), there[[2, 0]])
    for coarser in (
        Noise.from_brownian(path).coarsen(4, grid),
        Noise.from_brownian(path).coarsen(4),
        Noise.from_brownian(path).coarsen(2, grid).coarsen(2, grid[::2]),
    ):
        coarse = draw(coarser.on(grid[::4]), 3, 2, 2)
        torch.testing.assert_close(coarse, draw(Noise.from_brownian(path).on(grid[::4]), 3, 2, 2))
    halves = draw(Noise.from_brownian(path).coarsen(2, grid).on(grid[::2]), 3, 4, 2)
    even = Noise.from_brownian(path).coarsen(2, grid).coarsen(2).on(grid[::4])  # as if all steps had one length
    torch.testing.assert_close(draw(even, 3, 2, 2), halves.unflatten(1, (2, 2)).sum(2) / 2**0.5)
