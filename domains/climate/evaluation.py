"""Samples beside the test period: maps of mean and variance, with the floor that real data set."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sciLDM.domain import Evaluation, Progress
from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.outputs import NUMBER, read_dataset
from sciLDM.errors import DataError

if TYPE_CHECKING:
    from sciLDM.domains.climate.codec import ClimateCodec

__all__ = ["evaluate_samples"]


def evaluate_samples(
    samples: xr.Dataset, codec: "ClimateCodec", reference: Path, progress: Progress
) -> Evaluation:
    """Errors of the maps of mean and standard deviation, in units of the test period's mean standard deviation.

    Raises:
        DataError: The run folder holds no test period.
    """
    index = reference / "reference.json"
    if not index.exists():
        raise DataError(f"{reference} holds no reference.json: it was not written by this adapter")
    files = [entry["file"] for entry in json.loads(index.read_text(encoding="utf-8"))["runs"]]
    tests = [read_dataset(reference / name) for name in files]
    rows = []
    for name in codec.template.names:
        truth = np.concatenate([_states(test, name) for test in tests])
        drawn = _states(samples, name)
        grid = codec.template.grid
        area = grid.native(grid.area)
        spread = _mean(truth.std(axis=0), area)
        halves = truth[::2], truth[1::2]
        for metric, of in (("mean", np.mean), ("std", np.std)):  # cells with gaps drop out as NaN
            value = _rms(of(drawn, axis=0) - of(truth, axis=0), area) / spread
            floor = _rms(of(halves[0], axis=0) - of(halves[1], axis=0), area) / spread
            rows.append(
                {"metric": f"{name} {metric} map error", "value": value, "floor": floor, "samples": len(drawn),
                 "note": "rms over the grid, in test standard deviations; floor: two halves of the test period"}
            )  # fmt: skip
        progress("scoring", 1, 1)
    return Evaluation(rows, {"samples": samples.sizes[NUMBER], "test": len(truth)})


def _states(dataset: xr.Dataset, name: str) -> np.ndarray:
    """`[state, level, y, x]`, members and times alike."""
    axes = find_axes(dataset, name)
    array = dataset[name]
    lead = [d for d in array.dims if d in (NUMBER, axes.time)]
    values = array.transpose(*lead, *axes.extra, axes.y, axes.x).values.astype(np.float64)
    return values.reshape(int(np.prod(values.shape[: len(lead)])), -1, *values.shape[-2:])


def _mean(x: np.ndarray, area: np.ndarray) -> float:
    known = np.isfinite(x)
    return float((np.nan_to_num(x) * area).sum() / max((known * area).sum(), 1e-12))


def _rms(x: np.ndarray, area: np.ndarray) -> float:
    return float(np.sqrt(_mean(np.square(x), area)))
