r"""Rotated poles: where the cells of a regional model lie.

Regional models put their pole where their region becomes the equator. Files that call the rotated coordinates `lat` and
`lon` say nothing about it; `with_places` adds what is missing (CF conventions 1.11, appendix F).
"""

import numpy as np
import xarray as xr
from jaxtyping import Float

from sciLDM.errors import DataError

__all__ = ["places", "with_places"]


def places(
    latitude: Float[np.ndarray, "*cell"],
    longitude: Float[np.ndarray, "*cell"],
    *,
    pole_latitude: float,
    pole_longitude: float,
) -> tuple[Float[np.ndarray, "*cell"], Float[np.ndarray, "*cell"]]:
    """Degrees north and east (-180 to 180) of rotated coordinates.

    Args:
        latitude: Rotated, in degrees.
        longitude: Rotated, in degrees.
        pole_latitude: Degrees north of the rotated pole (`grid_north_pole_latitude`).
        pole_longitude: Degrees east of the rotated pole.
    """
    lat, lon, tilt = np.deg2rad(latitude), np.deg2rad(longitude), np.deg2rad(90.0 - pole_latitude)
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    north = np.arcsin(np.clip(np.sin(tilt) * x + np.cos(tilt) * z, -1.0, 1.0))
    east = np.arctan2(y, np.cos(tilt) * x - np.sin(tilt) * z)
    return np.rad2deg(north), np.mod(np.rad2deg(east) + pole_longitude + 360.0, 360.0) - 180.0


def with_places(
    dataset: xr.Dataset,
    *,
    pole_latitude: float,
    pole_longitude: float,
    rotated: tuple[str, str] = ("lat", "lon"),
) -> xr.Dataset:
    """A data set in rotated coordinates with `rlat`, `rlon`, two-dimensional `lat` and `lon`, and a grid mapping.

    Args:
        dataset: With rotated latitudes and longitudes as 1-D coordinates.
        pole_latitude: Degrees north of the rotated pole; 39.25 for EURO-CORDEX.
        pole_longitude: Degrees east of the rotated pole; -162 for EURO-CORDEX.
        rotated: Names of the rotated coordinates.

    Raises:
        DataError: No such 1-D coordinates.
    """
    if any(name not in dataset.coords or dataset[name].ndim != 1 for name in rotated):
        raise DataError(f"expected 1-D coordinates {rotated}, got {', '.join(map(str, dataset.coords))}")
    found = dataset.rename({rotated[0]: "rlat", rotated[1]: "rlon"})
    for name, axis, kind in (("rlat", "Y", "latitude"), ("rlon", "X", "longitude")):
        found[name].attrs = {"standard_name": f"grid_{kind}", "units": "degrees", "axis": axis}
    rlat, rlon = np.meshgrid(found["rlat"].values, found["rlon"].values, indexing="ij")
    lat, lon = places(rlat, rlon, pole_latitude=pole_latitude, pole_longitude=pole_longitude)
    mapping = {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": pole_latitude,
        "grid_north_pole_longitude": pole_longitude,
    }
    found = found.assign_coords(
        lat=(("rlat", "rlon"), lat, {"standard_name": "latitude", "units": "degrees_north"}),
        lon=(("rlat", "rlon"), lon, {"standard_name": "longitude", "units": "degrees_east"}),
        rotated_pole=((), np.int32(0), mapping),
    )
    for name in found.data_vars:
        if {"rlat", "rlon"} <= set(found[name].dims):
            found[name].attrs["grid_mapping"] = "rotated_pole"
    return found
