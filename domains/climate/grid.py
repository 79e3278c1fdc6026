r"""Horizontal grids: one internal order, the user's order outside.

Inside, latitude ascends and longitude ascends without jumps; a duplicated column at 360 degrees is left out. `native`
undoes all of it, so flipped latitudes, -180..180 and 0..360 come out as they went in.

Cell weights are areas (Rasp et al. 2024, arXiv:2308.15560): bounds half way between the rows, the outermost at the pole
where the grid reaches it, `w = sin(upper) - sin(lower)`, divided by their mean. `cos(latitude)` would give a row at the
pole no weight at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
import xarray as xr

from sciLDM.domains.climate.axes import Axes
from sciLDM.domains.climate.packing import pack, unpack
from sciLDM.errors import DataError

__all__ = ["Grid", "row_weights"]

Kind = Literal["regular", "curvilinear", "plain"]


@final
@dataclass(frozen=True, eq=False)
class Grid:
    """A horizontal grid in the internal order, and how the user's differs.

    Attributes:
        kind: `regular` (1-D coordinates), `curvilinear` (2-D), or `plain` (none).
        latitude: Degrees north, `[H]` ascending, or `[H, W]`; row numbers on a plain grid.
        longitude: Degrees east, `[W]` ascending, or `[H, W]`; column numbers on a plain grid.
        rows: Internal row `i` is the user's row `rows[i]`.
        columns: Internal column `j` is the user's column `columns[j]`.
        native_shape: The user's shape; one column more than inside when the first is repeated.
        periodic: Whether the last column is a neighbour of the first.
        area: Cell areas, `[H, W]`, mean 1.
    """

    kind: Kind
    latitude: np.ndarray
    longitude: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    native_shape: tuple[int, int]
    periodic: bool
    area: np.ndarray

    @staticmethod
    def of(dataset: xr.Dataset, axes: Axes) -> "Grid":
        """The grid of the variables with these axes.

        Raises:
            DataError: Coordinates that are missing (NaN), repeated, or out of order.
        """
        shape = (int(dataset.sizes[axes.y]), int(dataset.sizes[axes.x]))
        if min(shape) < 2:
            raise DataError(
                f"expected a grid of at least 2 x 2 cells, got {shape[0]} x {shape[1]} ({axes.y}, {axes.x})"
            )
        if axes.latitude is None or axes.longitude is None:
            lat, lon = (np.arange(n, dtype=float) for n in shape)
            return Grid(
                "plain", lat, lon, np.arange(shape[0]), np.arange(shape[1]), shape, False, np.ones(shape)
            )
        latitude, longitude = dataset[axes.latitude], dataset[axes.longitude]
        if latitude.ndim == 2:
            order = (axes.y, axes.x)
            return _curvilinear(
                latitude.transpose(*order).values, longitude.transpose(*order).values, dataset, axes
            )
        return _regular(
            latitude.values.astype(float), longitude.values.astype(float), _bounds(dataset, latitude)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns inside."""
        return len(self.rows), len(self.columns)

    def canonical(self, values: np.ndarray) -> np.ndarray:
        """`[..., H, W]` in the user's order to the internal one."""
        if tuple(values.shape[-2:]) != self.native_shape:
            raise DataError(f"expected a grid of {self.native_shape} cells, got {tuple(values.shape[-2:])}")
        plain = _is_identity(self.rows, self.native_shape[0]) and _is_identity(
            self.columns, self.native_shape[1]
        )
        return values if plain else values[..., self.rows[:, None], self.columns]

    def native(self, values: np.ndarray) -> np.ndarray:
        """`[..., H, W]` in the internal order to the user's, with the repeated column back in its place."""
        out = np.empty((*values.shape[:-2], *self.native_shape), dtype=values.dtype)
        out[..., self.rows[:, None], self.columns] = values
        if self.repeats:
            absent = np.setdiff1d(np.arange(self.native_shape[1]), self.columns)
            first = (
                self.native_shape[1] - 1 - absent
            )  # the twin of the last column is the first, and the reverse
            out[..., absent] = out[..., first]
        return out

    @property
    def repeats(self) -> bool:
        """Whether the user's grid holds the first column twice."""
        return len(self.columns) < self.native_shape[1]

    @cached_property
    def latitudes(self) -> np.ndarray:
        """Latitude of every cell, `[H, W]`."""
        return (
            self.latitude
            if self.latitude.ndim == 2
            else np.repeat(self.latitude[:, None], self.shape[1], axis=1)
        )

    @cached_property
    def longitudes(self) -> np.ndarray:
        """Longitude of every cell, `[H, W]`."""
        return (
            self.longitude
            if self.longitude.ndim == 2
            else np.repeat(self.longitude[None], self.shape[0], axis=0)
        )

    @property
    def reaches_poles(self) -> tuple[bool, bool]:
        """Whether the first and the last row border on a pole."""
        if self.kind != "regular" or not self.periodic:
            return False, False
        lat = self.latitude
        return bool(lat[0] - (lat[1] - lat[0]) <= -90), bool(lat[-1] + (lat[-1] - lat[-2]) >= 90)

    def align(self, other: "Grid") -> np.ndarray:
        """Columns of `other` (same cells, perhaps another longitude origin), one for each column of this grid.

        Raises:
            DataError: The cells differ; the message says how.
        """
        if other.kind != self.kind or other.shape != self.shape:
            raise DataError(
                f"mismatched grids: the model's is {self.kind}, {self.shape[0]} x {self.shape[1]} ({self}), got "
                f"{other.kind}, {other.shape[0]} x {other.shape[1]} ({other}); regrid, or give `operator`"
            )
        size = _spacing(self.latitude)
        if self.kind != "plain" and np.abs(self.latitude - other.latitude).max() > 0.02 * size:
            raise DataError(
                f"mismatched grids: latitudes differ, the model's are {self}, got {other}; regrid first"
            )
        columns = np.arange(self.shape[1])
        if self.kind != "regular":
            apart = 0.0 if self.kind == "plain" else np.abs(_wrap(self.longitude - other.longitude)).max()
        else:
            if self.periodic:
                first = int(np.abs(_wrap(other.longitude - self.longitude[0])).argmin())
                columns = (columns + first) % self.shape[1]
            apart = np.abs(_wrap(other.longitude[columns] - self.longitude)).max()
        if apart > 0.02 * _spacing(self.longitude):
            raise DataError(
                f"mismatched grids: longitudes differ, the model's are {self}, got {other}; regrid first"
            )
        return columns

    def index_of(self, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
        """Fractional (row, column) of points, `[point, 2]`; NaN for points outside the grid (by over half a cell)."""
        latitude, longitude = np.asarray(latitude, dtype=float), np.asarray(longitude, dtype=float)
        if self.kind == "curvilinear":
            return _curvilinear_index(self, latitude, longitude)
        if self.kind == "plain":
            rows, columns = latitude, longitude
        else:
            # Beyond the last row at a pole there is nothing to interpolate with: the row itself stands.
            edge = np.where(np.array(self.reaches_poles), 90.0, 0.0)
            rows = _position(self.latitude, latitude, slack=edge)
            west = self.longitude[0] - (0.0 if self.periodic else 0.5 * _spacing(self.longitude))
            east = west + np.mod(longitude - west, 360.0)
            if self.periodic:
                columns = np.interp(
                    east, np.append(self.longitude, self.longitude[0] + 360), np.arange(self.shape[1] + 1)
                )
            else:
                columns = _position(self.longitude, east, slack=np.zeros(2))
        inside = (
            (rows >= -0.5) & (rows <= self.shape[0] - 0.5) & (columns >= -0.5) & np.isfinite(rows + columns)
        )
        inside &= columns <= (self.shape[1] if self.periodic else self.shape[1] - 0.5)
        rows = np.clip(rows, 0, self.shape[0] - 1)
        if not self.periodic:
            columns = np.clip(columns, 0, self.shape[1] - 1)
        return np.where(inside[:, None], np.stack([rows, columns], axis=1), np.nan)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        arrays = ("latitude", "longitude", "rows", "columns", "area")
        packed = {name: pack(getattr(self, name)) for name in arrays}
        return {"kind": self.kind, "shape": list(self.native_shape), "periodic": self.periodic, **packed}

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> "Grid":
        """The grid of `to_dict`."""
        arrays = {n: unpack(state[n]) for n in ("latitude", "longitude", "rows", "columns", "area")}
        shape = (int(state["shape"][0]), int(state["shape"][1]))
        return Grid(kind=state["kind"], native_shape=shape, periodic=bool(state["periodic"]), **arrays)

    def __str__(self) -> str:
        if self.kind == "plain":
            return f"{self.shape[0]} x {self.shape[1]} without coordinates"
        lat, lon = self.latitude, self.longitude
        return f"{lat.min():.4g} to {lat.max():.4g} N, {lon.min():.4g} to {lon.max():.4g} E"


def row_weights(latitude: np.ndarray, bounds: np.ndarray | None = None) -> np.ndarray:
    """Area of a cell in each row, relative to their mean; see the head of this file.

    Args:
        latitude: Degrees north, ascending.
        bounds: Lower and upper edge of each row, `[row, 2]`, where the file says.
    """
    if bounds is None:
        middle = 0.5 * (latitude[1:] + latitude[:-1])
        first, last = latitude[1] - latitude[0], latitude[-1] - latitude[-2]
        # A grid whose next row would lie beyond the pole ends at the pole; a regional one half a cell further on.
        south = -90.0 if latitude[0] - first <= -90 else latitude[0] - first / 2
        north = 90.0 if latitude[-1] + last >= 90 else latitude[-1] + last / 2
        edges = np.concatenate([[south], middle, [north]])
        bounds = np.stack([edges[:-1], edges[1:]], axis=1)
    edges = np.sin(np.deg2rad(np.clip(bounds, -90, 90)))
    weights = np.abs(edges[:, 1] - edges[:, 0])
    return weights / weights.mean()


def _regular(lat: np.ndarray, lon: np.ndarray, bounds: np.ndarray | None) -> Grid:
    if not np.isfinite(lat).all() or not np.isfinite(lon).all():
        raise DataError("latitude or longitude has missing values (NaN); a 1-D coordinate must be complete")
    if np.abs(lat).max() > 90.01:
        raise DataError(f"latitude: expected degrees in [-90, 90], got {lat.min():g} to {lat.max():g}")
    rows = np.argsort(lat, kind="stable")
    if (np.diff(lat[rows]) <= 0).any():
        raise DataError("latitude has repeated values; drop the duplicates")
    # Without jumps: 350, 355, 0, 5 becomes 350, 355, 360, 365. Reversed longitudes are turned round.
    smooth = np.unwrap(lon, period=360.0)
    columns = np.arange(len(lon)) if smooth[-1] > smooth[0] else np.arange(len(lon))[::-1]
    smooth = smooth[columns]
    if (np.diff(smooth) <= 0).any():
        columns = np.argsort(np.mod(lon, 360.0), kind="stable")
        smooth = np.mod(lon, 360.0)[columns]
        if (np.diff(smooth) <= 1e-9).any():
            raise DataError("longitude has repeated values; drop the duplicates")
    step, span = float(np.median(np.diff(smooth))), float(smooth[-1] - smooth[0])
    if abs(span - 360) < 0.02 * step:
        columns, smooth = columns[:-1], smooth[:-1]
        span = float(smooth[-1] - smooth[0])
    uniform = bool((np.abs(np.diff(smooth) - step) < 0.1 * step).all())
    periodic = uniform and abs(span + step - 360) < 0.1 * step
    if span + step > 360 * (1 + 1e-6) + 0.1 * step:
        raise DataError(
            f"longitude covers {span + step:g} degrees, more than once around; select 360 degrees"
        )
    weights = row_weights(lat[rows], None if bounds is None else bounds[rows])
    area = np.repeat(weights[:, None], len(columns), axis=1)
    return Grid("regular", lat[rows], smooth, rows, columns, (len(lat), len(lon)), periodic, area)


def _curvilinear(lat: np.ndarray, lon: np.ndarray, dataset: xr.Dataset, axes: Axes) -> Grid:
    lat, lon = lat.astype(float), lon.astype(float)
    shape = (lat.shape[0], lat.shape[1])
    if not np.isfinite(lat).any():
        raise DataError(f"{axes.latitude}: all values are missing")
    # NEMO and others wrap round in x: the step from the last column to the first is then as short as any.
    xyz = _unit_vectors(lat, lon)
    steps = np.linalg.norm(np.diff(xyz, axis=1), axis=-1)
    closing = np.linalg.norm(xyz[:, 0] - xyz[:, -1], axis=-1)
    periodic = bool(np.nanmedian(closing) < 1.5 * np.nanmedian(steps)) and shape[1] > 3
    area = _cell_area(dataset, axes)
    if area is None:
        down, right = np.gradient(xyz, axis=0), np.gradient(xyz, axis=1)
        area = np.linalg.norm(np.cross(down, right), axis=-1)
    area = np.nan_to_num(area, nan=0.0)
    area = area / area.mean() if area.mean() > 0 else np.ones(shape)
    return Grid("curvilinear", lat, lon, np.arange(shape[0]), np.arange(shape[1]), shape, periodic, area)


def _cell_area(dataset: xr.Dataset, axes: Axes) -> np.ndarray | None:
    for name, variable in dataset.variables.items():
        known = str(name).lower() in ("areacella", "areacello", "cell_area", "area")
        if (known or variable.attrs.get("standard_name") == "cell_area") and set(variable.dims) == {
            axes.y,
            axes.x,
        }:
            return variable.transpose(axes.y, axes.x).values.astype(float)
    return None


def _bounds(dataset: xr.Dataset, coordinate: xr.DataArray) -> np.ndarray | None:
    name = coordinate.attrs.get("bounds", coordinate.encoding.get("bounds"))
    if name not in dataset.variables or dataset[name].shape != (coordinate.size, 2):
        return None
    values = dataset[name].values.astype(float)
    return values if np.isfinite(values).all() else None


def _unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    lat, lon = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _curvilinear_index(grid: Grid, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Nearest cell, then Gauss-Newton steps along the local grid directions in the tangent plane."""
    from scipy.spatial import cKDTree

    xyz = _unit_vectors(grid.latitudes, grid.longitudes)
    flat = np.where(np.isfinite(xyz), xyz, 9.0).reshape(
        -1, 3
    )  # cells without coordinates are nobody's neighbour
    points = _unit_vectors(latitude, longitude)
    distance, nearest = cKDTree(flat).query(points)
    row, column = np.divmod(nearest, grid.shape[1])
    down, right = np.gradient(xyz, axis=0)[row, column], np.gradient(xyz, axis=1)[row, column]
    jacobian = np.stack([down, right], axis=-1)
    offset = np.einsum("pij,pj->pi", np.linalg.pinv(np.nan_to_num(jacobian)), points - xyz[row, column])
    size = np.maximum(np.linalg.norm(down, axis=-1), np.linalg.norm(right, axis=-1))
    index = np.stack([row, column], axis=1) + np.clip(offset, -0.5, 0.5)
    if grid.periodic:
        index[:, 1] = np.mod(index[:, 1], grid.shape[1])
    top = [grid.shape[0] - 1, grid.shape[1] if grid.periodic else grid.shape[1] - 1]
    return np.where((distance <= size)[:, None], np.clip(index, 0, top), np.nan)


def _position(axis: np.ndarray, values: np.ndarray, *, slack: np.ndarray) -> np.ndarray:
    """Fractional index on an ascending axis, continued linearly by half a cell (or to the pole where slack is 90)."""
    index = np.interp(values, axis, np.arange(len(axis)))
    below, above = (axis[0] - values) / (axis[1] - axis[0]), (values - axis[-1]) / (axis[-1] - axis[-2])
    index = np.where(values < axis[0], 0.0 if slack[0] else -below, index)
    return np.where(values > axis[-1], len(axis) - 1 + (0.0 if slack[1] else above), index)


def _wrap(degrees: np.ndarray) -> np.ndarray:
    return np.mod(degrees + 180.0, 360.0) - 180.0


def _spacing(axis: np.ndarray) -> float:
    steps = np.abs(np.diff(axis, axis=-1 if axis.ndim == 1 else 0))
    return float(np.nanmedian(steps[steps > 0])) if (steps > 0).any() else 1.0


def _is_identity(order: np.ndarray, size: int) -> bool:
    return len(order) == size and bool((order == np.arange(size)).all())
