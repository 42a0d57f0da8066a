"""How a policy samples, and the checks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from picard.errors import InvalidProblemError, NotSupportedError, check_choice
from picard.graphs import CudaGraphs
from picard.linearize import Linearization, resolve_linearization
from picard.number import check_count, check_flags, check_limit
from picard.plan import Plan
from picard.tolerance import FixedRounds, NoiseRatio, Tolerance, TotalVariation, check_tolerance, resolve_tolerance

from .receding import Watched
from .stats import Mode

_GUESSES = ("eager", "hold", "copy")
_STOCHASTIC, _DETERMINISTIC = NoiseRatio(0.1), NoiseRatio(0.01)  # without noise of its own, a step forgets no error

# Of a bound, and in a state's first round: on trained policies, this makes the error of prepared plans that of others.
_PREPARED, _FIRST = 0.6, 0.2
_LEEWAY = 0.25  # of tau: error that evaluations left out of prepared plans may add, measured as well


@dataclass(frozen=True)
class PolicyOptions:
    """How a policy samples; see `picard.adapters.parallelize_policy`."""

    window: int
    tolerance: float | Tolerance | None
    max_rows: int | None
    mode: Mode
    linearization: str | Linearization
    guess: str
    certify: bool
    warm_start: int | Literal["shift"] | None
    fresh_noise: bool
    actions: int | None
    compile: bool | Mapping[str, Any]
    cuda_graph: bool | CudaGraphs

    def __post_init__(self) -> None:
        """Check the options."""
        check_choice("mode", self.mode, get_args(Mode))
        check_choice("guess", self.guess, _GUESSES)
        check_flags(certify=self.certify, fresh_noise=self.fresh_noise)
        rows = ", the rows that the network evaluates in about twice the time of one"
        object.__setattr__(self, "window", check_count("window", self.window, rows))
        for name, words in (("max_rows", ()), ("actions", ()), ("warm_start", ("shift",))):
            count = check_limit(name, getattr(self, name), *words)
            object.__setattr__(self, name, getattr(self, name) if count is None else count)
        object.__setattr__(self, "tolerance", check_tolerance(self.tolerance))
        if self.actions is not None and isinstance(self.tolerance, (FixedRounds, TotalVariation)):
            msg = (
                f"actions={self.actions} says where changes are measured, and {type(self.tolerance).__name__} measures "
                "none: leave one of them out"
            )
            raise InvalidProblemError(msg)
        if not self.fresh_noise and self.warm_start is None:
            msg = "fresh_noise=False uses the last plan's noise again, which needs warm_start: write warm_start='shift'"
            raise InvalidProblemError(msg)
        if not self.fresh_noise and (self.certify or isinstance(self.tolerance, TotalVariation)):
            msg = (
                "a certificate needs noise that nothing before the plan depends on, and the last plan's noise is in "
                "the guess and in the observation: write fresh_noise=True, or leave the certificate out"
            )
            raise InvalidProblemError(msg)
        if self.cuda_graph is not False and self.warm_start is not None:
            msg = "cuda_graph leaves decisions to the device, and a warm start is the host's: leave one of them out"
            raise NotSupportedError(msg)
        resolve_linearization(self.linearization)

    @property
    def needs_plan(self) -> str | None:
        """What is asked for first that replay does not have, if there is such an option."""
        chosen = {
            "warm_start": self.warm_start is not None,
            "actions": self.actions is not None,
            "certify": self.certify,
            "tolerance rules": isinstance(self.tolerance, Tolerance),
            "linearization": self.linearization != "secant",
            "guess": self.guess != "eager",
            "compile": self.compile is not False,
            "cuda_graph": self.cuda_graph is not False,
        }
        return next((name for name, given in chosen.items() if given), None)

    def rule(self, plan: Plan, leading: int | None, *, prepared: bool = False, ahead: bool = False) -> Tolerance:
        """Return the rule for a plan.

        Args:
            plan: the plan.
            leading: how many numbers of a state count; all if `None`.
            prepared: whether it starts from a plan made ahead, so that changes are small where errors are not yet. It
                may leave out evaluations that the plan ahead foretells.
            ahead: whether it is made ahead itself, so that there is time, and what it finds is built upon.
        """
        given = self.tolerance
        if given is None and plan.yardstick is not None:
            given = _STOCHASTIC if bool((plan.c != 0).any()) else _DETERMINISTIC
        rule = resolve_tolerance(given, plan)
        changes = (prepared or ahead) and not isinstance(rule, (FixedRounds, TotalVariation))
        if leading is None and not changes:
            return rule
        leeway = _LEEWAY * rule.tau if prepared and not ahead and isinstance(rule, NoiseRatio) else 0.0
        return Watched(rule, leading, _PREPARED, _FIRST, leeway) if changes else Watched(rule, leading)
