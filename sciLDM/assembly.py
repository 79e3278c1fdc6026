"""What an experiment's networks become: the denoiser, its start and its guide, and the solver that suits them."""

import math

from sciLDM.conditions import Vector
from sciLDM.denoiser import NetDenoiser
from sciLDM.domain import Codec
from sciLDM.errors import ConfigError
from sciLDM.experiment import Experiment
from sciLDM.gaussian_start import FactorStart, GaussianStart, LatentStart
from sciLDM.guidance.posterior import (
    DenseGaussian,
    DenseGaussNewtonSolver,
    GaussNewtonSolver,
    HybridSolver,
    MeasuredCovariance,
    PosteriorSolver,
    StartGaussian,
)

__all__ = ["build_denoiser", "build_guide", "solver_of"]

LARGEST_JACOBIAN = 1024
"""Most numbers in a latent for a Jacobian that is written out."""
LARGEST_BY_CELLS = 2**14
"""Most numbers in a latent for weighing data by the start's covariance; larger ones need too many iterations."""
LARGEST_START = 4096
"""Most numbers in a latent for a dense `gaussian_start`, whose covariance then takes 64 MiB."""


def build_denoiser(experiment: Experiment, codec: Codec, channels: int) -> NetDenoiser:
    """The denoiser of latents with so many channels, untrained.

    Raises:
        ConfigError: A `gaussian_start` that these latents do not allow.
    """
    net = experiment.network.build(channels, codec.shape, codec.conditions)
    start = _build_start(experiment, codec, channels)
    return NetDenoiser(net, experiment.schedule, experiment.parametrisation, start=start).eval()


def build_guide(experiment: Experiment, codec: Codec, channels: int) -> NetDenoiser | None:
    """The guide of these latents, untrained; None where none is asked for.

    Raises:
        ConfigError: Beside a `gaussian_start`.
    """
    if experiment.guide is None:
        return None
    if experiment.gaussian_start:
        raise ConfigError(
            "guide: expected no gaussian_start beside it (a small network would get little wrong); drop one of them"
        )
    net = experiment.guide.build(channels, codec.shape, codec.conditions)
    return NetDenoiser(net, experiment.schedule, experiment.parametrisation).eval()


def _build_start(experiment: Experiment, codec: Codec, channels: int) -> LatentStart | None:
    if not experiment.gaussian_start:
        return None
    size, context = channels * math.prod(codec.shape), experiment.objective.context
    if size <= LARGEST_START:
        varies = next(
            ((c.name, c.size) for c in codec.conditions if isinstance(c, Vector) and c.spreads), None
        )
        if context is None:
            return GaussianStart(size, varies=varies)
        # Context is a matter of trajectories: their states lie along the first axis.
        return GaussianStart(size, context.name, trajectory=(channels, codec.shape[0]), varies=varies)
    if context is not None:
        raise ConfigError(
            f"gaussian_start: latents have {size:,} numbers; with objective.context at most {LARGEST_START:,} work "
            "(known cells need a dense covariance); set it to false"
        )
    return FactorStart(channels, codec.shape, rank=experiment.start_patterns)


def solver_of(start: LatentStart | None, error: MeasuredCovariance | None) -> PosteriorSolver:
    """How observations best steer a denoiser.

    Args:
        start: What the denoiser starts from.
        error: Its errors on held-out latents, where they were measured.
    """
    if start is None:
        return HybridSolver() if error is None else HybridSolver.measured(error)
    # Exact where latents are Gaussian, and free of derivatives of the network.
    if isinstance(start, GaussianStart):
        covariance = DenseGaussian.of(start)
        if len(start.mean) > LARGEST_JACOBIAN:
            return GaussNewtonSolver(covariance=covariance, tolerance=0.05, max_iterations=8, rank=16)
        return DenseGaussNewtonSolver(covariance)
    if error is not None and len(start.mean) > LARGEST_BY_CELLS:
        return GaussNewtonSolver(covariance=error, tolerance=0.02, max_iterations=16, rank=16, outline=True)
    return GaussNewtonSolver(covariance=StartGaussian(start), tolerance=0.05, max_iterations=8, rank=16)
