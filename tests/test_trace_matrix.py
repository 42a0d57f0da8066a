"""Every scheduler of Diffusers, in hundreds of settings: parallel equals the scheduler's own loop."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from picard import NotSupportedError
from picard.adapters import diffusers as adapter
from tests.scheduler_matrix import AXES, REASONS, REFUSED, matrix
from tests.tiny_diffusers import build, louder, unconditional_unet

library = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy meets infinite levels in Diffusers' tables
]

STEPS = {"SCMScheduler": 2, "LCMScheduler": 7}
USUAL_STEPS = 7  # does not divide the 1000 training steps
MORE_STEPS = 9  # neither; where there is time
SHAPE = (1, 3, 8, 8)
CASES = list(matrix())

# Schedulers that cast the state to float32 or draw their noise in it, whatever they are given.
SINGLE = {
    "DPMSolverMultistepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
}  # fmt: skip


def test_the_matrix_is_large_and_complete() -> None:
    names = {
        name
        for name in dir(library)
        if name.endswith(("Scheduler", "Inverse"))
        if isinstance(kind := getattr(library, name), type) and issubclass(kind, library.ConfigMixin)
    }
    listed = AXES.keys() | {name for name, _, _ in REFUSED}
    assert len(CASES) >= 300
    assert listed <= names
    assert names - listed <= {"KarrasVeScheduler"}, "a scheduler is new in Diffusers: add it to the matrix"


class Small(nn.Module):
    """Mixes places, channels and the time by a nonlinear function, as a UNet does, in a fraction of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        phases = t.to(x)[:, None] * torch.linspace(0.001, 0.02, 8).to(x)
        return SimpleNamespace(sample=self.out(torch.tanh(self.mix(x) + torch.sin(phases)[..., None, None])))


@pytest.fixture(scope="module")
def small() -> dict[torch.dtype, Any]:
    """A small random network, twice."""
    network = louder(build(0, Small), 2.0)
    return {torch.float32: network, torch.float64: copy.deepcopy(network).double()}


@pytest.fixture(scope="module")
def unet() -> Any:
    """A random UNet."""
    return louder(unconditional_unet(), 1.3)


def reference(
    scheduler: Any, network: Callable[..., Any], latents: Tensor, steps: int, options: dict[str, Any]
) -> Tensor:
    """Run the loop of Diffusers' own pipelines."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    x = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    name = type(scheduler).__name__
    if "generator" in inspect.signature(scheduler.step).parameters:
        options = {**options, "generator": torch.Generator().manual_seed(1)}
    timesteps = scheduler.timesteps[:-1] if name in {"SCMScheduler", "DDPMWuerstchenScheduler"} else scheduler.timesteps
    for t in timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(given, t.expand(len(x))).sample
        x = scheduler.step(output, t.expand(len(x)) if name == "DDPMWuerstchenScheduler" else t, x, **options)[0]
    return x


def same(one: Any, other: Any) -> bool:
    """Compare two values of a scheduler's attributes, tensors and arrays bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor | np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    return bool(one == other)


def check(network: Any, name: str, settings: dict[str, Any], dtype: torch.dtype, steps: int = USUAL_STEPS) -> float:
    """Return the largest difference between parallel and sequential, relative to the result."""
    options = {key[1:]: value for key, value in settings.items() if key.startswith(".")}
    config = {key: value for key, value in settings.items() if not key.startswith(".")}
    scheduler = getattr(library, name)(**config)
    before = copy.deepcopy(vars(scheduler))
    steps = STEPS.get(name, steps)
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=dtype)
    torch.manual_seed(3)  # one scheduler takes the seed of its Brownian path from the global generator
    expected = reference(scheduler, network, latents, steps, options)
    assert bool(torch.isfinite(expected).all())
    torch.manual_seed(3)
    found = adapter.sample(
        network,
        scheduler,
        latents,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        scheduler_options=options,
        tolerance=0.0,
    )
    assert found.final.dtype == dtype
    assert same(before, vars(scheduler))
    return float((found.final - expected).abs().max() / expected.abs().max())


@pytest.mark.usefixtures("unchecked")  # the types of every scheduler are checked once, in single precision
@pytest.mark.parametrize(("name", "settings"), CASES)
@torch.no_grad()
def test_parallel_equals_the_schedulers_own_loop(
    small: dict[torch.dtype, Any], name: str, settings: dict[str, Any]
) -> None:
    dtype = torch.float32 if name in SINGLE else torch.float64
    difference = check(small[dtype], name, settings, dtype)
    assert difference <= (1e-4 if dtype == torch.float32 else 1e-8), difference


@pytest.mark.parametrize(("name", "settings"), list(matrix(1)))
@torch.no_grad()
def test_in_single_precision(unet: Any, name: str, settings: dict[str, Any]) -> None:
    assert check(unet, name, settings, torch.float32) <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", AXES)
@torch.no_grad()
@pytest.mark.usefixtures("unchecked")
def test_many_more_settings(small: dict[torch.dtype, Any], name: str) -> None:
    """In single precision, or to 1e-8 in double: two settings with thresholding let rounding grow to 6e-4."""
    for _, settings in (case for case in matrix(400) if case[0] == name):
        close = check(small[torch.float32], name, settings, torch.float32, MORE_STEPS) <= 1e-4
        assert close or check(small[torch.float64], name, settings, torch.float64, MORE_STEPS) <= 1e-8, settings


@pytest.mark.parametrize(("name", "settings", "why"), REFUSED)
def test_what_has_no_plan_is_refused_with_the_reason(name: str, settings: dict[str, Any], why: str) -> None:
    scheduler = getattr(library, name)(**settings)
    with pytest.raises(NotSupportedError, match=type(scheduler).__name__) as caught:
        adapter.trace(scheduler, 10)
    assert why in str(caught.value)


def table() -> str:
    """Describe every scheduler in a row of a table."""
    lines = ["| scheduler | plan | states | noise | settings tested |", "|---|---|---|---|---|"]
    counts = {name: sum(case == name for case, _ in CASES) for name in AXES}
    for name in sorted({*AXES, *REASONS}):
        if name in AXES:
            config = {key: value for key, value in matrix_defaults(name).items() if not key.startswith(".")}
            found = adapter.trace(getattr(library, name)(**config), STEPS.get(name, USUAL_STEPS))
            noise = "yes" if bool((found.c > 0).any()) else "no"
            limits = f"; not with {REASONS[name]}" if name in REASONS else ""
            lines.append(f"| `{name}` | yes{limits} | {found.order} | {noise} | {counts[name]} |")
        else:
            lines.append(f"| `{name}` | no: {REASONS[name]} | | | |")
    return "\n".join(lines)


def matrix_defaults(name: str) -> dict[str, Any]:
    """The settings a class has by itself, changed only where it has no plan with them."""
    return {"PNDMScheduler": {"skip_prk_steps": True}, "DDIMInverseScheduler": {"clip_sample": False}}.get(name, {})


def test_the_table_of_the_docs_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "diffusers.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- schedulers -->\n")
    _, _, after = rest.partition("<!-- end -->")
    current = f"{before}<!-- schedulers -->\n{table()}\n<!-- end -->{after}"
    if os.environ.get("PICARD_WRITE_DOCS"):
        page.write_text(current, encoding="utf-8")
    assert text == current, "write the table anew: PICARD_WRITE_DOCS=1 python -m pytest tests/test_trace_matrix.py"
