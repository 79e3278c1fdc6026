r"""Power per wavenumber, on circles of latitude and on boxes that are not periodic.

    zonal      S_k = 2 C |F_k|^2,  C the length of the circle, F the Fourier coefficients along it (S_0 = C |F_0|^2)
    isotropic  P(k) = sum of |c_mn|^2 / (M N) over  k <= min(M, N) sqrt((m / M)^2 + (n / N)^2) < k + 1

with `c` the cosine transform (DCT-II): it continues a box by its mirror image, so that a jump between opposite edges
does not spill power over all wavenumbers as a plain FFT of a box would (Denis et al. 2002,
doi:10.1175/1520-0493(2002)130<1812:SDOTDA>2.0.CO;2). A circle that is cut (a regional grid) is detrended and tapered
(Hann) before the Fourier transform. A spectral ratio is that of mean powers, member by member: the mean of an
ensemble is smoother than any of its members and must not be compared.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.fft import dctn

from sciLDM.errors import DataError, ShapeMismatch

__all__ = ["Spectrum", "isotropic_spectrum", "spectral_ratio", "zonal_spectrum"]

_RADIUS = 6.371e6


@final
@dataclass(frozen=True)
class Spectrum:
    """Mean power per wavenumber.

    Attributes:
        wavenumber: Waves around the circle, or half waves along the shorter side of the box.
        power: Of each.
    """

    wavenumber: Float[np.ndarray, "band"]
    power: Float[np.ndarray, "band"]


def zonal_spectrum(
    x: Float[np.ndarray, "*case row column"],
    latitude: Float[np.ndarray, "latitude"],
    *,
    periodic: bool = True,
) -> Spectrum:
    """Mean over cases and rows, rows weighted by the cosine of latitude.

    Args:
        x: Fields without missing values, in any units.
        latitude: Degrees north of the rows.
        periodic: Whether the last column borders on the first; else rows are detrended and tapered, and the
            wavenumbers count waves in the box.

    Raises:
        DataError: Missing values.
        ShapeMismatch: Not one latitude for each row.
    """
    x = _complete(x)
    rows, columns = x.shape[-2:]
    if latitude.shape != (rows,):
        raise ShapeMismatch(f"expected {rows} latitudes, got {latitude.shape}")
    cosine = np.clip(np.cos(np.deg2rad(latitude)), 0.0, None)
    if not periodic:
        x = _tapered(x)
    power = np.abs(np.fft.rfft(x, axis=-1) / columns) ** 2
    power[..., 1:] *= 2
    if columns % 2 == 0:
        power[..., -1] /= 2  # the shortest wave has no twin
    length = 2 * np.pi * _RADIUS * cosine
    weight = cosine / cosine.sum()
    mean = (power * (length * weight)[:, None]).sum(-2).reshape(-1, power.shape[-1]).mean(0)
    return Spectrum(np.arange(power.shape[-1], dtype=float), mean)


def isotropic_spectrum(x: Float[np.ndarray, "*case row column"]) -> Spectrum:
    """Variance per band of a box, mean over cases; the mean and the corners beyond the shorter side are left out.

    Args:
        x: Fields without missing values.

    Raises:
        DataError: Missing values.
    """
    x = _complete(x)
    rows, columns = x.shape[-2:]
    c = dctn(x, type=2, norm="ortho", axes=(-2, -1))
    power = (c**2 / (rows * columns)).reshape(-1, rows * columns).mean(0)
    m, n = np.meshgrid(np.arange(rows) / rows, np.arange(columns) / columns, indexing="ij")
    short = min(rows, columns)
    # Rounding must not move a wave of exactly k half waves into the band below.
    band = np.floor(short * np.hypot(m, n) + 1e-9).astype(int).ravel()
    inside = (band >= 1) & (band < short)
    total = np.bincount(band[inside], power[inside], minlength=short)[1:]
    return Spectrum(np.arange(1, short, dtype=float), total)


def spectral_ratio(
    made: Float[np.ndarray, "*case row column"],
    real: Float[np.ndarray, "*other row column"],
    *,
    periodic: bool = False,
    latitude: Float[np.ndarray, "row"] | None = None,
    up_to: float = 0.7,
) -> Spectrum:
    """Power of `made` over that of `real`, from wavenumber 1 up to a share of the largest.

    Args:
        made: Samples, or reconstructions.
        real: The truth.
        periodic: Zonal spectra of full circles, which need `latitude`; else isotropic ones.
        latitude: Degrees north of the rows.
        up_to: Share of the largest wavenumber.
    """
    if periodic and latitude is not None:
        a, b = zonal_spectrum(made, latitude), zonal_spectrum(real, latitude)
    else:
        a, b = isotropic_spectrum(made), isotropic_spectrum(real)
    shown = (a.wavenumber >= 1) & (a.wavenumber <= up_to * a.wavenumber[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return Spectrum(a.wavenumber[shown], a.power[shown] / b.power[shown])


def _complete(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if not np.isfinite(x).all():
        raise DataError(
            "a spectrum needs fields without missing values; fill them, or select a box without any"
        )
    return x


def _tapered(x: np.ndarray) -> np.ndarray:
    """Rows without their linear trend under a Hann window of mean square 1."""
    columns = x.shape[-1]
    at = np.arange(columns) - (columns - 1) / 2
    mean = x.mean(-1, keepdims=True)
    slope = ((x - mean) * at).sum(-1, keepdims=True) / (at**2).sum()
    window = np.hanning(columns + 2)[1:-1]
    return (x - mean - slope * at) * window / np.sqrt((window**2).mean())
