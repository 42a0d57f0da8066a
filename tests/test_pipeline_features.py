"""What users add to their pipelines: LoRA, ControlNet, compiled denoisers, offloading."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from picard import NotSupportedError
from picard.adapters import parallelize, restore
from tests import tiny_diffusers as tiny
from tests.pipeline_cases import SIZE, TEXT, call, ddim, pair

library = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

MODES = ("plan", "replay")
FEW = {"num_inference_steps": 6}  # what is added shows in every step


def agree(pipe: Any, given: dict[str, Any], **more: Any) -> np.ndarray[Any, Any]:
    """Check that both ways give the sequential images, twice; return these."""
    expected, _ = call(pipe, given, **more)
    for mode in MODES:
        parallelize(pipe, window=8, mode=mode)
        for _ in range(2):
            found, _ = call(pipe, given, **more)
            assert pipe.picard.stats.mode == mode
            assert float(np.abs(found - expected).max()) <= 1e-4
        restore(pipe)
    return expected


def test_lora() -> None:
    peft = pytest.importorskip("peft")
    pipe, given = pair("sd-ddim")
    given = {**given, **FEW}
    plain, _ = call(pipe, given)
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
    )
    pipe.unet.add_adapter(config, adapter_name="style")
    pipe.unet.requires_grad_(False)
    adapted = agree(pipe, given)
    assert float(np.abs(adapted - plain).max()) > 1e-5
    weak = agree(pipe, given, cross_attention_kwargs={"scale": 0.3})
    assert float(np.abs(weak - adapted).max()) > 1e-6
    parallelize(pipe)
    pipe.unet.disable_adapters()
    found, _ = call(pipe, given)
    assert float(np.abs(found - plain).max()) <= 1e-4  # switched off while parallel: the next call notices


def test_controlnet_runs_inside_the_passes() -> None:
    pipe, given = pair("sd-controlnet")
    expected, _ = call(pipe, given)
    weaker, _ = call(pipe, given, controlnet_conditioning_scale=0.0)
    assert float(np.abs(weaker - expected).max()) > 1e-4
    calls: list[int] = []
    pipe.controlnet.register_forward_pre_hook(lambda *_: calls.append(1))
    found, _ = call(parallelize(pipe, window=8), given)
    assert float(np.abs(found - expected).max()) <= 1e-4
    assert len(calls) > pipe.picard.stats.sequential_evaluations  # the page says that the gain is small


@pytest.mark.parametrize("mode", MODES)
def test_a_decoder_that_the_pipeline_casts(mode: Any) -> None:
    """Stable Diffusion XL in half precision decodes in float32, and casts the decoder back afterwards."""
    pipe, given = pair("sdxl")
    pipe.to(torch.float16)
    assert pipe.vae.config.force_upcast
    expected, _ = call(pipe, given)
    found, _ = call(parallelize(pipe, window=8, mode=mode), given)
    assert pipe.vae.dtype == torch.float16
    assert float(np.abs(found - expected).max()) <= 0.05
    parallelize(pipe, mode="plan")
    with pytest.raises(NotSupportedError):  # where the one pass there is does not come to its end
        call(pipe, given, denoising_end=0.5)
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("output", ["np", "latent"])
@pytest.mark.parametrize("mode", MODES)
def test_exchanged_attention_is_refused_and_put_back(mode: Any, output: str) -> None:
    pipe = tiny.stable_diffusion("StableDiffusionPAGPipeline", ddim(), image_encoder=None, pag_applied_layers="mid")
    pipe.set_progress_bar_config(disable=True)
    own = pipe.unet.attn_processors
    parallelize(pipe, window=8, mode=mode)
    with pytest.raises(NotSupportedError, match="attention"):
        call(pipe, {**TEXT, **SIZE}, output_type=output)
    assert pipe.unet.attn_processors == own
    expected, _ = call(restore(pipe), {**TEXT, **SIZE, "pag_scale": 0.0}, output_type=output)
    found, _ = call(parallelize(pipe, mode=mode), {**TEXT, **SIZE, "pag_scale": 0.0}, output_type=output)
    assert float(np.abs(found - expected).max()) <= 1e-3 * float(np.abs(expected).max())


def test_a_parallel_pipeline_is_pickled_as_one() -> None:
    pipe, given = pair("ddpm")
    pipe.scheduler = library.DDPMScheduler(thresholding=True, clip_sample=False)
    expected, _ = call(parallelize(pipe, window=8), given)
    twin = pickle.loads(pickle.dumps(pipe))
    found, _ = call(twin, given)
    assert np.array_equal(found, expected)
    assert type(restore(twin)) is type(restore(pipe))


def recorder() -> tuple[list[Any], Any]:
    """Return a list, and a backend for `torch.compile` that puts every graph there and runs it as it is."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return graphs, backend


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_denoiser(in_place: bool) -> None:
    pipe, given = pair("sd-no-guidance")
    graphs, backend = recorder()
    torch._dynamo.reset()
    if in_place:
        pipe.unet.compile(backend=backend, dynamic=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend=backend, dynamic=True)
    agree(pipe, given, **FEW)
    assert graphs
    torch._dynamo.reset()


def test_a_denoiser_with_compiled_blocks() -> None:
    pipe, given = pair("dit")
    compiled, backend = recorder()
    torch._dynamo.reset()
    for block in pipe.transformer.transformer_blocks:
        block.ff.compile(backend=backend, dynamic=True)
    agree(pipe, given, **FEW)
    assert compiled
    torch._dynamo.reset()


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_offloading(layer_by_layer: bool) -> None:
    """Hooks move the components; without an accelerator they move them from the CPU to the CPU, but they run."""
    accelerate = pytest.importorskip("accelerate")
    pipe, given = pair("sd-ddim")
    given = {**given, **FEW}
    plain, _ = call(pipe, given)
    if layer_by_layer:  # what enable_sequential_cpu_offload does to every component
        accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    else:
        pipe.enable_model_cpu_offload(device="cpu")

    def moved() -> bool:
        away = {parameter.device.type for parameter in pipe.unet.parameters()} == {"meta"}
        return away if layer_by_layer else hasattr(pipe.unet, "_hf_hook")

    assert moved()
    expected = agree(pipe, given)
    assert float(np.abs(expected - plain).max()) <= 1e-5
    assert moved()
    call(parallelize(pipe), given)
    accelerate.hooks.remove_hook_from_module(restore(pipe).unet, recurse=True)
    again, _ = call(pipe, given)
    assert float(np.abs(again - plain).max()) <= 1e-5


def test_offloading_keeps_no_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end a pipeline renews its hooks, with what stands in for its models."""
    pytest.importorskip("accelerate")
    pipe, given = pair("sd-ddim")
    pipe.enable_model_cpu_offload(device="cpu")
    kept: list[Any] = []
    parallelize(pipe, window=8)

    def callback(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept.append(weakref.ref(pipeline.picard._turn.player))
        return values

    call(pipe, given, callback_on_step_end=callback)
    gc.collect()
    assert kept
    assert not any(one() for one in kept)
