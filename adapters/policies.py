"""One line that makes a robot policy sample parallel in time, and one that undoes it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import torch

from picard.errors import NotSupportedError
from picard.graphs import CudaGraphs
from picard.linearize import Linearization
from picard.tolerance import Tolerance

from .policy import ParallelPolicy
from .policy_options import PolicyOptions
from .standin import by_making
from .stats import Mode

_NETWORKS = ("model", "unet")


def parallelize_policy(
    policy: Any,
    *,
    window: int = 16,
    tolerance: float | Tolerance | None = None,
    max_rows: int | None = None,
    mode: Mode = "auto",
    linearization: str | Linearization = "secant",
    guess: str = "eager",
    certify: bool = False,
    warm_start: int | Literal["shift"] | None = None,
    fresh_noise: bool = True,
    actions: int | None = None,
    compile: bool | Mapping[str, Any] = False,  # noqa: A002  # as `picard.solve` names it
    cuda_graph: bool | CudaGraphs = False,
) -> Any:
    """Make a policy that samples actions by diffusion do so parallel in time: same calls, same actions.

    For the policies of DiffusionPolicy and LeRobot's, and others alike: there must be a method `conditional_sample`
    that runs "for every timestep: put known actions in, network, `scheduler.step`". The policy itself is changed, by a
    subclass of its class. The first call takes longer: it checks that the policy's own code runs that loop.

    Args:
        policy: the policy, or what samples in it.
        window: network calls in flight. Choose the number of rows your device evaluates in about twice the time of one.
        tolerance: a rule such as `FixedRounds(3)`, or a number for `NoiseRatio`; by default 0.1, and 0.01 for a
            deterministic sampler. 0 asks for the sequential actions up to rounding. In replay it is the largest
            relative error of a network output that counts as right, 1e-4 by default.
        max_rows: rows one network call may hold.
        mode: `"plan"` solves the loop as a plan; `"replay"` runs the policy's own loop again and again, whatever it
            does; `"auto"` is the first where possible.
        linearization: as for `picard.solve`.
        guess: `"eager"`, `"hold"` or `"copy"`, as for `picard.solve`.
        certify: as for `picard.solve`; the certificate is at `policy.picard.solution.certificate`.
        warm_start: number of actions executed between two plans, to start from the last plan moved forward by as many;
            `"shift"` for the policy's own number. `policy.reset()` starts cold again.
        fresh_noise: whether a warm start draws new noise, so that it changes the time and nothing else; otherwise the
            last plan's noise, moved forward, is used again, which makes successive plans agree.
        actions: how many actions will be executed: only these, and those before them, need meet the tolerance.
        compile: as for `picard.solve`: compiles what the solver does between calls of the network, which counts for
            networks of a few milliseconds. The first call takes up to a minute longer. The network is left as it is.
        cuda_graph: as for `picard.solve`: captures whole rounds, the network's call in them, at the first call, and
            repeats them at later ones. Not with `warm_start` or `ahead()`, whose guesses take the host.

    Returns:
        The same policy.

    Raises:
        NotSupportedError: if this is no such policy, or a later call finds that it cannot be run as asked.
        InvalidProblemError: if an option has the wrong form.
    """
    options = PolicyOptions(
        window,
        tolerance,
        max_rows,
        mode,
        linearization,
        guess,
        certify,
        warm_start,
        fresh_noise,
        actions,
        compile,
        cuda_graph,
    )
    found = owner_of(policy)
    if found is None:
        msg = (
            "parallelize_policy needs a policy with `conditional_sample`, `noise_scheduler`, `num_inference_steps` and "
            f"a network `model` or `unet`; given {type(policy).__name__}"
        )
        raise NotSupportedError(msg)
    if mode == "replay" and options.needs_plan:
        fix = "use mode='plan'"
        fix = f"give a number, the largest relative error, or {fix}" if options.needs_plan == "tolerance rules" else fix
        msg = f"replay runs the policy's own loop and has no {options.needs_plan}: {fix}"
        raise NotSupportedError(msg)
    restore_policy(policy)
    owner, network = found
    handle = ParallelPolicy(type(owner), network, options)
    for one in _both(policy, owner):
        vars(one)["picard"] = handle
        kind: Any = type(one)
        one.__class__ = _parallel_class(kind, one is owner)
    return policy


def restore_policy(policy: Any) -> bool:
    """Make a parallel policy sequential again; say whether it was one."""
    found = owner_of(policy)
    parts = [] if found is None else _both(policy, found[0])
    # perhaps what samples alone was made parallel
    changed = [one for one in parts if isinstance(vars(one).get("picard"), ParallelPolicy)]
    for one in changed:
        del vars(one)["picard"]
        one.__class__ = type(one).__bases__[0]
    return bool(changed)


def owner_of(policy: Any) -> tuple[Any, str] | None:
    """Find what samples in a policy, and the name of its network; `None` if this is no such policy."""
    for owner in (policy, getattr(policy, "diffusion", None)):
        if not callable(getattr(owner, "conditional_sample", None)):
            continue
        if hasattr(owner, "noise_scheduler") and hasattr(owner, "num_inference_steps"):
            for name in _NETWORKS:
                if isinstance(getattr(owner, name, None), torch.nn.Module):
                    return owner, name
    return None


def _both(policy: Any, owner: Any) -> list[Any]:
    return [owner] if policy is owner else [owner, policy]


@functools.cache
def _parallel_class(original: Any, samples: bool) -> Any:
    """Make a subclass of a policy's class, under the same name, that samples in parallel."""

    def enter(self: Any) -> Any:
        return self

    def leave(self: Any, *_: Any) -> None:
        restore_policy(self)

    body: dict[str, Any] = {
        "__enter__": enter,
        "__exit__": leave,
        "__reduce_ex__": by_making(_parallel_class, original, samples),
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        "__qualname__": original.__qualname__,
    }
    if samples:

        @functools.wraps(original.conditional_sample)
        def conditional_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self.picard.run(self, args, kwargs)

        body["conditional_sample"] = conditional_sample
    if hasattr(original, "reset"):

        @functools.wraps(original.reset)
        def reset(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.picard.forget()
            return original.reset(self, *args, **kwargs)

        body["reset"] = reset
    return type(original.__name__, (original,), body)
