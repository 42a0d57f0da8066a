"""Integrators: small makers of plans, one method a file."""

from __future__ import annotations

from functools import partial

from picard.plan import Integrator
from picard.registry import methods, register

from .ddim import DDIM
from .ddpm import DDPM
from .dpm_solver import DPMSolver
from .runge_kutta import RK4, Euler, Heun, Heun3, Midpoint, RungeKutta, Tableau

__all__ = [
    "DDIM",
    "DDPM",
    "RK4",
    "DPMSolver",
    "Euler",
    "Heun",
    "Heun3",
    "Integrator",
    "Midpoint",
    "RungeKutta",
    "Tableau",
    "methods",
    "register",
]

register("euler", Euler)
register("midpoint", Midpoint)
register("heun", Heun)
register("heun2", Heun)
register("heun3", Heun3)
register("rk4", RK4)
register("ddim", DDIM)
register("ddpm", DDPM)
register("dpmsolver", partial(DPMSolver, algorithm="dpmsolver"))
register("dpmsolver++", DPMSolver)
register("sde-dpmsolver++", partial(DPMSolver, algorithm="sde-dpmsolver++"))
