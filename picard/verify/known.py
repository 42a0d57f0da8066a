"""Equations about which enough is known to verify a solver on them: Lipschitz constants, bounded diffusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from picard.errors import InvalidProblemError, check_choice, describe
from picard.noise import Noise
from picard.number import number, wholes
from picard.ode import ODE
from picard.sde import SDE, NoiseType
from picard.verify.seeded import check_dtype, check_size, seeded


@dataclass(frozen=True, eq=False)
class LipschitzODE(ODE):
    """An ODE whose drift has a known Lipschitz constant in the Euclidean norm of one sample's state.

    Attributes:
        lipschitz: the constant.
    """

    lipschitz: float = field(kw_only=True)


def _orthogonal(dims: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64, device="cpu")).Q


def _start(batch: int, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    batch = check_size("batch", batch)
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)


def tanh_ode(
    seed: int,
    *,
    batch: int = 2,
    shape: Sequence[int] = (3,),
    lipschitz: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> LipschitzODE:
    """Build dx/dt = L Q tanh(P x + b cos t) with orthogonal P and Q: a network whose Lipschitz constant is L.

    Args:
        seed: seed of the weights and of the start.
        batch: number of samples.
        shape: shape of one state.
        lipschitz: the constant L.
        dtype: dtype of the state.
    """
    generator = seeded(seed)
    check_dtype(dtype)
    if not wholes(shape):
        msg = f"shape must list the sizes of one state; given {describe(shape)}: write e.g. shape=(3,)"
        raise InvalidProblemError(msg)
    dims = math.prod(check_size("every entry of shape", size) for size in shape)
    lipschitz = number("lipschitz", lipschitz)
    inner, outer = _orthogonal(dims, generator).to(dtype), (lipschitz * _orthogonal(dims, generator)).to(dtype)
    bias = torch.randn(dims, generator=generator, dtype=torch.float64, device="cpu").to(dtype)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        hidden = x.flatten(1) @ inner + torch.cos(t).to(x.dtype)[:, None] * bias
        return (torch.tanh(hidden) @ outer).reshape(x.shape)

    return LipschitzODE(drift, _start(batch, shape, generator, dtype), lipschitz=lipschitz)


def linear_system(
    seed: int, *, batch: int = 2, dims: int = 3, lipschitz: float = 1.0, dtype: torch.dtype = torch.float64
) -> LipschitzODE:
    """Build dx/dt = A x + b cos t, the spectral norm of A being the given constant.

    Args:
        seed: seed of A, b and the start.
        batch: number of samples.
        dims: size of one state.
        lipschitz: the norm.
        dtype: dtype of the state.
    """
    generator = seeded(seed)
    check_dtype(dtype)
    lipschitz = number("lipschitz", lipschitz)
    dims = check_size("dims", dims)
    matrix = torch.randn(dims, dims, generator=generator, dtype=torch.float64, device="cpu")
    matrix = (lipschitz * matrix / torch.linalg.matrix_norm(matrix, 2)).to(dtype)
    bias = torch.randn(dims, generator=generator, dtype=torch.float64, device="cpu").to(dtype)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return x @ matrix + torch.cos(t).to(x.dtype)[:, None] * bias

    return LipschitzODE(drift, _start(batch, (dims,), generator, dtype), lipschitz=lipschitz)


def runaway_ode(seed: int, *, batch: int = 2, dims: int = 2, rate: float = 1.0) -> ODE:
    """Build dx/dt = -rate x^3: tame when stepped one after the other, overflowing when a window is guessed.

    Args:
        seed: seed of the start, whose numbers lie between 0.5 and 1.
        batch: number of samples.
        dims: size of one state.
        rate: the rate; explicit Euler with steps h stays bounded for rate h < 2.
    """
    generator = seeded(seed)
    rate = number("rate", rate)
    shape = (check_size("batch", batch), check_size("dims", dims))
    start = 0.5 + 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return ODE(lambda _, x: -rate * x**3, start)


def tanh_sde(
    seed: int,
    *,
    batch: int = 2,
    dims: int = 3,
    noise_type: NoiseType = "diagonal",
    lipschitz: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> SDE:
    """Build an SDE with the drift of `tanh_ode` and a bounded, smooth diffusion of the given kind.

    Args:
        seed: seed of the weights, the start and the noise.
        batch: number of samples.
        dims: size of one state.
        noise_type: `diagonal`, `scalar`, `additive` or `general`; the last two have two channels.
        lipschitz: Lipschitz constant of the drift.
        dtype: dtype of the state.
    """
    check_choice("noise_type", noise_type, get_args(NoiseType))
    dims = check_size("dims", dims)
    ode = tanh_ode(seed, batch=batch, shape=(dims,), lipschitz=lipschitz, dtype=dtype)
    generator = seeded(seed, 1)
    channels = {"diagonal": 0, "scalar": 1, "additive": 2, "general": 2}[noise_type]
    matrix = torch.randn(dims, max(channels, 1), generator=generator, dtype=torch.float64, device="cpu")
    matrix = (0.3 * matrix).to(dtype)

    def diffusion(_: Tensor, x: Tensor) -> Tensor:
        if noise_type == "additive":
            return matrix.expand(len(x), *matrix.shape)
        strength = 1 + 0.5 * torch.sin(x)
        return 0.3 * strength if noise_type == "diagonal" else strength[..., None] * matrix

    return SDE(ode.drift, diffusion, ode.x0, noise=Noise.from_seed(seed), noise_type=noise_type)
