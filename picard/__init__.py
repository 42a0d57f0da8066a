"""picard solves ODEs, SDEs and diffusion samplers parallel in time, on PyTorch."""

from __future__ import annotations

import logging
from pathlib import Path

from picard import distributed, presets
from picard.adaptive import adaptive
from picard.certificate import LawCertificate, PathCertificate
from picard.denoiser import Denoiser, DynamicThreshold
from picard.diffusion import Diffusion
from picard.errors import (
    DistributedError,
    InvalidGridError,
    InvalidProblemError,
    MissingDependencyError,
    NonFiniteError,
    NotConvergedError,
    NotSupportedError,
    PicardError,
    UnknownMethodError,
)
from picard.expected import Expected
from picard.graphs import CudaGraphs
from picard.grid import Levels, Times
from picard.guidance import Guidance
from picard.noise import Noise
from picard.ode import ODE
from picard.odeint import odeint
from picard.plan import Integrator, Plan
from picard.progress import RoundInfo
from picard.rowwise import rowwise
from picard.schedule import Schedule
from picard.sde import SDE
from picard.sdeint import sdeint
from picard.sequential import sequential
from picard.solution import Solution, Stats, Status
from picard.solve import solve
from picard.tolerance import FixedRounds, NoiseRatio, RelAbs, Tolerance, TotalVariation

__version__ = "0.1.0"
logging.getLogger("picard").addHandler(logging.NullHandler())

if not Path(__file__).with_name("integrators").is_dir():  # a checkout: the two folders lie beside this one
    __path__.append(str(Path(__file__).resolve().parent.parent))
from picard import adapters, integrators

__all__ = [
    "ODE",
    "SDE",
    "CudaGraphs",
    "Denoiser",
    "Diffusion",
    "DistributedError",
    "DynamicThreshold",
    "Expected",
    "FixedRounds",
    "Guidance",
    "Integrator",
    "InvalidGridError",
    "InvalidProblemError",
    "LawCertificate",
    "Levels",
    "MissingDependencyError",
    "Noise",
    "NoiseRatio",
    "NonFiniteError",
    "NotConvergedError",
    "NotSupportedError",
    "PathCertificate",
    "PicardError",
    "Plan",
    "RelAbs",
    "RoundInfo",
    "Schedule",
    "Solution",
    "Stats",
    "Status",
    "Times",
    "Tolerance",
    "TotalVariation",
    "UnknownMethodError",
    "adapters",
    "adaptive",
    "distributed",
    "integrators",
    "odeint",
    "presets",
    "rowwise",
    "sdeint",
    "sequential",
    "solve",
]
