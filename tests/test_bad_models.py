"""Bad schedules, networks, guidance and steps of a diffusion model are refused with the line to write instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import picard
from picard import (
    Denoiser,
    Diffusion,
    Guidance,
    InvalidGridError,
    InvalidProblemError,
    NotSupportedError,
    PicardError,
    Schedule,
    solve,
)
from picard.integrators import DDIM, DPMSolver
from picard.schedule import SigmaSchedule
from tests.problems import F64, SCHEDULES, diffusion, network, start
from tests.refusals import Make, Refusal, refuses

pytestmark = pytest.mark.usefixtures("unchecked")
LINEAR, KARRAS, FLOW = SCHEDULES["linear"], SCHEDULES["karras"], SCHEDULES["flow"]


def sampled(grid: Any, schedule: Schedule = LINEAR) -> Make:
    return lambda: solve(diffusion(schedule), grid, method="ddim")


def trained(values: Any, **options: Any) -> Make:
    given = torch.tensor(values, dtype=F64) if isinstance(values, list) else values
    return lambda: Schedule.from_alphas_cumprod(given, **options)


def denoiser(**options: Any) -> Make:
    return lambda: Denoiser(**{"model": network(LINEAR, "epsilon"), "schedule": LINEAR, **options})


def answering(output: Callable[[Tensor], Any], **options: Any) -> Make:
    """Sample from a network that returns something else than it should."""

    def model(x: Tensor, t: Tensor, **_: Any) -> Any:
        return output(x)

    made = Denoiser(model, LINEAR, **{"prediction": "sample", **options})
    return lambda: solve(Diffusion(made, start(2, 3), cond={"label": torch.zeros(2)}), 5, method="ddim")


def guided(guidance: Guidance, **cond: Any) -> Diffusion:
    made = Denoiser(network(LINEAR, "sample"), LINEAR, prediction="sample", guidance=guidance)
    return Diffusion(made, start(2, 3), cond=cond)


def rescaled(x: Tensor) -> Diffusion:
    """Guide a network that predicts zero, rescaled."""
    made = Denoiser(lambda x, t, c: 0 * x, LINEAR, prediction="sample", guidance=Guidance(2.0, {"c": x}, rescale=0.5))
    return Diffusion(made, x, cond={"c": x})


class Timeless(Schedule):
    """A schedule that does not say what the model's time is."""

    def levels(self, grid: int | Tensor) -> picard.Levels:
        raise NotImplementedError


class Own(Schedule):
    """A schedule of the user's, with mistakes."""

    discrete = False

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def levels(self, grid: int | Tensor) -> picard.Levels:
        made: picard.Levels = self.make()
        return made


def scheduled(make: Callable[[], Any]) -> Make:
    """Sample over levels of the user's own."""
    made = Denoiser(network(LINEAR, "sample"), Own(make), prediction="sample")
    return lambda: solve(Diffusion(made, start(2, 3)), 5, method="ddim")


ONES = torch.ones(6, dtype=F64)
CASES: dict[str, Refusal] = {
    # schedules
    "above one": (trained([1.1, 0.5]), InvalidProblemError, ["(0, 1]", "0.5 to 1.1", "cumprod"]),
    "zero": (trained([0.9, 0.0]), InvalidProblemError, ["(0, 1]", "0 to 0.9"]),
    "negative": (trained([0.9, -0.1]), InvalidProblemError, ["(0, 1]", "-0.1"]),
    "nan": (trained([0.9, float("nan")]), InvalidProblemError, ["(0, 1]"]),
    "increasing": (trained([0.5, 0.9]), InvalidProblemError, ["decrease"]),
    "empty": (trained([]), InvalidProblemError, ["one-dimensional floating", "(0,)"]),
    "matrix": (trained([[0.9, 0.5]]), InvalidProblemError, ["one-dimensional floating", "(1, 2)"]),
    "integers": (trained(torch.ones(3, dtype=torch.int64)), InvalidProblemError, ["floating", "int64"]),
    "array": (trained((0.9, 0.5)), InvalidProblemError, ["floating tensor", "tuple"]),
    "spacing": (trained([0.9, 0.5], spacing="trailling"), InvalidProblemError, ["did you mean 'trailing'"]),
    "final": (trained([0.9, 0.5], final="last"), InvalidProblemError, ["unknown final 'last'", "first"]),
    "beta above one": (lambda: Schedule.linear(beta_end=1.5), InvalidProblemError, ["(0, 1]"]),
    "sigma range": (lambda: Schedule.karras(2.0, 1.0), InvalidProblemError, ["sigma_min < sigma_max", "2, 1"]),
    "no sigma": (lambda: Schedule.karras(0.0), InvalidProblemError, ["0 < sigma_min", "given 0,"]),
    "rho": (lambda: Schedule.karras(rho=0.0), InvalidProblemError, ["positive rho"]),
    "shift": (lambda: Schedule.flow(shift=-1.0), InvalidProblemError, ["positive", "-1"]),
    "absurd training steps": (
        lambda: Schedule.cosine(10**30),
        InvalidProblemError,
        ["train_steps must be an integer of at least 1 and at most 1000000000;"],
    ),
    "a size of the last training steps": (lambda: Schedule.linear(2**40), InvalidProblemError, ["and at most"]),
    "half a training step": (lambda: Schedule.linear(10.0), InvalidProblemError, ["train_steps", "10.0 (float)"]),  # type: ignore[arg-type]
    "a beta of a word": (lambda: Schedule.linear(beta_end="a"), InvalidProblemError, ["beta_end must be one number"]),  # type: ignore[arg-type]
    "negative beta": (lambda: Schedule.scaled_linear(beta_start=-0.1), InvalidProblemError, ["[0, 1)", "-0.1"]),
    "most of betas": (lambda: Schedule.cosine(max_beta=1.0), InvalidProblemError, ["max_beta", "[0, 1)"]),
    "offset": (trained([0.9, 0.5], steps_offset=0.5), InvalidProblemError, ["steps_offset must be an integer"]),
    "spacing of numbers": (
        trained([0.9, 0.5], spacing=np.ones(2)),
        InvalidProblemError,
        ["unknown spacing", "ndarray"],
    ),
    "nan rho": (lambda: Schedule.karras(rho=float("nan")), InvalidProblemError, ["positive rho", "nan"]),
    "infinite rho": (lambda: Schedule.karras(rho=float("inf")), InvalidProblemError, ["positive rho", "inf"]),
    "huge rho": (lambda: Schedule.karras(rho=1e30).levels(4), InvalidGridError, ["decrease strictly"]),
    "nan shift": (lambda: Schedule.flow(shift=float("nan")), InvalidProblemError, ["shift", "nan"]),
    "infinite time": (lambda: Schedule.flow(time_scale=float("inf")), InvalidProblemError, ["time_scale", "inf"]),
    "kind": (lambda: SigmaSchedule("karas", 0.1, 1.0, 7.0), InvalidProblemError, ["did you mean 'karras'"]),  # type: ignore[arg-type]
    "no numbers": (trained(torch.ones(3, device="meta")), InvalidProblemError, ["device that holds numbers", "meta"]),
    # networks
    "prediction": (denoiser(prediction="epsilom"), InvalidProblemError, ["did you mean 'epsilon'", "v_prediction"]),
    "model": (denoiser(model=3), InvalidProblemError, ["model(x, t, **cond)", "3 (int)"]),
    "schedule": (denoiser(schedule="linear"), InvalidProblemError, ["picard.Schedule", "Schedule.linear()"]),
    "percent": (lambda: picard.DynamicThreshold(99.5), InvalidProblemError, ["between 0 and 1", "given 99.5"]),
    "clip": (denoiser(clip=-1.0), InvalidProblemError, ["clip must be positive", "-1.0"]),
    "class as model": (denoiser(model=torch.nn.Linear), InvalidProblemError, ["model(x, t, **cond)", "Linear(...)"]),
    "clip's word": (denoiser(clip="1"), InvalidProblemError, ["clip must be positive", "'1' (str)", "clip=1.0"]),
    "clip's pair": (denoiser(clip=(-1.0, 1.0)), InvalidProblemError, ["(-1.0, 1.0) (tuple)", "DynamicThreshold()"]),
    "clip's vector": (denoiser(clip=torch.ones(3)), InvalidProblemError, ["clip must be positive", "(3,)"]),
    "clip's class": (denoiser(clip=picard.DynamicThreshold), InvalidProblemError, ["write e.g.", "DynamicThreshold()"]),
    "a word of percent": (lambda: picard.DynamicThreshold("a"), InvalidProblemError, ["ratio must be one number"]),  # type: ignore[arg-type]
    "nan threshold": (lambda: picard.DynamicThreshold(most=float("nan")), InvalidProblemError, ["most"]),
    "network's whole numbers": (answering(lambda x: x.long()), InvalidProblemError, ["floating", "int64"]),
    "network's complex numbers": (answering(lambda x: x + 0j), InvalidProblemError, ["floating", "complex"]),
    "misspelt option": (denoiser(predictions="sample"), TypeError, ["predictions"]),
    "no denoiser": (lambda: Diffusion(3, start(2, 3)), InvalidProblemError, ["Denoiser(model, schedule)"]),  # type: ignore[arg-type]
    "network's shape": (answering(lambda x: torch.cat([x, x], 1)), InvalidProblemError, [", 3)", ", 6)", "variance"]),
    "network's object": (
        answering(lambda x: {"sample": x}),
        InvalidProblemError,
        ["returned a dict of tensors:", "`.sample`"],
    ),
    "network's numbers": (
        answering(lambda x: {"sample": x.new_zeros(99)}),
        InvalidProblemError,
        ["returned a dict of tensors:"],
    ),
    "network's layout": (
        answering(lambda x: x.to_sparse()),
        InvalidProblemError,
        ["what the model returns must be dense", "torch.sparse_coo", ".to_dense()"],
    ),
    "network's device": (
        answering(lambda x: x.to("meta"), prediction="epsilon"),
        InvalidProblemError,
        ["on cpu", "on meta"],
    ),
    "rows of samples": (answering(lambda x: torch.ones(2, 3, dtype=F64)), InvalidProblemError, ["in cond, as tensors"]),
    "epsilon of pure noise": (
        lambda: solve(diffusion(FLOW, "epsilon"), 5, method="ddim"),
        NotSupportedError,
        ["alpha is 0", "v_prediction", "later timestep"],
    ),
    # guidance
    "unknown uncond": (
        lambda: guided(Guidance(2.0, {"lable": None}), label=torch.zeros(2)),
        InvalidProblemError,
        ["['lable']", "['label']"],
    ),
    "a scale a sample": (
        lambda: Guidance(torch.ones(3)),  # type: ignore[arg-type]
        InvalidProblemError,
        ["one finite number", "(3,)", "scales in cond"],
    ),
    "scale's word": (
        lambda: Guidance("3"),  # type: ignore[arg-type]
        InvalidProblemError,
        ["guidance scale must be one finite number", "Guidance(3.0"],
    ),
    "guidance of a number": (denoiser(guidance=3.0), InvalidProblemError, ["3.0 (float)", "Guidance(scale, uncond"]),
    "rescale": (lambda: Guidance(2.0, rescale=1.5), InvalidProblemError, ["between 0 and 1", "1.5"]),
    "nan scale": (lambda: Guidance(float("nan")), InvalidProblemError, ["scale must be one finite number"]),
    "uncond as a tensor": (lambda: Guidance(2.0, torch.zeros(2)), InvalidProblemError, ["uncond=dict(label=label)"]),  # type: ignore[arg-type]
    "rescaled numbers": (
        lambda: solve(rescaled(start(2, 1)), 5, method="ddim"),
        InvalidProblemError,
        ["several numbers", "(", "rescale=0.0"],
    ),
    "uncond's shape": (
        answering(lambda x: x, guidance=Guidance(2.0, {"label": torch.zeros(2, 4)})),
        InvalidProblemError,
        ["label"],
    ),
    "uncond's table": (
        lambda: guided(Guidance(2.0, {"table": torch.zeros(5)}), table=torch.ones(5)),
        InvalidProblemError,
        ["table", "one row a sample", "expand(2"],
    ),
    "uncond's flag": (
        lambda: guided(Guidance(2.0, {"drop": True}), drop=False),
        InvalidProblemError,
        ["drop", "tensors only", "True (bool)"],
    ),
    "no uncond at all": (lambda: guided(Guidance(2.0), label=torch.zeros(2)), InvalidProblemError, ["uncond=dict("]),
    "no uncond": (
        lambda: guided(Guidance(2.0, {"label": None}), label=torch.zeros(2)),
        InvalidProblemError,
        ["label", "None", "shaped as cond"],
    ),
    "uncond's names": (
        lambda: guided(Guidance(2.0, {"more": {"b": torch.zeros(2)}}), more={"a": torch.zeros(2)}),
        InvalidProblemError,
        ["more", "shaped as cond"],
    ),
    "an uncond inside": (
        lambda: guided(Guidance(2.0, {"more": [3, {"a": torch.zeros(3)}]}), more=[3, {"a": torch.ones(3)}]),
        InvalidProblemError,
        ["more[1]['a']", "one row a sample"],
    ),
    # schedules of the user's own
    "own levels": (
        scheduled(lambda: (ONES, ONES)),
        InvalidProblemError,
        ["a tuple of tensors", "picard.Levels("],
    ),
    "own dtype": (
        scheduled(lambda: picard.Levels(ONES[1:].float(), ONES, ONES)),
        InvalidProblemError,
        ["float64", "float32", "for timesteps of 5 steps", ".double()"],
    ),
    "no last level": (
        scheduled(lambda: picard.Levels(ONES[1:], ONES, ONES[1:])),
        InvalidProblemError,
        ["(5,)", "for sigma of 5 steps", "level after the last step"],
    ),
    "lists of levels": (
        scheduled(lambda: picard.Levels([1.0], [1.0, 1.0], [1.0, 0.0])),  # type: ignore[arg-type]
        InvalidProblemError,
        ["Levels must hold float64 tensors", "(list) for timesteps"],
    ),
    "a schedule of unknown time": (
        denoiser(schedule=Timeless()),
        InvalidProblemError,
        ["Timeless", "discrete = False"],
    ),
    # steps
    "too many steps": (sampled(1001), InvalidGridError, ["between 1 and the 1000 training steps", "1001"]),
    "no steps": (sampled(0), InvalidGridError, ["between 1 and", "0"]),
    "no sigma steps": (sampled(0, KARRAS), InvalidGridError, ["at least 1"]),
    "absurd steps": (sampled(2**40, KARRAS), InvalidGridError, ["at least 1 and at most 1000000000", "1099511627776"]),
    "sparse timesteps": (sampled(torch.arange(3, 0, -1).to_sparse()), InvalidProblemError, ["dense", ".to_dense()"]),
    "a flag": (sampled(True), InvalidGridError, ["number of steps", "True (bool)"]),
    "a float": (sampled(50.0), InvalidGridError, ["number of steps", "50.0 (float)", "write e.g. 50"]),
    "a matrix of steps": (sampled(torch.ones(3, device="meta")), InvalidProblemError, ["device that holds numbers"]),
    "a list": (sampled([900, 500, 100]), InvalidGridError, ["tensor of timesteps", "list", "torch.as_tensor(grid)"]),
    "increasing timesteps": (sampled(torch.tensor([1, 5, 9])), InvalidGridError, ["decrease strictly", "t.flip(0)"]),
    "repeated timesteps": (sampled(torch.tensor([9, 5, 5])), InvalidGridError, ["decrease strictly", "unique"]),
    "timesteps beyond": (sampled(torch.tensor([1000, 5])), InvalidGridError, ["whole training steps within [0, 1000)"]),
    "negative timesteps": (sampled(torch.tensor([5, -1])), InvalidGridError, ["within [0, 1000)"]),
    "broken timesteps": (sampled(torch.tensor([9.5, 5.0])), InvalidGridError, ["whole"]),
    "no timesteps": (sampled(torch.tensor([], dtype=torch.int64)), InvalidGridError, ["one-dimensional", "(0,)"]),
    "a matrix of timesteps": (sampled(torch.tensor([[9, 5]])), InvalidGridError, ["one-dimensional", "(1, 2)"]),
    "integer sigmas": (sampled(torch.tensor([5, 1]), KARRAS), InvalidGridError, ["floating", "int64"]),
    "increasing sigmas": (sampled(torch.tensor([1.0, 5.0]), KARRAS), InvalidGridError, ["decrease strictly"]),
    "a final zero": (sampled(torch.tensor([5.0, 0.0]), KARRAS), InvalidGridError, ["the final 0 is added"]),
    "sigmas beyond one": (sampled(torch.tensor([1.5, 0.5]), FLOW), InvalidGridError, ["not exceed 1"]),
    "nan sigmas": (sampled(torch.tensor([5.0, float("nan")]), KARRAS), InvalidGridError, ["decrease strictly"]),
}


@pytest.mark.parametrize(("make", "error", "says"), CASES.values(), ids=CASES)
def test_it_is_refused(make: Make, error: type[Exception], says: Sequence[str]) -> None:
    refuses(make, error, says)


def test_numbers_of_numpy_do() -> None:
    two, half = np.int64(2), np.float32(0.5)
    assert torch.equal(Schedule.linear(np.int64(20)).levels(two).sigma, Schedule.linear(20).levels(2).sigma)  # type: ignore[arg-type]
    assert torch.equal(Schedule.karras(rho=np.array(3.0)).levels(two).sigma, Schedule.karras(rho=3.0).levels(2).sigma)  # type: ignore[arg-type]
    assert DDIM(half) == DDIM(0.5)  # type: ignore[arg-type]
    assert DPMSolver(two) == DPMSolver(2)  # type: ignore[arg-type]
    for five in (np.int64(5), np.array(5), torch.tensor(5)):  # one timestep would be torch.tensor([5])
        assert diffusion().points(five).steps == 5
        assert torch.equal(solve(diffusion(), five, method="ddim").final, solve(diffusion(), 5, method="ddim").final)  # type: ignore[arg-type]
    assert isinstance(Guidance(Fraction(1, 2)).scale, float)  # type: ignore[arg-type]
    assert type(picard.RelAbs(half, torch.tensor(0.5)).atol) is float  # type: ignore[arg-type]


def test_a_constant_output_is_rescaled_to_itself() -> None:
    assert bool(torch.isfinite(solve(rescaled(start(2, 3)), 5, method="ddim").final).all())


def test_the_classes_are_what_a_user_would_catch() -> None:
    for error in (picard.InvalidProblemError, picard.InvalidGridError, picard.UnknownMethodError):
        assert issubclass(error, (PicardError, ValueError))
        assert issubclass(error, ValueError)
    assert issubclass(picard.NotConvergedError, RuntimeError)
    assert issubclass(picard.NonFiniteError, ArithmeticError)
    assert issubclass(picard.NotSupportedError, NotImplementedError)
    missing = picard.MissingDependencyError("tqdm")
    assert isinstance(missing, ImportError)
    assert str(missing).endswith(": pip install tqdm")
