"""Arguments of a denoiser: with and without a batch dimension, and written into by the pipeline or its callbacks."""

# torchdiffeq, torchsde and diffusers carry no or loose types, from which pyright infers unions:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from picard import NotSupportedError
from picard.adapters import parallelize, restore
from tests import tiny_diffusers as tiny
from tests.pipeline_cases import call, pair

library = pytest.importorskip("diffusers")
copies: Any = import_module("picard.adapters.copies")
pytestmark = pytest.mark.filterwarnings("ignore")

MODES = ("plan", "replay")
STEPS = 10
Model = Callable[..., Tensor]


class Net(library.ModelMixin, library.ConfigMixin):  # type: ignore[misc, name-defined]  # Diffusers is Any
    """A denoiser whose arguments are what a test says."""

    config_name = "config.json"

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.fails = model, 0
        self.sizes: list[int] = []
        self.factor = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, **given: Any) -> Tensor:
        self.sizes.append(len(x))
        try:
            return torch.tanh(self.factor * self.model(x, **given) + t.reshape(-1, 1) / 1000)
        except Exception:
            self.fails += 1
            raise


class Loop(library.DiffusionPipeline):  # type: ignore[misc, name-defined]
    """A pipeline that calls its denoiser once for every set of arguments, and averages."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def __call__(self, rows: int, *given: dict[str, Any], gradient: bool = False) -> Tensor:
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            x.requires_grad_(gradient)
            flow = sum(self.transformer(x, t.expand(rows), **one) for one in given) / len(given)
            x = self.scheduler.step(flow.detach(), t, x.detach())[0]
        return x


def loop(model: Model) -> Loop:
    return Loop(Net(model).eval(), library.FlowMatchEulerDiscreteScheduler())


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def masked(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Repeat a mask of one entry to the rows itself, as Cosmos does."""
    return torch.cat([x, text], 1)[:, :4] + torch.stack([mask.repeat(len(x), 1), text], 0).sum(0)


def shared(x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Take one mask for all, whatever its length: more rows of it change the result, and raise no error."""
    return x + text + mask.sum(0)


def layered(x: Tensor, scale: Tensor) -> Tensor:
    """Weigh one layer after the other, as VACE does."""
    assert len(scale) == 8
    return x * sum(float(one) for one in scale)


def framed(x: Tensor, encoder_hidden_states_image: Tensor) -> Tensor:
    """Take two pictures for every row, as Wan does from the first frame to the last."""
    return x + encoder_hidden_states_image.reshape(-1, 2, 4).mean(1)


CASES: list[tuple[Model, int, dict[str, Any]]] = [
    (masked, 1, {"text": drawn(1, 4), "mask": drawn(1, 4)}),
    (shared, 1, {"text": drawn(1, 4), "mask": drawn(1, 4)}),
    (shared, 2, {"text": drawn(2, 4), "mask": drawn(2, 4)}),
    (layered, 1, {"scale": drawn(8)}),
    (framed, 1, {"encoder_hidden_states_image": drawn(2, 1, 4)}),
    (framed, 3, {"encoder_hidden_states_image": drawn(6, 1, 4)}),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("model", "rows", "given"), CASES)
def test_arguments_with_and_without_a_batch_dimension(model: Model, rows: int, given: Any, mode: Any) -> None:
    pipe = loop(model)
    doubled = {name: value if name in {"mask", "scale"} else 0.5 * value for name, value in given.items()}
    expected = pipe(rows, given, doubled)
    parallelize(pipe, mode=mode, window=2 if mode == "plan" else 8)
    for _ in range(2):
        pipe.transformer.sizes = []
        torch.testing.assert_close(pipe(rows, given, doubled), expected, rtol=1e-3, atol=1e-3)
    assert pipe.picard.stats.mode == mode
    assert len(pipe.transformer.sizes) <= pipe.picard.stats.rounds + 1  # calls go together


@pytest.mark.parametrize("window", [4, 5, 8])
def test_the_length_of_an_argument_may_be_the_number_of_rows_in_flight(window: int) -> None:
    pipe, given = loop(layered), [{"scale": drawn(8)}] * 2
    expected = pipe(1, *given)
    found = parallelize(pipe, mode="plan", window=window)(1, *given)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_was_learned_of_arguments_is_kept() -> None:
    pipe, given = loop(masked), {"text": drawn(1, 4), "mask": drawn(1, 4)}
    parallelize(pipe)
    pipe(1, given)
    failed, pipe.transformer.sizes = pipe.transformer.fails, []
    assert failed > 0
    pipe(1, given)
    assert pipe.transformer.fails == failed
    assert len(pipe.transformer.sizes) <= pipe.picard.stats.rounds + 1


def test_a_mask_of_one_entry_is_met_again_after_two_rows() -> None:
    """The rows are compared anew for every way to take the arguments."""
    pipe, mask = loop(shared), drawn(1, 4)
    parallelize(pipe)
    for rows in (2, 1):
        given = {"text": drawn(rows, 4), "mask": mask}
        found = pipe(rows, given)
        expected = restore(pipe)(rows, given)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        parallelize(pipe)


def test_errors_of_a_denoiser_are_its_own() -> None:
    def broken(x: Tensor, mask: Tensor) -> Tensor:
        if len(x) > 1:
            msg = "out of order"
            raise RuntimeError(msg)
        return x

    for mode in MODES:
        pipe = parallelize(loop(broken), mode=mode)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of order"):
                pipe(1, {"mask": drawn(1, 4)})


@pytest.mark.parametrize("mode", ["auto", "replay"])
def test_gradients_through_the_denoiser_are_refused(mode: Any) -> None:
    pipe, given = loop(shared), {"text": drawn(1, 4), "mask": drawn(3, 4)}
    parallelize(pipe, mode=mode)
    with pytest.raises(NotSupportedError, match="differentiates through its denoiser"):
        pipe(1, given, gradient=True)
    with torch.no_grad():
        pipe(1, given, gradient=True)


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("mode", ["auto", "replay"])
def test_a_callback_may_write_into_the_embeddings(mode: Any, grown: bool) -> None:
    pipe, given = pair("sd-ddim")

    def fade(pipeline: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            values["prompt_embeds"].mul_(-1.0)
        return values

    def run(**more: Any) -> np.ndarray[Any, Any]:
        embeds = drawn(2, 8, 16)
        texts = {"negative_prompt_embeds": 0.5 * embeds} if grown else {"guidance_scale": 1.0}
        sizes = {name: given[name] for name in ("height", "width")}
        found, _ = call(pipe, {**sizes, **texts}, prompt_embeds=embeds, output_type="latent", **more)
        return found

    more = {"callback_on_step_end": fade, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    tiny.louder(pipe.unet, 2.0)
    plain, expected = run(), run(**more)
    size = float(np.abs(expected).max())
    assert float(np.abs(plain - expected).max()) > 1e-3 * size
    parallelize(pipe, mode=mode)
    run()  # the rows are not compared again
    assert float(np.abs(run(**more) - expected).max()) <= 1e-4 * size
    if mode == "auto":
        assert "encoder_hidden_states" in pipe.picard.stats.reason


@pytest.mark.parametrize("inference", [False, True])
def test_a_copy_notices_changes_and_undoes_them(inference: bool) -> None:
    with torch.inference_mode(inference):
        tensor = drawn(3)
        copy = copies.Copy(tensor)
        assert copy.holds(tensor)
        assert not copy.holds(drawn(3) + 1)
        tensor.mul_(2)
        assert not copy.holds(tensor)
        copy.put_back()
        assert torch.equal(tensor, drawn(3))
        assert copy.holds(tensor)


@pytest.mark.parametrize("mode", MODES)
def test_inference_mode(mode: Any) -> None:
    """Its tensors do not count their changes."""
    pipe, given = loop(masked), {"text": drawn(1, 4), "mask": drawn(1, 4)}
    expected = pipe(1, given)
    with torch.inference_mode():
        found = parallelize(pipe, mode=mode)(1, given)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
