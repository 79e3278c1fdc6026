"""The posterior covariance of the Gaussian that a denoiser starts from, dense or structured."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.gaussian_start import LatentStart
from sciLDM.guidance.posterior.covariance import Estimate, LatentCovariance
from sciLDM.guidance.posterior.solver import Evaluations

__all__ = ["StartGaussian"]


@final
class StartGaussian(LatentCovariance):
    """`V = (C^-1 + alpha^2 / sigma^2 I)^-1`, free of derivatives of the network; exact where latents are Gaussian.

    Args:
        start: The Gaussian.
    """

    def __init__(self, start: LatentStart) -> None:
        super().__init__()
        self.start = start

    def estimate(
        self,
        denoiser: Denoiser,
        z_t: Float[Tensor, "batch *latent"],
        t: Float[Tensor, "batch"],
        evaluations: Evaluations,
    ) -> Estimate:
        alpha, sigma = (c.to(z_t) for c in denoiser.schedule(t))
        evaluations.denoiser += 1

        @torch.no_grad()
        def apply(v: Tensor) -> Tensor:
            return self.start.posterior_covariance(v, alpha, sigma.clamp(min=1e-6), denoiser.cond)

        return denoiser(z_t, t), apply
