"""Fitting `FactorStart` in a few passes over batches of latents, none of which is kept.

**Blocks.** The covariance of each cell is shrunk towards the correlation of channels that all cells share, with the
cell's own variances; the pull, in samples, is the one that denoises the other half of the data best.

**Patterns.** In coordinates where every cell is white, the leading eigenvectors of the sample covariance, by subspace
iteration. Far fewer samples than numbers blow up its eigenvalues and turn its eigenvectors, so they are debiased as in
the spiked covariance model (Donoho, Gavish & Johnstone 2018, doi:10.1214/17-AOS1601): with `gamma = size / samples`, an
eigenvalue `lambda <= (1 + sqrt(gamma))^2` is noise, and a larger one that of a true `l` at an angle `acos(c)`,

    l = (lambda + 1 - gamma + sqrt((lambda + 1 - gamma)^2 - 4 lambda)) / 2
    c^2 = (1 - gamma / (l - 1)^2) / (1 + gamma / (l - 1)),

which leaves `(l - 1) c^2` along the direction that was found.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import DataError
from sciLDM.rng import NoiseSource

__all__ = ["LEAST_VARIANCE", "Moments", "debiased", "patterns"]

LEAST_VARIANCE = 1e-5
"""Of a latent of unit variance: below the noise at which sampling ends."""
_WEIGHTS = (1.0, 4.0, 16.0, 64.0, 256.0)
_TRIED = 256
"""Cells on which the weights are compared, at most."""
_LEVELS = torch.linspace(-5.75, 5.75, 24, dtype=torch.float64)
_PASSES, _SPARE = 6, 8


@final
@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of products of each cell's channels, of two halves of the data."""

    counts: Float[Tensor, "half"]
    totals: Float[Tensor, "half cell channel"]
    products: Float[Tensor, "half cell channel channel"]

    @staticmethod
    def of(latents: Iterable[Tensor], channels: int, device: torch.device) -> "Moments":
        """One pass, in float64.

        Raises:
            DataError: Fewer than two latents.
        """
        counts = torch.zeros(2, dtype=torch.float64, device=device)
        totals = products = counts.new_zeros(())
        for z in latents:
            x = _by_cell(z.to(device)).double()
            cut = (x.shape[1] + int(counts[0] <= counts[1])) // 2
            halves = x[:, :cut], x[:, cut:]
            counts += counts.new_tensor([h.shape[1] for h in halves])
            totals = totals + torch.stack([h.sum(dim=1) for h in halves])
            products = products + torch.stack([h.mT @ h for h in halves])
        if float(counts.sum()) < 2:
            raise DataError(f"gaussian_start: expected at least 2 training latents, got {int(counts.sum())}")
        return Moments(counts, totals, products)

    @property
    def count(self) -> int:
        """Latents in all."""
        return int(self.counts.sum())

    def cell_mean(self) -> Float[Tensor, "cell channel"]:
        """Mean of each cell, drawn to its channel's as far as cells differ by chance (James and Stein)."""
        mean, covariance = self._central(self.totals.sum(0), self.products.sum(0), self.count)
        channel = mean.mean(dim=0)
        chance = covariance.diagonal(dim1=1, dim2=2).mean(dim=0) / self.count
        spread = (mean - channel).square().mean(dim=0).clamp(min=1e-30)
        return channel + (1 - chance / spread).clamp(min=0) * (mean - channel)

    def shrunk(self, weight: float) -> Float[Tensor, "cell channel channel"]:
        """Covariance of each cell, with `weight` samples' worth of the common correlation."""
        _, covariance = self._central(self.totals.sum(0), self.products.sum(0), self.count)
        return _shrunk(covariance, self.count, weight)

    def best_weight(self) -> float:
        """The weight with which one half denoises the other best, over all noise levels."""
        if float(self.counts.min()) < 2:
            return max(_WEIGHTS)
        step = -(-self.totals.shape[1] // _TRIED)
        halves = [
            self._central(t[::step], p[::step], int(n))
            for t, p, n in zip(self.totals, self.products, self.counts, strict=True)
        ]
        return min(_WEIGHTS, key=lambda weight: self._error(halves, weight))

    def _error(self, halves: list[tuple[Tensor, Tensor]], weight: float) -> float:
        total = 0.0
        for k in range(2):
            (mean, covariance), (other, held_out) = halves[k], halves[1 - k]
            variances, axes = torch.linalg.eigh(_shrunk(covariance, int(self.counts[k]), weight))
            away = (other - mean)[..., None]
            actual = ((held_out + away @ away.mT) @ axes * axes).sum(dim=1)
            total += _denoising_error(actual, variances.clamp(min=LEAST_VARIANCE))
        return total

    @staticmethod
    def _central(total: Tensor, products: Tensor, count: int) -> tuple[Tensor, Tensor]:
        mean = total / count
        return mean, products / count - mean[..., None] * mean[..., None, :]


def _shrunk(covariance: Tensor, count: int, weight: float) -> Tensor:
    std = covariance.diagonal(dim1=1, dim2=2).clamp(min=LEAST_VARIANCE).sqrt()
    products = std[:, :, None] * std[:, None, :]
    common = (covariance / products).mean(dim=0)
    common.diagonal().fill_(1.0)
    return (count * covariance + weight * common * products) / (count + weight)


def _denoising_error(actual: Tensor, variances: Tensor) -> float:
    """Mean `v` error over noise levels of the linear estimate for `variances`, where the moments are `actual`."""
    alpha2 = torch.sigmoid(2 * _LEVELS).to(variances)[:, None, None]
    sigma2 = 1 - alpha2
    gain = variances / (alpha2 * variances + sigma2)  # the estimate is alpha gain x_t
    return float(((1 - alpha2 * gain).square() * actual / sigma2 + alpha2 * gain.square()).mean())


def debiased(values: Float[Tensor, "count"], gamma: float) -> Float[Tensor, "count"]:
    """`(l - 1) c^2` of sample eigenvalues, 0 where noise alone explains them; `gamma = size / samples`."""
    q = values + 1 - gamma
    true = (q + (q**2 - 4 * values).clamp(min=0).sqrt()) / 2
    excess = (true - 1).clamp(min=1e-12)
    cosine2 = (1 - gamma / excess**2) / (1 + gamma / excess)
    return torch.where(values > (1 + math.sqrt(gamma)) ** 2, excess * cosine2, 0.0).clamp(min=0)


def patterns(
    latents: Iterable[Tensor],
    mean: Float[Tensor, "cell channel"],
    whiten: Float[Tensor, "cell channel axis"],
    rank: int,
    count: int,
) -> Float[Tensor, "cell axis rank"]:
    """`W` such that `W W^T` is the covariance between cells in whitened coordinates.

    Args:
        latents: Batches; gone through seven times.
        mean: What to subtract.
        whiten: Axes of each cell, divided by their standard deviation.
        rank: Columns of `W`; those that `count` samples do not support are zero.
        count: Latents in all.
    """
    size = mean.numel()
    kept = min(rank + _SPARE, size, count - 1)
    draw = NoiseSource(0).normal(range(kept), (size,), stream="patterns", device=mean.device)
    vectors = torch.linalg.qr(draw.T)[0]
    for _ in range(_PASSES):
        image = torch.zeros_like(vectors)
        for x in _whitened(latents, mean, whiten):
            image += x.T @ (x @ vectors) / count
        vectors = torch.linalg.qr(image)[0]
    gram = sum((y := x @ vectors).T.double() @ y.double() for x in _whitened(latents, mean, whiten))
    values, turn = torch.linalg.eigh(torch.as_tensor(gram) / count)
    strength = debiased(values, size / count).sqrt().to(vectors)
    found = (vectors @ turn.to(vectors) * strength).flip(1)[:, :rank]
    found = torch.nn.functional.pad(found, (0, rank - found.shape[1]))
    return found.view(*whiten.shape[::2], rank)


def _whitened(latents: Iterable[Tensor], mean: Tensor, whiten: Tensor) -> Iterator[Tensor]:
    for z in latents:
        x = (_by_cell(z.to(mean.device)) - mean[:, None]).to(whiten) @ whiten
        yield x.transpose(0, 1).flatten(1)


def _by_cell(z: Float[Tensor, "batch channel *shape"]) -> Float[Tensor, "cell batch channel"]:
    return z.flatten(2).permute(2, 0, 1)
