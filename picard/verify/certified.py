"""The properties of a certificate: its assumption holds, and it says what the accepted states say."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from picard.device import fetch
from picard.errors import NotSupportedError
from picard.verify.residual import defects
from picard.verify.result import Run, whole
from picard.verify.signals import Failure, Skip
from picard.verify.trial import Trial


def certified(trial: Trial) -> str:
    """The certificate, where there is one, is what the accepted states say, computed anew; an ODE's bound holds."""
    trial.ends()
    run, certificate = _certificate(trial)
    law = hasattr(certificate, "kl")
    each = fetch(certificate.kl if law else certificate.residual)
    _agrees(trial, run, each, law=law)
    if not law:
        _encloses(trial, run, certificate)
        return f"largest residual {float(each.max()):.1e}"
    tv, expected = float(certificate.tv), min(1.0, math.sqrt(float(each.mean()) / 2))
    if not math.isclose(tv, expected, rel_tol=1e-3, abs_tol=1e-12):
        msg = f"the total variation bound is {tv:.3e}; the root of half the mean divergence is {expected:.3e}"
        raise Failure(msg)
    return f"total variation at most {tv:.1e}"


def adapted(trial: Trial) -> str:
    """The drift of an accepted increment does not depend on the step's own noise: the certificate's assumption.

    It is more than being causal: whether a state is accepted in one round or the next may not depend on its own noise
    either. Given the states before, an accepted state less its noise must be the same for any value of the noise.
    """
    trial.fixed("window")
    _, certificate = _certificate(trial)
    if not hasattr(certificate, "kl") or trial.case.batch is None:
        msg = "the certificate is not one of a law"
        raise Skip(msg)
    one = trial.case.select([0])
    plan, noise = one.prepare().plan, one.noise()
    if plan.nodes != plan.steps or noise is None:
        msg = "the method has more nodes than steps"
        raise Skip(msg)
    options: dict[str, Any] = {"certify": True} if trial.takes("certify") else {}
    before = whole(trial.run(one.with_noise(noise), **options))
    worst = 0.0
    steps = range(len(noise)) if len(noise) <= 4 else torch.linspace(0, len(noise) - 1, 5, device="cpu").long().tolist()
    for step in steps:
        for own in (torch.zeros_like(noise[step]), 1 - noise[step]):
            changed = noise.clone()
            changed[step:] = 1 - changed[step:]
            changed[step] = own
            after = trial.run(one.with_noise(changed), **options)
            if not math.isfinite(float(after.solution.certificate.kl.sum())):
                continue  # the certificate itself says that the assumption fails
            states = after.states.clone()
            states[step + 1] += (plan.c[step] * (noise[step].double() - own.double())).to(states)
            moved = Run(states, full=True, solution=after.solution, samples=one.samples)
            what = f"changing the noise of step {step}, which is then taken out again"
            worst = max(worst, trial.expect(moved, before, trial.rtol, what, list(range(step + 2))))
    return f"largest relative difference {worst:.1e}"


def _certificate(trial: Trial) -> tuple[Run, Any]:
    options: dict[str, Any] = {"certify": True} if trial.takes("certify") else {}
    try:
        run = trial.run(**options)
    except NotSupportedError as error:
        raise Skip(str(error).split(":", maxsplit=1)[0]) from error
    certificate = getattr(run.solution, "certificate", None)
    if certificate is None:
        msg = "the solution carries no certificate"
        raise Skip(msg)
    return run, certificate


def _agrees(trial: Trial, run: Run, each: Tensor, *, law: bool) -> None:
    """Compare the certificate with one computed from the trajectory; both as a distance, which rounding shifts."""
    prepared = trial.prepared()
    if not run.full or prepared.plan.nodes != prepared.plan.steps or run.states.dtype != prepared.wide:
        return
    size = run.states.double().flatten(2).norm(dim=2)
    found = fetch(defects(prepared, run.states.to(prepared.problem.x0.device)))
    rounding = 16 * torch.finfo(prepared.wide).eps * (size[:-1] + size[1:])
    if law:
        scale = torch.where(prepared.plan.c > 0, prepared.plan.c, torch.inf)[:, None]
        found, rounding = ((one / scale).square().sum(0).div(2).sqrt() for one in (found, rounding))
        given = each.sqrt()
    else:
        given, found, rounding = each, found.amax(0), rounding.amax(0)
    wrong = (given - found).abs() > 1e-3 * found + rounding
    wrong &= ~torch.isinf(given)  # an infinite one promises nothing
    if bool(wrong.any()):
        sample = int(wrong.int().argmax())
        said, right = float(given[sample]), float(found[sample])
        msg = f"sample {run.name(sample)} is certified {said:.3e}, its states say {right:.3e}"
        raise Failure(msg)


def _encloses(trial: Trial, run: Run, certificate: Any) -> None:
    lipschitz = getattr(trial.case.problem, "lipschitz", None)
    if lipschitz is None:
        return
    distance = (run.states[-1] - trial.wanted().states[-1]).double().flatten(1).norm(dim=1)
    bound = fetch(certificate.trajectory_bound(lipschitz))
    rounding = trial.rtol * trial.wanted().states[-1].double().flatten(1).norm(dim=1)
    if not bool((distance <= bound + rounding).all()):
        msg = f"the distance to the reference is {float(distance.max()):.3e}, the bound {float(bound.max()):.3e}"
        raise Failure(msg)
