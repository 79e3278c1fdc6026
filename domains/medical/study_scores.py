"""Scores of reconstructed volumes: PSNR and SSIM over the voxels that are compared, coverage and CRPS of ensembles."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sciLDM.domains.medical.result import Reconstruction
from sciLDM.domains.medical.study_tasks import Observed
from sciLDM.errors import DataError
from sciLDM.evaluate.calibration import Scores
from sciLDM.operators import Observation
from sciLDM.posterior.result import Posterior

__all__ = [
    "ImageScore",
    "chi_square",
    "ensemble_scores",
    "gaussian_crps",
    "image_score",
    "posterior_of",
    "scored_truth",
]

_WINDOW = 7


@final
@dataclass(frozen=True)
class ImageScore:
    """How near an image came.

    Attributes:
        psnr: Peak signal-to-noise ratio [dB], `10 log10(range^2 / mean squared error)`.
        ssim: Structural similarity in three dimensions, 7^3 windows (smaller where the volume is), mean over the
            compared voxels.
        mae: Mean absolute error over the range: the CRPS of an answer without a spread.
    """

    psnr: float
    ssim: float
    mae: float


def image_score(
    truth: np.ndarray, found: np.ndarray, data_range: float, scored: np.ndarray | None = None
) -> ImageScore:
    """Compare two volumes.

    Args:
        truth: Finite values.
        found: Finite values on the same voxels.
        data_range: In the units of the values.
        scored: Where they are compared; everywhere when None.

    Raises:
        DataError: Nothing to compare, or values that are not finite.
    """
    there = np.ones(truth.shape, dtype=bool) if scored is None else scored
    if not there.any():
        raise DataError("no voxel is to be compared: the volume is too small for this task")
    a, b = truth.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(b).all():
        raise DataError("a reconstruction holds values that are not finite")
    if np.array_equal(a[there], b[there]):
        return ImageScore(float("inf"), 1.0, 0.0)
    psnr = peak_signal_noise_ratio(a[there], b[there], data_range=data_range)
    window = min(_WINDOW, min(truth.shape) - 1 + min(truth.shape) % 2)
    _, field = structural_similarity(a, b, data_range=data_range, win_size=window, full=True)  # type: ignore[misc]
    return ImageScore(
        float(psnr), float(field[there].mean()), float(np.abs(a - b)[there].mean() / data_range)
    )


def chi_square(observation: Observation, found: np.ndarray) -> float:
    """`|y - A(x)|^2 / (m sigma^2)` of one image."""
    assert observation.noise is not None
    x = torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))[None, None]
    with torch.no_grad():
        misfit = (observation.values - observation.operator(x)) / observation.noise.std(observation.values)
    return float(misfit[observation.present].square().mean())


def posterior_of(result: Reconstruction) -> Posterior:
    """What a delivered reconstruction says, as one case on the volume's own voxels."""
    field = {name: torch.from_numpy(values)[None, None] for name, values in result.arrays.items()}
    draws = torch.from_numpy(result.draws)[None, :, None]
    chi2 = torch.tensor([result.chi2], dtype=torch.float32)
    return Posterior(
        field["recon"], field["std"], draws, chi2, field["nullspace"], result.calibrated, result.details
    )


def scored_truth(observed: Observed) -> torch.Tensor:
    """The truth where it is compared, NaN elsewhere, as one case."""
    data = np.where(observed.scored, observed.case.volume.data, np.nan).astype(np.float32)
    return torch.from_numpy(data)[None, None]


def ensemble_scores(posteriors: list[Posterior], observed: list[Observed]) -> list[dict[str, Any]]:
    """For each case: coverage at 90 %, of `mean +- 1.645 std` and of the samples' own interval, CRPS, spread-skill.

    The CRPS is that of `N(mean, std^2)`, which samples in pairs of opposite noise do not flatter.
    Values are divided by each case's range first, so that volumes without a common unit can be averaged.
    """
    rows = []
    for posterior, one in zip(posteriors, observed, strict=True):
        scores, size = Scores(), one.case.range
        scores.add(
            posterior.samples / size,
            scored_truth(one) / size,
            mean=posterior.mean / size,
            std=posterior.std / size,
            chi2=posterior.chi2,
        )
        found = scores.result(resamples=2)[0]
        rows.append(
            {
                "coverage": found.gaussian_coverage[0.9].value,
                "coverage_samples": found.coverage[0.9].value,
                "crps": gaussian_crps(posterior, one) / size,
                "spread_skill": found.spread_skill.value,
                "chi2": float(posterior.chi2[0]),
            }
        )
    return rows


def gaussian_crps(posterior: Posterior, observed: Observed) -> float:
    """Mean CRPS of `N(mean, std^2)` over the compared voxels (Gneiting et al. 2005, doi:10.1175/MWR2904.1, eq. 5)."""
    there = torch.from_numpy(observed.scored)
    truth = torch.from_numpy(observed.case.volume.data.astype(np.float64))[there]
    mean, std = (part[0, 0].double()[there] for part in (posterior.mean, posterior.std))
    z = (truth - mean) / std.clamp(min=1e-12)
    inside = torch.special.ndtr(z)
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    return float((std * (z * (2 * inside - 1) + 2 * density - torch.pi**-0.5)).mean())
