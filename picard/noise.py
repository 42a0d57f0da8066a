"""Noise: one fixed realization, drawn once and found again by (sample, step)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from picard.device import check_data, send
from picard.errors import InvalidProblemError, NotSupportedError, describe
from picard.grid import check_times
from picard.number import check_count, check_generator, check_samples, whole, wholes
from picard.philox import standard_normal
from picard.shapes import Float

Brownian = Callable[[float, float], Tensor]
_COARSEST = 10**6  # fine steps that one coarse step adds up, which are all drawn for it


class Noise(ABC):
    """A realization of standard normal noise, one draw for every sample and step; build one by a class method.

    A draw depends on the sample and the step alone, so it is the same whatever the batch, the window, the order of
    evaluation or the device. For an SDE the Brownian increment of step i is `sqrt(|h_i|)` times the draw. Class methods
    raise `InvalidProblemError` for what is no realization.
    """

    @abstractmethod
    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        """Draw the noise of the pairs (samples[i], steps[i]).

        Args:
            samples: indices in the batch.
            steps: indices of grid steps, as many.
            shape: shape of one draw.

        Returns:
            Standard normal values, shape (n, *shape), on the CPU unless the realization lives elsewhere.
        """

    @abstractmethod
    def select(self, samples: Sequence[int]) -> Noise:
        """Return the noise of some samples of the batch, in the given order."""

    def check(self, batch: int, steps: int, shape: tuple[int, ...]) -> None:
        """Check that the realization covers a batch and a number of steps.

        Raises:
            InvalidProblemError: if it does not.
        """

    def on(self, times: Float[Tensor, " points"]) -> Noise:
        """Return the noise on a time grid; only a Brownian path depends on it."""
        return self

    def coarsen(self, factor: int, times: Float[Tensor, " points"] | None = None) -> Noise:
        """Return the same path on every `factor`-th grid point: coarse increments are sums of fine ones.

        Args:
            factor: fine steps per coarse step.
            times: the fine grid; uniform if not given.
        """
        fine = None if times is None else check_times(times, "the fine grid")
        return _CoarseNoise(self, check_count("factor", factor, most=_COARSEST), fine)

    @staticmethod
    def from_seed(seed: int | Sequence[int]) -> Noise:
        """Draw from seeds: one for the whole batch, or one for every sample.

        Sample b of `from_seed(s)` has its own stream (s, b); sample b of a list has the stream of its seed alone, so
        that it does not depend on the batch it is in. `from_seed([s])` equals `from_seed(s)` for one sample. Draws are
        made on the CPU in float32 by the counter-based generator Philox (Salmon et al., 2011), keyed by
        (seed, sample, step), for every dtype and device.

        Args:
            seed: a seed in [0, 2**64), or as many as there are samples.

        Raises:
            InvalidProblemError: if a seed is no such integer.
        """
        single = whole(seed)
        found = wholes(seed) if single is None else [single]
        seeds = [one for one in found if one is not None and 0 <= one < 2**64]
        if not seeds or len(seeds) < len(found):
            msg = f"a seed must be an integer in [0, 2**64), or a list of them; given {describe(seed)}"
            raise InvalidProblemError(msg)
        return _SeedNoise(tuple((one, 0) for one in seeds)) if single is None else _SeedNoise(None, single)

    @staticmethod
    def from_generator(generator: Generator | Sequence[Generator] | None = None) -> Noise:
        """Take one seed from a generator (which advances it), or one from each of a list, one a sample.

        Without a generator, the seed comes from PyTorch's global one, so `torch.manual_seed` governs it.
        """

        def seed(source: Generator | None) -> int:
            device = "cpu" if source is None else source.device
            return int(torch.randint(2**62, (1,), generator=source, device=device))

        if generator is not None:
            check_generator(generator)
        if isinstance(generator, Sequence):
            return Noise.from_seed([seed(source) for source in generator])
        return Noise.from_seed(seed(generator))

    @staticmethod
    def from_tensor(values: Float[Tensor, "steps batch *shape"]) -> Noise:
        """Use given standard normal values, shape (steps, batch, *shape); memory is the tensor's."""
        if not isinstance(values, Tensor) or values.ndim < 2 or not values.is_floating_point():
            msg = f"noise must be a floating tensor of shape (steps, batch, *shape); given {describe(values)}"
            raise InvalidProblemError(msg)
        check_data("noise", values)
        return _TensorNoise(values)

    @staticmethod
    def from_brownian(path: Brownian) -> Noise:
        """Use a Brownian path that returns W(b) - W(a) for all samples when called with a < b, as torchsde's do.

        It is queried step by step in ascending order, so the realization does not depend on the window.
        """
        if not callable(path):
            msg = f"a Brownian path must be callable as path(a, b); given {describe(path)}"
            raise InvalidProblemError(msg)
        return _BrownianNoise(path)


@dataclass(frozen=True)
class _SeedNoise(Noise):
    streams: tuple[tuple[int, int], ...] | None
    seed: int = 0

    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        values = standard_normal(self._keys(samples), np.array(steps, dtype=np.uint64), math.prod(shape))
        return torch.from_numpy(values).reshape(len(samples), *shape)

    def _keys(self, samples: Sequence[int]) -> NDArray[np.uint64]:
        if self.streams is not None:
            return np.array([self.streams[sample] for sample in samples], dtype=np.uint64).reshape(-1, 2)
        keys = np.full((len(samples), 2), self.seed, dtype=np.uint64)
        keys[:, 1] = samples
        return keys

    def select(self, samples: Sequence[int]) -> Noise:
        keys = self._keys(check_samples(samples, None if self.streams is None else len(self.streams)))
        return replace(self, streams=tuple((seed, stream) for seed, stream in keys.tolist()))

    def check(self, batch: int, steps: int, shape: tuple[int, ...]) -> None:
        if self.streams is not None and len(self.streams) != batch:
            msg = (
                f"a list of seeds must have one seed a sample; given {len(self.streams)} for a batch of {batch}: "
                "write Noise.from_seed([0, 1, ...]), or one integer for the whole batch"
            )
            raise InvalidProblemError(msg)


@dataclass(frozen=True, eq=False)
class _TensorNoise(Noise):
    values: Tensor

    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        return self.values[send(steps, self.values), send(samples, self.values)]

    def select(self, samples: Sequence[int]) -> Noise:
        return _TensorNoise(self.values[:, check_samples(samples, self.values.shape[1])])

    def check(self, batch: int, steps: int, shape: tuple[int, ...]) -> None:
        if self.values.shape[0] < steps or tuple(self.values.shape[1:]) != (batch, *shape):
            msg = f"noise must have shape {(steps, batch, *shape)}; given {describe(self.values)}"
            raise InvalidProblemError(msg)


@dataclass(frozen=True, eq=False)
class _BrownianNoise(Noise):
    path: Brownian
    times: Tensor | None = None
    samples: tuple[int, ...] | None = None

    def on(self, times: Float[Tensor, " points"]) -> Noise:
        return replace(self, times=times)

    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        increments = {step: self._increment(step) for step in sorted(set(steps))}
        chosen = samples if self.samples is None else [self.samples[sample] for sample in samples]
        return torch.stack([increments[step][sample] for sample, step in zip(chosen, steps, strict=True)])

    def _increment(self, step: int) -> Tensor:
        if self.times is None:
            msg = "a Brownian path needs a time grid, which a diffusion model's steps are not: use Noise.from_seed"
            raise NotSupportedError(msg)
        start, end = float(self.times[step]), float(self.times[step + 1])
        forward: object = self.path(min(start, end), max(start, end))
        if not isinstance(forward, Tensor) or forward.ndim == 0 or not forward.is_floating_point():
            msg = f"a Brownian path must return a floating tensor, one entry a sample; it returned {describe(forward)}"
            raise InvalidProblemError(msg)
        check_data("what a Brownian path returns", forward)
        return (forward if start < end else -forward) / abs(end - start) ** 0.5

    def coarsen(self, factor: int, times: Float[Tensor, " points"] | None = None) -> Noise:
        coarse = super().coarsen(factor, times)
        return self if times is None else coarse  # a path is the same on every grid

    def select(self, samples: Sequence[int]) -> Noise:
        samples = check_samples(samples, None if self.samples is None else len(self.samples))
        known = samples if self.samples is None else [self.samples[sample] for sample in samples]
        return replace(self, samples=tuple(known))

    def check(self, batch: int, steps: int, shape: tuple[int, ...]) -> None:
        given = self._increment(0)
        rows = given.shape[0] if self.samples is None else len(self.samples)
        if (rows, *given.shape[1:]) != (batch, *shape):
            msg = f"a Brownian path must return increments of shape {(batch, *shape)}; it returned {describe(given)}"
            raise InvalidProblemError(msg)


@dataclass(frozen=True, eq=False)
class _CoarseNoise(Noise):
    fine: Noise
    factor: int
    times: Tensor | None

    def draw(self, samples: Sequence[int], steps: Sequence[int], shape: tuple[int, ...]) -> Float[Tensor, "n *shape"]:
        parts = [step * self.factor + part for step in steps for part in range(self.factor)]
        values = self.fine.draw([sample for sample in samples for _ in range(self.factor)], parts, shape)
        values = values.unflatten(0, (len(steps), self.factor))
        h = torch.ones(len(parts), device="cpu") if self.times is None else self.times.diff().abs()[parts]
        weight = h.reshape(len(steps), self.factor)
        weight = (weight / weight.sum(1, keepdim=True)).sqrt().to(values)
        return (values * weight.reshape(*weight.shape, *[1] * len(shape))).sum(1)

    def on(self, times: Float[Tensor, " points"]) -> Noise:
        return replace(self, fine=self.fine.on(times if self.times is None else self.times))

    def select(self, samples: Sequence[int]) -> Noise:
        return replace(self, fine=self.fine.select(samples))

    def check(self, batch: int, steps: int, shape: tuple[int, ...]) -> None:
        needed = steps * self.factor + 1
        if self.times is not None and len(self.times) < needed:
            msg = f"the fine grid must have {needed} points for {steps} coarse steps; given {describe(self.times)}"
            raise InvalidProblemError(msg)
        self.fine.check(batch, needed - 1, shape)
