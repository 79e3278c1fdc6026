"""Stations: values at points, from a table or from a data set with a dimension of points."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.units import apply, convert
from sciLDM.errors import ConfigError, DataError
from sciLDM.operators.points import PointSampling

if TYPE_CHECKING:
    from sciLDM.domains.climate.codec import ClimateCodec

__all__ = ["is_points", "read_points"]

_LAT, _LON = ("lat", "latitude", "nav_lat"), ("lon", "longitude", "nav_lon")


def is_points(observed: Any) -> bool:
    """Whether these are values at points rather than on a grid."""
    if hasattr(observed, "columns") and not isinstance(observed, xr.Dataset):
        return True
    if not isinstance(observed, xr.Dataset):
        return False
    lat, lon = (
        _named(list(map(str, observed.variables)), _LAT),
        _named(list(map(str, observed.variables)), _LON),
    )
    return (
        lat is not None
        and lon is not None
        and observed[lat].dims == observed[lon].dims
        and observed[lat].ndim == 1
    )


def read_points(
    codec: "ClimateCodec", observed: Any, time: Any
) -> tuple[np.ndarray, PointSampling, Times, list[str]]:
    """Values `[time, channel, point]`, the operator, dates and notes.

    Args:
        codec: Of the model.
        observed: A table (one row a value, columns `lat`, `lon`, perhaps `time`, and the variables), or a data set with
            `lat` and `lon` along a dimension of points.
        time: The date, where the observations have none.

    Raises:
        DataError: No variable of the model, or points outside its grid.
        ConfigError: No date where the model needs one.
    """
    place, point, when, columns, units = _table(observed, codec.template.names)
    if not columns:
        raise DataError(f"observed: expected columns lat, lon and any of {', '.join(codec.template.names)}")
    wide = [v.name for v in codec.template.variables if v.name in columns and v.channels > 1]
    if wide:
        raise DataError(
            f"observed: {wide} have several levels; stations of them need an operator of your own"
        )
    dates, row = _dates(codec, when, time, len(point))
    index = codec.template.grid.index_of(place[:, 0], place[:, 1])
    outside = ~np.isfinite(index).all(axis=1)
    notes = []
    if outside.all():
        raise DataError(f"observed: no point lies inside the model's grid ({codec.template.grid})")
    if outside.any():
        notes.append(
            f"{int(outside.sum())} of {len(outside)} points lie outside the model's grid and are left out"
        )
    number = np.cumsum(~outside) - 1
    values = np.full((len(dates), codec.template.channels, int((~outside).sum())), np.nan, dtype=np.float32)
    channel = 0
    for variable in codec.template.variables:
        if variable.name in columns:
            conversion, note = convert(variable.name, units.get(variable.name), variable.units)
            notes += [note] if note else []
            inside = ~outside[point]
            there = apply(np.asarray(columns[variable.name], dtype=float), conversion)[inside]
            values[row[inside], channel, number[point[inside]]] = there
        channel += variable.channels
    sampling = PointSampling(
        codec.grid_shape,
        torch.from_numpy(index[~outside]).float(),
        periodic=(False, codec.template.grid.periodic),
    )
    return values, sampling, dates, notes


def _table(
    observed: Any, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, Any, dict[str, np.ndarray], dict[str, str]]:
    """Places `[point, 2]`, point of each value, dates of each value (or None), values by variable, units."""
    known = list(map(str, observed.variables if isinstance(observed, xr.Dataset) else observed.columns))
    lat, lon = _named(known, _LAT), _named(known, _LON)
    if lat is None or lon is None:
        raise DataError(f"observed: expected columns lat and lon (degrees), got {', '.join(known)}")
    if isinstance(observed, xr.Dataset):
        dim = str(observed[lat].dims[0])
        place = np.stack([observed[lat].values, observed[lon].values], axis=1).astype(float)
        columns, units, when, shape = {}, {}, None, (1, len(place))
        for name in names:
            if name not in observed:
                continue
            array = observed[name]
            rest = [d for d in array.dims if d != dim]
            if len(rest) > 1:
                raise DataError(f"observed {name!r}: expected dimensions (time, {dim}), got {array.dims}")
            values = array.transpose(*rest, dim).values
            shape = (values.shape[0] if rest else 1, len(place))
            columns[name] = values.reshape(-1)
            if "units" in array.attrs:
                units[name] = str(array.attrs["units"])
            when = np.repeat(observed[rest[0]].values, len(place)) if rest else None
        return place, np.tile(np.arange(len(place)), shape[0]), when, columns, units
    both = np.stack([observed[lat], observed[lon]], axis=1).astype(float)
    place, point = np.unique(both, axis=0, return_inverse=True)
    columns = {name: np.asarray(observed[name], dtype=float) for name in names if name in known}
    # pandas keeps units nowhere; `attrs` is where people put them.
    units = dict(getattr(observed, "attrs", {}).get("units", {}))
    when = np.asarray(observed["time"]) if "time" in known else None
    return place, point.reshape(-1), when, columns, units


def _dates(codec: "ClimateCodec", when: Any, time: Any, count: int) -> tuple[Times, np.ndarray]:
    """Dates, in order, and which one each value belongs to."""
    asked = codec.asked
    if when is None:
        if time is None and (asked.season or codec.normaliser.terms > 1):
            raise ConfigError(
                "observed: points without dates; add a column `time`, or give cond={'time': '2007-01-15'}"
            )
        start = asked.draw(1, {} if time is None else {"time": time}, np.array([0.5]))[0]
        return start, np.zeros(count, dtype=np.int64)
    values = np.asarray(when)
    if values.dtype.kind not in "MO" or (values.dtype.kind == "O" and isinstance(values.ravel()[0], str)):
        values = np.asarray(values, dtype="datetime64[ns]")
    times = Times.of(values)
    seconds, row = np.unique(times.seconds, return_inverse=True)
    step = asked.step
    dates = Times(seconds, asked.drawn.calendar, asked.drawn.dtype)
    if codec.frames > 1 and not step.months and len(seconds) > 1:
        # Times between the first and the last that no station reported are there too, unobserved.
        place = np.round((seconds - seconds[0]) / step.seconds).astype(np.int64)
        dates = Times(seconds[0] + step.seconds * np.arange(place[-1] + 1), dates.calendar, dates.dtype)
        row = place[row]
    return dates, row.reshape(-1)


def _named(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((n for n in names if n.lower() in wanted), None)
