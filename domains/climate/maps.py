"""Maps in one style: members, mean, spread, truth, observations. With coastlines when cartopy is installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.outputs import NUMBER
from sciLDM.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

__all__ = ["draw_maps", "posterior_maps"]

_SEQUENTIAL, _DIVERGING = "viridis", "RdBu_r"


def draw_maps(
    fields: Mapping[str, Float[np.ndarray, "row column"]],
    grid: Grid,
    *,
    units: str = "",
    columns: int = 4,
    spread: Sequence[str] = (),
    points: Mapping[str, Float[np.ndarray, "place 2"]] | None = None,
    centre: float | None = None,
) -> Figure:
    """Maps side by side; all share one colour scale, but for those named in `spread`, which share another.

    Args:
        fields: By title, on the internal grid; NaN stays white.
        grid: Of the fields.
        units: On the colour bars.
        columns: Maps a row.
        spread: Titles of maps of spread, from 0 upwards.
        points: By title, latitude and longitude of observations drawn on that map.
        centre: Value that is white in a diverging scale; a sequential scale when None.

    Raises:
        MissingExtra: matplotlib is absent.
        DataError: No fields.
    """
    if not fields:
        raise DataError("no maps to draw")
    try:
        from matplotlib.figure import Figure as NewFigure
    except ModuleNotFoundError as error:
        raise MissingExtra("maps need matplotlib: pip install matplotlib") from error
    columns = min(columns, len(fields))
    rows = -(-len(fields) // columns)
    high, wide = grid.shape
    width = 2.6
    figure = NewFigure(
        figsize=(width * columns + 0.6, (width * min(max(high / wide, 0.35), 1.3) + 0.5) * rows)
    )
    figure.patch.set_alpha(0.0)
    figure.set_layout_engine("constrained")
    carto = _projection(grid)
    shown: dict[bool, tuple[Any, list[Any]]] = {}
    for k, (title, values) in enumerate(fields.items()):
        options = {} if carto is None else {"projection": carto}
        ax = figure.add_subplot(rows, columns, k + 1, **options)
        wide_scale = title in spread
        limits = _limits([v for t, v in fields.items() if (t in spread) == wide_scale], wide_scale, centre)
        cmap = _DIVERGING if centre is not None and not wide_scale else _SEQUENTIAL
        image = _one(ax, values, grid, carto, vmin=limits[0], vmax=limits[1], cmap=cmap)
        for place in () if points is None or title not in points else points[title]:
            _dot(ax, place, carto)
        ax.set_title(title, fontsize=8)
        shown.setdefault(wide_scale, (image, []))[1].append(ax)
    for is_spread, (image, axes) in shown.items():
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, aspect=30)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(f"{'spread ' if is_spread else ''}[{units}]" if units else "", fontsize=8)
    return figure


def posterior_maps(
    posterior: xr.Dataset,
    name: str,
    *,
    truth: xr.DataArray | None = None,
    observed: xr.DataArray | None = None,
    members: int = 2,
) -> Figure:
    """One date of a reconstruction: observations, mean, spread, members, truth.

    Args:
        posterior: A result of `reconstruct`, one date selected.
        name: Of the variable.
        truth: The field itself.
        observed: What was observed, NaN elsewhere, on the same grid.
        members: How many, where `<name>_members` is there.

    Raises:
        DataError: More than one date or level.
    """
    from sciLDM.domains.climate.axes import find_axes

    axes = find_axes(posterior, name)
    grid = Grid.of(posterior, axes)
    if set(posterior[name].dims) != {axes.y, axes.x}:
        raise DataError(f"posterior_maps: select one date and level, got {dict(posterior[name].sizes)}")

    def values(array: xr.DataArray) -> np.ndarray:
        return grid.canonical(np.asarray(array.transpose(axes.y, axes.x).values, dtype=float))

    found: dict[str, np.ndarray] = {}
    points = None
    if observed is not None:
        found["observations"] = values(observed)
    if truth is not None:
        found["truth"] = values(truth)
    found["mean"] = values(posterior[name])
    if observed is not None and grid.kind != "plain":
        seen = np.isfinite(found["observations"])
        points = {"mean": np.stack([grid.latitudes[seen], grid.longitudes[seen]], axis=1)}
    if f"{name}_members" in posterior:
        drawn = posterior[f"{name}_members"]
        found |= {
            f"member {k}": values(drawn.isel({NUMBER: k})) for k in range(min(members, drawn.sizes[NUMBER]))
        }
    if f"{name}_std" in posterior:
        found["standard deviation"] = values(posterior[f"{name}_std"])
    units = str(posterior[name].attrs.get("units", ""))
    return draw_maps(found, grid, units=units, spread=("standard deviation",), points=points)


def _one(ax: Any, values: np.ndarray, grid: Grid, carto: Any, **options: Any) -> Any:
    if grid.kind == "plain":
        image = ax.imshow(values, origin="lower", interpolation="nearest", **options)
        ax.set_xticks([])
        ax.set_yticks([])
        return image
    lon, lat = grid.longitudes, grid.latitudes
    if not np.isfinite(lat + lon).all():
        return ax.imshow(values, origin="lower", interpolation="nearest", **options)
    if carto is None:
        image = ax.pcolormesh(lon, lat, values, shading="nearest", rasterized=True, **options)
        ax.set_aspect(1 / max(float(np.cos(np.deg2rad(lat.mean()))), 0.3))
        ax.tick_params(labelsize=6, length=2)
        return image
    from cartopy.crs import PlateCarree

    image = ax.pcolormesh(
        lon, lat, values, shading="nearest", transform=PlateCarree(), rasterized=True, **options
    )
    ax.coastlines(linewidth=0.5)
    return image


def _dot(ax: Any, place: np.ndarray, carto: Any) -> None:
    options: dict[str, Any] = {}
    if carto is not None:
        from cartopy.crs import PlateCarree

        options["transform"] = PlateCarree()
    ax.plot(place[1], place[0], ".", color="black", markersize=2, **options)


def _projection(grid: Grid) -> Any:
    """A cartopy projection; None without cartopy or without coordinates.

    Coastlines need files that cartopy fetches once; where it cannot, the map is drawn without cartopy.
    """
    if grid.kind == "plain" or find_spec("cartopy") is None:
        return None
    try:
        from cartopy.crs import PlateCarree
        from cartopy.io import shapereader

        shapereader.natural_earth("110m", "physical", "coastline")
    except Exception:  # no network, no cache: a picture without coastlines is better than none
        return None
    return PlateCarree(central_longitude=float(np.mean(grid.longitudes)))


def _limits(values: Sequence[np.ndarray], is_spread: bool, centre: float | None) -> tuple[float, float]:
    known = np.concatenate([v[np.isfinite(v)] for v in values])
    if not known.size:
        return 0.0, 1.0
    if is_spread:
        return 0.0, max(float(np.quantile(known, 0.99)), 1e-12)
    low, high = (float(v) for v in np.quantile(known, [0.005, 0.995]))
    if centre is not None:
        half = max(abs(low - centre), abs(high - centre), 1e-12)
        return centre - half, centre + half
    return low, max(high, low + 1e-12)
