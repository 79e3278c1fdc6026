"""Radar counts become rain rates, tile by tile."""

import numpy as np
import pytest
import xarray as xr

from sciLDM.domains.climate.radar import RadarSettings, rain_tiles
from sciLDM.errors import ConfigError, DataError

SETTINGS = RadarSettings(coarsen=2, tile=4)


def composite() -> xr.DataArray:
    """Two times of 16 x 24 cells: 1 mm/h everywhere but for what is set below."""
    one = round((10 * np.log10(223.0) + 32) / 0.5)
    raw = np.full((2, 16, 24), one, dtype=np.uint8)
    raw[:, :8, :8] = 0
    raw[1, 12, 20] = 255
    return xr.DataArray(raw, dims=("time", "y", "x"), coords={"time": np.array([0, 5], "datetime64[m]")})


def test_rates_follow_from_reflectivity() -> None:
    found = rain_tiles(composite(), SETTINGS)
    assert dict(found.rain_rate.sizes) == {"realization": 5, "time": 2, "y": 4, "x": 4}
    # No echo is no rain, exactly; counts are half decibels, so that rates are known to 8 %.
    assert not found.rain_rate[0].any()
    np.testing.assert_allclose(found.rain_rate[1:], 1.0, rtol=0.04)
    ten = (10 * np.log10(223.0 * 10**1.53) + 32) / 0.5
    raw = composite().copy(data=np.full((2, 16, 24), round(ten), np.uint8))
    np.testing.assert_allclose(rain_tiles(raw, SETTINGS).rain_rate, 10.0, rtol=0.04)


def test_tiles_without_data_are_left_out() -> None:
    found = rain_tiles(composite(), SETTINGS)
    assert (8, 16) not in set(zip(found.tile_y.values.tolist(), found.tile_x.values.tolist(), strict=True))
    mixed = composite()
    mixed[:, 0, 8] = 0  # one cell of four is dry
    np.testing.assert_allclose(rain_tiles(mixed, SETTINGS).rain_rate[1, :, 0, 0], 0.75, rtol=0.04)


def test_what_is_no_composite_is_refused() -> None:
    with pytest.raises(DataError, match="expected the dimensions time, y and x"):
        rain_tiles(composite().rename(x="lon"))
    with pytest.raises(DataError, match="no tile of 64 x 64 cells is complete"):
        rain_tiles(composite(), RadarSettings(coarsen=4, tile=16))
    with pytest.raises(ConfigError, match="coarsen and tile"):
        RadarSettings(tile=0)
