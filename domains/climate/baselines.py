"""What every climate model must be compared with: the parts that the baselines share, and those without dynamics.

Baselines work on anomalies, `[time, value]` with the values of all channels and existing cells in one row and missing
ones at 0 (climatology), and answer with ensembles, so that one scoring code serves them and the model alike. All are
numpy and take seconds.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from sciLDM.domains.climate.calendar import Times
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.rng import NoiseSource

__all__ = ["Climatology", "ClimatologyForecast", "DampedPersistence", "EOFs", "Forecaster", "GaussianEOF", "History",
           "Initial", "Persistence", "Predictions", "normal", "pick", "season_distance"]  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """Ensembles of some cases.

    Attributes:
        members: Samples.
        mean: Point estimate.
        std: Stated standard deviation.
    """

    members: Float[np.ndarray, "case member *value"]
    mean: Float[np.ndarray, "case *value"]
    std: Float[np.ndarray, "case *value"]

    @staticmethod
    def of(members: Float[np.ndarray, "case member *value"]) -> "Predictions":
        """With the members' own mean and deviation."""
        return Predictions(members, members.mean(axis=1), members.std(axis=1, ddof=1))


@final
@dataclass(frozen=True, eq=False)
class History:
    """Training anomalies, in order of time.

    Attributes:
        anomalies: Complete.
        phase: Phase of the year of each state.
        follows: Whether a state is one step after the one before.
        weights: Area of each value, mean 1.
    """

    anomalies: Float[np.ndarray, "time value"]
    phase: Float[np.ndarray, "date"]
    follows: Bool[np.ndarray, "flag"]
    weights: Float[np.ndarray, "value"]

    def __post_init__(self) -> None:
        if not np.isfinite(self.anomalies).all():
            raise DataError("baselines need complete anomalies; put 0 (climatology) where values are missing")
        if len(self.phase) != len(self.anomalies) or len(self.follows) != len(self.anomalies):
            raise ShapeMismatch(
                f"{len(self.anomalies)} anomalies, {len(self.phase)} phases, {len(self.follows)} flags"
            )

    def pairs(self, lag: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of states and of those `lag` steps later."""
        unbroken = np.ones(len(self.follows) - lag, dtype=bool)
        for k in range(1, lag + 1):
            unbroken &= self.follows[k : len(self.follows) - lag + k]
        first = np.flatnonzero(unbroken)
        if len(first) == 0:
            raise DataError(f"no two training states {lag} steps apart")
        return first, first + lag

    @property
    def std(self) -> Float[np.ndarray, "value"]:
        """Standard deviation of each value."""
        return self.anomalies.std(axis=0)


@final
@dataclass(frozen=True, eq=False)
class Initial:
    """What a forecast starts from.

    Attributes:
        states: Anomalies at the initial date.
        phase: Phase of the year.
    """

    states: Float[np.ndarray, "case value"]
    phase: Float[np.ndarray, "case"]


class Forecaster(ABC):
    """A baseline forecast."""

    @abstractmethod
    def forecast(
        self, initial: Initial, leads: int, members: int, noise: NoiseSource
    ) -> Float[np.ndarray, "case member lead value"]:
        """Anomalies 1 to `leads` steps later; case `i` depends on `(noise.seed, i)` alone."""


@final
class Climatology:
    """Annual harmonics of every value: `sum_k a_k cos 2 pi k p + b_k sin 2 pi k p`, `p` the phase of the year.

    The phase is that of the data's own calendar, so that leap years and 360-day years need no care.

    Args:
        coefficients: `1, cos, sin, cos 2, sin 2, ...`.
    """

    def __init__(self, coefficients: Float[np.ndarray, "term *value"]) -> None:
        self.coefficients = coefficients

    @staticmethod
    def fit(values: Float[np.ndarray, "time *value"], times: Times, *, harmonics: int = 2) -> "Climatology":
        """By least squares over the values that are known.

        Args:
            values: NaN where missing.
            times: Dates.
            harmonics: Annual harmonics; 0 is the mean.

        Raises:
            DataError: Fewer dates than coefficients at some place.
        """
        basis = _annual(times.phase, harmonics)
        flat = values.reshape(len(values), -1).astype(np.float64)
        known = np.isfinite(flat)
        if known.sum(axis=0).min() < basis.shape[1]:
            raise DataError(
                f"{basis.shape[1]} coefficients need as many dates everywhere; use fewer harmonics"
            )
        if known.all():
            found = np.linalg.lstsq(basis, flat, rcond=None)[0]
        else:
            columns = zip(flat.T, known.T, strict=True)
            found = np.stack([np.linalg.lstsq(basis[k], y[k], rcond=None)[0] for y, k in columns], axis=1)
        return Climatology(found.reshape(-1, *values.shape[1:]))

    def __call__(self, times: Times) -> Float[np.ndarray, "time *value"]:
        """The climatology at these dates."""
        return np.tensordot(_annual(times.phase, (len(self.coefficients) - 1) // 2), self.coefficients, 1)


@final
class EOFs:
    """Empirical orthogonal functions: principal components under the area weights.

    Args:
        patterns: Orthonormal under the weights.
        variance: Of each component in the data they were found in.
        mean: Mean field.
        weights: Areas, mean 1.
    """

    def __init__(
        self,
        patterns: Float[np.ndarray, "mode value"],
        variance: Float[np.ndarray, "mode"],
        mean: Float[np.ndarray, "value"],
        weights: Float[np.ndarray, "value"],
    ) -> None:
        self.patterns, self.variance, self.mean, self.weights = patterns, variance, mean, weights

    @staticmethod
    def fit(x: Float[np.ndarray, "time value"], weights: Float[np.ndarray, "value"], modes: int) -> "EOFs":
        """The leading components; as many as there are when `modes` is larger.

        Raises:
            ConfigError: No mode.
        """
        if modes < 1:
            raise ConfigError(f"modes must be at least 1, got {modes}")
        mean = x.mean(axis=0)
        root = np.sqrt(np.maximum(weights, 1e-12))
        y = ((x - mean) * root).astype(np.float64)
        # The smaller of the two square matrices.
        if y.shape[1] <= y.shape[0]:
            values, vectors = np.linalg.eigh(y.T @ y)
            vectors = vectors.T
        else:
            values, left = np.linalg.eigh(y @ y.T)
            vectors = (left / np.sqrt(np.maximum(values, 1e-300))).T @ y
        keep = np.argsort(values)[::-1][:modes]
        keep = keep[values[keep] > 1e-12 * values.max()]
        return EOFs(vectors[keep] / root, values[keep] / max(len(y) - 1, 1), mean, weights)

    def components(self, x: Float[np.ndarray, "*case value"]) -> Float[np.ndarray, "*case mode"]:
        """Principal components."""
        return ((x - self.mean) * self.weights) @ self.patterns.T

    def field(self, components: Float[np.ndarray, "*case mode"]) -> Float[np.ndarray, "*case value"]:
        """The field that they stand for."""
        return components @ self.patterns + self.mean

    def reconstruct(self, x: Float[np.ndarray, "*case value"]) -> Float[np.ndarray, "*case value"]:
        """What these modes hold of a field: PCA as an autoencoder with as many latents as modes."""
        return self.field(self.components(x))


@final
class GaussianEOF:
    """Synthesis from independent Gaussian principal components; the smallest model with the right EOF spectrum.

    Args:
        eofs: All modes that are to be drawn.
    """

    def __init__(self, eofs: EOFs) -> None:
        self.eofs = eofs

    def sample(self, ids: Sequence[int], noise: NoiseSource) -> Float[np.ndarray, "sample value"]:
        """Anomalies; sample `i` depends on `(noise.seed, ids[i])` alone."""
        return self.eofs.field(normal(noise, ids, (len(self.eofs.variance),)) * np.sqrt(self.eofs.variance))


@final
class ClimatologyForecast(Forecaster):
    """States of other years at the same time of the year, whatever the initial state.

    Args:
        history: Training anomalies.
        width: Half width of the season, as a share of the year.
    """

    def __init__(self, history: History, *, width: float = 0.04) -> None:
        self.history, self.width = history, width

    def forecast(
        self, initial: Initial, leads: int, members: int, noise: NoiseSource
    ) -> Float[np.ndarray, "case member lead value"]:
        candidates = self.history.pairs(leads)[0]
        found = []
        for i, phase in enumerate(initial.phase):
            away = season_distance(self.history.phase[candidates], phase)
            least = np.sort(away)[min(members, len(away)) - 1]
            near = candidates[away <= max(self.width, least)]
            rows = near[pick(noise, i, members, len(near))]
            found.append(self.history.anomalies[rows[:, None] + np.arange(1, leads + 1)])
        return np.stack(found)


@final
class Persistence(Forecaster):
    """The initial anomalies for ever: all members are equal, and the CRPS is the mean absolute error."""

    def forecast(
        self, initial: Initial, leads: int, members: int, noise: NoiseSource
    ) -> Float[np.ndarray, "case member lead value"]:
        shape = (len(initial.states), members, leads, initial.states.shape[1])
        return np.broadcast_to(initial.states[:, None, None], shape).copy()


@final
class DampedPersistence(Forecaster):
    """`r x_0` with spread `sigma sqrt(1 - r^2)`, `r` the autocorrelation of each value at the lead.

    Errors are independent from place to place: the scores of single places are meaningful, those of maps are not.

    Args:
        history: Training anomalies.
    """

    def __init__(self, history: History) -> None:
        self.history = history

    def correlation(self, lag: int) -> Float[np.ndarray, "value"]:
        """Autocorrelation at a lag."""
        now, then = self.history.pairs(lag)
        x, y = self.history.anomalies[now], self.history.anomalies[then]
        scale = np.sqrt((x**2).mean(0) * (y**2).mean(0))
        return np.clip((x * y).mean(0) / np.maximum(scale, 1e-300), 0.0, 1.0)

    def forecast(
        self, initial: Initial, leads: int, members: int, noise: NoiseSource
    ) -> Float[np.ndarray, "case member lead value"]:
        cases, values = initial.states.shape
        eps = normal(noise, range(cases), (members, leads, values))
        r = np.stack([self.correlation(k) for k in range(1, leads + 1)])
        return r * initial.states[:, None, None] + self.history.std * np.sqrt(1 - r**2) * eps


def season_distance(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    """Distance of phases of the year, 0 to 1/2."""
    away = np.abs(a - b) % 1.0
    return np.minimum(away, 1 - away)


def normal(noise: NoiseSource, ids: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, a row an id."""
    import torch

    return noise.normal(ids, shape, dtype=torch.float64).numpy()


def pick(noise: NoiseSource, case: int, count: int, among: int) -> np.ndarray:
    """`count` of `among` rows, without repeating one until all were used."""
    order = [
        np.argsort(noise.uniform([case], (among,), f"pick {k}")[0].numpy()) for k in range(-(-count // among))
    ]
    return np.concatenate(order)[:count]


def _annual(phase: np.ndarray, harmonics: int) -> np.ndarray:
    angle = 2 * np.pi * phase[:, None] * np.arange(1, harmonics + 1)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(len(phase), -1)
    return np.concatenate([np.ones((len(phase), 1)), waves], axis=1)
