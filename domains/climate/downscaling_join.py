r"""Fine fields and coarse predictors of the same dates as one data set, from which a joint model can be trained.

Coarse predictors become cubic splines at the fine cells. Amounts (precipitation) enter by their square root, in which
an error of one size suits large and small ones. A fine field with a predictor of its own name is kept as its departure
from the predictor's splines,

    departure = fine - S coarse        (amounts: sqrt(fine) - S sqrt(coarse)),

so that latents are spent on what is not known already; sums and squares bring the field back. `Interpolation` undoes
`S`, so that each coarse value can be observed once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import xarray as xr
from jaxtyping import Float

from sciLDM.domains.climate.axes import Axes, find_axes
from sciLDM.domains.climate.baselines_downscaling import bicubic
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.states import oriented
from sciLDM.domains.climate.units import apply, convert
from sciLDM.errors import DataError

__all__ = ["PREFIX", "Interpolation", "coarse_places", "coarse_times", "coarse_values", "gridded", "joined"]

PREFIX = "coarse_"
"""Of the predictors' names in a joint data set."""

_AMOUNTS = ("pr", "tp", "precip", "rain", "rainfall", "precipitation", "prcp", "rr")
_LEAST = 0.02
"""Smallest singular value of the interpolation that counts, as a share of the largest."""


def joined(
    coarse: xr.Dataset, fine: xr.Dataset, *, units: Mapping[str, str] | None = None, departures: bool = True
) -> xr.Dataset:
    """Fine fields and coarse predictors of the same dates, to train one model of both.

    Args:
        coarse: Predictors on a grid with 1-D latitude and longitude, one value a date.
        fine: Targets on any grid whose cells have latitudes and longitudes (`rotated.with_places` for a rotated pole).
        units: Where the files do not say: `{"tas": "degC", "coarse_tas": "K"}`, coarse ones with the prefix.
        departures: Keep fine fields as departures from the predictor of their name, `<name>_departure`. Without, or
            where there is no such predictor, they stay as they are; better where coarse and fine are of different days.

    Returns:
        The fine variables, and `coarse_<name>` for each of `coarse`, at the dates that both have (noon and midnight are
        one date of daily data).

    Raises:
        DataError: No units, other grids or regions, no common dates, missing values, levels or members.
    """
    targets, predictors = gridded(fine, "fine"), gridded(coarse, "coarse")
    stated = _stated(
        {n: (fine, n) for n in targets} | {PREFIX + n: (coarse, n) for n in predictors}, units or {}
    )
    axes = next(iter(targets.values()))
    grid = Grid.of(fine, axes)
    if grid.kind == "plain":
        raise DataError("fine: its cells have no latitude and longitude; add them as coordinates")
    assert axes.time is not None
    rows, theirs = _common(Times.of(fine[axes.time].values), coarse_times(coarse, predictors))
    if not len(rows):
        raise DataError("coarse and fine have no common dates; expected the same days in one calendar")
    kept = fine[list(targets)].isel({axes.time: rows})
    mapping = {k: v for k, v in kept[next(iter(targets))].attrs.items() if k == "grid_mapping"}
    found: dict[str, xr.Variable] = {}
    for name in targets:
        kept[name].attrs["units"] = stated[name]
    for name, own in predictors.items():
        into = stated[name] if name in targets else stated[PREFIX + name]
        values = splines(_in_units(coarse, name, stated[PREFIX + name], into), name, own, grid, theirs)
        lat, lon = coarse_places(coarse, own)
        root = _is_amount(coarse, name)
        attrs = {
            "long_name": f"{'square root of ' if root else ''}coarse {coarse[name].attrs.get('long_name', name)}",
            "units": f"({into})0.5" if root else into,
            "predictor": name,
            "predictor_units": into,
            "predictor_root": int(root),
            "predictor_latitude": lat,
            "predictor_longitude": lon,
            **mapping,
        }
        dims = (axes.time, axes.y, axes.x)
        found[PREFIX + name] = xr.Variable(dims, grid.native(values).astype(np.float32), attrs)
        if departures and name in targets:
            found[name + "_departure"] = _departure(kept[name], targets[name], grid, values, root).variable
    left = [n for n in targets if n + "_departure" not in found]
    together = kept[left].assign({n: found[n] for n in sorted(found, key=lambda n: n.startswith(PREFIX))})
    return together.assign_coords({n: c for n, c in kept.coords.items() if n not in together.coords})


def _departure(field: xr.DataArray, axes: Axes, grid: Grid, coarse: np.ndarray, root: bool) -> xr.DataArray:
    array = oriented(field, axes)
    values = grid.canonical(np.asarray(array.values, dtype=np.float64))
    values = np.sqrt(values.clip(min=0)) if root else values
    label = field.attrs.get("long_name", field.name)
    attrs = {
        "long_name": f"departure of {'the square root of ' if root else ''}{label} from its coarse splines",
        "units": f"({field.attrs['units']})0.5" if root else field.attrs["units"],
        "target": str(field.name),
        "target_root": int(root),
        "target_attrs": json.dumps(dict(field.attrs), default=str),
        **{k: v for k, v in field.attrs.items() if k == "grid_mapping"},
    }
    made = array.copy(data=grid.native(values - coarse).astype(np.float32)).transpose(*field.dims)
    made.attrs, made.encoding = attrs, {}
    return made


def _stated(told: Mapping[str, tuple[xr.Dataset, str]], given: Mapping[str, str]) -> dict[str, str]:
    """Units of each."""
    if unknown := sorted(set(given) - set(told)):
        raise DataError(f"units: no variable {unknown[0]!r}; there are {', '.join(told)}")
    stated = {name: given.get(name) or ds[n].attrs.get("units", "") for name, (ds, n) in told.items()}
    if silent := [name for name, unit in stated.items() if not unit]:
        example = ", ".join(f"{name!r}: '...'" for name in silent)
        raise DataError(f"no units for {', '.join(silent)}: say them, units={{{example}}}")
    return stated


def _in_units(dataset: xr.Dataset, name: str, given: str | None, wanted: str) -> xr.Dataset:
    conversion, _ = convert(name, given, wanted)
    own = dataset[name]
    return dataset[[name]].assign({name: own.copy(data=apply(own.values, conversion))})


@final
@dataclass(frozen=True, eq=False)
class Interpolation:
    r"""Splines `S` from a coarse grid to the fine cells, and what undoes them: `M S c = V c` for all coarse fields `c`.

    With singular values `S = U diag(s) V`, `M = diag(1 / s) U^T`. Rows of `V` are orthonormal, so that equal errors of
    all coarse cells are equal errors of all values of `V c`. Combinations of coarse cells that hardly reach a fine cell
    are left out.

    Attributes:
        splines: `S`.
        undone: `M`.
        basis: `V`.
    """

    splines: Float[np.ndarray, "cell coarse"]
    undone: Float[np.ndarray, "value cell"]
    basis: Float[np.ndarray, "value coarse"]

    @staticmethod
    def of(
        grid: Grid, latitude: Float[np.ndarray, "row"], longitude: Float[np.ndarray, "column"]
    ) -> "Interpolation":
        """Between a regular coarse grid, ascending, and a fine one."""
        count = len(latitude) * len(longitude)
        unit = np.eye(count).reshape(count, len(latitude), len(longitude))
        made = bicubic(unit, latitude, longitude, grid.latitudes, _turned(grid.longitudes, longitude))
        matrix = made.reshape(count, -1).T
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        kept = s > _LEAST * s.max()
        return Interpolation(matrix, (u[:, kept] / s[kept]).T, v[kept])

    def smooth(self, x: Float[np.ndarray, "*case cell"]) -> Float[np.ndarray, "*case cell"]:
        """The nearest fields that are splines of a coarse field."""
        return x @ self.undone.T @ self.basis @ self.splines.T


def gridded(dataset: xr.Dataset, which: str) -> dict[str, Axes]:
    """Gridded variables, each with its axes."""
    found = {}
    for name in map(str, dataset.data_vars):
        if dataset[name].ndim < 2 or dataset[name].dtype.kind not in "fiu" or "bnds" in name:
            continue
        axes = find_axes(dataset, name)
        if axes.runs is not None or axes.extra:
            raise DataError(f"{which} {name!r}: select one of {axes.runs or axes.extra[0]!r} first")
        found[name] = axes
    if not found:
        raise DataError(f"{which}: no gridded variable that can be used, got {list(dataset.data_vars)}")
    return found


def coarse_times(coarse: xr.Dataset, predictors: Mapping[str, Axes]) -> Times:
    names = {axes.time for axes in predictors.values()}
    if len(names) > 1 or None in names:
        raise DataError("coarse: expected one time dimension for all predictors; put them on one")
    return Times.of(coarse[names.pop()].values)


def coarse_places(coarse: xr.Dataset, axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes, ascending."""
    grid = Grid.of(coarse, axes)
    if grid.kind != "regular":
        raise DataError(
            f"coarse: expected a grid with 1-D latitude and longitude, got a {grid.kind} one; regrid it"
        )
    return grid.latitude, grid.longitude


def _common(fine: Times, coarse: Times) -> tuple[np.ndarray, np.ndarray]:
    """Rows of fine dates that have a coarse one, in order of time, and rows of those."""
    alike = {"standard", "gregorian", "proleptic_gregorian"}
    if fine.calendar != coarse.calendar and not {fine.calendar, coarse.calendar} <= alike:
        raise DataError(
            f"calendars differ: fine {fine.calendar!r}, coarse {coarse.calendar!r}; convert one with `convert_calendar`"
        )
    step = min(_typical_step(fine), _typical_step(coarse))
    keys = [_keys(times, step) for times in (fine, coarse)]
    for which, key in zip(("fine", "coarse"), keys, strict=True):
        if len(np.unique(key)) < len(key):
            raise DataError(f"{which}: several states of one date; take their mean first (`resample`)")
    _, rows, theirs = np.intersect1d(*keys, return_indices=True)
    return rows, theirs


def _typical_step(times: Times) -> float:
    gaps = np.diff(np.unique(times.seconds))
    return float(np.median(gaps)) if len(gaps) else 86400.0


def _keys(times: Times, step: float) -> np.ndarray:
    """What equal dates share: the month, the day, or the second, as the step asks."""
    if step > 27 * 86400:
        return np.array([12 * d.year + d.month for d in times.dates])
    return np.floor(times.seconds / 86400) if step > 0.99 * 86400 else np.round(times.seconds)


def splines(coarse: xr.Dataset, name: str, axes: Axes, grid: Grid, rows: np.ndarray) -> np.ndarray:
    """Cubic splines at the fine cells, `[time, H, W]` in the internal order; amounts by their square root."""
    lat, lon = coarse_places(coarse, axes)
    fine_lon = _turned(grid.longitudes, lon)
    outside = (grid.latitudes < 2 * lat[0] - lat[1]) | (grid.latitudes > 2 * lat[-1] - lat[-2])
    outside |= (fine_lon < 2 * lon[0] - lon[1]) | (fine_lon > 2 * lon[-1] - lon[-2])
    if outside.mean() > 0.5:
        raise DataError(
            f"mismatched grids: {outside.mean():.0%} of the fine cells ({grid}) lie outside the coarse grid "
            f"({Grid.of(coarse, axes)}); "
            "coordinates of a rotated pole are no latitudes (`rotated.with_places`)"
        )
    return bicubic(coarse_values(coarse, name, axes)[rows], lat, lon, grid.latitudes, fine_lon)


def coarse_values(coarse: xr.Dataset, name: str, axes: Axes) -> np.ndarray:
    """`[time, row, column]` in ascending order; amounts by their square root."""
    own = Grid.of(coarse, axes)
    array = oriented(coarse[name], axes)
    values = own.canonical(np.asarray(array.values, dtype=np.float64).reshape(-1, *own.native_shape))
    if not np.isfinite(values).all():
        raise DataError(f"coarse {name!r}: missing values; fill them, or leave it out")
    return np.sqrt(values.clip(min=0)) if _is_amount(coarse, name) else values


def _is_amount(dataset: xr.Dataset, name: str) -> bool:
    known = str(dataset[name].attrs.get("standard_name", ""))
    return "precipitation" in known or "rainfall" in known or name.lower() in _AMOUNTS


def _turned(longitude: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Longitudes in the turn of others."""
    centre = (like[0] + like[-1]) / 2
    return centre + np.mod(longitude - centre + 180.0, 360.0) - 180.0
