"""Bad input is refused with the right class and a message that says what must hold, what came, and what to write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import picard
from picard import (
    SDE,
    Diffusion,
    FixedRounds,
    InvalidGridError,
    InvalidProblemError,
    Noise,
    NoiseRatio,
    NotSupportedError,
    RelAbs,
    UnknownMethodError,
    sequential,
    solve,
    verify,
)
from picard.integrators import DDIM, DDPM, DPMSolver, Euler, RungeKutta, Tableau
from tests.problems import F64, diffusion, pendulum, sde, start, times
from tests.refusals import Make, Refusal, refuses

pytestmark = pytest.mark.usefixtures("unchecked")  # what picard itself says of a wrong type is the subject here
X = start(2, 3)
NAN = float("nan")


def drifting(output: Callable[[Tensor], Any]) -> Make:
    """Solve with a drift that returns something else than it should."""
    return lambda: solve(picard.ODE(lambda t, x: output(x), X), times(5), method="euler")


def gridded(grid: Any) -> Make:
    return lambda: solve(pendulum(), grid, method="euler")


def optioned(**options: Any) -> Make:
    return lambda: solve(pendulum(), times(5), **{"method": "euler", **options})


def of_torchsde(**changes: Any) -> Any:
    """Solve an SDE as torchsde takes it, with something wrong in it or in the options."""
    parts = {"noise_type": "diagonal", "sde_type": "ito", "f": lambda t, y: -y, "g": lambda t, y: y}
    made = SimpleNamespace(**{name: changes.pop(name, part) for name, part in parts.items()})
    return picard.sdeint(made, X, times(5), **{"dt": 0.1, "method": "euler", **changes})


class Kickless:
    """Euler's method by somebody who did not think of noise."""

    def plan(self, points: Any) -> Any:
        h = points.values.diff()
        return picard.Plan(
            times=points.values[:-1], a=torch.ones_like(h)[:, None], b=h[:, None], step=torch.arange(len(h))
        )


class Sloping:
    """A linearization of the user's, with a mistake."""

    measures, share, taper = False, 1.0, 0.0

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.slopes = make


class Ruled(picard.Tolerance):
    """A tolerance of the user's, with mistakes."""

    def __init__(self, *, bound: Any = None, watched: Any = None) -> None:
        self._bound, self._watched = bound, watched

    def bound(self, candidates: Any) -> Any:
        return self._bound(candidates) if self._bound else torch.full_like(candidates.size, 1e-3)

    def watched(self, change: Any) -> Any:
        return self._watched(change) if self._watched else change


class Stepless(Kickless):
    """Euler's method by somebody who did not think of steps."""

    def plan(self, points: Any) -> Any:
        plan = super().plan(points)
        return replace(plan, step=torch.zeros_like(plan.step))


def planned(**changes: Any) -> Make:
    """Write a plan of four nodes with something wrong in it."""
    one = torch.ones(4, 1, dtype=F64)
    return lambda: picard.Plan(**{"times": one[:, 0], "a": one, "b": one, "step": torch.arange(4), **changes})


def stochastic(**changes: Any) -> Make:
    options: dict[str, Any] = {"drift": lambda t, x: -x, "diffusion": lambda t, x: x, "x0": X}
    return lambda: solve(SDE(**{**options, "noise": Noise.from_seed(0), **changes}), times(5), method="euler")


GRIDS: dict[str, tuple[Any, Sequence[str]]] = {
    "turning": ([0.0, 1.0, 0.5], ["strictly increasing or strictly decreasing", "at index 1"]),
    "repeating": ([0.0, 1.0, 1.0], ["strictly", "drop repeats"]),
    "constant": ([1.0, 1.0, 1.0], ["strictly"]),
    "turning late": ([3.0, 2.0, 1.0, 2.0], ["1 followed by 2 at index 2"]),
    "not finite": ([0.0, NAN, 1.0], ["finite"]),
    "infinite": ([0.0, 1.0, float("inf")], ["finite", "1 followed by inf at index 1"]),
    "empty": ([], ["at least two points", "torch.linspace"]),
    "one point": ([0.0], ["at least two points", "torch.linspace"]),
    "two end points": ([0.0, 1.0], ["name every step", "torch.linspace"]),
    "two-dimensional": ([[0.0, 1.0, 2.0]], ["one-dimensional", "(1, 3)"]),
}


@pytest.mark.parametrize("solver", [solve, sequential])
@pytest.mark.parametrize("problem", [pendulum(), sde()], ids=["ode", "sde"])
@pytest.mark.parametrize(("values", "says"), GRIDS.values(), ids=GRIDS)
def test_grids(solver: Callable[..., Any], problem: Any, values: Any, says: Sequence[str]) -> None:
    refuses(partial(solver, problem, torch.tensor(values, dtype=F64), method="euler"), InvalidGridError, says)


class Planned:
    """An integrator of the user's, Euler's or with mistakes."""

    def __init__(self, make: Callable[..., Any], **changes: Tensor) -> None:
        self.make, self.changes = make, changes

    def plan(self, points: Any) -> Any:
        return self.make(points, **self.changes)


def own(points: Any, **changes: Tensor) -> picard.Plan:
    h = points.values.diff()
    given = {"a": torch.ones(len(h), 1, dtype=F64), "b": h[:, None], "step": torch.arange(len(h))}
    return picard.Plan(times=points.values[:-1], **{**given, **changes})


CASES: dict[str, Refusal] = {
    "integer grid": (gridded(torch.arange(5)), InvalidGridError, ["floating dtype", "int64", ".double()"]),
    "complex grid": (gridded(torch.zeros(3, dtype=torch.complex64)), InvalidGridError, ["floating", "complex64"]),
    "list as grid": (gridded([0.0, 0.5, 1.0]), InvalidGridError, ["floating tensor", "torch.as_tensor(grid)"]),
    "steps for an ode": (gridded(100), InvalidGridError, ["floating tensor", "100 (int)", "torch.linspace"]),
    "steps for an sde": (lambda: solve(sde(), 100, method="euler"), InvalidGridError, ["tensor", "100 (int)"]),
    "absorbed elsewhere": (
        lambda: solve(sde().absorb(times(5)), times(6), method="euler"),
        InvalidGridError,
        ["grid it was absorbed on", "sde.absorb(grid)"],
    ),
    # the start
    "no batch": (lambda: picard.ODE(lambda t, x: x, X[0]), InvalidProblemError, ["(batch, *state)", "(3,)", "[None]"]),
    "no tensor": (lambda: picard.ODE(lambda t, x: x, 1.0), InvalidProblemError, ["x0", "1.0 (float)"]),  # type: ignore[arg-type]
    "integers": (lambda: picard.ODE(lambda t, x: x, X.long()), InvalidProblemError, ["int64", ".float()"]),
    "numbers of numpy": (
        lambda: picard.ODE(lambda t, x: x, np.ones((2, 3))),  # type: ignore[arg-type]
        InvalidProblemError,
        ["(ndarray)", "torch.as_tensor(x0"],
    ),
    "complex": (lambda: picard.ODE(lambda t, x: x, X + 0j), InvalidProblemError, ["view_as_real(x0)", "odeint"]),
    "empty batch": (lambda: picard.ODE(lambda t, x: x, X[:0]), InvalidProblemError, ["at least one", "(0, 3)"]),
    "nan start": (lambda: picard.ODE(lambda t, x: x, X * NAN), InvalidProblemError, ["finite", "6 non-finite"]),
    "nan start of sampling": (lambda: diffusion_from(X / 0), InvalidProblemError, ["x_T", "finite"]),
    "no batch of sampling": (lambda: diffusion_from(X[0]), InvalidProblemError, ["x_T[None]"]),
    "parts of a start": (lambda: diffusion_from((X, X)), InvalidProblemError, ["a tuple of tensors", "part in x_T]"]),  # type: ignore[arg-type]
    "named parts": (lambda: diffusion_from({"a": X}), InvalidProblemError, ["a dict of tensors", "x_T.values()]"]),  # type: ignore[arg-type]
    # the drift
    "other shape": (drifting(lambda x: x[:, :2]), InvalidProblemError, ["what it is given", ", 3)", ", 2)"]),
    "time as one number": (
        lambda: solve(picard.ODE(lambda t, x: torch.cos(t) - x, torch.ones(2, 1, 1)), times(5).float(), method="euler"),
        InvalidProblemError,
        ["write t[:, None, None] where t, (rows,), meets x"],
    ),
    "other dtype": (drifting(lambda x: x.float()), InvalidProblemError, ["float64", "float32", "write .to(x.dtype)"]),
    "other device": (drifting(lambda x: x.to("meta")), InvalidProblemError, ["on cpu", "on meta"]),
    "a tuple": (drifting(lambda x: (x,)), InvalidProblemError, ["returned", "tuple"]),
    "none": (drifting(lambda x: None), InvalidProblemError, ["returned", "NoneType"]),
    "a class": (lambda: picard.ODE(torch.nn.Linear, X), InvalidProblemError, ["drift(t, x, **cond)", "Linear(...)"]),  # type: ignore[arg-type]
    "sparse drift": (drifting(lambda x: x.to_sparse()), InvalidProblemError, ["torch.sparse_coo"]),
    "sparse start": (lambda: picard.ODE(lambda t, x: x, X.to_sparse()), InvalidProblemError, ["x0 must be dense"]),
    "sparse conditioning": (
        lambda: solve(picard.ODE(lambda t, x, c: x, X, cond={"c": X.to_sparse()}), times(5), method="euler"),
        InvalidProblemError,
        ["one row a sample must be dense", ".to_dense()"],
    ),
    "no numbers": (
        lambda: picard.ODE(lambda t, x: x, X.to("meta")),
        InvalidProblemError,
        ["x0 must be on a device that holds numbers"],
    ),
    "not callable": (lambda: picard.ODE(3, X), InvalidProblemError, ["drift(t, x, **cond)", "3 (int)"]),  # type: ignore[arg-type]
    "no problem": (lambda: solve("ode", times(5), method="euler"), InvalidProblemError, ["ODE, an SDE or a Diffusion"]),  # type: ignore[arg-type]
    "cond no mapping": (lambda: picard.ODE(lambda t, x: x, X, cond=[1]), InvalidProblemError, ["cond=dict("]),  # type: ignore[arg-type]
    # own methods
    "plan's states": (planned(a=torch.ones(4, dtype=F64)), InvalidProblemError, ["Plan.a", "(nodes, K)", "a[:, None]"]),
    "plan's list": (planned(c=[0.0]), InvalidProblemError, ["Plan.c must be a tensor", "list", "as_tensor"]),
    "plan's b": (planned(b=torch.ones(3, 1, dtype=F64)), InvalidProblemError, ["Plan.b", "(4, 1)", "(3, 1)"]),
    "plan's dtype": (planned(a=torch.ones(4, 1)), InvalidProblemError, ["Plan.a", "float64", "float32"]),
    "plan's layout": (planned(step=torch.arange(4).to_sparse()), InvalidProblemError, ["Plan.step must be dense"]),
    "plan's complex steps": (planned(step=torch.ones(4) * 1j), InvalidProblemError, ["Plan.step", "int64", "complex"]),
    "plan's steps": (planned(step=torch.arange(3)), InvalidProblemError, ["Plan.step", "(4,)", "torch.arange(4)"]),
    "plan's step numbers": (planned(step=torch.arange(4.0)), InvalidProblemError, ["Plan.step", "int64", "float32"]),
    "plan's gap": (planned(step=torch.tensor([0, 0, 2, 3])), InvalidProblemError, ["Plan.step", "without a gap"]),
    "plan's order": (planned(step=torch.tensor([1, 0, 2, 3])), InvalidProblemError, ["Plan.step", "from 0"]),
    "plan's yardstick": (planned(yardstick=torch.ones(3, dtype=F64)), InvalidProblemError, ["Plan.yardstick", "(4,)"]),
    "plan's scales": (planned(scales=torch.ones(4, dtype=F64)), InvalidProblemError, ["Plan.scales", "(4, 2)"]),
    "plan's inputs": (planned(inputs=torch.ones(4, 3, dtype=F64)), InvalidProblemError, ["Plan.inputs", "(4, 1)"]),
    "no kick": (lambda: solve(sde(), times(5), method=Kickless()), NotSupportedError, ["kick", "method='euler'"]),
    "one step of all nodes": (
        lambda: solve(pendulum(), times(5), method=Stepless()),
        InvalidProblemError,
        ["steps of the points it is made for, 5", "counts 1", "torch.arange(5)"],
    ),
    "registered object": (
        lambda: picard.integrators.register("mine", DDIM()),  # type: ignore[arg-type]
        InvalidProblemError,
        ["what makes it", "lambda: DDIM"],
    ),
    # what torchsde's callers give
    "a flag of sdeint": (lambda: of_torchsde(adaptive="no"), InvalidProblemError, ["adaptive must be True or"]),
    "rows of sdeint": (
        lambda: of_torchsde(options={"rows": "no"}),
        InvalidProblemError,
        ["rows must be True or False"],
    ),
    "times of sdeint": (
        lambda: picard.sdeint(of_types(), X, ["0", "1"], method="euler"),  # type: ignore[list-item]
        InvalidProblemError,
        ["every time of ts must be one number", "'0'"],
    ),
    "names of sdeint": (lambda: of_torchsde(names="fg"), InvalidProblemError, ["names must map", "'fg'"]),
    "f of sdeint": (lambda: of_torchsde(f=3), InvalidProblemError, ["sde.f(t, y", "3 (int)"]),
    "path of sdeint": (
        lambda: of_torchsde(bm=lambda a, b: X[0]),
        InvalidProblemError,
        ["bm must return a floating tensor of shape (2, 3)", "(3,)"],
    ),
    "numbers of sdeint's path": (lambda: of_torchsde(bm=lambda a, b: X.long()), InvalidProblemError, ["bm", "int64"]),
    "method of sdeint": (lambda: of_torchsde(method=3), UnknownMethodError, ["method must be a name", "3 (int)"]),
    # what is verified
    "selected by a mask": (lambda: verify.select(pendulum(), [True, False]), InvalidProblemError, ["indices"]),
    "selected outside": (
        lambda: verify.select(pendulum(), [2]),
        InvalidProblemError,
        ["in the batch of 2", "[2]"],
    ),
    "noise of a sample outside": (
        lambda: Noise.from_tensor(torch.zeros(5, 2, 3)).select([0, 2]),
        InvalidProblemError,
        ["in the batch of 2", "[0, 2]"],
    ),
    "seed of a sample outside": (
        lambda: Noise.from_seed([1, 2]).select([2]),
        InvalidProblemError,
        ["in the batch of 2"],
    ),
    "noise of no sample": (lambda: Noise.from_seed(0).select([]), InvalidProblemError, ["indices in the batch"]),
    "samples without numbers": (
        lambda: Noise.from_seed(0).select(torch.ones(2, device="meta")),  # type: ignore[arg-type]
        InvalidProblemError,
        ["indices in the batch", "on meta"],
    ),
    "property as a word": (
        lambda: verify.check(pendulum(), times(5), method="euler", properties="causal"),
        InvalidProblemError,
        ["list of names"],
    ),
    "broken rounds": (
        lambda: verify.factorial_bound(1.0, 1.0, 0.5),  # type: ignore[arg-type]
        InvalidProblemError,
        ["rounds", "0.5"],
    ),
    "complex lipschitz": (lambda: verify.factorial_bound(1j, 1.0, 1), InvalidProblemError, ["lipschitz", "1j"]),  # type: ignore[arg-type]
    "sparse gains": (lambda: verify.picard_bound(torch.ones(3).to_sparse(), 1), InvalidProblemError, ["dense"]),
    "a quantile as percent": (lambda: verify.History().contraction(50), InvalidProblemError, ["between 0 and 1", "50"]),
    "absurd degree": (
        lambda: verify.elementary_symmetric(torch.ones(3), 10**30),
        InvalidProblemError,
        ["degree", "at most 9223372036854775807"],
    ),
    "gains as a list": (lambda: verify.rounds_needed([1.0], 0.5), InvalidProblemError, ["gains", "one-dimensional"]),  # type: ignore[arg-type]
    "deviation as a word": (lambda: verify.gaussian_tv(0.0, "1", 0.0, 1.0), InvalidProblemError, ["std_1", "'1'"]),  # type: ignore[arg-type]
    "means as lists": (lambda: verify.gaussian_tv_shared([0.0], [0.0], X), InvalidProblemError, ["must be tensors"]),  # type: ignore[arg-type]
    "samples as arrays": (lambda: verify.energy_test(X.numpy(), X), InvalidProblemError, ["samples", "ndarray"]),  # type: ignore[arg-type]
    "seed of a test": (lambda: verify.energy_test(X, X, seed="0"), InvalidProblemError, ["seed", "'0'"]),  # type: ignore[arg-type]
    "sigmas of a test": (
        lambda: verify.TwoSample(0.0, 1.0, 0.5).lower("2"),  # type: ignore[arg-type]
        InvalidProblemError,
        ["sigmas must be one number"],
    ),
    "kind of methods": (lambda: verify.strategies.methods("sdes"), InvalidProblemError, ["did you mean 'sde'"]),  # type: ignore[arg-type]
    "kind of noise": (lambda: verify.tanh_sde(0, noise_type="skalar"), InvalidProblemError, ["did you mean 'scalar'"]),  # type: ignore[arg-type]
    "absurd seed of a test": (lambda: verify.energy_test(X, X, seed=2**63), InvalidProblemError, ["seed", "at most"]),
    "absurd permutations": (
        lambda: verify.energy_test(torch.ones(4, 1), torch.ones(4, 1), permutations=10**30),
        InvalidProblemError,
        ["permutations", "at most 1000000"],
    ),
    "absurd batch": (lambda: verify.tanh_ode(0, batch=2**63), InvalidProblemError, ["batch", "at most 1000000000"]),
    "shape of shares": (lambda: verify.tanh_ode(0, shape=(2.5,)), InvalidProblemError, ["every entry", "2.5 (float)"]),  # type: ignore[arg-type]
    "shape as a number": (
        lambda: verify.tanh_ode(0, shape=3),  # type: ignore[arg-type]
        InvalidProblemError,
        ["sizes of one state", "3 (int)", "shape=(3,)"],
    ),
    "dtype of integers": (
        lambda: verify.linear_system(0, dtype=torch.int64),
        InvalidProblemError,
        ["dtype must be a floating one", "torch.int64"],
    ),
    "dtype as a word": (
        lambda: verify.tanh_sde(0, dtype="float32"),  # type: ignore[arg-type]
        InvalidProblemError,
        ["dtype must be a floating one", "'float32'"],
    ),
    "dtype of none": (lambda: sampling(dtype=None), InvalidProblemError, ["dtype must be a floating one", "None"]),
    "no mixture": (lambda: sampling(mixture="three"), InvalidProblemError, ["Mixture.random(0)", "'three'"]),
    "batch of a mixture": (lambda: sampling(batch=2.5), InvalidProblemError, ["batch must be an integer", "2.5"]),
    "no components": (lambda: verify.Mixture.random(0, components=0), InvalidProblemError, ["components", "0 (int)"]),
    "samples of a mixture": (
        lambda: verify.Mixture.random(0).sample(-1, torch.Generator()),
        InvalidProblemError,
        ["count", "-1"],
    ),
    "generator of a mixture": (
        lambda: verify.Mixture.random(0).sample(2, 0),  # type: ignore[arg-type]
        InvalidProblemError,
        ["torch.Generator().manual_seed(0)", "0 (int)"],
    ),
    "means without numbers": (
        lambda: verify.gaussian_tv(torch.zeros(2, device="meta"), 1.0, torch.zeros(2), 1.0),
        InvalidProblemError,
        ["mean_1", "holds numbers"],
    ),
    "no batch of a system": (lambda: verify.linear_system(0, batch=0), InvalidProblemError, ["batch", "0 (int)"]),
    "a mixture of lists": (lambda: verify.Mixture([0.0], [1.0], [1.0]), InvalidProblemError, ["made of tensors"]),  # type: ignore[arg-type]
    # the noise of an SDE
    "diffusion's shape": (stochastic(diffusion=lambda t, x: x[:, :1]), InvalidProblemError, [", 3)", ", 1)"]),
    "diffusion's dtype": (stochastic(diffusion=lambda t, x: x.float()), InvalidProblemError, ["float64", "float32"]),
    "diffusion's device": (stochastic(diffusion=lambda t, x: x.to("meta")), InvalidProblemError, ["on cpu", "on meta"]),
    "no channels": (stochastic(noise_type="general"), InvalidProblemError, ["(rows, *state, channels)", "(2, 3)"]),
    "no scalar channel": (stochastic(noise_type="scalar"), InvalidProblemError, [", 3, 1)", ", 3),"]),
    "noise type": (stochastic(noise_type="diagnal"), InvalidProblemError, ["did you mean 'diagonal'"]),
    "noise no Noise": (stochastic(noise=3), InvalidProblemError, ["picard.Noise", "Noise.from_seed(0)"]),
    "a bare path": (stochastic(noise=lambda a, b: X), InvalidProblemError, ["Noise.from_brownian(path)"]),
    "too few seeds": (
        stochastic(noise=Noise.from_seed([1])),
        InvalidProblemError,
        ["1 for a batch of 2", "one integer"],
    ),
    "too many seeds": (lambda: with_noise(Noise.from_seed([1, 2, 3])), InvalidProblemError, ["3 for a batch of 2"]),
    "seed without a number": (
        lambda: Noise.from_seed(torch.tensor(3, device="meta")),  # type: ignore[arg-type]
        InvalidProblemError,
        ["a seed must be an integer", "on meta"],
    ),
    "seeds of bytes": (lambda: Noise.from_seed(b"ab"), InvalidProblemError, ["a seed must be an integer"]),
    "no seed": (lambda: Noise.from_seed([]), InvalidProblemError, ["a seed must be an integer"]),
    "negative seed": (lambda: Noise.from_seed(-1), InvalidProblemError, ["[0, 2**64)", "-1"]),
    "large seed": (lambda: Noise.from_seed([2**64]), InvalidProblemError, ["[0, 2**64)"]),
    "seed of another type": (lambda: Noise.from_seed([True]), InvalidProblemError, ["integer"]),
    "fractional seed": (lambda: Noise.from_seed(3.0), InvalidProblemError, ["integer", "3.0 (float)"]),  # type: ignore[arg-type]
    "seed none": (lambda: Noise.from_seed(None), InvalidProblemError, ["integer", "NoneType"]),  # type: ignore[arg-type]
    "no generator": (lambda: Noise.from_generator(5), InvalidProblemError, ["torch.Generator", "5 (int)"]),  # type: ignore[arg-type]
    "noise too short": (
        stochastic(noise=Noise.from_tensor(torch.zeros(4, 2, 3))),
        InvalidProblemError,
        ["(5, 2, 3)", "(4, 2, 3)"],
    ),
    "noise of another batch": (
        stochastic(noise=Noise.from_tensor(torch.zeros(5, 3, 3))),
        InvalidProblemError,
        ["(5, 2, 3)", "(5, 3, 3)"],
    ),
    "integer noise": (lambda: Noise.from_tensor(torch.zeros(5, 2, dtype=torch.int64)), InvalidProblemError, ["int64"]),
    "path of another shape": (
        stochastic(noise=Noise.from_brownian(lambda a, b: torch.zeros(2, 4))),
        InvalidProblemError,
        ["(2, 3)", "(2, 4)"],
    ),
    "path for a model": (
        lambda: with_noise(Noise.from_brownian(lambda a, b: X)),
        NotSupportedError,
        ["Noise.from_seed"],
    ),
    "path of numbers": (
        stochastic(noise=Noise.from_brownian(lambda a, b: b - a)),  # type: ignore[arg-type,return-value]
        InvalidProblemError,
        ["one entry a sample", "(float)"],
    ),
    "path without numbers": (
        stochastic(noise=Noise.from_brownian(lambda a, b: X.to("meta"))),
        InvalidProblemError,
        ["Brownian path", "holds numbers"],
    ),
    "sparse path": (stochastic(noise=Noise.from_brownian(lambda a, b: X.to_sparse())), InvalidProblemError, ["dense"]),
    "coarsen by an absurd number": (
        lambda: Noise.from_seed(0).coarsen(10**30),
        InvalidProblemError,
        ["factor must be an integer of at least 1 and at most 1000000;"],
    ),
    "coarsen by a fraction": (lambda: Noise.from_seed(0).coarsen(2.5), InvalidProblemError, ["integer", "2.5 (float)"]),  # type: ignore[arg-type]
    "coarsen on a coarse grid": (
        stochastic(noise=Noise.from_seed(0).coarsen(2, times(5))),
        InvalidProblemError,
        ["fine grid must have 11 points for 5 coarse steps", "(6,)"],
    ),
    "path of whole numbers": (
        stochastic(noise=Noise.from_brownian(lambda a, b: X.long())),
        InvalidProblemError,
        ["floating", "int64"],
    ),
    "coarsen by a list": (lambda: Noise.from_seed(0).coarsen(2, [0.0, 1.0]), InvalidGridError, ["the fine grid"]),  # type: ignore[arg-type]
    "select by a mask": (lambda: Noise.from_seed(0).select([True, False]), InvalidProblemError, ["indices"]),
    "select from the end": (lambda: Noise.from_seed(0).select([-1]), InvalidProblemError, ["from 0", "[-1]"]),
    "select by shares": (
        lambda: Noise.from_tensor(torch.zeros(5, 2, 3)).select(torch.ones(2)),  # type: ignore[arg-type]
        InvalidProblemError,
        ["indices", "(2,)"],
    ),
    "coarsen": (lambda: Noise.from_seed(0).coarsen(0), InvalidProblemError, ["at least 1", "0"]),
    # methods
    "unknown method": (optioned(method="eulr"), UnknownMethodError, ["'eulr'", "did you mean 'euler'", "rk4"]),
    "no method": (optioned(method=3), UnknownMethodError, ["3 (int)", "DDIM(eta=0.5)"]),
    "a class as method": (optioned(method=DDIM), UnknownMethodError, ["write DDIM()"]),
    "a method that solves for its steps": (
        optioned(method="trapezoid"),
        NotSupportedError,
        ["trapezoid solves for", "explicit Runge-Kutta", "method='rk4'"],
    ),
    "a method not offered": (optioned(method="tsit5"), NotSupportedError, ["write dopri5, one of the same order"]),
    "a method of sdeint": (optioned(method="milstein"), NotSupportedError, ["picard.sdeint", "method='euler'"]),
    "sampler on an ode": (optioned(method="ddim"), NotSupportedError, ["noise levels of a diffusion model", "euler"]),
    "rk4 on a model": (lambda: solve(diffusion(), 5, method="rk4"), NotSupportedError, ["RK4", "dpmsolver++"]),
    "heun on an ito sde": (lambda: solve(sde(), times(5), method="heun"), NotSupportedError, ["Ito", "method='euler'"]),
    "eta": (lambda: DDIM(eta=-1), InvalidProblemError, ["eta must be finite and not negative; given -1"]),
    "variance": (lambda: DDPM("fixed"), InvalidProblemError, ["'fixed'", "fixed_small"]),  # type: ignore[arg-type]
    "eta of a word": (lambda: DDIM(eta="0.5"), InvalidProblemError, ["eta must be one number", "'0.5' (str)"]),  # type: ignore[arg-type]
    "a broken order": (lambda: DPMSolver(2.0), InvalidProblemError, ["1, 2 or 3", "2.0 (float)"]),  # type: ignore[arg-type]
    "an order as a flag": (lambda: DPMSolver(True), InvalidProblemError, ["1, 2 or 3", "True (bool)"]),
    "a flag of a word": (
        lambda: DPMSolver(euler_at_final="no"),  # type: ignore[arg-type]
        InvalidProblemError,
        ["euler_at_final must be True or False", "'no'"],
    ),
    "no tableau": (lambda: RungeKutta("rk4"), InvalidProblemError, ["Tableau", "'rk4'"]),  # type: ignore[arg-type]
    "a flat tableau": (lambda: Tableau((0.5,), (1.0,), (0.0,)), InvalidProblemError, ["tuples of numbers"]),  # type: ignore[arg-type]
    "a tableau of words": (lambda: Tableau(((),), ("1",), (0.0,)), InvalidProblemError, ["an entry of b", "'1'"]),  # type: ignore[arg-type]
    "a method on a tensor": (lambda: Euler().plan(times(5)), InvalidProblemError, ["picard.Times", "Times("]),  # type: ignore[arg-type]
    "registered by number": (
        lambda: picard.integrators.register(3, DDIM),  # type: ignore[arg-type]
        InvalidProblemError,
        ["must be a string", "3 (int)"],
    ),
    "order": (lambda: DPMSolver(4), InvalidProblemError, ["1, 2 or 3", "4"]),
    "no plan": (optioned(method=Planned(lambda points: None)), InvalidProblemError, ["picard.Plan", "NoneType"]),
    "flat weights": (optioned(method=Planned(own, a=torch.ones(5, dtype=F64))), InvalidProblemError, ["a[:, None]"]),
    "steps too many": (optioned(method=Planned(own, step=torch.arange(6))), InvalidProblemError, ["torch.arange(5)"]),
    "steps with a gap": (
        optioned(method=Planned(own, step=2 * torch.arange(5))),
        InvalidProblemError,
        ["from 0 without a gap"],
    ),
    "noise that an own method drops": (
        lambda: solve(sde(), times(5), method=Planned(own)),
        NotSupportedError,
        ["kick=h.abs().sqrt() / h"],
    ),
    # options
    "a rule of a word": (lambda: picard.RelAbs("tight"), InvalidProblemError, ["rtol must be one number", "rtol=1e-3"]),  # type: ignore[arg-type]
    "a rule of a truth": (lambda: picard.RelAbs(True), InvalidProblemError, ["rtol must be one number", "True (bool)"]),
    "a rule of complex numbers": (lambda: picard.RelAbs(1j), InvalidProblemError, ["rtol must be one number"]),  # type: ignore[arg-type]
    "a bound of a word": (
        lambda: certified().trajectory_bound("1"),  # type: ignore[arg-type]
        InvalidProblemError,
        ["lipschitz must be one number"],
    ),
    "an infinite bound": (
        lambda: certified().trajectory_bound(float("inf")),
        InvalidProblemError,
        ["finite and not negative", "inf"],
    ),
    "options of odeint": (
        lambda: picard.odeint(lambda t, y: -y, X, times(5), method="rk4", options=["window"]),  # type: ignore[arg-type]
        InvalidProblemError,
        ["options of odeint must map names", "list"],
    ),
    "step size of a word": (
        lambda: picard.odeint(lambda t, y: -y, X, times(5), method="rk4", options={"step_size": "a"}),
        InvalidProblemError,
        ["step_size must be one number"],
    ),
    "a rule of several numbers": (
        lambda: picard.NoiseRatio(torch.ones(2)),  # type: ignore[arg-type]
        InvalidProblemError,
        ["tau must be one number", "(2,)"],
    ),
    "a law's bound of a word": (lambda: picard.TotalVariation("a"), InvalidProblemError, ["eps must be one number"]),  # type: ignore[arg-type]
    "a truth of rounds": (lambda: picard.FixedRounds(True), InvalidProblemError, ["rounds must be an integer of"]),
    "sync_every": (optioned(sync_every="auto"), InvalidProblemError, ["sync_every must be an integer of at least 1;"]),
    "a grid that asks for a gradient": (
        lambda: solve(pendulum(), times(5).requires_grad_(), method="euler"),
        NotSupportedError,
        ["grid.detach()"],
    ),
    "absurd window": (optioned(window=10**30), InvalidProblemError, ["window", "at most 9223372036854775807"]),
    "window of too many digits": (optioned(window=10**5000), InvalidProblemError, ["window", "given a int"]),
    "tolerance of too many digits": (
        optioned(tolerance=10**400),
        InvalidProblemError,
        ["tolerance must be one number"],
    ),
    "rounds that would wrap": (lambda: FixedRounds(2**63), InvalidProblemError, ["rounds", "at most"]),
    "guess of too many digits": (optioned(guess=10**5000), InvalidProblemError, ["given a int", "known: copy"]),
    "window": (optioned(window=0), InvalidProblemError, ["window", "at least 1", "0 (int)"]),
    "negative window": (optioned(window=-3), InvalidProblemError, ["at least 1", "-3"]),
    "window of another type": (optioned(window=2.5), InvalidProblemError, ["integer", "2.5 (float)"]),
    "window as a flag": (optioned(window=True), InvalidProblemError, ["integer", "True (bool)"]),
    "window of numbers": (optioned(window=np.ones(2)), InvalidProblemError, ["window", "(ndarray)"]),
    "certify as text": (optioned(certify="no"), InvalidProblemError, ["certify must be True or False", "'no'"]),
    "throw": (optioned(throw=None), InvalidProblemError, ["throw must be True or False"]),
    "progress": (optioned(progress=X), InvalidProblemError, ["progress must be True or False"]),
    "max_rows": (optioned(max_rows=0), InvalidProblemError, ["max_rows", "at least 1"]),
    "callback": (optioned(callback=3), InvalidProblemError, ["callable as callback(info)", "3 (int)"]),
    "max_rounds": (optioned(max_rounds=0), InvalidProblemError, ["max_rounds", "at least 1"]),
    "misspelt option": (optioned(windw=3), TypeError, ["windw"]),
    "misspelt option of sequential": (
        lambda: sequential(pendulum(), times(5), method="euler", window=3),  # type: ignore[call-arg]
        TypeError,
        ["window"],
    ),
    "linearization": (optioned(linearization="secnt"), InvalidProblemError, ["did you mean 'secant'", "frozen"]),
    "a slope of Python's": (
        optioned(linearization=Sloping(lambda evidence: 0.0)),
        InvalidProblemError,
        [
            "Sloping.slopes(evidence)",
            "one number for every sample",
            "0.0 (float)",
            "torch.full_like(evidence.u, slope)",
        ],
    ),
    "one slope for all": (
        optioned(linearization=Sloping(lambda evidence: torch.zeros((), dtype=F64))),
        InvalidProblemError,
        ["returned a tensor of shape ()", "torch.full_like"],
    ),
    "slopes of another dtype": (
        optioned(linearization=Sloping(lambda evidence: evidence.u.half())),
        InvalidProblemError,
        ["float64", "returned a tensor", "float16"],
    ),
    "slopes that are no numbers": (
        optioned(method="rk4", linearization=Sloping(lambda evidence: evidence.u * NAN)),
        InvalidProblemError,
        ["Sloping.slopes(evidence) must return finite numbers", "returned nan", "torch.where(evidence.known"],
    ),
    "slopes that are no numbers in rounds without the host": (
        optioned(method="rk4", linearization=Sloping(lambda evidence: evidence.u * NAN), sync_every=2),
        InvalidProblemError,
        ["must return finite numbers"],
    ),
    "bounds that are flags": (
        optioned(tolerance=Ruled(bound=lambda candidates: candidates.size > 0)),
        InvalidProblemError,
        ["Ruled.bound(candidates)", "torch.bool", "torch.full_like(candidates.size, bound)"],
    ),
    "a bound of Python's": (
        optioned(tolerance=Ruled(bound=lambda candidates: 1e-3)),
        InvalidProblemError,
        ["0.001 (float)", "torch.full_like(candidates.size, bound)"],
    ),
    "a bound in compiled rounds": (
        optioned(tolerance=Ruled(bound=lambda candidates: 1e-3), compile={"backend": "eager"}),
        InvalidProblemError,
        ["0.001 (float)"],
    ),
    "a part without its dimension": (
        optioned(tolerance=Ruled(watched=lambda change: change[..., 0])),
        InvalidProblemError,
        ["Ruled.watched(change)", "(batch, nodes, watched)", "change[..., :1]"],
    ),
    "a part of nothing": (
        optioned(tolerance=Ruled(watched=lambda change: change[..., 2:])),
        InvalidProblemError,
        ["Ruled.watched(change)", ", 0)"],
    ),
    "half a linearization": (
        optioned(linearization=SimpleNamespace(slopes=lambda evidence: evidence.u)),
        InvalidProblemError,
        ["slopes(evidence), measures, share and taper"],
    ),
    "guess": (optioned(guess="hld"), InvalidProblemError, ["did you mean 'hold'", "copy"]),
    "warm start's shape": (optioned(guess=torch.zeros(5, 2, 2)), InvalidProblemError, ["(6, 2, 2)", "save='all'"]),
    "warm start's values": (optioned(guess=torch.full((6, 2, 2), NAN)), InvalidProblemError, ["must be finite"]),
    "warm start from a last state": (
        lambda: solve(pendulum(), times(5), method="euler", guess=solve(pendulum(), times(5), method="euler")),
        InvalidProblemError,
        ["(6, 2, 2)", "(1, 2, 2)", "save='all'"],
    ),
    "save": (optioned(save="lst"), InvalidProblemError, ["did you mean 'last'", "indices"]),
    "a number to interpolate at": (
        lambda: solve(pendulum(), times(5), method="euler", save="all").interpolate(1.0, pendulum()),  # type: ignore[arg-type]
        InvalidGridError,
        ["floating tensor", "1.0 (float)"],
    ),
    "save outside": (optioned(save=[0, 6]), InvalidProblemError, ["within the 6 grid points"]),
    "save nothing": (optioned(save=[]), InvalidProblemError, ["'last', 'all' or indices"]),
    "save unordered": (optioned(save=[3, 1]), InvalidProblemError, ["ascend without repeats"]),
    "save twice": (optioned(save=[1, 1]), InvalidProblemError, ["without repeats"]),
    "save of another type": (optioned(save=3), InvalidProblemError, ["'last', 'all' or indices"]),
    "save as one number in a tensor": (optioned(save=torch.tensor(3)), InvalidProblemError, ["or indices", "shape ()"]),
    "save without numbers": (
        optioned(save=torch.ones(2, device="meta")),
        InvalidProblemError,
        ["indices within the 6 grid points", "on meta"],
    ),
    "save as a mask": (
        optioned(save=torch.tensor([False, True])),
        InvalidProblemError,
        ["torch.arange(len(mask))[mask]"],
    ),
    "tolerance": (optioned(tolerance=-1.0), InvalidProblemError, ["not negative", "-1"]),
    "tolerance as text": (optioned(tolerance="small"), InvalidProblemError, ["a number", "NoiseRatio(0.1)"]),
    "infinite tolerance": (lambda: RelAbs(rtol=float("inf")), InvalidProblemError, ["rtol", "finite"]),
    "no rounds": (lambda: FixedRounds(0), InvalidProblemError, ["rounds must be an integer of at least 1;", "0 (int)"]),
    "half a round": (lambda: FixedRounds(2.5), InvalidProblemError, ["rounds must be an integer", "2.5 (float)"]),  # type: ignore[arg-type]
    "rounds that are no number": (lambda: FixedRounds(NAN), InvalidProblemError, ["rounds must be an integer of"]),  # type: ignore[arg-type]
    "noise ratio of an ode": (optioned(tolerance=NoiseRatio(0.1)), NotSupportedError, ["RelAbs(rtol, atol)"]),
}


def sampling(**changes: Any) -> Any:
    """Build the problem of a mixture with something wrong in it."""
    given = {"mixture": verify.Mixture.random(0), "schedule": picard.Schedule.linear(), "seed": 0, **changes}
    return verify.mixture_diffusion(**given)


def of_types() -> Any:
    """Build what sdeint takes."""
    return SimpleNamespace(noise_type="diagonal", sde_type="ito", f=lambda t, y: -y, g=lambda t, y: y)


def certified() -> picard.PathCertificate:
    found = solve(pendulum(), times(5), method="euler", certify=True).certificate
    assert isinstance(found, picard.PathCertificate)
    return found


def diffusion_from(x: Tensor) -> Diffusion:
    return Diffusion(diffusion().denoiser, x)


def with_noise(noise: Noise) -> Any:
    return solve(Diffusion(diffusion().denoiser, X, noise=noise), 5, method="ddpm")


@pytest.mark.parametrize(("make", "error", "says"), CASES.values(), ids=CASES)
def test_it_is_refused(make: Make, error: type[Exception], says: Sequence[str]) -> None:
    refuses(make, error, says)


def test_rounds_without_the_host_are_no_more_than_there_are_nodes() -> None:
    far, near = (solve(diffusion(), 5, method="ddim", sync_every=every) for every in (10**12, 5))
    assert torch.equal(far.final, near.final)


def test_a_seed_may_be_a_tensor_or_an_array() -> None:
    for seed in (torch.tensor(3), np.array(3), np.int64(3)):
        assert Noise.from_seed(seed) == Noise.from_seed(3)  # type: ignore[arg-type]
    assert Noise.from_seed(torch.tensor([1, 2])) == Noise.from_seed([1, 2])  # type: ignore[arg-type]
    assert Noise.from_seed([4, 5]).select(np.array([1])) == Noise.from_seed([5])  # type: ignore[arg-type]


def test_counts_are_whatever_counts() -> None:
    counts: list[Any] = [np.int64(3), np.array(3), torch.tensor(3), sys.maxsize]
    for three in counts:
        made = solve(pendulum(), times(5), method="euler", window=three, max_rows=three, tolerance=FixedRounds(three))
        assert made.success
    assert verify.Case(diffusion(), torch.tensor(3), "ddim").steps == 3
    x, y, most = start(8, 1), start(8, 1, seed=1), torch.tensor(9)
    assert type(verify.energy_test(x, y, permutations=most).p_value) is float  # type: ignore[arg-type]
    assert verify.tanh_ode(0, batch=np.int64(3)).x0.shape == (3, 3)  # type: ignore[arg-type]
    assert verify.classifier_test(x, y, seed=np.int64(3)).p_value > 0  # type: ignore[arg-type]
