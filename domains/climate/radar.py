r"""Radar composites as short precipitation sequences: counts to rain rates, and one image to many tiles.

    Z [dBZ] = gain * count + offset,    Z [mm^6 m^-3] = a R^b

with the Z-R relation that the radars' owner uses (223 and 1.53 for Finland: Leinonen et al. 2012,
doi:10.1175/JAMC-D-11-056.1; the pySTEPS importer has the same). Rates are averaged over `coarsen x coarsen` cells. One
event has few images and many places: tiles of one size, without missing cells, are runs of one data set, which a model
of trajectories takes as it takes ensemble members.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import xarray as xr

from sciLDM.errors import ConfigError, DataError

__all__ = ["RadarSettings", "rain_tiles"]


@final
@dataclass(frozen=True)
class RadarSettings:
    """From counts to tiles.

    Attributes:
        gain: Reflectivity of one count [dBZ].
        offset: Reflectivity of count 0 [dBZ].
        missing: Count of a cell without data; count 0 has no echo.
        a: Of the Z-R relation.
        b: Of the Z-R relation.
        coarsen: Cells along each axis that are averaged.
        tile: Averaged cells along each axis of a tile.

    Raises:
        ConfigError: Sizes below 1.
    """

    gain: float = 0.5
    offset: float = -32.0
    missing: int = 255
    a: float = 223.0
    b: float = 1.53
    coarsen: int = 4
    tile: int = 16

    def __post_init__(self) -> None:
        if self.coarsen < 1 or self.tile < 1:
            raise ConfigError(f"coarsen and tile must be at least 1, got {self.coarsen} and {self.tile}")


def rain_tiles(counts: xr.DataArray, settings: RadarSettings | None = None) -> xr.Dataset:
    """Rain rates of tiles side by side that miss nothing at any time.

    Args:
        counts: 8-bit counts with the dimensions `time`, `y` and `x`.
        settings: How.

    Returns:
        `rain_rate` [mm/h] with the dimensions `realization` (the tile), `time`, `y`, `x`; `tile_y` and `tile_x` say
        where each tile begins, in cells of the composite.

    Raises:
        DataError: Other dimensions, or no tile without missing cells.
    """
    settings = settings or RadarSettings()
    if set(counts.dims) != {"time", "y", "x"}:
        raise DataError(
            f"radar: expected the dimensions time, y and x, got {', '.join(map(str, counts.dims))}"
        )
    raw = counts.transpose("time", "y", "x").values
    size = settings.coarsen * settings.tile
    places = [
        (y, x)
        for y in range(0, raw.shape[1] - size + 1, size)
        for x in range(0, raw.shape[2] - size + 1, size)
        if not (raw[:, y : y + size, x : x + size] == settings.missing).any()
    ]
    if not places:
        raise DataError(
            f"radar: no tile of {size} x {size} cells is complete; use smaller ones (tile, coarsen)"
        )
    tiles = np.stack([_rates(raw[:, y : y + size, x : x + size], settings) for y, x in places])
    rain = xr.DataArray(
        tiles.astype("f4"), dims=("realization", "time", "y", "x"),
        attrs={"units": "mm h-1", "long_name": "rain rate", "cell_methods": "area: mean"},
    )  # fmt: skip
    begin = np.array(places)
    return xr.Dataset(
        {"rain_rate": rain},
        {
            "time": counts["time"],
            "tile_y": ("realization", begin[:, 0]),
            "tile_x": ("realization", begin[:, 1]),
        },
    )


def _rates(raw: np.ndarray, settings: RadarSettings) -> np.ndarray:
    """Rain rates [mm/h], averaged."""
    power = 10 ** ((settings.gain * raw.astype("f8") + settings.offset) / 10)
    rate = np.where(raw == 0, 0.0, (power / settings.a) ** (1 / settings.b))
    count, height, width = rate.shape
    step = settings.coarsen
    return rate.reshape(count, height // step, step, width // step, step).mean(axis=(2, 4))
