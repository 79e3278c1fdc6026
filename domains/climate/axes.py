"""Which dimension is what: by CF attributes (`axis`, `standard_name`, `units`), then by usual names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import cf_xarray  # noqa: F401 - registers the accessor `.cf`
import numpy as np
import xarray as xr

from sciLDM.errors import DataError

__all__ = ["Axes", "find_axes", "find_runs", "find_time"]

_RUNS = ("number", "realization", "member", "ensemble", "ens", "run", "member_id", "scenario", "experiment")
_VERTICAL = ("level", "lev", "plev", "pressure", "height", "depth", "isobaricInhPa")
_UNITS = {"latitude": ("degrees_north", "degree_north", "degree_n", "degrees_n"),
          "longitude": ("degrees_east", "degree_east", "degree_e", "degrees_e")}  # fmt: skip

_NAMES = {
    "latitude": ("lat", "latitude", "lats", "nav_lat", "xlat", "gphit", "tlat"),
    "longitude": ("lon", "longitude", "lons", "nav_lon", "xlong", "glamt", "tlong"),
}


@final
@dataclass(frozen=True)
class Axes:
    """Names of a variable's dimensions and of the coordinates that locate it.

    Attributes:
        y: Dimension along latitude (or the first horizontal one).
        x: Dimension along longitude.
        time: Time dimension, or None.
        runs: Dimension of ensemble members or scenarios, or None.
        extra: Further dimensions (levels): each of their points is a channel.
        latitude: Latitude coordinate, 1-D or 2-D, or None on a grid without one.
        longitude: Longitude coordinate likewise.
    """

    y: str
    x: str
    time: str | None = None
    runs: str | None = None
    extra: tuple[str, ...] = field(default=())
    latitude: str | None = None
    longitude: str | None = None


def find_axes(dataset: xr.Dataset, name: str) -> Axes:
    """The axes of variable `name`.

    Raises:
        DataError: A horizontal dimension is missing or cannot be told, or there are too many.
    """
    variable = dataset[name]
    dims = [str(d) for d in variable.dims]
    latitude, longitude = (_coordinate(dataset, dims, kind) for kind in ("latitude", "longitude"))
    if latitude is not None and longitude is not None:
        y, x = _dims_of(dataset[latitude], dataset[longitude], name)
    else:
        latitude = longitude = None
        y, x = _plain(dataset, dims, name)
    time = find_time(dataset, dims)
    rest = [d for d in dims if d not in (y, x, time)]
    runs = find_runs(dataset, rest)
    extra = tuple(d for d in rest if d != runs)
    return Axes(y, x, time, runs, extra, latitude, longitude)


def find_time(dataset: xr.Dataset, dims: list[str]) -> str | None:
    """The time dimension among `dims`, or None."""
    named = _cf(dataset, "axes", "T") + _cf(dataset, "coordinates", "time") + ["time", "t", "valid_time"]
    for name in named:
        if name in dims:
            return name
    dated = [d for d in dims if d in dataset.coords and _is_time(dataset[d])]
    return dated[0] if dated else None


def find_runs(dataset: xr.Dataset, dims: list[str]) -> str | None:
    """The dimension of ensemble members or scenarios among `dims`, or None."""
    for d in dims:
        if d in dataset.coords and dataset[d].attrs.get("standard_name") == "realization":
            return d
    return next((d for d in dims if d.lower() in _RUNS), None)


def _is_time(array: xr.DataArray) -> bool:
    if array.dtype.kind == "M":
        return True
    return array.dtype.kind == "O" and array.size > 0 and hasattr(array.values.ravel()[0], "calendar")


def _cf(dataset: xr.Dataset, what: str, key: str) -> list[str]:
    """Names that cf-xarray finds by attributes."""
    found: Mapping[Any, list[Any]] = getattr(dataset.cf, what)
    return [str(name) for name in found.get(key, [])]


def _coordinate(dataset: xr.Dataset, dims: list[str], kind: str) -> str | None:
    """The coordinate whose attributes, or else whose name, say `latitude` (or `longitude`) of these dimensions."""
    declared = _cf(dataset, "coordinates", kind)
    by_units = [
        str(n) for n, v in dataset.variables.items() if v.attrs.get("units", "").lower() in _UNITS[kind]
    ]
    named = [str(n) for n in dataset.variables if str(n).lower() in _NAMES[kind]]
    # With a rotated pole the 1-D coordinates are called rlat, rlon; the 2-D ones are where the cells lie.
    for name in dict.fromkeys([*declared, *by_units, *named]):
        if dataset[name].attrs.get("standard_name", "").startswith(("grid_", "projection_")):
            continue
        if (
            name in dataset.variables
            and dataset[name].ndim in (1, 2)
            and set(map(str, dataset[name].dims)) <= set(dims)
        ):
            return name
    return None


def _dims_of(latitude: xr.DataArray, longitude: xr.DataArray, name: str) -> tuple[str, str]:
    if latitude.ndim == longitude.ndim == 1:
        y, x = str(latitude.dims[0]), str(longitude.dims[0])
        if y == x:
            raise DataError(
                f"variable {name!r}: latitude and longitude share the dimension {y!r}, so these are points or an "
                "unstructured mesh; regrid them to a grid with two horizontal dimensions first"
            )
        return y, x
    if latitude.dims != longitude.dims:
        raise DataError(
            f"variable {name!r}: {latitude.name} has dimensions {latitude.dims}, {longitude.name} has "
            f"{longitude.dims}; expected both to be 1-D, or both 2-D with the same dimensions"
        )
    first, second = (str(d) for d in latitude.dims)
    # Longitude changes along x more than along y; the sine keeps the date line out of it.
    values = np.exp(1j * np.deg2rad(np.nan_to_num(longitude.values)))
    change = [float(np.abs(np.diff(values, axis=axis)).mean()) for axis in (0, 1)]
    return (first, second) if change[1] >= change[0] else (second, first)


def _plain(dataset: xr.Dataset, dims: list[str], name: str) -> tuple[str, str]:
    """Horizontal dimensions of a grid without latitude and longitude (radar composites, ocean models)."""
    found = []
    for axis, names in (
        ("Y", ("y", "j", "nj", "rlat", "south_north")),
        ("X", ("x", "i", "ni", "rlon", "west_east")),
    ):
        declared = [d for d in _cf(dataset, "axes", axis) if d in dims]
        usual = [d for d in dims if d.lower() in names]
        found.append(next(iter([*declared, *usual]), None))
    y, x = found
    if y is None or x is None:
        raise DataError(
            f"variable {name!r} has dimensions {tuple(dims)}: no latitude and longitude found by CF attributes "
            "(standard_name, units degrees_north and degrees_east, axis) or usual names; add them, for instance "
            "ds['y'].attrs['axis'] = 'Y', or leave the variable out of `variables`"
        )
    return y, x
