"""Reconstructions without a learned prior: interpolation, back-projection, total variation on a volume's own voxels."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator, make_interp_spline
from scipy.ndimage import binary_dilation, distance_transform_edt

from sciLDM.domains.medical.hounsfield import Hounsfield, to_attenuation, to_hounsfield
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.classical import sirt, zero_filled
from sciLDM.evaluate.classical_tv import TunedTV, pdhg_tv, tune_tv
from sciLDM.operators import GaussianNoise, Observation, ParallelBeam
from sciLDM.operators.projection_fbp import filtered_back_projection

__all__ = [
    "along_axis",
    "back_projection",
    "fill_gaps",
    "gradient_fill",
    "sirt_volume",
    "tune_volumes",
    "tv_volume",
    "zero_filled_volume",
]

Kind = Literal["nearest", "linear", "cubic"]

_DEGREE = {"linear": 1, "cubic": 3}
_NEIGHBOURS = 64
"""Known voxels that decide a missing one; more change the third digit."""


def along_axis(
    values: np.ndarray, at: Sequence[float] | np.ndarray, n: int, axis: int, kind: Kind
) -> np.ndarray:
    """Interpolate slices at places `at` (voxels) to voxels `0..n-1` of one axis; beyond the outermost, it is held.

    Args:
        values: Slices, `len(at)` along `axis`.
        at: Their places, increasing.
        n: Voxels to interpolate to.
        axis: Across the slices.
        kind: `cubic` is the not-a-knot spline.
    """
    at = np.asarray(at, dtype=np.float64)
    wanted = np.clip(np.arange(n, dtype=np.float64), at[0], at[-1])
    if kind == "nearest":
        return np.take(values, np.abs(wanted[:, None] - at).argmin(axis=1), axis=axis)
    degree = min(_DEGREE[kind], len(at) - 1)
    if degree < 1:
        return np.take(values, np.zeros(n, dtype=int), axis=axis)
    spline = make_interp_spline(at, values.astype(np.float64), k=degree, axis=axis)
    return spline(wanted).astype(np.float32)


def fill_gaps(data: np.ndarray, kind: Kind) -> np.ndarray:
    """Fill NaN from what surrounds it: the nearest voxel, or radial splines `r` (linear) and `r^3` (cubic).

    In three dimensions `r` is the biharmonic kernel: the surface of least bending (Wahba 1990, chapter 2).

    Raises:
        DataError: Nothing is known.
    """
    missing = np.isnan(data)
    if missing.all():
        raise DataError("cannot interpolate: no voxel is known")
    if not missing.any():
        return data.copy()
    filled = data.copy()
    if kind == "nearest":
        index = distance_transform_edt(missing, return_distances=False, return_indices=True)
        assert isinstance(index, np.ndarray)
        return data[tuple(index)]
    shell = binary_dilation(missing, iterations=2) & ~missing
    known, wanted = np.argwhere(shell).astype(np.float64), np.argwhere(missing).astype(np.float64)
    values = data[shell].astype(np.float64)
    count = min(_NEIGHBOURS, len(values))
    if count < 5:  # a polynomial of degree 1 needs four points
        return fill_gaps(data, "nearest")
    spline = RBFInterpolator(known, values, neighbors=count, kernel=kind, degree=1)
    filled[missing] = spline(wanted)
    return filled


def gradient_fill(data: np.ndarray) -> np.ndarray:
    """Biharmonic inpainting of NaN (Damelin & Hoang 2018, doi:10.1155/2018/3950312), by scikit-image."""
    from skimage.restoration import inpaint_biharmonic

    missing = np.isnan(data)
    # Only the neighbourhood matters, and the method is slow in three dimensions.
    near = np.argwhere(binary_dilation(missing, iterations=4))
    if not len(near):
        return data.copy()
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(near.min(axis=0), near.max(axis=0), strict=True))
    filled = data.copy()
    filled[box] = inpaint_biharmonic(np.nan_to_num(data[box]), missing[box])
    return filled


def zero_filled_volume(observation: Observation) -> np.ndarray:
    """`A^T y`, scaled to fit the values; zero where a mask took something away."""
    return zero_filled(observation, scaled=True)[0, 0].numpy()


def back_projection(observation: Observation, limits: tuple[float, float]) -> np.ndarray:
    """Filtered back-projection in HU, clipped to `limits`."""
    operator, beam, integrals = _projections(observation)
    mu = filtered_back_projection(beam, integrals, hann=True)
    return to_hounsfield(mu, operator.mu_water).clamp(*limits)[0, 0].numpy()


def sirt_volume(
    observation: Observation, limits: tuple[float, float], *, iterations: int = 200
) -> np.ndarray:
    """SIRT on attenuation, in HU; attenuation lies between that of `limits` and never below zero."""
    operator, beam, integrals = _projections(observation)
    ends = to_attenuation(torch.tensor(limits), operator.mu_water).tolist()
    bounds = (max(ends[0], 0.0), ends[1])
    run = sirt(Observation(integrals, beam), iterations=iterations, bounds=bounds)
    return to_hounsfield(run.x, operator.mu_water)[0, 0].numpy()


def tv_volume(observation: Observation, weight: float, scale: float, *, iterations: int = 500) -> np.ndarray:
    """Total variation with a weight per unit of `x / scale`; see `tune_volumes`."""
    run = pdhg_tv(_scaled(observation, scale), weight, iterations=iterations)
    return (run.x * scale)[0, 0].numpy()


def tune_volumes(
    observations: Sequence[Observation],
    truths: Sequence[np.ndarray],
    scales: Sequence[float],
    *,
    weights: Sequence[float] = (3.0, 10.0, 30.0, 100.0, 300.0),
    iterations: int = 500,
) -> TunedTV:
    """The weight of the total variation with the least error on validation volumes.

    Args:
        observations: One a volume.
        truths: Theirs.
        scales: What each is divided by first: MR volumes have no common unit.
        weights: To begin with.
        iterations: At most so many for each.
    """
    scaled = [_scaled(o, s) for o, s in zip(observations, scales, strict=True)]
    fields = [torch.from_numpy(t / s).float()[None, None] for t, s in zip(truths, scales, strict=True)]
    return tune_tv(scaled, fields, weights, iterations=iterations)


def _scaled(observation: Observation, scale: float) -> Observation:
    """`A(x / s) = A(x) / s`."""
    noise = None
    if observation.noise is not None:
        noise = GaussianNoise(observation.noise.std(observation.values) / scale)
    return Observation(observation.values / scale, observation.operator, noise)


def _projections(observation: Observation) -> tuple[Hounsfield, ParallelBeam, torch.Tensor]:
    operator = observation.operator
    if not isinstance(operator, Hounsfield) or not isinstance(operator.projector, ParallelBeam):
        raise ConfigError(
            f"back-projection: expected projections of CT by ParallelBeam, got {type(operator).__name__}"
        )
    return operator, operator.projector, operator.to_line_integrals(observation.values)
