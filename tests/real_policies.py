"""What the tests against the real DiffusionPolicy and LeRobot share: a little training, and one comparison."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from picard.adapters import parallelize, restore

logger = logging.getLogger(__name__)
STEPS = {"ddpm": 50, "ddim": 25}


def scheduler(name: str, prediction: str) -> Any:
    """Make the scheduler of the published configurations, with either kind of prediction."""
    import diffusers

    kind: Any = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[name]
    return kind(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type=prediction)


def train(network: Any, levels: Any, shape: tuple[int, int], call: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Train a network for a moment on waves, so that its output has to do with the noise in its input.

    With random weights it has not; the sequential loop itself then turns rounding errors into another plan.

    Args:
        network: what is trained.
        levels: its scheduler.
        shape: horizon and channels.
        call: calls the network on states and times of 32 rows, with conditioning.
    """
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    time = torch.arange(shape[0])[None, :, None] / 4
    network.train()
    for _ in range(60):
        data = 0.8 * torch.sin(time + 6 * torch.rand(32, 1, shape[1]))
        noise, t = torch.randn_like(data), torch.randint(0, 100, (32,))
        target = noise if levels.config.prediction_type == "epsilon" else data
        loss = (call(levels.add_noise(data, noise, t), t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def compare(name: str, policy: Any, sample: Callable[[], Tensor], generator: torch.Generator | None) -> None:
    """Compare a policy in parallel with itself: at zero tolerance, and at the default one; log what came out."""

    def seeded() -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        if generator is not None:
            generator.manual_seed(8)
        with torch.no_grad():
            plans = sample()
        return plans, torch.cat([torch.rand(3), torch.rand(3, generator=generator)])

    restore(policy)
    right, after = seeded()
    parallelize(policy, window=16, tolerance=0.0, mode="plan")
    plans, then = seeded()
    exact, tight = float((plans - right).abs().max()), policy.picard.stats.rounds
    assert torch.equal(then, after)
    parallelize(policy, window=16, mode="plan")
    plans, then = seeded()
    assert torch.equal(then, after)
    close, stats = float((plans - right).abs().max()), policy.picard.stats
    restore(policy)
    logger.warning(
        "%-62s batch %d, %3d steps, %s generator: %.1e in %d rounds at tolerance 0; default %.1e in %d rounds, %d rows",
        name,
        len(right),
        stats.sequential_evaluations,
        "global" if generator is None else "own",
        exact,
        tight,
        close,
        stats.rounds,
        stats.evaluations,
    )
    assert exact <= 1e-5 * max(1.0, float(right.abs().max()))
    assert float((plans - right).square().mean().sqrt()) <= 0.05  # single numbers may be further off: no law forbids it
    assert stats.rounds < stats.sequential_evaluations
