"""The one-dimensional U-Net of Diffusion Policy (Chi et al., 2023): convolutions over time, conditioned by FiLM.

Module names are those of the published `ConditionalUnet1D`, so that its checkpoints load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class StepEmbedding(nn.Module):
    """Sines and cosines of the diffusion step, (rows,) to (rows, features)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, t: Tensor) -> Tensor:
        """Embed training steps."""
        half = self.features // 2
        exponent = torch.arange(half, device=t.device) * -(math.log(10_000) / (half - 1))
        angle = t[:, None] * torch.exp(exponent)
        return torch.cat([angle.sin(), angle.cos()], -1)


class Convolution(nn.Module):
    """Convolution, group normalization, Mish: (rows, features, steps) to (rows, out, steps)."""

    def __init__(self, features: int, out: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(features, out, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(groups, out), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three."""
        return self.block(x)


class Residual(nn.Module):
    """Two convolutions around a residual; the condition (rows, condition) shifts, and may scale, what lies between."""

    def __init__(self, features: int, out: int, condition: int, kernel: int, groups: int, *, scale: bool) -> None:
        super().__init__()
        self.scale = scale
        self.blocks = nn.ModuleList([Convolution(n, out, kernel, groups) for n in (features, out)])
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * out if scale else out))
        self.residual_conv = nn.Identity() if features == out else nn.Conv1d(features, out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (rows, features, steps) to (rows, out, steps)."""
        inner, film = self.blocks[0](x), self.cond_encoder(condition)[..., None]
        if self.scale:
            factor, shift = film.chunk(2, 1)
            inner = factor * inner + shift
        else:
            inner = inner + film
        return self.blocks[1](inner) + self.residual_conv(x)


class Resample(nn.Module):
    """A convolution that halves the number of steps, or its transpose that doubles it."""

    def __init__(self, features: int, *, up: bool) -> None:
        super().__init__()
        kind, kernel = (nn.ConvTranspose1d, 4) if up else (nn.Conv1d, 3)
        self.conv = kind(features, features, kernel, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Resample (rows, features, steps)."""
        return self.conv(x)


class ConditionalUnet1D(nn.Module):
    """The denoiser of Diffusion Policy for trajectories.

    Args:
        input_dim: numbers a step of the trajectory holds.
        local_cond_dim: numbers a step of the local condition holds, if there is one.
        global_cond_dim: size of the global condition, if there is one.
        diffusion_step_embed_dim: size of the embedding of the diffusion step.
        down_dims: channels of every level.
        kernel_size: of the convolutions.
        n_groups: of the group normalizations.
        cond_predict_scale: whether conditions scale as well as shift.
    """

    def __init__(
        self,
        input_dim: int,
        local_cond_dim: int | None = None,
        global_cond_dim: int | None = None,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,  # the published signature
    ) -> None:
        super().__init__()
        embed, dims = diffusion_step_embed_dim, list(down_dims)
        condition = embed + (global_cond_dim or 0)

        def pair(features: int, out: int) -> list[nn.Module]:
            shape = (condition, kernel_size, n_groups)
            return [Residual(n, out, *shape, scale=cond_predict_scale) for n in (features, out)]

        self.diffusion_step_encoder = nn.Sequential(
            StepEmbedding(embed), nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed)
        )
        # The published network has two encoders of the local condition and uses the first; checkpoints hold both.
        self.local_cond_encoder = None
        if local_cond_dim is not None:
            encoders = [pair(local_cond_dim, dims[0])[0] for _ in range(2)]
            self.local_cond_encoder = nn.ModuleList(encoders)
        self.down_modules = nn.ModuleList()
        for level, (features, out) in enumerate(zip([input_dim, *dims], dims, strict=False)):
            last = level == len(dims) - 1
            down = nn.Identity() if last else Resample(out, up=False)
            self.down_modules.append(nn.ModuleList([*pair(features, out), down]))
        self.mid_modules = nn.ModuleList(pair(dims[-1], dims[-1]))
        self.up_modules = nn.ModuleList()
        for out, features in zip(dims[-2::-1], dims[:0:-1], strict=True):
            self.up_modules.append(nn.ModuleList([*pair(2 * features, out), Resample(out, up=True)]))
        self.final_conv = nn.Sequential(Convolution(dims[0], dims[0], kernel_size, 8), nn.Conv1d(dims[0], input_dim, 1))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Predict the noise in a batch of trajectories.

        Args:
            sample: noisy trajectories, shape (rows, steps, input_dim).
            timestep: training steps, shape (rows,) or a single one.
            local_cond: shape (rows, steps, local_cond_dim).
            global_cond: shape (rows, global_cond_dim).
            kwargs: not used, as in the published network.

        Returns:
            The prediction, shape (rows, steps, input_dim).
        """
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        condition = self.diffusion_step_encoder(t)
        if global_cond is not None:
            condition = torch.cat([condition, global_cond], -1)
        x = sample.movedim(1, 2)
        kept: list[Tensor] = []
        down: Any = self.down_modules
        for level, (first, second, resample) in enumerate(down):
            x = first(x, condition)
            if level == 0 and local_cond is not None and self.local_cond_encoder is not None:
                x = x + self.local_cond_encoder[0](local_cond.movedim(1, 2), condition)
            x = second(x, condition)
            kept.append(x)
            x = resample(x)
        for module in self.mid_modules:
            x = module(x, condition)
        up: Any = self.up_modules
        for first, second, resample in up:
            x = second(first(torch.cat([x, kept.pop()], 1), condition), condition)
            x = resample(x)
        return self.final_conv(x).movedim(1, 2)
