r"""What a sampler does to Gaussian latents, exactly.

With the exact denoiser of `N(m, C)` every sampler here is an affine map of the noises it draws, and in the eigenbasis
of `C` directions do not mix. Feeding unit noises, one in each sample, gives the map and so the exact mean and standard
deviation of the samples: no network, no Monte-Carlo error, a few hundred rows whatever the dimension. Any departure
from `m` and `C` is the doing of schedule, grid, solver, number of steps, temperature or guidance.

Every noise is multiplied by the temperature, so every standard deviation is, too: exactly, in every direction. The
sample is the estimate at the last, least noisy level, `r = sigma / alpha` there; an otherwise exact solver thus leaves
`sqrt(c / (c + r^2))` of the standard deviation in a direction of variance `c`, whatever the number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.evaluate.doctor_gaussian import LatentGaussian, Slope
from sciLDM.oracles import GaussianDenoiser
from sciLDM.rng import NoiseSource
from sciLDM.samplers import Sampler
from sciLDM.samplers.base import level_at
from sciLDM.schedules import Schedule

__all__ = ["guided_response", "left_by_the_end", "response"]

_GUIDED_DIMENSIONS = 32
"""Guidance mixes directions; those that a condition moves most are kept."""


def response(
    sampler: Sampler,
    schedule: Schedule,
    mean: Float[Tensor, "direction"],
    variances: Float[Tensor, "direction"],
) -> tuple[Float[Tensor, "direction"], Float[Tensor, "direction"], bool]:
    """Exact mean and standard deviation of `sampler`'s output for independent Gaussian directions.

    Returns:
        Mean, standard deviation, and whether the sampler is affine. For one that is not (it clips, say) the figures
        are those of small noises around the mean.
    """
    denoiser = _Diagonal(mean.double(), variances.double(), schedule)
    centre, unit, affine = _impulses(sampler, denoiser, len(mean), 1)
    return centre, unit.square().sum(0).sqrt(), affine


def left_by_the_end(
    sampler: Sampler, schedule: Schedule, variances: Float[Tensor, "direction"]
) -> tuple[Float[Tensor, "direction"], float]:
    """Share of each standard deviation that the last estimate leaves, and the `lmbda` it is made at."""
    t = float(sampler.grid(schedule, sampler.steps)[-1])
    level = level_at(schedule, t)
    ratio = level.s / level.a
    lmbda = float(schedule.lmbda(torch.tensor(t, dtype=torch.float64)))
    return (variances / (variances + ratio**2)).sqrt(), lmbda


def guided_response(
    sampler: Sampler, schedule: Schedule, gaussian: LatentGaussian, slope: Slope, scale: float
) -> tuple[float, float, float]:
    """What guidance does when one condition is asked to be one standard deviation above its mean.

    Returns:
        Shift of the mean along the condition's direction (1 as asked for), spread along it, and spread over all kept
        directions; spreads relative to the true conditional distribution.
    """
    kept = slope.shift.square().argsort(descending=True)[:_GUIDED_DIMENSIONS]
    shift, variances = slope.shift[kept].double(), gaussian.variances[: gaussian.first][kept].double()
    mean = gaussian.mean[: gaussian.first][kept].double()
    free = variances.diag()
    # The condition's share is taken away; shrinkage and noise must not make a variance negative.
    conditional = free - shift[:, None] * shift * min(1.0, 0.99 / float((shift**2 / variances).sum()))
    denoiser = _Guided(
        GaussianDenoiser(mean + shift, conditional, schedule), GaussianDenoiser(mean, free, schedule), scale
    )
    centre, unit, _ = _impulses(sampler, denoiser, len(kept), len(kept))
    along = shift / shift.norm()
    covariance = unit.mT @ unit
    return (
        float(along @ (centre - mean) / shift.norm()),
        float((along @ covariance @ along) / (along @ conditional @ along)) ** 0.5,
        float(covariance.trace() / conditional.trace()) ** 0.5,
    )


@final
class _Diagonal(Denoiser):
    """Exact denoiser of independent Gaussians, one a direction; `GaussianDenoiser` would need a dense covariance."""

    def __init__(self, mean: Tensor, variances: Tensor, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.mean, self.variances = mean, variances

    def forward(
        self, x_t: Float[Tensor, "batch direction"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch direction"]:
        alpha, sigma = (c.to(x_t)[:, None] for c in self.schedule(t))
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)


@final
class _Guided(Denoiser):
    """`D(cond) + (w - 1) (D(cond) - D())` of two exact denoisers, as `sciLDM.guidance.ClassifierFree` does."""

    def __init__(self, conditional: GaussianDenoiser, free: GaussianDenoiser, scale: float) -> None:
        super().__init__(free.schedule)
        self.conditional, self.free, self.scale = conditional, free, scale

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        full = self.conditional(x_t, t)
        return full if self.scale == 1.0 else full + (self.scale - 1.0) * (full - self.free(x_t, t))


_NONE, _ALL = 2**40, 2**40 + 1
"""Identifiers of the sample without noise, and of the one with half a unit of every noise."""


@final
@dataclass(frozen=True)
class _UnitNoises(NoiseSource):  # pyright: ignore[reportGeneralTypeIssues] - the one way to see a sampler's map
    """Sample `k` gets noise number `k` of all that the sampler asks for, and no other."""

    width: int = 1
    streams: list[int | str] = field(default_factory=list)

    def normal(
        self,
        ids: Sequence[int],
        shape: tuple[int, ...],
        *,
        stream: int | str = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch *shape"]:
        """Unit impulses: along all directions at once for width 1, else direction by direction."""
        if stream not in self.streams:
            self.streams.append(stream)
        first = self.streams.index(stream) * self.width
        draws = torch.zeros(len(ids), *shape, dtype=dtype)
        for row, k in enumerate(ids):
            if k == _ALL:
                draws[row] = 0.5
            elif self.width == 1 and k == first:
                draws[row] = 1.0
            elif first <= k < first + self.width:
                draws[row, k - first] = 1.0
        return draws


def _impulses(sampler: Sampler, denoiser: Denoiser, dim: int, width: int) -> tuple[Tensor, Tensor, bool]:
    """The mean, and the response to each noise `[noise, direction]`; whether they describe the sampler fully."""
    number = sampler.steps
    while True:
        noise = _UnitNoises(0, width)
        ids = [*range(number * width), _NONE, _ALL]
        found = sampler(denoiser, (dim,), noise=noise, ids=ids, dtype=torch.float64)
        if len(noise.streams) <= number:
            break
        number = len(noise.streams)  # it draws more often than once a step
    centre, unit = found[-2], found[:-2] - found[-2]
    predicted = centre + 0.5 * unit.sum(0)
    affine = bool(torch.allclose(found[-1], predicted, rtol=1e-6, atol=1e-8 * float(1 + unit.abs().max())))
    return centre, unit, affine
