"""Plan mode: a pipeline's loop on its scheduler's plan gives what replay and the sequential pipeline give."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from picard import InvalidProblemError, NotSupportedError
from picard.adapters import parallelize, restore
from tests.pipeline_cases import CASES, REPLAYED, STEPS, call, pair

library = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

guidance: Any = import_module("picard.adapters.guidance")
planned: Any = import_module("picard.adapters.planned")


@pytest.mark.parametrize("name", [name for name in CASES if name not in REPLAYED])
def test_plan_equals_the_sequential_pipeline(name: str) -> None:
    pipe, given = pair(name)
    expected, states = call(pipe, given)
    found, after = call(parallelize(pipe, window=8, mode="plan"), given)
    stats = pipe.picard.stats
    assert (stats.mode, stats.reason) == ("plan", "")
    assert stats.passes == 2  # the pipeline's Python runs twice, however many rounds there are
    assert float(np.abs(found - expected).max()) <= 1e-4
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))
    calls = stats.sequential_evaluations
    assert stats.rounds <= calls
    assert stats.evaluations >= calls * stats.rows - stats.rows


@pytest.mark.parametrize("name", ["sd-ddim-eta", "sd-unipc", "sdxl", "flux-true-cfg", "dit"])
def test_plan_equals_replay_to_rounding_at_zero_tolerance(name: str) -> None:
    pipe, given = pair(name)
    found, expected = (
        call(parallelize(pipe, window=6, tolerance=0.0, mode=mode), given, output_type="latent")[0]
        for mode in ("plan", "replay")
    )
    assert float(np.abs(found - expected).max()) <= 2e-5 * float(np.abs(expected).max())


@pytest.mark.parametrize("mode", ["plan", "replay"])
def test_the_residual_is_a_relative_error_within_the_tolerance_or_the_rounding(mode: str) -> None:
    pipe, given = pair("sd-ddim")
    for tolerance in (1e-3, 1e-6):
        call(parallelize(pipe, window=6, tolerance=tolerance, mode=mode), given)
        stats = pipe.picard.stats
        assert stats.stalled or 0 <= stats.residual <= tolerance + 1e-6


@pytest.mark.parametrize("name", REPLAYED)
def test_what_no_plan_can_say_is_replayed_with_a_reason(name: str) -> None:
    pipe, given = pair(name)
    expected, states = call(pipe, given)
    found, after = call(parallelize(pipe, window=8), given)
    assert pipe.picard.stats.mode == "replay"
    assert REPLAYED[name] in pipe.picard.stats.reason
    assert float(np.abs(found - expected).max()) <= 1 / 255
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))
    parallelize(pipe, mode="plan")
    with pytest.raises(NotSupportedError, match="mode='auto'") as caught:
        call(pipe, given)
    assert REPLAYED[name] in str(caught.value)
    assert type(restore(pipe).unet).__call__ is torch.nn.Module.__call__


def test_a_callback_that_changes_the_state_is_replayed() -> None:
    pipe, given = pair("sd-ddim")

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * 0.9} if step == 7 else values

    expected, _ = call(pipe, given, callback_on_step_end=callback)
    found, _ = call(parallelize(pipe), given, callback_on_step_end=callback)
    assert "callback" in pipe.picard.stats.reason
    assert float(np.abs(found - expected).max()) <= 1e-4
    call(pipe, given)
    assert (pipe.picard.stats.mode, pipe.picard.stats.reason) == ("plan", "")


@pytest.mark.parametrize(("wrong", "previews"), [(0.999, False), (0.5, False), (0.999, True)])
def test_a_plan_of_the_wrong_loop_is_found_out_and_replayed(
    wrong: float, previews: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, given = pair("sd-ddim")
    given = {**given, "num_inference_steps": 14}  # enough for the smaller mistake to grow
    expected, states = call(pipe, given)
    right = guidance.Measurement.guidance

    def mistaken(measured: Any) -> Any:
        found = right(measured)
        return guidance.Guidance(torch.stack([found.weights[:, 0], wrong * found.weights[:, 1]], 1))

    monkeypatch.setattr(guidance.Measurement, "guidance", mistaken)

    def preview(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if previews and pipeline.picard.final:
            pipeline.vae.decode(values["latents"])
        return values

    found, after = call(parallelize(pipe), given, callback_on_step_end=preview)
    assert pipe.picard.stats.mode == "replay"
    assert "is not the plan's" in pipe.picard.stats.reason
    assert float(np.abs(found - expected).max()) <= 1e-3
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))


def test_a_step_that_is_not_affine_is_replayed() -> None:
    pipe, given = pair("sd-no-guidance")

    class Bent(library.DDIMScheduler):  # type: ignore[misc, name-defined]  # Diffusers is Any to type checkers
        def step(
            self,
            model_output: Any,
            timestep: Any,
            sample: Any,
            eta: float = 0.0,
            generator: Any = None,
            return_dict: bool = True,
        ) -> Any:
            return super().step(
                model_output.tanh(), timestep, sample, eta, generator=generator, return_dict=return_dict
            )

    pipe.scheduler = Bent.from_config(pipe.scheduler.config)
    expected, _ = call(pipe, given)
    found, _ = call(parallelize(pipe), given)
    assert pipe.picard.stats.mode == "replay"
    assert "not what its trace says" in pipe.picard.stats.reason
    assert float(np.abs(found - expected).max()) <= 1 / 255


def test_max_rows_hold_in_every_evaluation() -> None:
    pipe, given = pair("sd-ddim")
    expected, _ = call(pipe, given)
    rows: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    found, _ = call(parallelize(pipe, mode="plan", max_rows=10), given)
    assert max(rows) <= 10
    assert sum(rows) == pipe.picard.stats.evaluations
    assert float(np.abs(found - expected).max()) <= 1e-4


def test_other_steps_and_schedulers_are_traced_anew() -> None:
    pipe, given = pair("sd-ddim")
    for steps in (STEPS, 9, STEPS):
        restore(pipe)
        expected, _ = call(pipe, given, num_inference_steps=steps)
        found, _ = call(parallelize(pipe, mode="plan"), given, num_inference_steps=steps)
        assert float(np.abs(found - expected).max()) <= 1e-4
    parallelize(pipe, mode="plan")
    call(pipe, given)
    pipe.scheduler = library.DDIMScheduler.from_config(pipe.scheduler.config, beta_schedule="linear")
    found, _ = call(pipe, given)
    expected, _ = call(restore(pipe), given)
    assert float(np.abs(found - expected).max()) <= 1e-4


def test_a_denoiser_that_returns_nan_gives_the_sequential_nan() -> None:
    pipe, given = pair("ddpm")

    def nan(module: Any, args: Any, out: Any) -> Any:
        return type(out)(sample=out.sample * float("nan"))

    pipe.unet.register_forward_hook(nan)
    found, _ = call(parallelize(pipe, window=4), given, num_inference_steps=5)
    assert pipe.picard.stats.mode == "replay"
    assert "finite" in pipe.picard.stats.reason
    assert found.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("mode", ["plan", "replay"])
@pytest.mark.parametrize(("name", "more"), [("sd-ddim", {"num_inference_steps": 1}), ("sd-img2img", {"strength": 0.1})])
def test_a_loop_of_one_step(name: str, more: dict[str, Any], mode: Any) -> None:
    pipe, given = pair(name)
    expected, _ = call(pipe, {**given, **more})
    found, _ = call(parallelize(pipe, mode=mode), {**given, **more})
    assert (pipe.picard.stats.mode, pipe.picard.stats.sequential_evaluations) == (mode, 1)
    assert float(np.abs(found - expected).max()) <= 1e-5


@pytest.mark.parametrize("asked", [False, True])
def test_a_plan_that_the_solver_refuses_is_replayed(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused after the model was called is about the model: no replay hides it."""
    pipe, given = pair("sd-ddim")
    expected, _ = call(pipe, given)
    own = planned.solve

    def refuse(problem: Any, *args: Any, **options: Any) -> Any:
        if asked:
            own(problem, *args, **options)
        msg = "no such plan"
        raise InvalidProblemError(msg)

    monkeypatch.setattr(planned, "solve", refuse)
    parallelize(pipe)
    if asked:
        with pytest.raises(InvalidProblemError, match="no such plan"):
            call(pipe, given)
        return
    found, _ = call(pipe, given)
    assert (pipe.picard.stats.mode, pipe.picard.stats.reason) == ("replay", "no such plan")
    assert float(np.abs(found - expected).max()) <= 1e-4


def table() -> str:
    """Describe every pipeline that the tests run in a row of a table."""
    lines = ["| case | pipeline | scheduler | runs |", "|---|---|---|---|"]
    for name in CASES:
        pipe = CASES[name][0]()
        how = f"replay: {REPLAYED[name]}" if name in REPLAYED else "plan, replay"
        lines.append(f"| {name} | `{type(pipe).__name__}` | `{type(pipe.scheduler).__name__}` | {how} |")
    return "\n".join(lines)


def test_the_table_of_pipelines_in_the_docs_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "diffusers.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- pipelines -->\n")
    after = rest.partition("<!-- end -->")[2]
    current = f"{before}<!-- pipelines -->\n{table()}\n<!-- end -->{after}"
    if os.environ.get("PICARD_WRITE_DOCS"):
        page.write_text(current, encoding="utf-8")
    assert text == current, "write the table anew: PICARD_WRITE_DOCS=1 python -m pytest tests/test_plan_mode.py"
