"""Integrators: small makers of plans, one method a file."""

from __future__ import annotations

from functools import partial

from picard.plan import Integrator
from picard.registry import methods, register

from .ddim import DDIM
from .ddpm import DDPM
from .dpm_solver import DPMSolver
from .embedded import Bosh3, Dopri5, Dopri8, Fehlberg2
from .runge_kutta import RK4, Euler, Heun, Heun3, Midpoint, RungeKutta, Tableau, ThreeEighths

__all__ = [
    "DDIM",
    "DDPM",
    "RK4",
    "Bosh3",
    "DPMSolver",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Fehlberg2",
    "Heun",
    "Heun3",
    "Integrator",
    "Midpoint",
    "RungeKutta",
    "Tableau",
    "ThreeEighths",
    "methods",
    "register",
]

register("euler", Euler)
register("midpoint", Midpoint)
register("heun", Heun)
register("heun2", Heun)
register("heun3", Heun3)
register("rk4", RK4)
register("three_eighths", ThreeEighths)
register("fehlberg2", Fehlberg2)
register("bosh3", Bosh3)
register("dopri5", Dopri5)
register("dopri8", Dopri8)
register("ddim", DDIM)
register("ddpm", DDPM)
register("dpmsolver", partial(DPMSolver, algorithm="dpmsolver"))
register("dpmsolver++", DPMSolver)
register("sde-dpmsolver++", partial(DPMSolver, algorithm="sde-dpmsolver++"))
