"""Posterior guidance: denoisers that have seen an observation.

`HybridSolver()` is exact for a Gaussian prior and an exact denoiser; `HybridSolver.measured(covariance)`, which models
use, trusts a trained one as far as its errors on held-out data allow. `GaussNewtonSolver(covariance=
DenseGaussian.fit(latents))` is exact for a Gaussian prior at no derivative of the denoiser; `DecodeEncodeSolver()` is
the cheapest; `DPSSolver` and `PSLDSolver` are baselines.
"""

from sciLDM.guidance.posterior.baselines import DPS, PSLD, DPSSolver, PSLDSolver
from sciLDM.guidance.posterior.covariance import DenseGaussian, Isotropic, LatentCovariance, Tweedie
from sciLDM.guidance.posterior.covariance_measured import MeasuredCovariance
from sciLDM.guidance.posterior.covariance_start import StartGaussian
from sciLDM.guidance.posterior.decode_encode import DecodeEncode, DecodeEncodeSolver
from sciLDM.guidance.posterior.dense import DenseGaussNewton, DenseGaussNewtonSolver
from sciLDM.guidance.posterior.gauss_newton import GaussNewton, GaussNewtonSolver
from sciLDM.guidance.posterior.hybrid import Hybrid, HybridSolver
from sciLDM.guidance.posterior.problem import DataMap, IdentityMap, Problem
from sciLDM.guidance.posterior.replacement import Replacement, ReplacementSolver
from sciLDM.guidance.posterior.solver import Evaluations, PosteriorDenoiser, PosteriorSolver

__all__ = [
    "DPS",
    "PSLD",
    "DPSSolver",
    "DataMap",
    "DecodeEncode",
    "DecodeEncodeSolver",
    "DenseGaussNewton",
    "DenseGaussNewtonSolver",
    "DenseGaussian",
    "Evaluations",
    "GaussNewton",
    "GaussNewtonSolver",
    "Hybrid",
    "HybridSolver",
    "IdentityMap",
    "Isotropic",
    "LatentCovariance",
    "MeasuredCovariance",
    "PSLDSolver",
    "PosteriorDenoiser",
    "PosteriorSolver",
    "Problem",
    "Replacement",
    "ReplacementSolver",
    "StartGaussian",
    "Tweedie",
]
