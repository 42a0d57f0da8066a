"""Verification of parallel solvers: a check against the sequential one, bounds, distances, Hypothesis strategies."""

from __future__ import annotations

from picard.verify import strategies
from picard.verify.bounds import History, elementary_symmetric, factorial_bound, picard_bound, rounds_needed
from picard.verify.case import Case, select
from picard.verify.check import check
from picard.verify.distances import gaussian_tv, gaussian_tv_shared
from picard.verify.known import (
    LipschitzODE,
    linear_system,
    runaway_ode,
    tanh_ode,
    tanh_sde,
)
from picard.verify.mixture import Mixture, mixture_diffusion
from picard.verify.properties import PROPERTIES
from picard.verify.report import Finding, Outcome, Report, VerificationError
from picard.verify.reproducer import Reproducer
from picard.verify.two_sample import TwoSample, classifier_test, energy_test, histogram_test

__all__ = [
    "PROPERTIES",
    "Case",
    "Finding",
    "History",
    "LipschitzODE",
    "Mixture",
    "Outcome",
    "Report",
    "Reproducer",
    "TwoSample",
    "VerificationError",
    "check",
    "classifier_test",
    "elementary_symmetric",
    "energy_test",
    "factorial_bound",
    "gaussian_tv",
    "gaussian_tv_shared",
    "histogram_test",
    "linear_system",
    "mixture_diffusion",
    "picard_bound",
    "rounds_needed",
    "runaway_ode",
    "select",
    "strategies",
    "tanh_ode",
    "tanh_sde",
]
