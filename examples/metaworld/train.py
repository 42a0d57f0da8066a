"""Train the policy of a task on its expert, minutes on one core: `python -m examples.metaworld.train TASK`.

Diffusion Policy (Chi et al., 2023): noise prediction, AdamW, cosine learning rate, an exponential moving average of the
weights, which is what is stored, in half precision.
"""

from __future__ import annotations

import argparse
import copy
import math

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from examples.metaworld.demonstrations import record, windows
from examples.metaworld.policy import WEIGHTS, DiffusionPolicy, network, scheduler
from examples.metaworld.tasks import TASKS

PEAK_RATE, WARMUP, BATCH = 1e-3, 200, 128


def train(task: str, demonstrations: int, iterations: int, seed: int = 0) -> DiffusionPolicy:
    """Train on fresh demonstrations and return the policy with averaged weights.

    Args:
        task: Meta-World's name of the task.
        demonstrations: how many successful episodes to learn from.
        iterations: gradient steps.
        seed: of the initial weights, the batches and the noise.
    """
    torch.manual_seed(seed)
    episodes = list(tqdm(record(task, demonstrations), total=demonstrations, unit="episode", mininterval=5))
    observations, actions = windows(episodes)
    policy = DiffusionPolicy(network(), scheduler())
    policy.normalizer["obs"].fit(observations)  # type: ignore[operator]
    policy.normalizer["action"].fit(actions)  # type: ignore[operator]
    condition, actions = policy.condition(observations), policy.normalizer["action"].normalize(actions)  # type: ignore[operator]
    model = policy.model
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.95, 0.999), weight_decay=1e-6)
    running = 1.0
    for step in (bar := tqdm(range(iterations), unit="step", mininterval=5)):
        pick = torch.randint(len(actions), (BATCH,))
        t = torch.randint(policy.noise_scheduler.config.num_train_timesteps, (BATCH,))
        noise = torch.randn(BATCH, *actions.shape[1:])
        noisy = policy.noise_scheduler.add_noise(actions[pick], noise, t)
        loss = torch.nn.functional.mse_loss(model(noisy, t, global_cond=condition[pick]), noise)
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / iterations))
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARMUP) * cosine
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.999, 1 - (1 + step) ** -0.75)
        for mean, current in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)
        running += 0.01 * (float(loss.detach()) - running)
        bar.set_postfix_str(f"loss {running:.4f}", refresh=False)
    policy.model = average
    return policy.eval()


def main() -> None:
    """Train and store the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help=f"such as {' or '.join(TASKS)}")
    parser.add_argument("--demonstrations", type=int, default=300)
    parser.add_argument("--iterations", type=int, default=2000)
    options = parser.parse_args()
    policy = train(options.task, options.demonstrations, options.iterations)
    weights = {name: value.half().contiguous() for name, value in policy.state_dict().items()}
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{options.task}.safetensors"
    save_file(weights, path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
