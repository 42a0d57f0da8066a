"""Hypothesis strategies: problems, grids, methods and options to try a solver on. Hypothesis is imported when used.

Everything drawn is small and seeded: a failing example prints the numbers it was made from. Every function returns a
`hypothesis.strategies.SearchStrategy`, and raises `MissingDependencyError` where Hypothesis is not installed. Arguments
of the same name mean the same: `dtype` is that of the state, `batch`, `dims` and `components` are the largest numbers
drawn, `lipschitz` is the largest constant, and `kind` is a key of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from picard.convert import Prediction
from picard.diffusion import Diffusion
from picard.errors import MissingDependencyError, check_choice
from picard.schedule import Schedule
from picard.sde import SDE
from picard.tolerance import FixedRounds, NoiseRatio, RelAbs
from picard.verify.case import Case
from picard.verify.known import (
    LipschitzODE,
    linear_system,
    tanh_ode,
    tanh_sde,
)
from picard.verify.mixture import Mixture, mixture_diffusion

Kind = Literal["ode", "sde", "additive", "diffusion"]
Strategy = Any
"""A `hypothesis.strategies.SearchStrategy`; `Any`, because Hypothesis may not be there."""

METHODS: dict[str, tuple[str, ...]] = {
    "ode": ("euler", "midpoint", "heun", "heun3", "rk4"),
    "sde": ("euler",),
    "additive": ("euler", "midpoint", "heun", "rk4"),
    "diffusion": ("ddim", "ddpm", "euler", "heun", "dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
}


def _st() -> Any:
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise MissingDependencyError("hypothesis") from error
    return strategies


def seeds() -> Strategy:
    """Draw seeds."""
    return _st().integers(0, 2**16)


def windows(most: int = 16) -> Strategy:
    """Draw windows of 1 to `most` nodes."""
    return _st().integers(1, most)


def dtypes(*, half: bool = False) -> Strategy:
    """Draw dtypes of the state; `half` adds the two of half precision."""
    wide = [torch.float64, torch.float32]
    return _st().sampled_from([*wide, torch.float16, torch.bfloat16] if half else wide)


def methods(kind: Kind) -> Strategy:
    """Draw names of methods for a kind of problem; `additive` is an SDE whose diffusion ignores the state."""
    check_choice("kind", kind, METHODS)
    return _st().sampled_from(METHODS[kind])


def time_grids(
    *,
    direction: Literal["increasing", "decreasing", "any"] = "any",
    steps: int = 12,
    length: float = 2.0,
    dtype: torch.dtype = torch.float64,
) -> Strategy:
    """Draw non-uniform time grids of at least two steps, neighbouring steps differing by a factor of up to three.

    Args:
        direction: which way time runs.
        steps: most steps.
        length: longest time interval.
        dtype: dtype of the grid.
    """
    st = _st()
    ways = {"increasing": [1.0], "decreasing": [-1.0], "any": [1.0, -1.0]}
    check_choice("direction", direction, ways)

    def build(parts: Sequence[int], start: int, span: float, way: float) -> Tensor:
        shares = torch.tensor([0, *parts], dtype=torch.float64, device="cpu").cumsum(0)
        return (start + way * span * shares / shares[-1]).to(dtype)

    return st.builds(
        build,
        st.lists(st.integers(4, 12), min_size=2, max_size=steps),
        st.integers(-2, 2),
        st.sampled_from([length / 8, length / 2, length]),
        st.sampled_from(ways[direction]),
    )


def tanh_odes(*, lipschitz: float = 2.0, dtype: torch.dtype = torch.float64, batch: int = 3) -> Strategy:
    """Draw networks with a known Lipschitz constant of at most `lipschitz`, with states of one to three dimensions."""
    st = _st()
    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
    factor = st.sampled_from([0.1, 0.5, 1.0])

    def build(seed: int, size: int, shape: tuple[int, ...], share: float) -> LipschitzODE:
        return tanh_ode(seed, batch=size, shape=shape, lipschitz=share * lipschitz, dtype=dtype)

    return st.builds(build, seeds(), st.integers(1, batch), shapes, factor)


def linear_systems(*, lipschitz: float = 2.0, dtype: torch.dtype = torch.float64, batch: int = 3) -> Strategy:
    """Draw linear systems whose matrix has a spectral norm of at most `lipschitz`."""
    st = _st()

    def build(seed: int, size: int, dims: int, share: float) -> LipschitzODE:
        return linear_system(seed, batch=size, dims=dims, lipschitz=share * lipschitz, dtype=dtype)

    return st.builds(build, seeds(), st.integers(1, batch), st.integers(1, 5), st.sampled_from([0.1, 0.5, 1.0]))


def lipschitz_odes(*, lipschitz: float = 2.0, dtype: torch.dtype = torch.float64, batch: int = 3) -> Strategy:
    """Draw `LipschitzODE` problems: networks and linear systems."""
    kinds = (tanh_odes, linear_systems)
    return _st().one_of(*(kind(lipschitz=lipschitz, dtype=dtype, batch=batch) for kind in kinds))


def sdes(
    *, noise_types: Sequence[str] = ("diagonal", "scalar", "additive", "general"), dtype: torch.dtype = torch.float64
) -> Strategy:
    """Draw SDEs with a Lipschitz drift and a bounded diffusion of the given kinds."""
    st = _st()

    def build(seed: int, size: int, dims: int, noise_type: Any) -> SDE:
        return tanh_sde(seed, batch=size, dims=dims, noise_type=noise_type, dtype=dtype)

    return st.builds(build, seeds(), st.integers(1, 3), st.integers(1, 4), st.sampled_from(list(noise_types)))


def schedules(*, flow: bool = True) -> Strategy:
    """Draw noise schedules: linear, scaled linear and cosine of 20 to 200 steps, Karras, flow matching if `flow`."""
    st = _st()
    train = st.integers(20, 200)
    spacings = st.sampled_from(["leading", "trailing", "linspace"])
    kinds = [
        st.builds(lambda n, spacing: Schedule.linear(n, 1e-3, 4.0 / n, spacing=spacing), train, spacings),
        st.builds(lambda n, spacing: Schedule.scaled_linear(n, 1e-3, 4.0 / n, spacing=spacing), train, spacings),
        st.builds(lambda n, spacing: Schedule.cosine(n, spacing=spacing), train, spacings),
        st.builds(lambda top: Schedule.karras(0.01, top), st.sampled_from([5.0, 80.0])),
    ]
    if flow:
        kinds.append(st.builds(Schedule.flow, st.sampled_from([1.0, 3.0])))
    return st.one_of(*kinds)


def mixtures(*, components: int = 4, dims: int = 4) -> Strategy:
    """Draw Gaussian mixtures of up to so many components and dimensions."""
    st = _st()

    def build(seed: int, count: int, size: int) -> Mixture:
        return Mixture.random(seed, components=count, dims=size)

    return st.builds(build, seeds(), st.integers(1, components), st.integers(1, dims))


def mixture_diffusions(
    *, components: int = 4, dims: int = 4, batch: int = 3, dtype: torch.dtype = torch.float64
) -> Strategy:
    """Draw diffusion problems of Gaussian mixtures with exact networks of all kinds of prediction."""
    st = _st()
    safe: list[Prediction] = ["sample", "v_prediction"]  # a noise prediction says nothing where alpha is 0

    def build(mixture: Mixture, schedule: Schedule, seed: int, size: int, prediction: Prediction) -> Diffusion:
        return mixture_diffusion(mixture, schedule, seed, batch=size, prediction=prediction, dtype=dtype)

    def of(schedule: Strategy, predictions: list[Prediction]) -> Strategy:
        data = mixtures(components=components, dims=dims)
        return st.builds(build, data, schedule, seeds(), st.integers(1, batch), st.sampled_from(predictions))

    return st.one_of(of(schedules(), safe), of(schedules(flow=False), ["epsilon", *safe]))


def gaussian_diffusions(*, dims: int = 4, batch: int = 3, dtype: torch.dtype = torch.float64) -> Strategy:
    """Draw diffusion problems of Gaussian data, whose denoiser is affine."""
    return mixture_diffusions(components=1, dims=dims, batch=batch, dtype=dtype)


def solve_options(kind: Kind) -> Strategy:
    """Draw options of `picard.solve`: window, tolerance, linearization and guess."""
    st = _st()
    check_choice("kind", kind, METHODS)
    rules = [RelAbs(1e-3, 1e-5), FixedRounds(2)] if kind != "diffusion" else [NoiseRatio(0.1), FixedRounds(3)]
    return st.fixed_dictionaries(
        {"window": windows()},
        optional={
            "tolerance": st.sampled_from(rules),
            "linearization": st.sampled_from(["secant", "frozen", "identity", "newton"]),
            "guess": st.sampled_from(["extrapolate", "hold", "eager", "copy"]),
        },
    )


def cases(kind: Kind, *, options: bool = True, steps: int = 12, dtype: torch.dtype = torch.float64) -> Strategy:
    """Draw whole cases: a problem of the kind, a grid, a method and, if wanted, options of `picard.solve`.

    Args:
        kind: kind of problem.
        options: whether to draw options too.
        steps: most steps.
        dtype: dtype of the state.
    """
    st = _st()
    check_choice("kind", kind, METHODS)
    problems = {
        "ode": lambda: lipschitz_odes(dtype=dtype),
        "sde": lambda: sdes(dtype=dtype),
        "additive": lambda: sdes(noise_types=("additive",), dtype=dtype),
        "diffusion": lambda: mixture_diffusions(dtype=dtype),
    }[kind]()
    grids = st.integers(2, steps) if kind == "diffusion" else time_grids(steps=steps)
    return st.builds(Case, problems, grids, methods(kind), solve_options(kind) if options else st.just({}))
