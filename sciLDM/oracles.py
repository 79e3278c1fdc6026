"""Distributions whose denoiser is known exactly: what solvers, guidance and likelihoods are held to.

For `x ~ N(m, C)` the posterior mean under `x_t = alpha x + sigma eps` is

    E[x | x_t] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m),

and for a mixture it is the average of the components' posterior means under their responsibilities. Arithmetic is in
the type of `x_t`; use float64 to study solvers.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource
from sciLDM.schedules import Schedule

__all__ = ["GaussianDenoiser", "MixtureDenoiser"]


@final
class GaussianDenoiser(Denoiser):
    """Exact denoiser of `N(mean, covariance)`. Latents of any shape with `dim` elements are flattened inside.

    Args:
        mean: Mean of the flattened latent.
        covariance: Its covariance; positive definite.
        schedule: Noise schedule.

    Raises:
        ConfigError: The covariance is not symmetric positive definite.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(
        self, mean: Float[Tensor, "dim"], covariance: Float[Tensor, "dim dim"], schedule: Schedule
    ) -> None:
        super().__init__(schedule)
        covariance = covariance.to(torch.float64)
        variances, axes = torch.linalg.eigh(covariance)
        if not torch.allclose(covariance, covariance.mT) or bool((variances <= 0).any()):
            raise ConfigError(
                "the covariance must be symmetric positive definite; add a small multiple of the identity"
            )
        self.register_buffer("mean", mean.to(torch.float64))
        self.register_buffer("variances", variances)
        self.register_buffer("axes", axes)

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`E[x | x_t]`."""
        alpha, sigma = (c.to(x_t.dtype)[:, None] for c in self.schedule(t))
        mean, variances, axes = self.mean.to(x_t), self.variances.to(x_t), self.axes.to(x_t)
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        deviation = (x_t.flatten(1) - alpha * mean) @ axes
        return (mean + (gain * deviation) @ axes.mT).reshape(x_t.shape)

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        """Exact log-density of clean latents [nats]."""
        deviation = (x.flatten(1) - self.mean.to(x)) @ self.axes.to(x)
        variances = self.variances.to(x)
        return -0.5 * (deviation**2 / variances + (2 * math.pi * variances).log()).sum(1)

    def sample(self, noise: NoiseSource, ids: list[int]) -> Float[Tensor, "batch dim"]:
        """Exact samples in float64."""
        z = noise.normal(
            ids, tuple(self.mean.shape), stream="oracle", dtype=torch.float64, device=self.mean.device
        )
        return self.mean + (z * self.variances.sqrt()) @ self.axes.mT


@final
class MixtureDenoiser(Denoiser):
    """Exact denoiser of the mixture `sum_k w_k N(m_k, s_k^2 I)`. Latents of any shape are flattened inside.

    Args:
        weights: Positive; normalised inside.
        means: One row a component.
        stds: Isotropic standard deviation of each component.
        schedule: Noise schedule.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __init__(
        self,
        weights: Float[Tensor, "components"],
        means: Float[Tensor, "components dim"],
        stds: Float[Tensor, "components"],
        schedule: Schedule,
    ) -> None:
        super().__init__(schedule)
        if bool((weights <= 0).any()) or bool((stds <= 0).any()):
            raise ConfigError("weights and stds of a mixture must be positive; leave absent components out")
        self.register_buffer("weights", weights.to(torch.float64) / weights.to(torch.float64).sum())
        self.register_buffer("means", means.to(torch.float64))
        self.register_buffer("stds", stds.to(torch.float64))

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`E[x | x_t]`."""
        alpha, sigma = (c.to(x_t.dtype)[:, None] for c in self.schedule(t))
        means, variances = self.means.to(x_t), self.stds.to(x_t) ** 2
        flat = x_t.flatten(1)
        total = alpha**2 * variances + sigma**2  # [batch components]
        responsibility = self._log_terms(flat, alpha, total).softmax(1)
        gain = alpha * variances / total
        # sum_k r_k (m_k + gain_k (x_t - alpha m_k)), without a [batch components dim] intermediate
        x0 = (responsibility * gain).sum(1, keepdim=True) * flat + (
            responsibility * (1 - alpha * gain)
        ) @ means
        return x0.reshape(x_t.shape)

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        """Exact log-density of clean latents [nats]."""
        one = x.new_ones(x.shape[0], 1)
        variances = (self.stds.to(x) ** 2).expand(x.shape[0], -1)
        return self._log_terms(x.flatten(1), one, variances).logsumexp(1)

    def moments(self) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim dim"]]:
        """Exact mean and covariance."""
        mean = self.weights @ self.means
        deviation = self.means - mean
        within = (self.weights * self.stds**2).sum() * torch.eye(
            len(mean), dtype=mean.dtype, device=mean.device
        )
        return mean, within + (self.weights[:, None] * deviation).mT @ deviation

    def sample(self, noise: NoiseSource, ids: list[int]) -> Float[Tensor, "batch dim"]:
        """Exact samples in float64."""
        dim, device = self.means.shape[1], self.means.device
        u = noise.uniform(ids, (), "oracle component", dtype=torch.float64, device=device)
        component = torch.searchsorted(self.weights.cumsum(0), u).clamp(max=len(self.weights) - 1)
        z = noise.normal(ids, (dim,), stream="oracle", dtype=torch.float64, device=device)
        return self.means[component] + self.stds[component, None] * z

    def _log_terms(self, flat: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
        """`log(w_k N(flat; alpha m_k, total_k I))`, `[batch components]`."""
        means = self.means.to(flat)
        # |x - alpha m|^2 from the differences: the expanded form loses digits when both are large.
        distance = torch.stack([((flat - alpha * m) ** 2).sum(1) for m in means], dim=1)
        dim = flat.shape[1]
        return self.weights.to(flat).log() - 0.5 * (distance / total + dim * (2 * math.pi * total).log())
