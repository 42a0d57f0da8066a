"""Checks that a policy's own code runs the loop that it is taken for, on a network that treats rows independently."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from picard.conditioning import Conditioning
from picard.errors import NotSupportedError
from picard.rows import Rows
from picard.sequential import sequential

from .action_loop import ActionLoop
from .conversion import unwrap
from .made_up import MadeUp
from .network import answered_by
from .secant import check_rows
from .standin import RandomState
from .start import DATA, GENERATOR, MASK, Start, catch, projected, unbound

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
    given = unbound(named)
    known = given.get(DATA)
    like = next(owner.parameters()) if known is None else known
    if isinstance(given.get(MASK), Tensor):  # whatever is known in this call, the projection is to be seen
        fixed, shape = torch.Generator().manual_seed(0), given[DATA].shape
        given[MASK] = (torch.rand(shape, generator=fixed, device="cpu") < 0.3).to(like.device)
        given[DATA] = torch.randn(shape, generator=fixed, device="cpu").to(like)
    if GENERATOR in given:
        given[GENERATOR] = torch.Generator(device=like.device).manual_seed(0)
    random, asked, ours = RandomState(given), MadeUp(loop.trace), MadeUp(loop.trace)
    try:
        with torch.no_grad():
            right = _run(owner, network, functools.partial(original, **given), asked)
            states = RandomState(given).states
            random.restore()
            start = catch(owner, network, functools.partial(original, **given), given)
            problem = loop.problem(start, loop.noise(start), lambda x, t, *_, **__: ours(x, t[0]))
            solution = sequential(problem, loop.trace.plan.nodes, method=loop.method)
            found = projected(start, problem.unscaled(solution).final)
            missed = float((found - right).abs().max() / right.abs().max().clamp_min(1))
            drawn = all(torch.equal(a, b) for a, b in zip(states, RandomState(given).states, strict=True))
    finally:
        random.restore()
    if asked.count != ours.count or not missed <= max(_MISSED, _ULPS * torch.finfo(right.dtype).eps) or not drawn:
        how = f"its result differs by {missed:.1e}" if drawn else "it draws other random numbers"
        why = (
            f"does something else than its scheduler's loop with the known actions put in (on a made-up network {how})"
        )
        raise _refused(owner, why)


def _run(owner: Any, network: str, own: Callable[[], Any], asked: MadeUp) -> Tensor:
    """Run a policy's own code on a made-up network, and look at how it calls that."""
    try:
        with answered_by(owner, network, asked):
            right = own()
    except Exception as error:
        if asked.count == 0:  # the call itself is wrong
            raise
        raise _refused(owner, f"fails on a made-up network ({type(error).__name__}: {error})") from error
    if not isinstance(right, Tensor):
        raise _refused(owner, f"returns a {type(right).__name__} instead of a tensor")
    if right.shape != asked.shape:
        asked.odd = "gives its network something else than the noisy actions alone"
    if asked.odd:
        raise _refused(owner, asked.odd)
    return right


def check_network(loop: ActionLoop, start: Start, network: Callable[..., Any], counts: tuple[int, ...]) -> None:
    """Check that a policy's network treats rows independently: as the policy calls it, and beside other rows.

    Args:
        loop: the loop.
        start: its first network call.
        network: the network.
        counts: numbers of rows a call may have, see `ActionLoop.problem`.

    Raises:
        NotSupportedError: if rows come out differently.
    """
    last = loop.trace.plan.nodes - 1
    problem, random = loop.problem(start, [None] * (last + 1), network, counts), RandomState(())
    samples = torch.arange(len(start.x), device=start.x.device)
    node = torch.cat([0 * samples, 0 * samples + last])
    cond = Conditioning(problem.conditioning(), len(samples)).of(None, samples.repeat(2))
    try:
        with torch.no_grad():
            t = problem.clock[node[: len(samples)]] if counts else start.t  # a compiled one would be compiled once more
            alone = unwrap(network(start.x.clone(), t, *start.args, **start.kwargs)).clone()  # it may use it again
            x = torch.cat([problem.x0, 0.3 * problem.x0])  # other statistics, which batch normalization shows
            beside = problem.output(Rows(problem.clock[node], x, cond))
    finally:
        random.restore()
    check_rows(beside[: len(samples)], alone, "call policy.eval()")


def _refused(owner: Any, why: str) -> NotSupportedError:
    return NotSupportedError(f"{type(owner).__name__}.conditional_sample {why}, so it is no plan: use mode='replay'")
