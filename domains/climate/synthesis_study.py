r"""Synthesis from few training days: do samples have the climate of held-out years, as far as those years can tell?

A model is trained on a small share of the days (`thinned`), and as many fields are drawn as are held out. Of both the
mean, the deviation and the 1st and 99th percentile are mapped, and the variance along the EOFs of all training years is
found. Held-out years are themselves a sample: they are resampled in blocks of consecutive days, each put where the
season is alike (local block bootstrap, Paparoditis & Politis 2002, doi:10.1016/S0304-4149(02)00166-0). What is reported
is the share of the map (or of the EOFs) where the samples' value lies within the central 95 % of that.

Beside the model: synthesis from Gaussian principal components of the same few days, these days themselves, and all
training years, real fields that show what can be reached where one period is judged by another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int

from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.baselines import EOFs, season_distance
from sciLDM.domains.climate.calendar import Times, period
from sciLDM.domains.climate.evaluation import FieldSet, gaussian_fields, nearest_distances, sampled_fields
from sciLDM.domains.climate.evaluation_data import Period, StudyData
from sciLDM.domains.climate.evaluation_scoring import Study
from sciLDM.errors import ConfigError, DataError
from sciLDM.rng import NoiseSource

__all__ = ["COLUMNS", "SynthesisModel", "SynthesisSettings", "synthesis_study", "thinned"]

COLUMNS = ("fields", "states", "mean_within", "std_within", "p1_within", "p99_within", "eof_within", "mean_error",
           "std_error", "p1_error", "p99_error", "eof_error", "distance_ratio", "copies")  # fmt: skip
"""Of the table."""

MAPS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda x: x.mean(axis=0),
    "std": lambda x: x.std(axis=0),
    "p1": lambda x: np.quantile(x, 0.01, axis=0),
    "p99": lambda x: np.quantile(x, 0.99, axis=0),
}
_LEVEL = 0.95


@runtime_checkable
class SynthesisModel(Protocol):
    """What the study needs of a loaded model (`sciLDM.LatentDiffusion`)."""

    codec: Any
    experiment: Any
    reconstruct: Any
    sample: Any


@final
@dataclass(frozen=True)
class SynthesisSettings:
    """How the study is made.

    Attributes:
        count: Fields to draw; as many as are held out when None.
        modes: EOFs that are compared.
        resamples: Of the held-out period.
        block: Consecutive states of a block.
        reach: How far a block may be from its place in the year, as a share of the year.
        steps: Of the sampler; the model's default when None.
        seed: Of samples and resamples.
    """

    count: int | None = None
    modes: int = 20
    resamples: int = 300
    block: int = 10
    reach: float = 0.08
    steps: int | None = None
    seed: int = 0


def thinned(
    dataset: xr.Dataset, before: str, *, share: float = 0.05, block: int = 5, time: str | None = None
) -> xr.Dataset:
    """Few of the states before a date, in blocks spread evenly, and all states from that date on.

    Args:
        dataset: With dates that follow each other.
        before: Where the held-out period begins.
        share: How many of the earlier states are kept.
        block: Consecutive states of a block; 1 scatters single ones.
        time: Name of the time dimension; found when None.

    Raises:
        ConfigError: A share outside (0, 1], or no whole block.
    """
    if not 0 < share <= 1 or block < 1:
        raise ConfigError(f"expected a share in (0, 1] and a block of at least 1, got {share} and {block}")
    name = time or find_axes(dataset, str(next(iter(dataset.data_vars)))).time
    assert name is not None
    times = Times.of(dataset[name].values)
    early = np.flatnonzero(times.seconds < times.seconds[period(times, (before, "9999"), "before")].min())
    count = round(share * len(early) / block)
    if count < 1:
        raise ConfigError(f"{share:.1%} of {len(early)} states are no block of {block}; use shorter blocks")
    # The middle of equal parts: no season is met more often than the others.
    first = np.round((np.arange(count) + 0.5) * len(early) / count - block / 2).astype(int)
    kept = (first[:, None] + np.arange(block)).ravel()
    return dataset.isel({name: np.concatenate([early[kept], np.arange(early[-1] + 1, len(times))])})


def synthesis_study(
    model: SynthesisModel,
    data: xr.Dataset | str,
    *,
    settings: SynthesisSettings | None = None,
    output: str | Path | None = None,
) -> Study:
    """Samples of a model of few days beside the held-out period.

    Args:
        model: Loaded; trained on few days (`thinned`) of `data`, on single maps or trajectories.
        data: All of them, with the held-out period that the model has.
        settings: Sizes of the study.
        output: JSON file to write.

    Returns:
        A row for each kind of fields: `_within`, area share of the map or share of the EOFs within the sampling error
        of the held-out period; `_error`, root mean square of the map's error in held-out standard deviations, or mean
        |ln| of the variances; `distance_ratio`, median distance to the nearest training field over that of held-out
        fields; `copies`, the share nearer than 99 % of held-out fields.

    Raises:
        DataError: Missing values.
    """
    settings = settings or SynthesisSettings()
    few, whole = StudyData.of(model), StudyData.of(model, data)
    train, test, every = (
        _fields(study, study.periods[name])
        for study, name in ((few, "train"), (whole, "test"), (whole, "train"))
    )
    count = len(test.values) if settings.count is None else settings.count
    frames = few.codec.frames
    made = model.sample(-(-count // frames), steps=settings.steps, seed=settings.seed)
    drawn = _first(sampled_fields(few.codec, made), count)
    basis = EOFs.fit(every.anomalies, few.weights, settings.modes)
    compared = _Compared(test, train, basis, few.weights, _resamples(whole.periods["test"], settings))
    rows = [
        {"fields": name, **compared.row(fields)}
        for name, fields in (
            ("latent diffusion", drawn), ("Gaussian EOF", gaussian_fields(few.codec, train, drawn)),
            ("training days", train), ("all training years", every), ("held-out", test),
        )
    ]  # fmt: skip
    protocol = {
        "study": "synthesis", "training states": len(train.values), "held-out states": len(test.values),
        "all training states": len(every.values), "periods": few.codec.state["source"]["periods"],
        "modes": len(basis.variance), "resamples": settings.resamples, "block": settings.block, "reach": settings.reach,
        "steps": settings.steps, "seed": settings.seed,
    }  # fmt: skip
    found = Study(rows, protocol)
    if output is not None:
        found.write(output)
    return found


def _fields(study: StudyData, p: Period) -> FieldSet:
    if not p.known.all():
        raise DataError("synthesis study: values are missing; select a region without any")
    return FieldSet(study.row(p.values), p.anomalies, p.times)


def _first(fields: FieldSet, count: int) -> FieldSet:
    times = replace(fields.times, seconds=fields.times.seconds[:count])
    return FieldSet(fields.values[:count], fields.anomalies[:count], times)


def _resamples(p: Period, settings: SynthesisSettings) -> Int[np.ndarray, "resample state"]:
    """Rows of local block resamplings: each block is one that begins at nearly the same time of the year."""
    count, block = len(p.times), min(settings.block, len(p.times))
    places = np.arange(0, count, block)
    phase, begin = p.times.phase, np.arange(count - block + 1)
    near = [begin[season_distance(phase[begin], phase[k]) <= settings.reach] for k in places]
    ids = range(settings.resamples)
    noise = NoiseSource(settings.seed).fork("resample")
    u = noise.uniform(ids, (len(places),), "blocks", dtype=torch.float64).numpy()
    starts = np.stack([own[(u[:, k] * len(own)).astype(int)] for k, own in enumerate(near)], axis=1)
    return (starts[:, :, None] + np.arange(block)).reshape(len(u), -1)[:, :count]


@final
class _Compared:
    """The held-out period with its sampling error, and training fields to have copied from."""

    def __init__(
        self,
        test: FieldSet,
        train: FieldSet,
        basis: EOFs,
        weights: Float[np.ndarray, "value"],
        resamples: Int[np.ndarray, "resample state"],
    ) -> None:
        self.train, self.basis = train, basis
        self.area = weights / weights.sum()
        self.truth, self.deviation = self._statistics(test), test.values.std(axis=0)
        parts = [self._statistics(_rows(test, rows)) for rows in resamples]
        ends = ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)
        self.interval = {
            name: np.quantile(np.stack([p[name] for p in parts]), ends, axis=0) for name in self.truth
        }
        self.theirs = self._distances(test)

    def row(self, fields: FieldSet) -> dict[str, Any]:
        """Scores of some fields."""
        found: dict[str, Any] = {"states": len(fields.values)}
        for name, value in self._statistics(fields).items():
            low, high = self.interval[name]
            inside, share = (value >= low) & (value <= high), self.area if name != "eof" else None
            found[f"{name}_within"] = float(np.average(inside, weights=share))
            away = value - self.truth[name]
            found[f"{name}_error"] = (
                float(np.abs(away).mean())
                if name == "eof"
                else float(np.sqrt(np.average((away / self.deviation) ** 2, weights=share)))
            )
        if fields is self.train:
            return found | {"distance_ratio": None, "copies": None}
        ours = self._distances(fields)
        ratio = float(np.median(ours) / np.median(self.theirs))
        return found | {
            "distance_ratio": ratio,
            "copies": float((ours < np.quantile(self.theirs, 0.01)).mean()),
        }

    def _statistics(self, fields: FieldSet) -> dict[str, np.ndarray]:
        found = {name: statistic(fields.values) for name, statistic in MAPS.items()}
        return found | {"eof": np.log(self.basis.components(fields.anomalies).var(axis=0))}

    def _distances(self, fields: FieldSet) -> Float[np.ndarray, "state"]:
        root = np.sqrt(self.area)
        return nearest_distances(fields.anomalies * root, self.train.anomalies * root)


def _rows(fields: FieldSet, rows: np.ndarray) -> FieldSet:
    times = replace(fields.times, seconds=fields.times.seconds[rows])
    return FieldSet(fields.values[rows], fields.anomalies[rows], times)
