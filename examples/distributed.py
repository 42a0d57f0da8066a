"""A diffusion model's steps spread over processes: `torchrun --nproc-per-node 2 examples/distributed.py`.

Every process runs this whole script. Of each batched model call it evaluates its share of the rows. On GPUs: "nccl" in
place of "gloo", and model and start on `torch.device("cuda", local_rank)`. Started without torchrun, it is alone.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

import picard


class Network(nn.Module):
    """A small noise prediction that remembers how many rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.layers = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 8))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise of x (rows, 8) at training steps t (rows,)."""
        self.rows += len(x)
        return x + 0.1 * self.layers(torch.cat([x, t[:, None] / 1000], 1))


@torch.no_grad()
def main() -> None:
    """Solve spread over the processes and alone, and compare."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    torch.manual_seed(0)  # the same weights and start on every process
    network = Network().double()
    start = torch.randn(3, 8, dtype=torch.float64)
    denoiser = picard.Denoiser(network, picard.Schedule.linear())
    problem = picard.Diffusion(denoiser, start, noise=picard.Noise.from_seed(0))

    spread = picard.solve(picard.distributed.spread(problem), 200, method="ddpm", window=40)
    mine = network.rows
    alone = picard.solve(problem, 200, method="ddpm", window=40)

    rank, ranks = dist.get_rank(), dist.get_world_size()
    difference = float((spread.final - alone.final).abs().max())
    print(f"rank {rank} of {ranks}: {mine} of {spread.stats.evaluations} rows, difference {difference:.1e}")
    assert difference < 1e-9
    assert abs(mine - spread.stats.evaluations / ranks) <= spread.stats.rounds
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
