"""A check that a policy's own code runs the loop that it is taken for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from picard.errors import NotSupportedError
from picard.sequential import sequential

from .action_loop import DATA, GENERATOR, MASK, ActionLoop, catch, projected
from .network import answered_by
from .standin import RandomState

_MISSED = 1e-4  # far above the rounding of a hundred steps, far below any difference between two loops


def check_loop(
    loop: ActionLoop, owner: Any, network: str, original: Callable[..., Any], named: Mapping[str, Any]
) -> None:
    """Check that a policy's own code runs this loop: both are run on a made-up network and must agree.

    Args:
        loop: the loop.
        owner: what has the network.
        network: its name there.
        original: the policy's own method, bound to it.
        named: arguments of a call, see `bind`.

    Raises:
        NotSupportedError: if they do not agree.
    """
    given = {key: value for key, value in named.items() if key != "step"} | dict(named["step"])
    known = given.get(DATA)
    like = next(owner.parameters()) if known is None else known
    if isinstance(given.get(MASK), Tensor):  # whatever is known in this call, the projection is to be seen
        fixed, shape = torch.Generator().manual_seed(0), given[DATA].shape
        given[MASK] = (torch.rand(shape, generator=fixed) < 0.3).to(like.device)
        given[DATA] = torch.randn(shape, generator=fixed).to(like)
    if GENERATOR in given:
        given[GENERATOR] = torch.Generator(device=like.device).manual_seed(0)
    random, count = RandomState(given), 0

    def model(x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Predict data that schedulers clip here and there, with a dependence between neighbours, and no steep one."""
        nonlocal count
        node, count = min(count, loop.trace.plan_.nodes - 1), count + 1
        u, w = float(loop.trace.u[node]), float(loop.trace.w[node])
        return (1.2 * torch.sin(0.5 * x + 0.3 * x.roll(1, 1)) - u * x) / w

    try:
        with torch.no_grad():
            with answered_by(owner, network, model):
                right = original(**given)
            states, calls, count = _states(given), count, 0
            random.restore()
            start = catch(owner, network, functools.partial(original, **given), given)
            problem = loop.problem(start, loop.noise(start), model)
            solution = sequential(problem, loop.trace.plan_.nodes, method=loop.method)
            ours = projected(start, problem.unscaled(solution).final)
            missed = float((ours - right).abs().max() / right.abs().max().clamp_min(1))
            drawn = all(torch.equal(a, b) for a, b in zip(states, _states(given), strict=True))
    finally:
        random.restore()
    if calls != count or not missed <= _MISSED or not drawn:
        why = f"its result differs by {missed:.1e}" if drawn else "it draws other random numbers"
        msg = (
            f"{type(owner).__name__}.conditional_sample does something else than its scheduler's loop with the known "
            f"actions put in (on a made-up network {why}), so it is no plan: use mode='replay'"
        )
        raise NotSupportedError(msg)


def _states(arguments: Mapping[str, Any]) -> list[Tensor]:
    own = arguments.get(GENERATOR)
    return [torch.get_rng_state(), *([own.get_state()] if isinstance(own, Generator) else [])]
