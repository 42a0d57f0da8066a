"""Sample digits sequentially and parallel in time, and compare: `python examples/digits/demo.py`, about a minute.

A real Diffusers U-Net, trained by `train.py`, draws one digit of every class with the 1000-step DDPM and the 100-step
DDIM. All solvers of a sampler get the same start and the same noise. The script prints what each costs and how far it
ends from the sequential samples, and writes two pictures into `out/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from model import TRAIN_STEPS, epsilon, load
from pictures import Comparison, Recorder, draw_rounds, draw_samples
from pipeline import DigitsPipeline

import picard

SAMPLERS = {"DDPM": ("ddpm", 1000), "DDIM": ("ddim", 100)}
SOLVERS: Mapping[str, dict[str, Any]] = {
    "default": {},
    "tolerance 0.01": {"tolerance": 0.01},
    "ParaDiGMS preset": picard.presets.PARADIGMS,
}
SHOWN = 3  # the sample whose rounds are drawn
HEADER = f"{'sampler':<11}{'solver':<18}{'rounds':>8}{'model evaluations':>19}{'seconds':>9}{'largest difference':>20}"


def problem(seed: int) -> picard.Diffusion:
    """Make the problem: one digit of each of the ten classes, its start and its noise fixed by the seed."""
    unet = load()
    denoiser = picard.Denoiser(lambda x, t, label: epsilon(unet, x, t, label), picard.Schedule.linear(TRAIN_STEPS))
    start = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return picard.Diffusion(denoiser, start, noise=picard.Noise.from_seed(seed), cond={"label": torch.arange(10)})


def row(sampler: str, solver: str, solution: picard.Solution, difference: float | None) -> str:
    """Write one line of the table."""
    stats = solution.stats
    off = "" if difference is None else f"{difference:.1e}"
    return f"{sampler:<11}{solver:<18}{stats.rounds:>8,}{stats.evaluations:>19,}{stats.seconds:>9.1f}{off:>20}"


def one_line(seed: int, window: int) -> None:
    """Make a Diffusers pipeline around the same network parallel by one line, and call it as before."""
    pipe = DigitsPipeline(load(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    sequential = pipe(range(10), generator=torch.Generator().manual_seed(seed)).images
    pipe = picard.adapters.parallelize(pipe, window=window)
    parallel = pipe(range(10), generator=torch.Generator().manual_seed(seed)).images
    stats, difference = pipe.picard.stats, float(abs(parallel - sequential).max())
    print(
        f"\nAfter pipe = picard.adapters.parallelize(pipe, window={window}): {stats.sequential_evaluations} "
        f"calls became {stats.rounds} ({stats.mode}); largest difference {difference:.1e} of images in [0, 1]"
    )
    assert difference <= 1 / 255


def main() -> None:
    """Run every sampler with every solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the start and the noise (default: 0)")
    parser.add_argument("--window", type=int, default=64, help="steps in flight per sample (default: 64)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("out"), help="folder of the pictures")
    options = parser.parse_args()
    digits = problem(options.seed)
    digits.denoiser.model(digits.x_T, torch.zeros(10, dtype=torch.int64), **digits.cond)  # the first call is slow

    print(f"10 digits by a U-Net; one round is one model call on all samples; window {options.window}\n\n{HEADER}")
    comparisons: list[Comparison] = []
    recorders: dict[str, dict[str, Recorder]] = {}
    for name, (method, steps) in SAMPLERS.items():
        sampler = f"{name}-{steps}"
        reference = picard.sequential(digits, steps, method=method)
        print(row(sampler, "sequential", reference, None), flush=True)
        for solver, preset in SOLVERS.items():
            recorder = Recorder(SHOWN, steps)
            solution = picard.solve(digits, steps, method=method, window=options.window, callback=recorder, **preset)
            difference = float((solution.final - reference.final).abs().max())
            print(row(sampler, solver, solution, difference), flush=True)
            recorders.setdefault(sampler, {})[solver] = recorder
            if solver == "default":
                comparisons.append(Comparison(sampler, reference, solution))

    one_line(options.seed, options.window)
    options.out.mkdir(parents=True, exist_ok=True)
    draw_samples(comparisons, options.out / "samples.png")
    draw_rounds(recorders, options.out / "rounds.png")
    print("\nPixels lie in [-1, 1]. Seconds depend on the machine and on what else runs on it; the counts hardly do.")
    print(f"pictures: {options.out / 'samples.png'}, {options.out / 'rounds.png'}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
