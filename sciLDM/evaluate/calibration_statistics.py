r"""Statistics of calibration whose unit is the case: bootstrap intervals, and a test for flat histograms.

Let `p_j` be the pooled share of bin `j`, `p0 = 1/J`, and `V` the covariance of the shares as estimated between cases
(linearised ratio estimator), with eigenvalues `v`. If the histogram is flat, `T = sum_j (p_j - p0)^2` has mean
`sum v` and variance `2 sum v^2`, so that

    nu T / sum v  ~  chi-square of  nu = (sum v)^2 / sum v^2  degrees of freedom

to second order (Satterthwaite 1946; Rao & Scott 1984, doi:10.1214/aos/1176346391). For one value a case this is
Pearson's test with `nu = J - 1`; correlation within cases raises `v` and lowers `nu`.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from sciLDM.errors import DataError
from sciLDM.rng import NoiseSource

__all__ = ["Estimate", "Flatness", "bootstrap", "flatness"]

_AT_ONCE = 2**22


@final
@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % bootstrap interval over cases; NaN ends for fewer than two cases."""

    value: float
    lower: float
    upper: float

    def excludes(self, ideal: float, *, widened: float = 1.0) -> bool:
        """Whether `ideal` lies outside the interval, or outside one `widened` times as wide."""
        below, above = self.value - self.lower, self.upper - self.value
        return ideal < self.value - widened * below or ideal > self.value + widened * above

    def percent(self) -> str:
        """As percentages."""
        return f"{self.value:.1%} ({self.lower:.1%} to {self.upper:.1%})"

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.lower:.3g} to {self.upper:.3g})"


@final
@dataclass(frozen=True)
class Flatness:
    """Test of a rank histogram.

    Attributes:
        statistic: Chi-square, corrected for the correlation within cases.
        degrees: Its degrees of freedom, not a whole number.
        p_value: Probability of at least this statistic when the histogram is flat; NaN for fewer than two cases.
        largest: Root mean square departure of a bin from the flat share, relative to it, beyond sampling noise.
        shape: What it looks like.
    """

    statistic: float
    degrees: float
    p_value: float
    largest: float
    shape: str


def bootstrap(
    numerator: np.ndarray,
    denominator: np.ndarray,
    noise: NoiseSource,
    resamples: int = 1000,
    *,
    root: bool = False,
) -> Estimate:
    """`sum numerator / sum denominator` over cases (its square root if asked for), with a percentile interval.

    Args:
        numerator: One number a case.
        denominator: One number a case, not negative.
        noise: Decides which cases are drawn.
        resamples: Draws of as many cases, with replacement.
        root: Take the square root of the ratio.
    """
    count = len(numerator)
    if count == 0:
        raise DataError("no cases to average over")

    def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(bottom > 0, top / bottom, np.nan)
        return np.sqrt(found) if root else found

    value = float(ratio(numerator[None].sum(1), denominator[None].sum(1))[0])
    if count < 2 or resamples < 1:
        return Estimate(value, float("nan"), float("nan"))
    found = []
    together = max(1, _AT_ONCE // count)
    for start in range(0, resamples, together):
        shape = (min(together, resamples - start), count)
        index = (noise.uniform([start], shape, "bootstrap")[0].double().numpy() * count).astype(np.int64)
        found.append(ratio(numerator[index].sum(1), denominator[index].sum(1)))
    lower, upper = np.nanquantile(np.concatenate(found), [0.025, 0.975])
    return Estimate(value, float(lower), float(upper))


def flatness(histogram: np.ndarray, weight: np.ndarray) -> Flatness:
    """Rao-Scott test that all bins are equally full.

    Args:
        histogram: Weighted counts, `[case, bin]`.
        weight: Total weight of each case.
    """
    from scipy.stats import chi2

    cases, bins = histogram.shape
    share = histogram.sum(0) / weight.sum()
    departure = share - 1.0 / bins
    nothing = float("nan")
    if cases < 2 or bins < 2:
        return Flatness(nothing, nothing, nothing, 0.0, _shape(departure))
    residual = (histogram - share * weight[:, None]) / weight.sum()
    # The smaller of two matrices with the same eigenvalues that are not 0.
    square = residual @ residual.T if cases < bins else residual.T @ residual
    variances = np.linalg.eigvalsh(square).clip(0.0) * cases / (cases - 1)
    total = float(variances.sum())
    beyond = max(float((departure**2).sum()) - total, 0.0) ** 0.5 * bins**0.5
    if total == 0:
        return Flatness(nothing, nothing, nothing, beyond, _shape(departure))
    degrees = total**2 / float((variances**2).sum())
    statistic = degrees * float((departure**2).sum()) / total
    return Flatness(statistic, degrees, float(chi2.sf(statistic, degrees)), beyond, _shape(departure))


def _shape(departure: np.ndarray) -> str:
    """U: spread too small; dome: too large; slope: biased (Hamill 2001)."""
    if not np.abs(departure).max() > 0:
        return "flat"
    at = np.linspace(-1.0, 1.0, len(departure))
    bowl = at**2 - (at**2).mean()
    size = np.linalg.norm(departure)
    slope = float(departure @ at) / (np.linalg.norm(at) * size)
    curve = float(departure @ bowl) / max(np.linalg.norm(bowl) * size, 1e-300)
    if abs(slope) > abs(curve):
        return "it rises, the samples are too low" if slope > 0 else "it falls, the samples are too high"
    return "U-shaped, the spread is too small" if curve > 0 else "dome-shaped, the spread is too large"
