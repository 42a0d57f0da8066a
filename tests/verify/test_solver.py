"""The kit on the library's own solver: every property, over all kinds of problems, methods, options and dtypes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import picard
from picard.integrators import DDIM, DDPM, DPMSolver
from picard.plan import Integrator
from picard.tolerance import Tolerance
from picard.verify import Case, Mixture, check, mixture_diffusion, strategies
from picard.verify.known import runaway_ode
from picard.verify.strategies import Kind

KINDS: tuple[Kind, ...] = ("ode", "sde", "additive", "diffusion")
STEPS = {"ode": 6, "sde": 9, "additive": 6, "diffusion": 9}  # a step of rk4 is four nodes
# A mixture's path may end in another mode when a loose tolerance moves it: then no bound on the distance holds.
WITHIN = {"ode": 0.1, "sde": 0.1, "additive": 0.1, "diffusion": math.inf}
FEW = max(5, settings().max_examples // 5)  # 10 under the CI profile, 200 nightly, for every kind
# Beyond the names, which stand for the usual options: strategies know names only.
SAMPLERS: list[Integrator] = [
    DDIM(0.5),
    DDPM("fixed_large"),
    DPMSolver(3),
    DPMSolver(3, "sde-dpmsolver++"),
    DPMSolver(2, "dpmsolver", "singlestep"),
    DPMSolver(3, "dpmsolver++", "singlestep"),
    DPMSolver(2, "sde-dpmsolver++", "singlestep"),
    DPMSolver(3, "sde-dpmsolver++", "singlestep"),
]
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # the kit shrinks a failing case itself


def cases(kind: Kind) -> st.SearchStrategy[Case]:
    """Draw cases with methods by name, and for diffusions as often with other options of theirs."""
    drawn: st.SearchStrategy[Case] = strategies.cases(kind, steps=STEPS[kind])
    if kind != "diffusion":
        return drawn
    return st.one_of(drawn, st.builds(lambda case, one: replace(case, method=one), drawn, st.sampled_from(SAMPLERS)))


def verify(case: Case, kind: Kind, properties: list[str] | None = None) -> None:
    within = math.inf if isinstance(case.options.get("tolerance"), picard.FixedRounds) else WITHIN[kind]
    report = check(case.problem, case.grid, method=case.method, within=within, properties=properties, **case.options)
    report.raise_for_failures()


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_holds(kind: Kind) -> None:
    @settings(max_examples=FEW, phases=PHASES)
    @given(cases(kind))
    def hold(case: Case) -> None:
        verify(case, kind)

    hold()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_properties_hold_in_other_precisions(kind: Kind, dtype: torch.dtype) -> None:
    names = ["equal_to_sequential", "rounds_bounded", "reproducible", "window_independent"]

    @settings(max_examples=max(2, FEW // 3), phases=PHASES)
    @given(strategies.cases(kind, steps=6, dtype=dtype, options=False))
    def hold(case: Case) -> None:
        verify(case, kind, names)

    hold()


@settings(max_examples=FEW, phases=PHASES)
@given(
    strategies.seeds(),
    st.integers(3, 24),
    strategies.windows(32),
    st.sampled_from(["secant", "frozen", "identity", "newton"]),
    st.sampled_from(["hold", "eager", "copy"]),
)
def test_a_window_that_overflows_does_no_harm(seed: int, steps: int, window: int, rule: str, guess: str) -> None:
    grid = torch.linspace(0, steps / 2, steps + 1, dtype=torch.float64)
    names = ["equal_to_sequential", "prefix_exact", "rounds_bounded", "reproducible", "window_independent"]
    report = check(
        runaway_ode(seed), grid, method="euler", properties=names, window=window, linearization=rule, guess=guess
    )
    report.raise_for_failures()


RULES = [picard.RelAbs(1e-3, 1e-3), picard.NoiseRatio(0.3), picard.FixedRounds(2), picard.TotalVariation(0.1)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=max(3, FEW // 2), phases=PHASES)
@given(
    strategies.mixture_diffusions(),
    st.integers(2, 10),
    st.sampled_from(["ddpm", "sde-dpmsolver++"]),
    st.sampled_from(["hold", "eager", "copy"]),
)
def test_every_tolerance_is_causal_and_certified(
    rule: Tolerance, problem: picard.Diffusion, steps: int, method: str, guess: str
) -> None:
    names = ["causal", "adapted", "certified", "batch_independent"]
    check(problem, steps, method=method, tolerance=rule, window=6, guess=guess, properties=names).raise_for_failures()


@pytest.mark.parametrize("rule", [*RULES, picard.TotalVariation(0.5)], ids=str)
@pytest.mark.parametrize("guess", ["copy", torch.zeros(11, 1, 1, dtype=torch.float64)], ids=["copy", "warm"])
def test_no_acceptance_depends_on_the_own_noise_of_a_state_guessed_without_it(
    guess: str | Tensor, rule: Tolerance
) -> None:
    for seed in (2, 5):
        problem = mixture_diffusion(Mixture.random(seed, dims=1), picard.Schedule.cosine(50), seed, batch=1)
        options: dict[str, Any] = {"tolerance": rule, "window": 6, "guess": guess}
        check(problem, 10, method="ddpm", properties=["adapted"], **options).raise_for_failures()


@settings(max_examples=FEW, phases=PHASES)
@given(strategies.gaussian_diffusions(), st.integers(2, 20), strategies.solve_options("diffusion"))
def test_gaussian_data_stays_near_the_sequential_samples(
    problem: picard.Diffusion, steps: int, options: dict[str, Any]
) -> None:
    options["tolerance"] = picard.NoiseRatio(0.1)
    report = check(problem, steps, method="ddpm", within=0.1, properties=["within_tolerance"], **options)
    report.raise_for_failures()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=1000, phases=PHASES)
@given(st.data())
def test_a_thousand_examples_raise_no_false_alarm(kind: Kind, data: st.DataObject) -> None:
    verify(data.draw(cases(kind)), kind)
