"""Gaussian interpolation as a set of methods of a gap-filling study, fitted on the training period."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import scoringrules

from sciLDM.domains.climate.baselines import Climatology, EOFs, History, Predictions, normal
from sciLDM.domains.climate.baselines_interpolation import (
    MOST_VALUES,
    ConditionalGaussian,
    ensemble_covariance,
    eof_covariance,
    fit_length,
    gaspari_cohn,
    isotropic_covariance,
)
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.evaluation_data import StudyData
from sciLDM.domains.climate.evaluation_windows import Windows
from sciLDM.rng import NoiseSource

__all__ = ["Interpolation", "Method"]

_RADII = (0.15, 0.25, 0.4, 0.7, 1.2, 2.5, None)
"""Candidate radii of localisation, as shares of the largest distance; None for no localisation."""
_TUNED_ON = 12

Method = Callable[[Windows], Predictions]


@final
class Interpolation:
    """The Gaussian baselines, fitted on the training period.

    Args:
        study: The data.
    """

    def __init__(self, study: StudyData) -> None:
        self.study = study
        self.history: History = study.history()
        self.frames = study.codec.frames
        self.distance = study.distance()
        self.length = fit_length(
            self.history.anomalies[:: max(1, len(self.history.anomalies) // 500)], self.distance
        )
        season = Climatology.fit(self.history.anomalies**2, study.periods["train"].times, harmonics=1)
        self._season, self._floor = season, 0.05 * self.history.anomalies.var(0)
        period = study.periods["train"]
        starts = period.starts(self.frames)
        self._windows = self.history.anomalies[starts[:, None] + np.arange(self.frames)].reshape(
            len(starts), -1
        )
        std = self.seasonal_std(period.times)
        self._standard = (self.history.anomalies / std)[starts[:, None] + np.arange(self.frames)].reshape(
            len(starts), -1
        )
        self._known: dict[Any, ConditionalGaussian] = {}

    def seasonal_std(self, times: Times) -> np.ndarray:
        """Standard deviation of each value at the time of the year, `[*times, value]`."""
        flat = Times(times.seconds.ravel(), times.calendar, times.dtype)
        found = np.sqrt(np.maximum(self._season(flat), self._floor))
        return found.reshape(*times.seconds.shape, -1)

    def radius(self, share: float | None) -> float | None:
        """In the units of the distances."""
        return None if share is None else share * float(self.distance.max())

    def gaussian(self, kind: str, share: float | None) -> ConditionalGaussian:
        """`day`, `window` or `seasonal`, localised at a share of the largest distance."""
        if (kind, share) not in self._known:
            # The untapered covariance is what takes time; of the tapered ones only the last of a kind is kept.
            self._known = {k: v for k, v in self._known.items() if k[0] != kind or k[1] is None}
            if (kind, None) not in self._known:
                ensemble = {
                    "day": self.history.anomalies,
                    "window": self._windows,
                    "seasonal": self._standard,
                }[kind]
                self._known[kind, None] = ConditionalGaussian(
                    ensemble_covariance(ensemble.astype(np.float32))
                )
            if share is not None:
                taper = gaspari_cohn(self.distance, self.radius(share))
                blocks = len(self._known[kind, None].covariance) // len(taper)
                whole = self._known[kind, None].covariance * np.tile(taper, (blocks, blocks))
                self._known[kind, share] = ConditionalGaussian(whole)
        return self._known[kind, share]

    def tune(self, windows: Windows) -> dict[str, float | None]:
        """The radius of each kind with the lowest CRPS on validation windows."""
        part = slice(None, None, -(-len(windows.truth) // _TUNED_ON))
        small = Windows(
            windows.truth[part], windows.observed[part], windows.seen[part], windows.anomalies[part],
            windows.error[part], Times(windows.times.seconds[part], windows.times.calendar, windows.times.dtype),
        )  # fmt: skip
        best: dict[str, float | None] = {}
        for kind in self.kinds:
            scores = [self._gaussian_crps(kind, share, small) for share in _RADII]
            best[kind] = _RADII[int(np.argmin(scores))]
        return best

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of ensembles whose covariance fits into memory."""
        if self._windows.shape[1] > MOST_VALUES:
            return ("day",)
        return ("day", "window", "seasonal") if self.frames > 1 else ("day", "seasonal")

    def methods(self, radii: dict[str, float | None], members: int, seed: int) -> dict[str, Method]:
        """By name."""
        noise, std = NoiseSource(seed).fork("interpolation"), self.history.std
        codec = self.study.codec
        latents = codec.settings.channels * int(np.prod(codec.shape)) // self.frames
        found: dict[str, Method] = {
            "climatology": lambda w: self._climatology(w, members, noise),
            "isotropic OI": self._method(
                ConditionalGaussian(isotropic_covariance(std, self.distance, self.length)), "day", members, noise
            ),
            "EOF regression": self._method(
                ConditionalGaussian(
                    eof_covariance(EOFs.fit(self.history.anomalies, self.history.weights, latents), std)
                ),
                "day", members, noise,
            ),
            "conditional Gaussian": self._method(self.gaussian("day", None), "day", members, noise),
        }  # fmt: skip
        told = {
            "day": "localised EnOI",
            "window": f"localised EnOI, {self.frames} states",
            "seasonal": f"localised EnOI, {self.frames} states, seasonal",
        }
        for kind in self.kinds:
            found[told[kind]] = self._method(self.gaussian(kind, radii[kind]), kind, members, noise)
        return found

    def _climatology(self, windows: Windows, members: int, noise: NoiseSource) -> Predictions:
        std = self.seasonal_std(windows.times)
        shape = (members, *windows.truth.shape[1:])
        drawn = normal(noise.fork("climatology"), range(len(windows.truth)), shape) * std[:, None]
        return self.study.predictions(Predictions(drawn, np.zeros_like(std), std), windows.times)

    def _method(self, gaussian: ConditionalGaussian, kind: str, members: int, noise: NoiseSource) -> Method:
        def run(windows: Windows) -> Predictions:
            y, error, scale = self._rows(kind, windows)
            made = gaussian.posterior(y, error, members, noise.fork(kind))
            cases, states, values = windows.truth.shape
            mean, std = ((v * scale).reshape(cases, states, values) for v in (made.mean, made.std))
            drawn = made.members * scale[:, None]
            if kind == "day":
                drawn = drawn.reshape(cases, states, members, values).swapaxes(1, 2)
            drawn = drawn.reshape(cases, members, states, values)
            return self.study.predictions(Predictions(drawn, mean, std), windows.times)

        return run

    def _rows(self, kind: str, windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations, their errors and a scale as the ensemble of this kind sees them, one row a case of it."""
        shape = (-1, windows.truth.shape[2]) if kind == "day" else (len(windows.truth), -1)
        scale = self.seasonal_std(windows.times) if kind == "seasonal" else np.ones(windows.truth.shape)
        y, error = windows.anomalies / scale, windows.error / scale
        return y.reshape(shape), error.reshape(shape), scale.reshape(shape)

    def _gaussian_crps(self, kind: str, share: float | None, windows: Windows) -> float:
        gaussian = self.gaussian(kind, share)
        y, error, scale = self._rows(kind, windows)
        truth = self.study.from_units(windows.truth, windows.times).reshape(y.shape)
        total, count = 0.0, 0.0
        weights = np.tile(self.study.weights, y.shape[1] // len(self.study.weights))
        for k in range(len(y)):
            mean, std = gaussian.condition(y[k], error[k])
            there = np.isfinite(truth[k]) & ~np.isfinite(y[k])
            mean, std = mean * scale[k], np.maximum(std * scale[k], 1e-9)
            crps = scoringrules.crps_normal(truth[k][there], mean[there], std[there], backend="numpy")
            total, count = total + float((crps * weights[there]).sum()), count + float(weights[there].sum())
        return total / count
