"""Samplers: from noise to clean latents with any `Denoiser`."""

from sciLDM.samplers.ancestral import DDIM, DDPM
from sciLDM.samplers.base import Callback, Sampler
from sciLDM.samplers.grids import KarrasGrid, LogSNRGrid, TimeGrid, UniformGrid
from sciLDM.samplers.likelihood import log_likelihood
from sciLDM.samplers.multistep import DPMSolverPP2M, DPMSolverPP2MSDE
from sciLDM.samplers.ode import Euler, Heun
from sciLDM.samplers.renoising import Renoising
from sciLDM.samplers.sde import ReverseSDE

__all__ = [
    "DDIM",
    "DDPM",
    "Callback",
    "DPMSolverPP2M",
    "DPMSolverPP2MSDE",
    "Euler",
    "Heun",
    "KarrasGrid",
    "LogSNRGrid",
    "Renoising",
    "ReverseSDE",
    "Sampler",
    "TimeGrid",
    "UniformGrid",
    "log_likelihood",
]
