"""A check that a policy's own code runs the loop that it is taken for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from picard.errors import NotSupportedError
from picard.sequential import sequential

from .action_loop import DATA, GENERATOR, MASK, ActionLoop, catch, projected
from .network import answered_by
from .standin import RandomState

_MISSED = 1e-4  # far above the rounding of a hundred steps, far below any difference between two loops
_ULPS = 16  # the same in half precision, in units in the last place


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
        given[MASK] = (torch.rand(shape, generator=fixed, device="cpu") < 0.3).to(like.device)
        given[DATA] = torch.randn(shape, generator=fixed, device="cpu").to(like)
    if GENERATOR in given:
        given[GENERATOR] = torch.Generator(device=like.device).manual_seed(0)
    random, count = RandomState(given), 0

    def model(*args: Any, **_: Any) -> Tensor:
        """Predict data that schedulers clip here and there, with a dependence between neighbours, and no steep one."""
        nonlocal count
        node, count = min(count, loop.trace.plan_.nodes - 1), count + 1
        x: Tensor = args[0]
        u, w = float(loop.trace.u[node]), float(loop.trace.w[node])
        return (1.2 * torch.sin(0.5 * x + 0.3 * x.roll(1, 1)) - u * x) / w

    try:
        with torch.no_grad():
            try:
                with answered_by(owner, network, model):
                    right = original(**given)
            except Exception as error:
                if count == 0:  # the call itself is wrong
                    raise
                raise _refused(owner, f"fails on a made-up network ({type(error).__name__}: {error})") from error
            if not isinstance(right, Tensor):
                raise _refused(owner, f"returns a {type(right).__name__} instead of a tensor")
            states, calls, count = RandomState(given).states, count, 0
            random.restore()
            start = catch(owner, network, functools.partial(original, **given), given)
            problem = loop.problem(start, loop.noise(start), model)
            solution = sequential(problem, loop.trace.plan_.nodes, method=loop.method)
            ours = projected(start, problem.unscaled(solution).final)
            missed = float((ours - right).abs().max() / right.abs().max().clamp_min(1))
            drawn = all(torch.equal(a, b) for a, b in zip(states, RandomState(given).states, strict=True))
    finally:
        random.restore()
    if calls != count or not missed <= max(_MISSED, _ULPS * torch.finfo(right.dtype).eps) or not drawn:
        how = f"its result differs by {missed:.1e}" if drawn else "it draws other random numbers"
        why = (
            f"does something else than its scheduler's loop with the known actions put in (on a made-up network {how})"
        )
        raise _refused(owner, why)


def _refused(owner: Any, why: str) -> NotSupportedError:
    return NotSupportedError(f"{type(owner).__name__}.conditional_sample {why}, so it is no plan: use mode='replay'")
