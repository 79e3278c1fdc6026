"""Gap filling: the model's posterior beside interpolation by Gaussians, from the same observations.

States of the validation and the test period are observed at some places, with errors of a known size; what is scored is
the rest. Everything that can be tuned (the radius of localisation, factors on the spread) is tuned on the validation
period, with the same kind of mask. The model sees windows of its trajectory's length; ensemble optimal interpolation is
run for each date alone and for the same windows (4-D), the latter also with the season's variances.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import scoringrules
import torch
import xarray as xr
from jaxtyping import Bool, Float

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
from sciLDM.domains.climate.evaluation_data import Model, StudyData, spread_over
from sciLDM.domains.climate.evaluation_masks import observing_masks
from sciLDM.domains.climate.evaluation_model import reconstruct_windows
from sciLDM.domains.climate.evaluation_scoring import (
    Study,
    calibrated_rows,
    case_crps,
    compare,
    score,
)
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

__all__ = ["GapSettings", "Windows", "gap_filling"]

_RADII = (0.15, 0.25, 0.4, 0.7, 1.2, None)
"""Candidate radii of localisation, as shares of the largest distance; None for no localisation."""
_TUNED_ON = 12

Method = Callable[["Windows"], Predictions]


@final
@dataclass(frozen=True)
class GapSettings:
    """How much of a study to run.

    Attributes:
        members: Samples of every method.
        windows: Test windows, spread evenly over the period; None for all that do not overlap.
        validation: Validation windows.
        noise: Standard deviation of the observation errors, as a share of the variables' own; see `noise_std`.
        noise_std: The same in the data's units.
        steps: Steps of the sampler; the model's default when None.
        batch_size: Samples that the model computes at once.
        seed: Of masks, observation errors and samples.
        baselines: Whether to run them.
    """

    members: int = 32
    windows: int | None = 48
    validation: int = 16
    noise: float = 0.1
    noise_std: float | None = None
    steps: int | None = None
    batch_size: int = 64
    seed: int = 0
    baselines: bool = True


@final
@dataclass(frozen=True, eq=False)
class Windows:
    """Cases of a study.

    Attributes:
        truth: In the data's units, NaN where unknown.
        observed: With errors, in the data's units, NaN where not observed.
        seen: Where there is an observation.
        anomalies: Of the observed values.
        error: Standard deviation of the observation errors, as anomalies.
        times: Dates, `[case, state]`.
        first: Number of the first case, for seeds.
    """

    truth: Float[np.ndarray, "case state value"]
    observed: Float[np.ndarray, "case state value"]
    seen: Bool[np.ndarray, "case state value"]
    anomalies: Float[np.ndarray, "case state value"]
    error: Float[np.ndarray, "case state value"]
    times: Times

    @property
    def hidden(self) -> Float[np.ndarray, "case state value"]:
        """The truth where it was not observed."""
        return np.where(self.seen, np.nan, self.truth)


def gap_filling(
    model: Model,
    data: xr.Dataset | str | None = None,
    *,
    fractions: Sequence[float] = (0.01, 0.05, 0.2),
    masks: Sequence[str] = ("random", "stations", "swath"),
    settings: GapSettings | None = None,
    output: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Study:
    """Reconstruct held-out states from few observations.

    Args:
        model: A loaded climate model.
        data: What to read the periods from; the model's own data when None.
        fractions: Shares of places that are observed.
        masks: Kinds, see `evaluation_masks`.
        settings: Sizes of the study.
        output: JSON file to write.
        progress: `progress(what, done, total)`.

    Returns:
        Rows `mask`, `fraction`, `method`, `calibrated`, and the scores of `evaluation_scoring.score` at unobserved
        places, with the CRPS relative to ours case by case.

    Raises:
        ConfigError: Several variables and no `noise_std`.
    """
    settings = settings or GapSettings()
    study = StudyData.of(model, data)
    noise_std = _noise_std(study, settings)
    rows: list[dict[str, Any]] = []
    cases = [(kind, fraction) for kind in masks for fraction in fractions]
    interpolation = Interpolation(study) if settings.baselines else None
    radii: dict[str, Any] = {}
    for done, (kind, fraction) in enumerate(cases):
        windows = {
            name: observe(study, name, kind, fraction, count, noise_std, settings.seed)
            for name, count in (("validation", settings.validation), ("test", settings.windows))
        }
        methods: dict[str, Method] = {
            "latent diffusion": lambda w: reconstruct_windows(
                model, study, w.observed, w.times, noise_std=noise_std, members=settings.members,
                steps=settings.steps, seed=settings.seed, batch_size=settings.batch_size,
            )
        }  # fmt: skip
        if interpolation is not None:
            tuned = interpolation.tune(windows["validation"])
            radii[f"{kind} {fraction:g}"] = tuned
            methods |= interpolation.methods(tuned, settings.members, settings.seed)
        rows += _scored(methods, windows, study, noise_std, {"mask": kind, "fraction": fraction})
        if progress is not None:
            progress("gap filling", done + 1, len(cases))
    protocol = {
        "study": "gap filling", "members": settings.members, "noise_std": noise_std, "seed": settings.seed,
        "steps": settings.steps, "windows": {k: len(w.truth) for k, w in windows.items()},
        "states per window": study.codec.frames, "tuned radii": radii,
        "periods": study.codec.state["source"]["periods"], "units": [v.units for v in study.codec.template.variables],
    }  # fmt: skip
    found = Study(rows, protocol)
    if output is not None:
        found.write(output)
    return found


def observe(
    study: StudyData, name: str, kind: str, fraction: float, count: int | None, noise_std: float, seed: int
) -> Windows:
    """Windows of a period, observed."""
    period, frames = study.periods[name], study.codec.frames
    starts = spread_over(period.starts(frames), count, frames)
    rows = starts[:, None] + np.arange(frames)
    truth = study.row(period.values[rows]).astype(np.float32)
    times = Times(period.times.seconds[rows], period.times.calendar, period.times.dtype)
    _, at_row, at_column = np.nonzero(study.exists)
    ids = period.times.seconds[rows].ravel()
    ids = np.round((ids - ids.min()) / max(study.codec.asked.step.seconds, 1.0)).astype(int)
    # Channels of one place are observed together.
    places, where = np.unique(np.stack([at_row, at_column], 1), axis=0, return_inverse=True)
    masks = observing_masks(
        kind, fraction, places.astype(float), study.codec.template.grid.shape, ids, seed=seed
    )
    seen = masks[:, where.ravel()].reshape(truth.shape) & np.isfinite(truth)
    numbers = (rows[:, 0] + (10_000_000 if name == "test" else 0)).tolist()
    errors = normal(NoiseSource(seed).fork("observation errors"), numbers, truth.shape[1:])
    observed = np.where(seen, truth + noise_std * errors, np.nan).astype(np.float32)
    return Windows(
        truth, observed, seen, study.from_units(observed, times), noise_std / study.spread(times), times
    )


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
            if sum(k == kind for k, _ in self._known) > 2:
                self._known = {k: v for k, v in self._known.items() if k[0] != kind}
            ensemble = {"day": self.history.anomalies, "window": self._windows, "seasonal": self._standard}[
                kind
            ]
            taper = None if share is None else gaspari_cohn(self.distance, self.radius(share))
            self._known[kind, share] = ConditionalGaussian(ensemble_covariance(ensemble, taper))
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


def _scored(
    methods: dict[str, Method],
    windows: dict[str, Windows],
    study: StudyData,
    noise_std: float,
    labels: dict[str, Any],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    ours: dict[bool, np.ndarray] = {}
    for name, method in methods.items():

        def run(period: str, method: Method = method) -> tuple[Predictions, np.ndarray]:
            return method(windows[period]), windows[period].hidden

        def add(predicted: Predictions, truth: np.ndarray, extra: dict[str, Any], name: str = name) -> None:
            w = windows["test"]
            miss = np.where(w.seen[:, None], predicted.members - w.observed[:, None], 0.0) / noise_std
            chi2 = (miss**2).sum((1, 2, 3)) / (w.seen.sum((1, 2)) * predicted.members.shape[1])
            crps = case_crps(predicted, truth, study.weights)
            ours.setdefault(extra["calibrated"], crps)
            row = score(predicted, truth, study.weights, chi2=chi2)
            ratio = compare(ours[extra["calibrated"]], crps)
            rows.append({**labels, "method": name, **extra, **row, **ratio})

        calibrated_rows(run, add)
    return rows


def _noise_std(study: StudyData, settings: GapSettings) -> float:
    if settings.noise_std is not None:
        if not settings.noise_std > 0:
            raise ConfigError(f"noise_std must be positive, got {settings.noise_std}")
        return float(settings.noise_std)
    if len(study.codec.template.variables) > 1 or not study.linear:
        raise ConfigError(
            "noise_std: several or transformed variables have no common scale; give it in their units"
        )
    spread = study.spread(
        Times(np.zeros((1, 1)), study.codec.asked.drawn.calendar, study.codec.asked.drawn.dtype)
    )
    return float(settings.noise * (spread[0, 0] * study.history().std).mean())
