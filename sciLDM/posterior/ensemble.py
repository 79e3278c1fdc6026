r"""Perturb and correct: from latent samples to samples of the posterior in data space.

With `z_k ~ p(z | y)` and the truth `x = D(z) + e`, `e ~ N(0, C)`, each sample gets errors of its own in the field and
in the data, and then the data step:

    x_k = D(z_k) + e_k + K (y + eps_k - A (D(z_k) + e_k)),    K = C A^T (A C A^T + R)^-1,

which has the mean `D(z_k) + K (y - A D(z_k))` and the covariance `(I - K A) C`: exactly `p(x | z_k, y)` for a linear
operator (as in randomise-then-optimise and the ensemble Kalman filter; Bardsley et al. 2014, doi:10.1137/140964023).
The mean is better estimated without these errors, so both sets are returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.operators import Operator
from sciLDM.posterior.consistency import PROBES, Corrected, Correction, correct, observed_variance
from sciLDM.posterior.error_model import ErrorCovariance
from sciLDM.rng import NoiseSource

__all__ = ["Ensemble", "data_chi2", "perturb_and_correct"]


@final
@dataclass(frozen=True)
class Ensemble:
    """Corrected samples.

    Attributes:
        plain: Without added errors: their mean is the point estimate.
        perturbed: With added errors: they scatter as the posterior does.
    """

    plain: Corrected
    perturbed: Corrected


def perturb_and_correct(
    x: Float[Tensor, "batch *field"],
    operator: Operator,
    values: Float[Tensor, "batch *observation"],
    weights: Float[Tensor, "batch *observation"],
    covariance: ErrorCovariance,
    *,
    noise: NoiseSource,
    ids: Sequence[int],
    settings: Correction | None = None,
) -> Ensemble:
    """Correct decoded samples as they are, and once more with errors of their own.

    Args:
        x: Decoded samples `D(z_k)`, in the data's units.
        operator: `A`.
        values: `y`, 0 where missing.
        weights: `1 / std` of the observation errors, 0 where missing.
        covariance: `C` of each sample.
        noise: Source of the errors; those of a sample depend on `(noise.seed, id)` alone.
        ids: Number of each sample.
        settings: How the data step is solved.
    """
    place = {"device": x.device, "dtype": x.dtype}
    e = covariance.draw(noise.normal(ids, tuple(x.shape[1:]), stream="autoencoder error", **place))
    eps = noise.normal(ids, tuple(values.shape[1:]), stream="observation error", **place)
    std = torch.where(weights > 0, 1 / weights.clamp(min=torch.finfo(weights.dtype).tiny), 0.0)
    options = {"settings": settings, "variance": observed_variance(operator, x, covariance, probes=PROBES)}
    plain = correct(x, operator, values, weights, covariance, **options)
    perturbed = correct(x + e, operator, values + std * eps, weights, covariance, **options)
    return Ensemble(plain, perturbed)


def data_chi2(
    x: Float[Tensor, "batch *field"],
    operator: Operator,
    values: Float[Tensor, "batch *observation"],
    weights: Float[Tensor, "batch *observation"],
) -> Float[Tensor, "batch"]:
    """`|y - A x|^2 / (m sigma^2)` over the `m` values observed in each row."""
    count = (weights > 0).flatten(1).sum(dim=1).clamp(min=1)
    return (weights * (values - operator(x))).flatten(1).square().sum(dim=1) / count
