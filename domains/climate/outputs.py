"""Native results: data sets with the input's layout, an ensemble dimension, provenance; files of them."""

import datetime
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.template import Template
from sciLDM.errors import DataError

__all__ = [
    "NUMBER",
    "dated",
    "provenance",
    "read_dataset",
    "samples_dataset",
    "time_encoding",
    "write_dataset",
]

NUMBER = "number"
"""The ensemble dimension (ECMWF's name; `standard_name` realization)."""

_CONVENTIONS = "CF-1.11"
_TIME_ENCODING = ("units", "calendar", "dtype")


def samples_dataset(
    template: Template, values: np.ndarray, times: Times, ids: Sequence[int], *, film: bool
) -> xr.Dataset:
    """An ensemble.

    Args:
        template: The user's layout.
        values: `[sample, state, channel, H, W]`, NaN where a cell does not exist.
        times: Dates, `[sample, state]`.
        ids: Numbers of the samples.
        film: Whether states are a trajectory with a time dimension, or single maps without.
    """
    lead = (NUMBER, template.axes.time or "time") if film else (NUMBER,)
    dataset = template.dataset(values if film else values[:, 0], lead)
    return dated(dataset, template, times, ids, film=film)


def dated(
    dataset: xr.Dataset, template: Template, times: Times, ids: Sequence[int], *, film: bool
) -> xr.Dataset:
    """An ensemble's variables with dates and numbers; arguments as in `samples_dataset`.

    Dates that all samples share are a coordinate of the time dimension; others belong to their samples.
    """
    time = template.axes.time or "time"
    common = bool((times.seconds == times.seconds[:1]).all())
    if common:
        first = times.take(slice(0, 1))
        first = Times(first.seconds.reshape(-1), times.calendar, times.dtype)
        dims: tuple[str, ...] = (time,) if film else ()
        dataset = template.with_times(dataset, first, dims)
    else:
        seconds = times.seconds if film else times.seconds[:, 0]
        dims = (NUMBER, time) if film else (NUMBER,)
        dataset = template.with_times(dataset, Times(seconds, times.calendar, times.dtype), dims)
    return with_number(dataset, ids)


def with_number(dataset: xr.Dataset, ids: Sequence[int]) -> xr.Dataset:
    """Numbers of the members as a coordinate."""
    attrs = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}
    return dataset.assign_coords({NUMBER: (NUMBER, np.asarray(ids, dtype=np.int64), attrs)})


def provenance(dataset: xr.Dataset, what: str, details: dict[str, Any]) -> xr.Dataset:
    """The data set with `Conventions`, `source` and a line of `history`."""
    from sciLDM import __version__

    # https://reproducible-builds.org/specs/source-date-epoch/: equal runs then give equal files.
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.fromtimestamp(float(epoch or time.time()), datetime.UTC)
    now = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    told = ", ".join(f"{name} {value}" for name, value in details.items() if value is not None)
    line = f"{now} sciLDM {__version__}: {what} ({told})"
    attrs = dict(dataset.attrs)
    before = str(attrs.get("history", "")).strip()
    trained = str(attrs.get("source", "")).strip()
    attrs["Conventions"] = _CONVENTIONS
    attrs["history"] = f"{line}\n{before}" if before else line
    attrs["source"] = f"sciLDM {__version__}, trained on: {trained}" if trained else f"sciLDM {__version__}"
    return dataset.assign_attrs(attrs)


def write_dataset(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write `.nc` or `.zarr`; an existing one is replaced only when it is complete.

    Raises:
        DataError: Another ending.
    """
    path = Path(path)
    if path.suffix == ".zarr":
        bare = dataset.drop_encoding()
        for name, variable in dataset.coords.items():
            bare[name].encoding = time_encoding(variable)
        with warnings.catch_warnings():
            # Consolidated metadata is an extension of zarr 3 that xarray looks for first; others pass over it.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            bare.to_zarr(path, mode="w", consolidated=True)
        return path
    if path.suffix.lower() not in (".nc", ".nc4"):
        raise DataError(f"{path}: expected an ending .nc or .zarr")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.nc")
    dataset.to_netcdf(partial)
    partial.replace(path)
    return path


def time_encoding(variable: xr.DataArray) -> dict[str, Any]:
    """What of an encoding every format keeps: units and calendar of dates."""
    if variable.dtype.kind not in "MO":
        return {}
    return {k: variable.encoding[k] for k in _TIME_ENCODING if variable.encoding.get(k) is not None}


def read_dataset(path: str | Path) -> xr.Dataset:
    """What `write_dataset` wrote, loaded."""
    from sciLDM.domains.climate.read import open_dataset

    with open_dataset(path) as dataset:
        return dataset.load()
