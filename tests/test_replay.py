"""The parts of replay: merging recorded calls, stand-ins, random states, and the guards."""

from __future__ import annotations

import copy
import inspect
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from picard import NotSupportedError
from picard.adapters import parallelize
from tests import tiny_diffusers as tiny

library = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

denoisers: Any = import_module("picard.adapters.denoisers")
standin: Any = import_module("picard.adapters.standin")


def test_every_kind_of_argument_is_merged_by_its_rule() -> None:
    seen: list[dict[str, Any]] = []

    def model(x: Tensor, t: Tensor, **kwargs: Any) -> tuple[Tensor, str]:
        seen.append({"x": x, "t": t, **kwargs})
        return x * t.reshape(-1, 1), "kept"

    deep: dict[str, Any] = {"pooled": torch.randn(2, 4), "scale": 0.5}
    text, ids = torch.randn(2, 5), torch.randn(2, 3)
    states = [torch.randn(2, 3) for _ in range(3)]
    by_model = denoisers.Denoisers([model])
    recorded = [
        by_model.record(0, 0, i, (x, torch.tensor(10 - i)), {"text": text, "img_ids": ids, "more": deep, "flag": None})
        for i, x in enumerate(states)
    ]
    outputs = by_model.evaluate(recorded, None)
    assert len(seen) == 1
    assert torch.equal(seen[0]["x"], torch.cat(states))
    assert seen[0]["t"].tolist() == [10, 10, 9, 9, 8, 8]
    assert torch.equal(seen[0]["text"], torch.cat([text] * 3))
    assert torch.equal(seen[0]["img_ids"], ids)  # two rows by chance: positions of tokens, not samples
    assert torch.equal(seen[0]["more"]["pooled"], torch.cat([deep["pooled"]] * 3))
    assert seen[0]["more"]["scale"] == 0.5
    for i, (x, output) in enumerate(zip(states, outputs, strict=True)):
        assert torch.equal(output[0], x * (10 - i))
        assert output[1] == "kept"


def test_one_row_is_repeated_without_a_copy_and_max_rows_splits() -> None:
    sizes, shared = [], []
    text = torch.randn(1, 5)

    def model(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        sizes.append(len(x))
        shared.append(text.stride(0) == 0)
        return x

    by_model = denoisers.Denoisers([model])
    recorded = [by_model.record(0, 0, i, (torch.randn(1, 3), torch.tensor(i)), {"text": text}) for i in range(5)]
    by_model.evaluate(recorded, 2)
    assert sizes == [2, 2, 1]
    assert shared == [True, True, False]


def test_calls_that_differ_in_more_than_tensors_are_evaluated_apart() -> None:
    sizes = []

    def model(x: Tensor, t: Tensor, skip: tuple[int, ...] = (), bias: Tensor | None = None) -> Tensor:
        sizes.append(len(x))
        return x

    x = torch.randn(2, 3)
    by_model = denoisers.Denoisers([model])
    recorded = [by_model.record(0, 0, i, (x, torch.tensor(i)), {"skip": (i // 2,)}) for i in range(4)]
    by_model.evaluate(recorded, None)
    assert sizes == [4, 4]
    sizes.clear()
    recorded = [by_model.record(0, 0, i, (x, torch.tensor(i)), {"bias": torch.full((7,), float(i))}) for i in range(2)]
    by_model.evaluate(recorded, None)
    assert sizes == [2, 2]


def test_a_call_without_a_state_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="hidden_states"):
        denoisers.Denoisers([]).record(0, 0, 0, ([torch.randn(2, 3)],), {})


def test_a_stand_in_is_the_component_in_everything_else() -> None:
    scheduler = library.DDIMScheduler()
    seen = []
    twin = standin.stand_in(scheduler, step=lambda *args, **kwargs: seen.append((args, kwargs)))
    assert isinstance(twin, library.DDIMScheduler)
    assert "eta" in inspect.signature(twin.step).parameters
    twin.set_timesteps(5)
    assert scheduler.num_inference_steps == 5
    twin.step(1, t=2)
    assert seen == [((1,), {"t": 2})]
    assert type(twin).__name__ == "DDIMScheduler"


def test_remembered_outputs_are_computed_again_when_somebody_wrote_into_them() -> None:
    memo, count = standin.Memo(), []

    def encode(x: Tensor) -> tuple[Tensor]:
        count.append(1)
        return (x + 1,)

    first = memo.call(encode, torch.zeros(2))[0]
    memo.rewind()
    assert memo.call(encode, torch.zeros(2))[0] is first
    first.mul_(2)
    memo.rewind()
    assert memo.call(encode, torch.zeros(2))[0].tolist() == [1, 1]
    assert len(count) == 2


def test_random_states_are_found_and_restored() -> None:
    own = torch.Generator().manual_seed(1)
    random = standin.RandomState(({"generator": [own, own]}, 3))

    def draw() -> tuple[float, float]:
        return float(torch.rand(())), float(torch.rand((), generator=own))

    before = draw()
    random.restore()
    assert draw() == before


def test_the_random_state_of_a_device_is_restored_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", device.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", device.set_state)
    kept = standin.RandomState(())
    before = torch.rand(3, generator=device)
    assert not all(map(torch.equal, kept.states, standin.RandomState(()).states))
    kept.restore()
    assert torch.equal(torch.rand(3, generator=device), before)


def mixing(share: float) -> Any:
    """Make a hook by which the rows of a batch influence each other."""
    return lambda module, args, out: type(out)(sample=out.sample - share * out.sample.mean(0))


@pytest.mark.parametrize("share", [1.0, 0.02])
def test_a_denoiser_that_mixes_rows_is_refused(share: float) -> None:
    pipe = library.DDPMPipeline(tiny.unconditional_unet(), library.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.register_forward_hook(mixing(share))
    parallelize(pipe)
    with pytest.raises(NotSupportedError, match="independently"):
        pipe(batch_size=2, num_inference_steps=5)


def test_another_denoiser_is_checked_anew() -> None:
    pipe = library.DDPMPipeline(tiny.unconditional_unet(), library.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    parallelize(pipe)
    pipe(batch_size=2, num_inference_steps=5)
    pipe.unet = tiny.unconditional_unet()
    pipe.unet.register_forward_hook(mixing(1.0))
    with pytest.raises(NotSupportedError, match="independently"):
        pipe(batch_size=2, num_inference_steps=5)


class Sound(library.ModelMixin, library.ConfigMixin):  # type: ignore[misc, name-defined]  # Diffusers is Any
    """A denoiser of two states, the second harder to predict than the first."""

    config_name = "config.json"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, hidden_states: Tensor, sound: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        t = timestep.reshape(-1, 1) / 1000
        return hidden_states * t, torch.tanh(hidden_states @ self.weight + 2 * sound)


class Film(library.DiffusionPipeline):  # type: ignore[misc, name-defined]
    """A pipeline of two states, the second with a scheduler of its own, as LTX-2 has it."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, by_name: bool = True) -> Tensor:
        fixed = torch.Generator().manual_seed(1)
        x, sound = torch.randn(2, 4, generator=fixed), torch.randn(2, 3, generator=fixed)
        self.scheduler.set_timesteps(12)
        second = copy.deepcopy(self.scheduler)
        for t in self.scheduler.timesteps:
            given = {"sound": sound} if by_name else {}
            listed = (x,) if by_name else (x, sound)
            flow, other = self.transformer(*listed, **given, timestep=t.expand(2))
            x, sound = self.scheduler.step(flow, t, x)[0], second.step(other, t, sound)[0]
        return torch.cat([x, sound], 1)


@pytest.mark.parametrize("mode", ["auto", "replay"])
@pytest.mark.parametrize("by_name", [True, False])
def test_every_prediction_of_a_denoiser_must_be_right(mode: Any, by_name: bool) -> None:
    pipe = Film(Sound().eval(), library.FlowMatchEulerDiscreteScheduler())
    expected = pipe(by_name)
    found = parallelize(pipe, window=8, tolerance=1e-5, mode=mode)(by_name)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert pipe.picard.stats.rounds < 12


class Pair(NamedTuple):
    sample: Tensor
    more: str


def test_a_denoiser_may_return_a_named_tuple() -> None:
    pipe = library.DDPMPipeline(tiny.unconditional_unet(), library.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.register_forward_hook(lambda module, args, out: Pair(out.sample, "more"))
    found = [pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=8, output_type="np")]
    parallelize(pipe, mode="replay")
    found += [pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=8, output_type="np")]
    assert abs(found[0].images - found[1].images).max() <= 1e-3


class Own(library.SchedulerMixin, library.ConfigMixin):  # type: ignore[misc, name-defined]
    """A scheduler of somebody's own, whose timesteps are a list."""

    config_name = "config.json"

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = [999 - 999 * i // steps for i in range(steps)]

    def step(self, model_output: Tensor, timestep: int, sample: Tensor) -> tuple[Tensor]:
        return (sample - 0.1 * model_output,)


class Plain(library.DiffusionPipeline):  # type: ignore[misc, name-defined]
    """The shortest pipeline there can be."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(8)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t).sample, t, x)[0]
        return x


def test_a_scheduler_unlike_those_of_diffusers_is_replayed() -> None:
    pipe = Plain(tiny.unconditional_unet(), Own())
    expected = pipe()
    torch.testing.assert_close(parallelize(pipe)(), expected, rtol=1e-3, atol=1e-3)
    assert pipe.picard.stats.mode == "replay"
    assert "unlike those of Diffusers" in pipe.picard.stats.reason
