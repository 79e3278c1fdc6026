r"""What a downscaled climate looks like whatever its days: quantiles, wet days, extremes, spectra.

Errors of maps are means over cells of the absolute difference between members and truth, in the data's units; biases
keep their sign. With `B` the power per band of `scores_spectra.isotropic_spectrum`, the spectral distance is

    sqrt( mean_k (10 log10 B_members(k) / B_truth(k))^2 )   [dB],   k up to 0.7 of the largest.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from sciLDM.domains.climate.scores_spectra import spectral_ratio

__all__ = ["WET", "distribution"]

WET = 1.0
"""Amount from which a day counts as wet [mm per day]."""


def distribution(
    members: Float[np.ndarray, "case member cell"],
    truth: Float[np.ndarray, "case cell"],
    shape: tuple[int, int],
    weights: Float[np.ndarray, "cell"],
    *,
    amount: bool,
) -> dict[str, Any]:
    """Members against the truth as samples of a climate.

    Args:
        members: Fields of consecutive dates.
        truth: Of the same dates.
        shape: Rows and columns.
        weights: Areas of the cells, mean 1.
        amount: Precipitation: wet days as well.

    Returns:
        `p1_error`, `p99_error` (cell by cell), `rx1day_bias` (largest value of each member at each cell against the
        truth's), `spectral_distance`, `spectral_ratio` by band, and for amounts `wet_share`, `wet_share_truth`,
        `wet_share_bias`, `sdii_bias` (mean amount of wet days).
    """
    pooled = members.reshape(-1, members.shape[-1])
    found: dict[str, Any] = {}
    for percent in (1, 99):
        error = np.percentile(pooled, percent, axis=0) - np.percentile(truth, percent, axis=0)
        found[f"p{percent}_error"] = float((np.abs(error) * weights).mean())
    largest = members.max(axis=0).mean(axis=0) - truth.max(axis=0)
    found["rx1day_bias"] = float((largest * weights).mean())
    spectrum = spectral_ratio(pooled.reshape(-1, *shape), truth.reshape(-1, *shape))
    decibel = 10 * np.log10(np.maximum(spectrum.power, 1e-12))
    found["spectral_distance"] = float(np.sqrt((decibel**2).mean()))
    found["spectral_ratio"] = spectrum.power.tolist()
    if amount:
        wet, real = pooled >= WET, truth >= WET
        found["wet_share"], found["wet_share_truth"] = (
            float((wet * weights).mean()),
            float((real * weights).mean()),
        )
        found["wet_share_bias"] = found["wet_share"] - found["wet_share_truth"]
        found["sdii_bias"] = _intensity(pooled, wet, weights) - _intensity(truth, real, weights)
    return found


def _intensity(x: np.ndarray, wet: np.ndarray, weights: np.ndarray) -> float:
    total = (wet * weights).sum()
    return float((x * wet * weights).sum() / total) if total > 0 else 0.0
