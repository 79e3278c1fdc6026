r"""How uncertain the denoiser's estimate is: `V = Cov[z | z_t]`, needed by every solver that weighs it against data.

    Isotropic   r^2 I with r^2 = sigma^2 / (alpha^2 + sigma^2): exact for a prior N(0, I), free of derivatives
    Gaussian    (C^-1 + alpha^2 / sigma^2 I)^-1: exact for a prior N(m, C), free of derivatives of the network; of any
                prior it has the right limits, C where noise rules and sigma^2 / alpha^2 I where it has gone
    Tweedie     sigma^2 / alpha dD/dz_t: exact for any prior and an exact denoiser, one backward pass each time it acts

`covariance_measured` and `covariance_start` hold two more, for trained denoisers and for those with a Gaussian start.

`Tweedie` makes the Gauss-Newton step MMPS (Rozet et al. 2024, arXiv:2405.13712).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.gaussian_start import GaussianStart
from sciLDM.guidance.posterior.solver import Evaluations
from sciLDM.parametrisation import expand

__all__ = ["DenseGaussian", "Isotropic", "LatentCovariance", "Tweedie", "isotropic_variance", "lowered"]

Estimate = tuple[Tensor, Callable[[Tensor], Tensor]]

_NOISIEST = 20.0


def isotropic_variance(
    denoiser: Denoiser, z_t: Float[Tensor, "batch *latent"], t: Float[Tensor, "batch"]
) -> Float[Tensor, "batch *ones"]:
    """`r^2 = sigma^2 / (alpha^2 + sigma^2)`: posterior variance of a unit-variance latent."""
    alpha, sigma = denoiser.schedule(t)
    return expand(sigma**2 / (alpha**2 + sigma**2), z_t)


class LatentCovariance(nn.Module, ABC):
    """A model of `Cov[z | z_t]`."""

    @abstractmethod
    def estimate(
        self,
        denoiser: Denoiser,
        z_t: Float[Tensor, "batch *latent"],
        t: Float[Tensor, "batch"],
        evaluations: Evaluations,
    ) -> Estimate:
        """`D(z_t)` and `v -> V v`."""


@final
class Isotropic(LatentCovariance):
    """`V = sigma^2 / (alpha^2 + sigma^2) I`."""

    def estimate(
        self,
        denoiser: Denoiser,
        z_t: Float[Tensor, "batch *latent"],
        t: Float[Tensor, "batch"],
        evaluations: Evaluations,
    ) -> Estimate:
        variance = isotropic_variance(denoiser, z_t, t)
        evaluations.denoiser += 1
        return denoiser(z_t, t), lambda v: variance * v


@final
class DenseGaussian(LatentCovariance):
    """`V = (C^-1 + alpha^2 / sigma^2 I)^-1` for latents of up to a few thousand numbers.

    Args:
        covariance: `C` of the flattened, normalised latent; positive semi-definite.

    Raises:
        ConfigError: Not square, not symmetric, or clearly not positive.
    """

    variances: Tensor
    axes: Tensor

    def __init__(self, covariance: Float[Tensor, "dim dim"]) -> None:
        super().__init__()
        covariance = covariance.to(torch.float64)
        if covariance.shape[0] != covariance.shape[1] or not torch.allclose(covariance, covariance.mT):
            raise ConfigError("covariance: expected a symmetric matrix over the flattened latent")
        variances, axes = torch.linalg.eigh(covariance)
        if float(variances[0]) < -1e-8 * float(variances[-1]):
            raise ConfigError(f"covariance: expected no negative eigenvalue, got {float(variances[0]):.3g}")
        self.register_buffer("variances", variances.clamp(min=0))
        self.register_buffer("axes", axes)
        self._start: GaussianStart | None = None

    @staticmethod
    def of(start: GaussianStart) -> "DenseGaussian":
        """That of a denoiser's start, whose variances may follow a condition."""
        found = DenseGaussian(start.covariance.cpu())
        found.variances.copy_(start.variances)
        found.axes.copy_(start.basis)
        found._start = start
        return found

    def variances_of(self, denoiser: Denoiser) -> Float[Tensor, "row dim"]:
        """Variances of the denoiser's rows along `axes`, or one row for all."""
        if self._start is None or self._start.varies is None:
            return self.variances[None]
        return self._start.variances_of(denoiser.cond)

    @staticmethod
    def fit(latents: Float[Tensor, "sample *latent"]) -> "DenseGaussian":
        """The sample covariance of training latents, shrunk towards its mean variance where samples are few.

        The weight of the sample covariance is `n / (n + dim)`.

        Raises:
            ConfigError: Fewer than two latents.
        """
        if len(latents) < 2:
            raise ConfigError(f"a covariance needs at least 2 latents, got {len(latents)}")
        flat = latents.flatten(1).to(torch.float64)
        sample, (n, dim) = torch.cov(flat.mT).reshape(flat.shape[1], -1), flat.shape
        mean = sample.diagonal().mean() * torch.eye(dim, dtype=torch.float64, device=flat.device)
        return DenseGaussian(torch.lerp(mean, sample, n / (n + dim)))

    def estimate(
        self,
        denoiser: Denoiser,
        z_t: Float[Tensor, "batch *latent"],
        t: Float[Tensor, "batch"],
        evaluations: Evaluations,
    ) -> Estimate:
        alpha, sigma = (c[:, None] for c in denoiser.schedule(t))
        variances, axes = self.variances_of(denoiser).to(z_t), self.axes.to(z_t)
        left = variances * sigma**2 / (alpha**2 * variances + sigma**2)
        evaluations.denoiser += 1

        def apply(v: Tensor) -> Tensor:
            return ((v.flatten(1) @ axes * left) @ axes.mT).reshape(v.shape)

        return denoiser(z_t, t), apply


@final
class Tweedie(LatentCovariance):
    r"""`V = sigma^2 / alpha dD/dz_t`, by backward passes: the Jacobian of an exact denoiser is symmetric."""

    def estimate(
        self,
        denoiser: Denoiser,
        z_t: Float[Tensor, "batch *latent"],
        t: Float[Tensor, "batch"],
        evaluations: Evaluations,
    ) -> Estimate:
        alpha, sigma = denoiser.schedule(t)
        scale = expand(sigma**2 / alpha, z_t)
        with torch.enable_grad():
            z_t = z_t.detach().requires_grad_()
            estimate = denoiser(z_t, t)
        evaluations.denoiser += 1

        def apply(v: Tensor) -> Tensor:
            evaluations.denoiser_vjp += 1
            return scale * torch.autograd.grad(estimate, z_t, v, retain_graph=True)[0]

        return estimate.detach(), apply


def lowered(
    denoiser: Denoiser, z_t: Float[Tensor, "batch *latent"], t: Float[Tensor, "batch"]
) -> tuple[Float[Tensor, "batch *latent"], Float[Tensor, "batch"]]:
    """`(z_t, t)`, the normalised state of rows with `sigma / alpha > 20` taken for one of that ratio.

    At pure noise `sigma^2 / alpha dD/dz_t` is infinity times zero, and well before that it vanishes against any
    network's error. Where the state tells so little, this moves the estimate by less than 5 % of the prior's spread,
    and the estimate itself enters the next state with a weight below 10 %.
    """
    schedule = denoiser.schedule
    alpha, sigma = schedule(t)
    noisy = sigma > _NOISIEST * alpha
    level = schedule.t_of_lmbda(torch.full_like(t, -math.log(_NOISIEST), dtype=torch.float64)).to(t)
    t_lower = torch.where(noisy, torch.minimum(level, t), t)
    ratio = torch.hypot(*schedule(t_lower)) / torch.hypot(alpha, sigma)
    return z_t * expand(torch.where(noisy, ratio, 1.0), z_t), t_lower
