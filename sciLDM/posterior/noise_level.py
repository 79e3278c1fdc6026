r"""The noise level, where the user does not know it: one standard deviation for each case.

From samples `x_k ~ p(x | y, sigma)` with mean `m` and the `M` observed values of the case,

    sigma^2 <- |y - A m|^2 / (M - gamma),    gamma = E|A (x_k - m)|^2 / sigma^2,

`gamma` being the number of values that the reconstruction has fitted (MacKay 1992, doi:10.1162/neco.1992.4.3.415). The
fixed point maximises the marginal likelihood, and there the samples have a chi-square of 1. It starts from a tenth of
the values' robust spread and takes a few short runs of the solver.

Limits: errors must be independent and of one size. What the prior can explain as signal is not taken for noise, and
what it cannot (structure unlike the training data) is. Where nearly as many values are fitted as there are
(`redundancy = 1 - gamma / M` near 0: few stations, a noisy dense field under a wide prior), the data say little of
their noise and the result stays near the start.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["NoiseLevel", "estimate_noise", "robust_guess"]

ROUNDS, SAMPLES = 4, 4
"""Short runs of the solver, and samples of each case in them."""

_MOST_FITTED, _MOST_CHANGE, _SETTLED = 0.95, 10.0, 0.2


@final
@dataclass(frozen=True)
class NoiseLevel:
    """An estimate.

    Attributes:
        std: Standard deviation of the observation errors of each case.
        redundancy: Share of its values that were not needed to fit it; the estimate rests on these.
        settled: Whether the last round changed the estimate by less than a fifth.
    """

    std: Float[Tensor, "case"]
    redundancy: Float[Tensor, "case"]
    settled: Bool[Tensor, "case"]


def robust_guess(
    values: Float[Tensor, "case *observation"], present: Bool[Tensor, "case *observation"]
) -> Float[Tensor, "case"]:
    """A tenth of the spread of each case's values, by the median absolute deviation."""
    flat = torch.where(present, values, math.nan).flatten(1)
    deviation = (flat - flat.nanmedian(dim=1, keepdim=True).values).abs()
    spread = 1.4826 * deviation.nanmedian(dim=1).values
    plain = torch.where(present.flatten(1), deviation, 0.0).square().sum(dim=1) / present.flatten(1).sum(
        dim=1
    )
    size = torch.where(present.flatten(1), flat, 0.0).abs().amax(dim=1)
    spread = torch.where(spread > 0, spread, plain.sqrt())
    return 0.1 * torch.where(spread > 0, spread, torch.where(size > 0, size, 1.0))


def estimate_noise(
    run: Callable[[Tensor], Tensor],
    values: Float[Tensor, "case *observation"],
    present: Bool[Tensor, "case *observation"],
    *,
    rounds: int = ROUNDS,
) -> NoiseLevel:
    """Iterate to the noise level that explains the residuals.

    Args:
        run: From one standard deviation for each case to `A(x_k)` of posterior samples, `[case, sample, *observation]`.
        values: Observed values; anything where missing.
        present: Where there is a value.
        rounds: Calls of `run`.
    """
    std = robust_guess(values, present)
    there = present.flatten(1).to(values)
    values = torch.where(present, values, 0.0).flatten(1)
    total, change = there.sum(dim=1), torch.ones_like(std)
    redundancy = torch.ones_like(std)
    for _ in range(rounds):
        predicted = run(std).flatten(2)
        count = predicted.shape[1]
        mean = predicted.mean(dim=1)
        scatter = ((predicted - mean[:, None]) * there[:, None]).square().sum(dim=(1, 2)) / (count - 1)
        # The mean of few samples is off by a share of their scatter.
        misfit = ((values - mean) * there).square().sum(dim=1) - scatter / count
        fitted = (scatter / std.square()).clamp(max=_MOST_FITTED * total)
        new = (misfit.clamp(min=0) / (total - fitted)).sqrt()
        new = torch.minimum(torch.maximum(new, std / _MOST_CHANGE), std * _MOST_CHANGE)
        change, std = (new / std).log().abs(), new
        redundancy = 1 - fitted / total
    return NoiseLevel(std, redundancy, change < math.log1p(_SETTLED))
