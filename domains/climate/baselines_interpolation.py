r"""Interpolation between observations by a Gaussian with a known covariance.

With anomalies `x ~ N(0, B)` and `y = H x + e`, `e ~ N(0, R)`, `H` picking values,

    mean = B H^T S^-1 y,   covariance = B - B H^T S^-1 H B,   S = H B H^T + R,

and a sample is `x_b + B H^T S^-1 (y + e' - H x_b)` with `x_b ~ N(0, B)`, `e' ~ N(0, R)` (Matheron's rule: exact, and
the perturbed-observation ensemble of data assimilation). What differs is `B`:

- isotropic: variances times a function of distance (optimal interpolation, Gandin 1963);
- EnOI: the covariance of training anomalies times a correlation that falls to 0 at a distance (Evensen 2003,
  doi:10.1007/s10236-003-0036-9; Gaspari & Cohn 1999, doi:10.1002/qj.49712555417), over one date or over a window of
  dates (4-D), over all training dates or those of the season; without localisation it is the conditional Gaussian.
"""

from typing import final

import numpy as np
import scipy.linalg
from jaxtyping import Float

from sciLDM.domains.climate.baselines import EOFs, Predictions, normal
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.rng import NoiseSource

__all__ = ["MOST_VALUES", "ConditionalGaussian", "distances", "ensemble_covariance", "eof_covariance", "fit_length",
           "gaspari_cohn", "isotropic_covariance"]  # fmt: skip

MOST_VALUES = 8000
"""Most values a dense covariance is made for (0.5 GB)."""

_RADIUS = 6371.0


@final
class ConditionalGaussian:
    """`N(0, B)`, to be conditioned on some of its values.

    Args:
        covariance: `B`.

    Raises:
        DataError: More values than fit into memory, or a matrix that is no covariance.
    """

    def __init__(self, covariance: Float[np.ndarray, "value value"]) -> None:
        check_size(len(covariance))
        self.covariance = covariance
        self._root: np.ndarray | None = None

    def condition(
        self, y: Float[np.ndarray, "value"], noise_std: Float[np.ndarray, "value"]
    ) -> tuple[Float[np.ndarray, "value"], Float[np.ndarray, "value"]]:
        """Mean and standard deviation given observations.

        Args:
            y: NaN where not observed.
            noise_std: Of the observation errors.
        """
        mean, gain, seen = self._solve(y, noise_std)
        variance = np.diag(self.covariance) - np.einsum("vo,vo->v", gain, self.covariance[:, seen])
        return mean, np.sqrt(np.maximum(variance, 0.0))

    def posterior(
        self,
        y: Float[np.ndarray, "case value"],
        noise_std: Float[np.ndarray, "value"] | Float[np.ndarray, "case value"],
        members: int,
        noise: NoiseSource,
        *,
        first: int = 0,
    ) -> Predictions:
        """Exact mean and standard deviation, and samples, of each case.

        Args:
            y: NaN where not observed.
            noise_std: Of the observation errors.
            members: Samples a case.
            noise: Case `i` depends on `(noise.seed, first + i)` alone.
            first: Number of the first case.
        """
        shape = (len(y), members, y.shape[1])
        mean, std, drawn = np.empty(y.shape), np.empty(y.shape), np.empty(shape, dtype=np.float32)
        variance = np.diag(self.covariance)
        root, errors = self.root, np.broadcast_to(noise_std, y.shape)
        for i, row in enumerate(y):
            mean[i], gain, seen = self._solve(row, errors[i])
            reduced = variance - np.einsum("vo,vo->v", gain, self.covariance[:, seen])
            std[i] = np.sqrt(np.maximum(reduced, 0.0))
            prior = normal(noise, [first + i], (members, root.shape[1]))[0] @ root.T
            e = normal(noise.fork("observation error"), [first + i], (members, y.shape[1]))[0] * errors[i]
            drawn[i] = prior + (row[seen] + e[:, seen] - prior[:, seen]) @ gain.T
        return Predictions(drawn, mean, std)

    @property
    def root(self) -> Float[np.ndarray, "value value"]:
        """`L` with `L L^T = B`, up to the least that must be added to the diagonal of a singular matrix."""
        if self._root is None:
            mean = float(np.diag(self.covariance).mean())
            for share in (1e-10, 1e-8, 1e-6, 1e-4):
                try:
                    added = self.covariance + share * mean * np.eye(len(self.covariance))
                    self._root = scipy.linalg.cholesky(added, lower=True)
                    return self._root
                except scipy.linalg.LinAlgError:
                    continue
            raise DataError("the covariance has negative eigenvalues: it is none")
        return self._root

    def _solve(self, y: np.ndarray, noise_std: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if y.shape != (len(self.covariance),):
            raise ShapeMismatch(
                f"expected {len(self.covariance)} values (NaN where not observed), got {y.shape}"
            )
        seen = np.flatnonzero(np.isfinite(y))
        cross = self.covariance[:, seen]
        s = cross[seen] + np.diag(noise_std[seen] ** 2 + 1e-10 * np.diag(self.covariance)[seen])
        gain = scipy.linalg.cho_solve(scipy.linalg.cho_factor(s, lower=True), cross.T).T
        return gain @ y[seen], gain, seen


def check_size(values: int) -> None:
    """Raises `DataError` where a dense covariance would be too large."""
    if values > MOST_VALUES:
        raise DataError(
            f"a covariance of {values} values is too large (at most {MOST_VALUES}); coarsen the grid, shorten the "
            "window, or leave this baseline out"
        )


def distances(latitude: Float[np.ndarray, "place"], longitude: Float[np.ndarray, "place"]) -> np.ndarray:
    """Great-circle distances [km]."""
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = np.sqrt(np.maximum(((xyz[:, None] - xyz[None]) ** 2).sum(-1), 0.0))
    return 2 * _RADIUS * np.arcsin(np.clip(chord / 2, 0.0, 1.0))


def gaspari_cohn(distance: np.ndarray, radius: float | None) -> np.ndarray:
    """Fifth-order piecewise rational correlation, exactly 0 from `radius` on; 1 everywhere for None."""
    if radius is None:
        return np.ones_like(distance)
    if not radius > 0:
        raise ConfigError(f"radius must be positive, got {radius}")
    z = np.asarray(distance, dtype=np.float64) / (radius / 2)
    inner = 1 - 5 / 3 * z**2 + 5 / 8 * z**3 + z**4 / 2 - z**5 / 4
    far = np.maximum(z, 1e-12)
    outer = 4 - 5 * z + 5 / 3 * z**2 + 5 / 8 * z**3 - z**4 / 2 + z**5 / 12 - 2 / (3 * far)
    return np.where(z <= 1, inner, np.where(z < 2, np.maximum(outer, 0.0), 0.0))


def ensemble_covariance(
    anomalies: Float[np.ndarray, "time value"],
    taper: Float[np.ndarray, "place place"] | None = None,
    weights: Float[np.ndarray, "time"] | None = None,
) -> Float[np.ndarray, "value value"]:
    """`B` of EnOI: covariance of the static ensemble, times the taper.

    Args:
        anomalies: Of the climatology, which is their mean. Values are blocks of places (channels and dates).
        taper: Correlation of places; repeated over the blocks.
        weights: Of the ensemble members; equal when None.
    """
    check_size(anomalies.shape[1])
    if weights is None:
        covariance = (anomalies.T @ anomalies).astype(np.float64) / len(anomalies)
    else:
        covariance = (anomalies * (weights / weights.sum())[:, None]).T.astype(np.float64) @ anomalies
    if taper is None:
        return covariance
    blocks, rest = divmod(len(covariance), len(taper))
    if rest:
        raise ShapeMismatch(f"{len(covariance)} values are no multiple of the taper's {len(taper)} places")
    return covariance * np.tile(taper, (blocks, blocks))


def isotropic_covariance(
    std: Float[np.ndarray, "place"], distance: Float[np.ndarray, "place place"], length: float
) -> Float[np.ndarray, "place place"]:
    """`s_i s_j (1 + d / L) exp(-d / L)`: a second-order autoregressive correlation."""
    return np.outer(std, std) * _correlation(distance, length)


def fit_length(
    anomalies: Float[np.ndarray, "time place"], distance: Float[np.ndarray, "place place"]
) -> float:
    """The length that fits the correlations of training anomalies best (least squares over pairs of places)."""
    std = np.maximum(anomalies.std(0), 1e-300)
    observed = (anomalies.T @ anomalies) / len(anomalies) / np.outer(std, std)
    upper = np.triu_indices(len(std), 1)
    d, r = distance[upper], observed[upper]
    candidates = np.geomspace(max(d[d > 0].min() / 2, 1e-6), d.max(), 60)
    errors = [((_correlation(d, c) - r) ** 2).mean() for c in candidates]
    return float(candidates[int(np.argmin(errors))])


def eof_covariance(eofs: EOFs, std: Float[np.ndarray, "value"]) -> Float[np.ndarray, "value value"]:
    """Of the modes, with what they miss of each value's variance as independent noise (PCA regression)."""
    low = (eofs.patterns.T * eofs.variance) @ eofs.patterns
    return low + np.diag(np.maximum(std**2 - np.diag(low), 0.0))


def _correlation(distance: np.ndarray, length: float) -> np.ndarray:
    z = distance / length
    return (1 + z) * np.exp(-z)
