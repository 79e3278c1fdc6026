r"""`Cov[z | z_t]` as it was measured: how far the trained denoiser is off, by noise level.

An exact denoiser's Jacobian is the covariance of its error (`Tweedie`). A network's is not: with few training samples
it is neither symmetric nor positive where noise rules, and steps that trust it diverge. Its errors on held-out latents
can be looked at instead,

    V(lmbda) = T^T diag(E[(T (D(z_t) - z))^2]) T,

diagonal for each channel in the cosine transform `T` of the grid, which is right for errors that do not depend on
place. No derivative of the network is taken, and a weak prior is given the little weight it deserves: data rule where
it knows nothing.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.cosine import cosine_transform
from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError, DataError
from sciLDM.guidance.posterior.covariance import Estimate, LatentCovariance
from sciLDM.guidance.posterior.solver import Evaluations
from sciLDM.parametrisation import expand
from sciLDM.rng import NoiseSource

__all__ = ["MeasuredCovariance"]

RATIOS = (20.0, 10.0, 5.0, 3.0, 2.0, 1.3, 0.8, 0.5, 0.3, 0.15, 0.07, 0.03, 0.01)
"""`sigma / alpha` where errors are measured, from the noisiest that solvers ask for (`lowered`)."""
_PSEUDO = 4.0
"""Latents whose worth the channel's mean over all frequencies has in the estimate of one."""


@final
class MeasuredCovariance(LatentCovariance):
    """Error variances of a denoiser by noise level, channel and spatial frequency.

    Args:
        levels: How many noise levels.
        channels: Channels of the latent.
        shape: Its grid; other grids are read at the same frequencies.

    Attributes:
        lmbda: `log(alpha / sigma)` of each level, increasing.
        log_variance: Logarithm of the variances, interpolated between levels.
    """

    lmbda: Tensor
    log_variance: Tensor

    def __init__(self, levels: int, channels: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("lmbda", torch.zeros(levels, dtype=torch.float64))
        self.register_buffer("log_variance", torch.zeros(levels, channels, *shape))

    @staticmethod
    @torch.no_grad()
    def measured(
        parts: Iterable[tuple[Float[Tensor, "_ channel *shape"], Denoiser]],
        *,
        ratios: Sequence[float] = RATIOS,
        seed: int = 0,
    ) -> "MeasuredCovariance":
        """From held-out latents.

        Args:
            parts: Batches of normalised latents, none of them trained on, and a denoiser for each.
            ratios: Noise levels `sigma / alpha`, decreasing.
            seed: Of the noise; that of latent `i` depends on `(seed, i)` alone.

        Raises:
            ConfigError: Levels that do not decrease.
            DataError: No latents, or estimates that are not finite.
        """
        if not ratios or any(b >= a for a, b in pairwise(ratios)) or ratios[-1] <= 0:
            raise ConfigError(f"ratios: expected positive, decreasing noise levels, got {list(ratios)}")
        noise, count, total = NoiseSource(seed), 0, None
        for z, denoiser in parts:
            ids = range(count, count + len(z))
            squares = [
                _errors(denoiser, z, ratio, noise.fork(f"level {k}"), ids) for k, ratio in enumerate(ratios)
            ]
            batch = torch.stack(squares)
            total = batch if total is None else total + batch
            count += len(z)
        if total is None:
            raise DataError("the denoiser's error: no held-out latents to measure it on")
        if not bool(total.isfinite().all()):
            raise DataError("the denoiser's error: its estimates are not finite")
        mean = total.flatten(2).mean(dim=2).reshape(*total.shape[:2], *[1] * (total.ndim - 2)) / count
        variance = ((total + _PSEUDO * mean) / (count + _PSEUDO)).clamp(min=1e-12)
        found = MeasuredCovariance(len(ratios), total.shape[1], total.shape[2:])
        found.lmbda.copy_(-torch.tensor(ratios, dtype=torch.float64).log())
        found.log_variance.copy_(variance.log())
        return found

    def estimate(
        self,
        denoiser: Denoiser,
        z_t: Float[Tensor, "batch *latent"],
        t: Float[Tensor, "batch"],
        evaluations: Evaluations,
    ) -> Estimate:
        variance = self.variance(denoiser.schedule.lmbda(t.double()), tuple(z_t.shape[2:])).to(z_t)
        evaluations.denoiser += 1

        def apply(v: Tensor) -> Tensor:
            return cosine_transform(variance * cosine_transform(v), inverse=True)

        return denoiser(z_t, t), apply

    def variance(
        self, lmbda: Float[Tensor, "batch"], shape: tuple[int, ...]
    ) -> Float[Tensor, "batch channel *shape"]:
        """Variances at these noise levels on a grid; below the least noise they fall with `sigma^2 / alpha^2`."""
        if len(shape) != self.log_variance.ndim - 2:
            raise ConfigError(
                f"expected latents on {self.log_variance.ndim - 2} axes, got a grid {shape}; errors were "
                f"measured on {tuple(self.log_variance.shape[2:])}"
            )
        table, levels = self.log_variance, self.lmbda.to(lmbda)
        inside = lmbda.clamp(float(levels[0]), float(levels[-1]))
        if len(levels) == 1:
            found = table.expand(len(lmbda), *table.shape[1:])
        else:
            upper = torch.searchsorted(levels, inside).clamp(1, len(levels) - 1)
            weight = (inside - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
            below = table[upper - 1]
            found = torch.lerp(below, table[upper], expand(weight, below).to(table))
        found = found - 2 * expand((lmbda - inside).clamp(min=0), found).to(found)
        for axis, size in enumerate(shape, start=2):
            found = _resampled(found, axis, size)
        return found.exp()


def _errors(
    denoiser: Denoiser, z: Tensor, ratio: float, noise: NoiseSource, ids: Sequence[int]
) -> Float[Tensor, "channel *shape"]:
    """Squared errors in the cosine transform, summed over these latents."""
    lmbda = torch.full((len(z),), -math.log(ratio), dtype=torch.float64)
    t = denoiser.schedule.t_of_lmbda(lmbda).to(z)
    alpha, sigma = (expand(c, z) for c in denoiser.schedule(t))
    eps = noise.normal(ids, tuple(z.shape[1:])).to(z)
    error = denoiser(alpha * z + sigma * eps, t) - z
    return cosine_transform(error).double().square().sum(dim=0).cpu()


def _resampled(table: Tensor, axis: int, size: int) -> Tensor:
    """Read at the frequencies of another number of cells: the variance of a cosine depends on its wavelength."""
    have = table.shape[axis]
    if have == size:
        return table
    place = (torch.arange(size, device=table.device, dtype=table.dtype) * (have / size)).clamp(max=have - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=have - 1)
    weight = (place - low).view(-1, *[1] * (table.ndim - axis - 1))
    return torch.lerp(table.index_select(axis, low), table.index_select(axis, high), weight)
