"""Beside the ParaDiGMS pipeline of Diffusers: model calls, evaluations and the largest difference to sequential.

The model is tiny and random: its numbers of rounds say nothing about a trained one; its differences do. Both start from
the same latents and prompts. Run with `python -m benchmarks.paradigms_pipeline`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from picard.adapters import parallelize, restore
from tests import tiny_diffusers as tiny

SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddim": ("DDIM", {"steps_offset": 1}, {}),
    "ddim, set_alpha_to_one=False": ("DDIM", {"steps_offset": 1, "set_alpha_to_one": False}, {}),
    "ddim, steps_offset=0": ("DDIM", {}, {}),
    "ddim, trailing": ("DDIM", {"steps_offset": 1, "timestep_spacing": "trailing"}, {}),
    "ddim, linspace": ("DDIM", {"steps_offset": 1, "timestep_spacing": "linspace"}, {}),
    "ddim, eta=1": ("DDIM", {"steps_offset": 1}, {"eta": 1.0}),
    "ddpm": ("DDPM", {"steps_offset": 1}, {}),
    "ddpm, fixed_large": ("DDPM", {"steps_offset": 1, "variance_type": "fixed_large"}, {}),
    "ddpm, trailing": ("DDPM", {"steps_offset": 1, "timestep_spacing": "trailing"}, {}),
    "ddim, callback every step": ("DDIM", {"steps_offset": 1}, {"callback": True}),
}


def count(network: Any, run: Callable[[], Tensor]) -> tuple[Tensor, int, int]:
    """Run something and count the network's calls and rows."""
    calls: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        return run(), len(calls), sum(calls)
    finally:
        handle.remove()


def unchanged(*given: Any) -> Any:
    """Watch a step and change nothing, as `callback_on_step_end`."""
    return given[-1]


def compare(name: str, steps: int, tolerance: float) -> str:
    """Run one setting three ways and describe the result in a line of a table."""
    import diffusers

    kind, config, call = SETTINGS[name]
    config = {"clip_sample": False, **config}
    theirs = tiny.stable_diffusion(
        "StableDiffusionParadigmsPipeline", getattr(diffusers, f"{kind}ParallelScheduler")(**config)
    )
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**config)
    ours = tiny.stable_diffusion("StableDiffusionPipeline", scheduler)
    ours.scheduler = scheduler  # the pipeline would change steps_offset, which the other one does not
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"prompt": "a cat", "latents": latents, "num_inference_steps": steps, "output_type": "latent"}
    watched = call.pop("callback", False) if "callback" in (call := dict(call)) else False

    def run(pipe: Any, **more: Any) -> Callable[[], Tensor]:
        own = torch.Generator().manual_seed(1)
        return lambda: pipe(**given, **call, **more, generator=own)[0]

    if watched:
        hooks: tuple[dict[str, Any], dict[str, Any]] = (
            {"callback": lambda *_: None, "callback_steps": 1},
            {"callback_on_step_end": unchanged},
        )
    else:
        hooks = ({}, {})
    expected, sequential, _ = count(ours.unet, run(ours, **hooks[1]))
    cells = [f"{name:32}", f"{sequential:5d}"]
    try:
        found, rounds, rows = count(theirs.unet, run(theirs, parallel=10, tolerance=tolerance, **hooks[0]))
        cells.append(f"{rounds:6d} {rows:6d} {float((found - expected).abs().max()):9.1e}")
    except Exception as error:  # noqa: BLE001  # whatever it fails with is the result
        cells.append(f"{type(error).__name__:>23}")
    parallelize(ours, window=10, tolerance=tolerance)
    found, rounds, rows = count(ours.unet, run(ours, **hooks[1]))
    cells.append(f"{rounds:6d} {rows:6d} {float((found - expected).abs().max()):9.1e}")
    restore(ours)
    return " | ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="inference steps (30 does not divide 1000)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of both, each in its own meaning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'':32} | calls | {'Diffusers: calls, rows, diff':23} | picard: calls, rows, diff")
    for name in SETTINGS:
        print(compare(name, options.steps, options.tolerance), flush=True)


if __name__ == "__main__":
    main()
