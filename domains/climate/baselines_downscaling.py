r"""Baselines of downscaling: bicubic interpolation, quantile mapping, regression with a Gaussian spread.

Quantile mapping (Panofsky & Brier 1958; empirical, at every cell): `x -> F_obs^-1(F_mod(x))` between the quantiles of
the training period; beyond the outermost quantile the correction there is added (or, for amounts, multiplied).
Regression: principal components of all coarse predictors to the principal components of the fine field, by ridge; what
it leaves is drawn from the residuals of the training period, whole maps at a time.
"""

from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.interpolate import RectBivariateSpline

from sciLDM.domains.climate.baselines import EOFs, Predictions, pick
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.rng import NoiseSource

__all__ = ["QuantileMapping", "RegressionDownscaling", "bicubic", "dressed"]


def bicubic(
    coarse: Float[np.ndarray, "case row column"],
    latitude: Float[np.ndarray, "row"],
    longitude: Float[np.ndarray, "column"],
    fine_latitude: Float[np.ndarray, "fine_row fine_column"],
    fine_longitude: Float[np.ndarray, "fine_row fine_column"],
) -> Float[np.ndarray, "case fine_row fine_column"]:
    """Cubic splines of the coarse fields at the fine cells; the nearest edge beyond the coarse grid.

    Args:
        coarse: Without missing values.
        latitude: Degrees north of the coarse rows, ascending.
        longitude: Degrees east of the coarse columns, ascending, in the same turn as the fine ones.
        fine_latitude: Of every fine cell.
        fine_longitude: Of every fine cell.

    Raises:
        DataError: Missing values, or coordinates that do not ascend.
    """
    if (np.diff(latitude) <= 0).any() or (np.diff(longitude) <= 0).any():
        raise DataError("bicubic: coarse latitudes and longitudes must ascend")
    if not np.isfinite(coarse).all():
        raise DataError("bicubic: coarse fields have missing values; fill them first")
    order = (min(3, len(latitude) - 1), min(3, len(longitude) - 1))
    lat = np.clip(fine_latitude.ravel(), latitude[0], latitude[-1])
    lon = np.clip(fine_longitude.ravel(), longitude[0], longitude[-1])
    found = [
        RectBivariateSpline(latitude, longitude, x, kx=order[0], ky=order[1]).ev(lat, lon) for x in coarse
    ]
    return np.stack(found).reshape(-1, *fine_latitude.shape)


@final
class QuantileMapping:
    """Empirical quantile mapping, cell by cell.

    Args:
        model: Quantiles of what is to be corrected.
        observed: The same quantiles of the truth.
        amounts: Multiply instead of adding beyond the outermost quantile, never below 0 (precipitation).
    """

    def __init__(
        self,
        model: Float[np.ndarray, "quantile *cell"],
        observed: Float[np.ndarray, "quantile *cell"],
        *,
        amounts: bool = False,
    ) -> None:
        if model.shape != observed.shape:
            raise ShapeMismatch(
                f"quantiles of shape {model.shape} and {observed.shape}; expected the same cells"
            )
        self.model, self.observed, self.amounts = model, observed, amounts

    @staticmethod
    def fit(
        model: Float[np.ndarray, "time *cell"],
        observed: Float[np.ndarray, "other *cell"],
        *,
        quantiles: int = 100,
        amounts: bool = False,
    ) -> "QuantileMapping":
        """From the training period.

        Args:
            model: Interpolated coarse fields.
            observed: Fine fields of the same period.
            quantiles: How many, at `(k + 1/2) / n`.
            amounts: As in the class.

        Raises:
            ConfigError: Fewer than two quantiles.
        """
        if quantiles < 2:
            raise ConfigError(f"quantiles must be at least 2, got {quantiles}")
        levels = (np.arange(quantiles) + 0.5) / quantiles
        return QuantileMapping(
            np.nanquantile(model, levels, axis=0), np.nanquantile(observed, levels, axis=0), amounts=amounts
        )

    def __call__(self, x: Float[np.ndarray, "case *cell"]) -> Float[np.ndarray, "case *cell"]:
        """Corrected fields."""
        flat = x.reshape(len(x), -1).astype(np.float64)
        model = self.model.reshape(len(self.model), -1)
        observed = self.observed.reshape(len(self.observed), -1)
        out = np.empty_like(flat)
        for c in range(flat.shape[1]):
            out[:, c] = self._cell(flat[:, c], model[:, c], observed[:, c])
        return out.reshape(x.shape)

    def _cell(self, x: np.ndarray, model: np.ndarray, observed: np.ndarray) -> np.ndarray:
        mapped = np.interp(x, model, observed)
        for beyond, end in ((x < model[0], 0), (x > model[-1], -1)):
            if self.amounts:
                factor = observed[end] / model[end] if model[end] > 0 else 1.0
                mapped = np.where(beyond, x * factor, mapped)
            else:
                mapped = np.where(beyond, x + observed[end] - model[end], mapped)
        return np.maximum(mapped, 0.0) if self.amounts else mapped


@final
class RegressionDownscaling:
    """Ridge regression between principal components, with the residuals of the training period as its spread.

    Args:
        predictors: Coarse anomalies of the training period, all variables in one row, each of order one.
        target: Fine anomalies of the same dates.
        modes: Principal components of the predictors and of the target.
        ridge: Penalty, as a share of the mean variance of the predictors' components.
        weights: Areas of the fine cells; equal when None.
    """

    def __init__(
        self,
        predictors: Float[np.ndarray, "time predictor"],
        target: Float[np.ndarray, "time value"],
        *,
        modes: int = 30,
        ridge: float = 0.01,
        weights: Float[np.ndarray, "value"] | None = None,
    ) -> None:
        if len(predictors) != len(target):
            raise ShapeMismatch(
                f"{len(predictors)} predictors, {len(target)} targets; expected the same dates"
            )
        equal = np.ones(predictors.shape[1])
        self._inputs = EOFs.fit(predictors, equal, modes)
        self._outputs = EOFs.fit(target, np.ones(target.shape[1]) if weights is None else weights, modes)
        x, y = self._inputs.components(predictors), self._outputs.components(target)
        gram = x.T @ x / len(x)
        penalty = ridge * np.trace(gram) / len(gram)
        self._matrix = np.linalg.solve(gram + penalty * np.eye(len(gram)), x.T @ y / len(x))
        self._residuals = target - self.mean(predictors)

    def mean(self, predictors: Float[np.ndarray, "case predictor"]) -> Float[np.ndarray, "case value"]:
        """The regression itself: too smooth, as every conditional mean."""
        return self._outputs.field(self._inputs.components(predictors) @ self._matrix)

    def predict(
        self, predictors: Float[np.ndarray, "case predictor"], members: int, noise: NoiseSource
    ) -> Predictions:
        """With the residuals of random training dates."""
        return dressed(self.mean(predictors), self._residuals, members, noise)


def dressed(
    mean: Float[np.ndarray, "case *value"],
    residuals: Float[np.ndarray, "time *value"],
    members: int,
    noise: NoiseSource,
    ids: Sequence[int] | None = None,
) -> Predictions:
    """A deterministic prediction with the errors that it made in the training period, whole maps at a time."""
    rows = np.stack(
        [pick(noise, i, members, len(residuals)) for i in (range(len(mean)) if ids is None else ids)]
    )
    return Predictions(
        mean[:, None] + residuals[rows], mean, np.broadcast_to(residuals.std(0), mean.shape).copy()
    )
