"""Your own diffusion model: a small class-conditional network with guidance: `python examples/own_diffusion.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import picard

SCHEDULE = picard.Schedule.cosine(200)
EITHER = 2  # the label that stands for "no label"


class Network(nn.Module):
    """Predict the noise in points of the plane, from the training step and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(3, 16)
        self.layers = nn.Sequential(nn.Linear(20, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Take x (rows, 2), t (rows,) and label (rows,)."""
        phase = t[:, None] * torch.pi / 200
        return self.layers(torch.cat([x, phase.sin(), phase.cos(), self.label(label)], 1))


def train(network: Network, steps: int = 500) -> None:
    """Train on two arcs, one a label, for a few seconds; one label in ten is hidden."""
    bar = SCHEDULE.alphas_cumprod.float()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        label, angle = torch.randint(2, (256,)), torch.pi * torch.rand(256)
        data = torch.stack([angle.cos(), angle.sin()], 1) * (1 - 2 * label)[:, None]
        t, noise = torch.randint(200, (256,)), torch.randn(256, 2)
        noisy = bar[t, None].sqrt() * data + (1 - bar[t, None]).sqrt() * noise
        seen = torch.where(torch.rand(256) < 0.1, EITHER, label)
        optimizer.zero_grad()
        (network(noisy, t, seen) - noise).square().mean().backward()
        optimizer.step()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Network()
    train(model)
    model.requires_grad_(False)  # sampling needs no gradients, and then keeps no trajectory for them
    labels = torch.arange(64) % 2
    guidance = picard.Guidance(2.0, uncond={"label": torch.full((64,), EITHER)})
    denoiser = picard.Denoiser(model, SCHEDULE, clip=1.5, guidance=guidance)
    problem = picard.Diffusion(denoiser, torch.randn(64, 2), noise=picard.Noise.from_seed(0), cond={"label": labels})
    for method in ("ddpm", "ddim", "dpmsolver++", picard.integrators.DDIM(eta=0.5)):
        reference = picard.sequential(problem, 200, method=method).final
        solution = picard.solve(problem, 200, method=method, window=40, tolerance=0.01)
        difference = (solution.final - reference).abs().amax(1)
        print(f"{method}: {solution.stats.rounds} rounds for 200 steps, median difference {difference.median():.1e}")
        assert solution.success
        assert difference.median() < 1e-2
