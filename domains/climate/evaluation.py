"""Synthesis beside held-out data: maps, EOF spectrum, spectra, extremes, copies; with floor and Gaussian baseline.

Every row's `floor` is the same score for real training data. Rows that end in "Gaussian EOF" are that of synthesis from
independent Gaussian principal components of the training period, as many fields at the same dates. Notes give the
sampling error of the held-out period itself: what 95 % of its resamplings in blocks of 30 states stay below.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sciLDM.domain import Evaluation, Progress
from sciLDM.domains.climate.baselines import EOFs, GaussianEOF
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.outputs import NUMBER, read_dataset
from sciLDM.domains.climate.scores_spectra import spectral_ratio
from sciLDM.errors import DataError
from sciLDM.rng import NoiseSource

if TYPE_CHECKING:
    from sciLDM.domains.climate.codec import ClimateCodec

__all__ = [
    "FieldSet",
    "evaluate_samples",
    "gaussian_fields",
    "nearest_distances",
    "read_reference",
    "sampled_fields",
]

_BLOCK, _RESAMPLES = 30, 60
_MODES = 20
_MOST_VALUES = 2**27
_FEW = 200


@final
@dataclass(frozen=True, eq=False)
class FieldSet:
    """Single states, whatever trajectory or member they are from.

    Attributes:
        values: In the data's units, existing values in one row.
        anomalies: Of the training climatology, normalised, 0 where missing.
        times: Dates.
    """

    values: Float[np.ndarray, "state value"]
    anomalies: Float[np.ndarray, "state value"]
    times: Times


Score = Callable[[FieldSet], float]


def evaluate_samples(
    samples: xr.Dataset, codec: "ClimateCodec", reference: Path, progress: Progress
) -> Evaluation:
    """Scores of samples; map errors are root mean squares over the grid in units of the test period's deviation.

    Raises:
        DataError: The run folder holds no test period.
    """
    test, train = read_reference(codec, reference, "runs"), read_reference(codec, reference, "train")
    if test is None:
        raise DataError(f"{reference} holds no test period: it was not written by this adapter")
    drawn = sampled_fields(codec, samples)
    gaussian = None if train is None else gaussian_fields(codec, train, drawn)
    failures = []
    if train is None:
        failures.append("the run folder holds no training fields: no floor, no baseline, no check for copies")
    if len(drawn.values) < _FEW:
        failures.append(f"{len(drawn.values)} states are few for maps of quantiles; draw at least {_FEW}")
    rows: list[dict[str, Any]] = []
    scores = list(_scores(codec, test, train))
    for done, (metric, note, score) in enumerate(scores):
        resampled = _resampled(test, score) if "map" in metric or "EOF" in metric else None
        told = note if resampled is None else f"{note}; test period resampled: below {resampled:.3g} in 95 %"
        floor = None if train is None else score(train)
        common = {"floor": floor, "samples": len(drawn.values)}
        rows.append({"metric": metric, "value": score(drawn), **common, "note": told})
        if gaussian is not None:
            rows.append(
                {"metric": f"{metric}, Gaussian EOF", "value": score(gaussian), **common, "note": "baseline"}
            )
        progress("scoring", done + 1, len(scores))
    if train is not None:
        rows += _copies(codec, drawn, test, train)
    protocol = {
        "samples": int(samples.sizes[NUMBER]), "states": len(drawn.values), "test states": len(test.values),
        "training states": None if train is None else len(train.values),
        "periods": codec.state["source"]["periods"],
    }  # fmt: skip
    return Evaluation(rows, protocol, failures)


def read_reference(codec: "ClimateCodec", reference: Path, which: str) -> FieldSet | None:
    """States that `ClimateCorpus.write_reference` left: `runs` (test) or `train`; None where there are none."""
    index = reference / "reference.json"
    if not index.exists():
        return None
    entries = json.loads(index.read_text(encoding="utf-8")).get(which) or []
    if not isinstance(entries, list) or not entries:
        return None
    sets = [sampled_fields(codec, read_dataset(reference / entry["file"])) for entry in entries]
    seconds = np.concatenate([s.times.seconds for s in sets])
    return FieldSet(
        np.concatenate([s.values for s in sets]),
        np.concatenate([s.anomalies for s in sets]),
        replace(sets[0].times, seconds=seconds),
    )


def sampled_fields(codec: "ClimateCodec", dataset: xr.Dataset) -> FieldSet:
    """All states of a data set in the model's layout, with or without members and times.

    Raises:
        DataError: No dates.
    """
    from sciLDM.domains.climate.evaluation_data import make_period
    from sciLDM.domains.climate.evaluation_model import field_values

    time = codec.template.axes.time or "time"
    lead = (NUMBER, time)
    values = field_values(codec, dataset, lead)
    name = "valid_time" if "valid_time" in dataset.coords else time
    if name not in dataset.coords:
        raise DataError(f"samples: no coordinate {name!r}; anomalies need dates")
    dates = xr.DataArray(dataset[name].values, dims=dataset[name].dims)
    dates = dates.expand_dims([d for d in lead if d not in dates.dims]).transpose(*lead)
    found = Times.of(np.broadcast_to(dates.values, values.shape[:2]).ravel(), calendar=None)
    flat = values.reshape(-1, *values.shape[2:])
    period = make_period(codec, flat, found, np.zeros(len(flat), dtype=bool))
    return FieldSet(flat[:, codec.exists.numpy()], period.anomalies, found)


def _scores(
    codec: "ClimateCodec", test: FieldSet, train: FieldSet | None
) -> Iterator[tuple[str, str, Score]]:
    """Name, note and score of each row."""
    exists, area = codec.exists.numpy(), codec.template.grid.area
    weights = np.broadcast_to(area, exists.shape)[exists]
    channels = np.nonzero(exists)[0]
    first = 0
    maps: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "mean": lambda x: np.nanmean(x, axis=0),
        "std": lambda x: np.nanstd(x, axis=0),
        "1st percentile": lambda x: np.nanquantile(x, 0.01, axis=0),
        "99th percentile": lambda x: np.nanquantile(x, 0.99, axis=0),
    }
    for variable in codec.template.variables:
        own = (channels >= first) & (channels < first + variable.channels)
        first += variable.channels
        w = weights[own] / weights[own].sum()
        deviation = float((np.nanstd(test.values[:, own], axis=0) * w).sum())
        for name, statistic in maps.items():
            truth = statistic(test.values[:, own])

            def error(
                s: FieldSet,
                f: Any = statistic,
                own: Any = own,
                t: Any = truth,
                w: Any = w,
                d: float = deviation,
            ) -> float:
                return float(np.sqrt(((f(s.values[:, own]) - t) ** 2 * w).sum())) / d

            yield f"{variable.name} {name} map error", "rms over the grid, in test standard deviations", error
    basis = EOFs.fit((train or test).anomalies, weights / weights.mean(), _MODES)
    variance = basis.components(test.anomalies).var(axis=0)

    def spectrum(s: FieldSet) -> float:
        return float(np.abs(np.log(basis.components(s.anomalies).var(axis=0) / variance)).mean())

    told = f"mean |ln| of variance along {len(basis.variance)} EOFs over the test period's"
    yield "EOF spectrum error", told, spectrum
    if exists.all():
        for name, pick in (("smallest", min), ("largest", max)):

            def ratio(s: FieldSet, pick: Callable[..., float] = pick) -> float:
                return float(pick(_ratios(codec, s, test)))

            yield (
                f"spectral ratio, {name}",
                "power over the test period's, up to 0.7 of the largest wavenumber",
                ratio,
            )
    if codec.template.grid.periodic:
        yield "seam", "|difference across the first meridian| over that elsewhere", lambda s: _seam(codec, s)


def _ratios(codec: "ClimateCodec", made: FieldSet, real: FieldSet) -> np.ndarray:
    grid = codec.template.grid
    shape = (-1, *codec.exists.shape)
    latitude = grid.latitude if grid.kind == "regular" else None
    ratio = spectral_ratio(
        made.anomalies.reshape(shape),
        real.anomalies.reshape(shape),
        periodic=grid.periodic,
        latitude=latitude,
    )
    return ratio.power


def _seam(codec: "ClimateCodec", s: FieldSet) -> float:
    exists = codec.exists.numpy()
    field = np.full((len(s.anomalies), *exists.shape), np.nan, dtype=np.float32)
    field[:, exists] = s.anomalies
    across = np.nanmean(np.abs(field[..., 0] - field[..., -1]))
    return float(across / np.nanmean(np.abs(np.diff(field, axis=-1))))


def _resampled(test: FieldSet, score: Score) -> float | None:
    """95th percentile of the score of block resamplings of the test period against the test period."""
    count = len(test.values)
    if test.values.size * _RESAMPLES > _MOST_VALUES * 8 or count < 2 * _BLOCK:
        return None
    blocks = count // _BLOCK
    u = NoiseSource(0).uniform(range(_RESAMPLES), (blocks,), "resample", dtype=torch.float64).numpy()
    found = []
    for row in u:
        starts = (row * (count - _BLOCK + 1)).astype(int)
        index = (starts[:, None] + np.arange(_BLOCK)).ravel()
        found.append(score(FieldSet(test.values[index], test.anomalies[index], test.times)))
    return float(np.quantile(found, 0.95))


def gaussian_fields(codec: "ClimateCodec", train: FieldSet, drawn: FieldSet) -> FieldSet:
    """Fields of independent Gaussian principal components of the training fields, at the dates of the drawn ones."""
    from sciLDM.domains.climate.evaluation_data import StudyData

    study = StudyData(codec, {})
    eofs = EOFs.fit(train.anomalies, study.weights, min(500, len(train.anomalies) - 1))
    x = GaussianEOF(eofs).sample(range(len(drawn.values)), NoiseSource(0)).astype(np.float32)
    dates = replace(drawn.times, seconds=drawn.times.seconds[:, None])
    return FieldSet(study.to_units(x[:, None], dates)[:, 0], x, drawn.times)


def _copies(codec: "ClimateCodec", drawn: FieldSet, test: FieldSet, train: FieldSet) -> list[dict[str, Any]]:
    """How near samples are to the training fields, beside how near held-out fields are."""
    exists = codec.exists.numpy()
    weights = np.broadcast_to(codec.template.grid.area, exists.shape)[exists]
    root = np.sqrt(weights / weights.sum())
    scale = float(np.sqrt(((train.anomalies * root) ** 2).sum(1).mean()))
    ours, theirs = (
        nearest_distances(s.anomalies * root, train.anomalies * root) / scale for s in (drawn, test)
    )
    near = float(np.quantile(theirs, 0.01))
    return [
        {
            "metric": "distance to the nearest training field", "value": float(np.median(ours)),
            "floor": float(np.median(theirs)), "samples": len(ours),
            "note": "median, over the training anomalies' rms; floor: of test fields",
        },
        {
            "metric": "share of copies", "value": float((ours < near).mean()), "floor": 0.01, "samples": len(ours),
            "note": "nearer to a training field than 99 % of test fields; floor: of test fields",
        },
    ]  # fmt: skip


def nearest_distances(
    a: Float[np.ndarray, "state value"], b: Float[np.ndarray, "other value"]
) -> Float[np.ndarray, "state"]:
    """Euclidean distance of each row of `a` to the nearest one of `b`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    square = (b**2).sum(1)
    found = []
    for start in range(0, len(a), 512):
        part = a[start : start + 512]
        away = (part**2).sum(1)[:, None] + square - 2 * part @ b.T
        found.append(np.sqrt(np.maximum(away.min(1), 0.0)))
    return np.concatenate(found)
