"""Small synthetic climate data: waves with a season, on any grid and in any calendar."""

from typing import Any

import cftime
import numpy as np
import xarray as xr

__all__ = ["curvilinear", "dates", "make", "stored"]

VARIABLES = ("tas", "pr", "siconc")


def dates(count: int, calendar: str | None = None, *, step: int = 1, start: int = 2001) -> Any:
    """Daily dates: numpy's, or cftime's of a calendar."""
    if calendar is None:
        return np.datetime64(f"{start}-01-01", "ns") + np.arange(0, count * step, step) * np.timedelta64(
            1, "D"
        )
    first = cftime.datetime(start, 1, 1, calendar=calendar)
    units = f"days since {start}-01-01"
    return cftime.num2date(np.arange(0, count * step, step), units, calendar=first.calendar)


def make(
    count: int = 120,
    *,
    shape: tuple[int, int] = (8, 12),
    calendar: str | None = None,
    step: int = 5,
    flip: bool = False,
    west: float = 0.0,
    width: float = 360.0,
    repeat: bool = False,
    land: bool = False,
    variables: tuple[str, ...] = ("tas",),
    order: tuple[str, ...] = ("time", "lat", "lon"),
    seed: int = 0,
) -> xr.Dataset:
    """Fields with a mean, a season, waves that travel, noise. Equal places have equal values in every layout.

    Args:
        count: Times.
        shape: Rows and columns.
        calendar: cftime calendar; numpy dates when None.
        step: Days between times.
        flip: Latitude from north to south.
        west: First longitude; -180 gives -180..180.
        width: Degrees of longitude covered; less than 360 is regional.
        repeat: The column at 360 degrees is given again.
        land: Cells without values.
        variables: `tas` (K), `pr` (rain, with zeros), `siconc` (share).
        order: Of the dimensions.
        seed: Of the noise.
    """
    height, columns = shape
    spacing = 180 / height if width == 360 else 5.0
    lat = (
        (-90 + spacing / 2 + spacing * np.arange(height))
        if width == 360
        else 30 + spacing * np.arange(height)
    )
    base = width / columns * np.arange(columns)
    shift = round(west / (width / columns)) if width == 360 else 0
    lon = base + west
    # Values belong to places on the sphere: column j of this layout is column (j + shift) of the one from 0.
    place = (np.arange(columns) + shift) % columns if width == 360 else np.arange(columns)
    rng = np.random.default_rng(seed)
    day = step * np.arange(count)
    angle = 2 * np.pi * np.arange(columns) / columns
    phi = np.deg2rad(lat)
    season = np.cos(2 * np.pi * (day - 200) / 365.25)
    found: dict[str, Any] = {}
    noise = rng.normal(size=(len(VARIABLES), count, height, columns))
    slow = np.cumsum(rng.normal(size=(len(VARIABLES), count, 1, 1)), axis=1) * 0.3
    for k, name in enumerate(VARIABLES):
        wave = np.sin(2 * angle[None, None] + 0.3 * day[:, None, None] + slow[k]) * np.cos(phi)[None, :, None]
        smooth = noise[k] + np.roll(noise[k], 1, axis=2) + np.roll(noise[k], -1, axis=2)
        x = wave + 0.3 * smooth
        values = {
            "tas": 285 - (30 * np.sin(phi) ** 2)[None, :, None] + 8 * np.outer(season, np.sin(phi))[..., None] + 4 * x,
            "pr": np.maximum(x - 0.4, 0.0) ** 1.5 * 4e-5,
            "siconc": np.clip(0.5 + 0.5 * x, 0.0, 1.0),
        }[name].astype(np.float32)  # fmt: skip
        found[name] = values[:, :, place]
    attrs = {
        "tas": {"standard_name": "air_temperature", "long_name": "near-surface temperature", "units": "K",
                "cell_methods": "time: mean"},
        "pr": {"standard_name": "precipitation_flux", "units": "kg m-2 s-1"},
        "siconc": {"standard_name": "sea_ice_area_fraction", "units": "1"},
    }  # fmt: skip
    if land:
        hole = np.zeros((height, columns), dtype=bool)
        hole[height // 3 : height // 2 + 1, 2:5] = True
        for name in found:
            found[name][:, hole[:, place]] = np.nan
    if repeat:
        lon = np.append(lon, lon[0] + 360)
        found = {name: np.concatenate([v, v[..., :1]], axis=-1) for name, v in found.items()}
    if flip:
        lat, found = lat[::-1], {name: v[:, ::-1] for name, v in found.items()}
    dataset = xr.Dataset(
        {n: (("time", "lat", "lon"), found[n], attrs[n]) for n in variables},
        coords={
            "time": ("time", dates(count, calendar, step=step), {"standard_name": "time", "axis": "T"}),
            "lat": ("lat", lat, {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}),
            "lon": ("lon", lon, {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}),
            "height": ((), 2.0, {"units": "m", "positive": "up"}),
        },
        attrs={"title": "synthetic", "source": "waves", "history": "made", "Conventions": "CF-1.8"},
    )
    dataset["time"].encoding = {
        "units": "days since 2000-01-01",
        "calendar": calendar or "proleptic_gregorian",
    }
    for name in variables:
        dataset[name].encoding = {"_FillValue": np.float32(1e20), "zlib": True}
    return dataset.transpose(*order, ...)


def curvilinear(count: int = 60, *, shape: tuple[int, int] = (8, 12), seed: int = 0) -> xr.Dataset:
    """A regional grid with 2-D coordinates, turned by 20 degrees."""
    plain = make(count, shape=shape, width=60.0, west=0.0, seed=seed)
    y, x = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    turn = np.deg2rad(20)
    lat = 45 + 2.0 * (np.cos(turn) * y - np.sin(turn) * x)
    lon = 5 + 2.5 * (np.sin(turn) * y + np.cos(turn) * x)
    data = plain.rename(lat="j", lon="i").drop_vars(["j", "i"])
    return data.assign_coords(
        nav_lat=(("j", "i"), lat, {"standard_name": "latitude", "units": "degrees_north"}),
        nav_lon=(("j", "i"), lon, {"standard_name": "longitude", "units": "degrees_east"}),
    )


def stored(dataset: xr.Dataset, path: Any) -> str:
    """Written as NetCDF; the path as text."""
    dataset.to_netcdf(path)
    return str(path)
