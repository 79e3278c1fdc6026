"""One internal order, the user's order outside: layouts, areas, places of points."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.codec import grid_edges
from sciLDM.domains.climate.grid import Grid, row_weights
from sciLDM.errors import DataError
from tests.climate.fields import curvilinear, make


def grid_of(dataset: xr.Dataset, name: str = "tas") -> Grid:
    return Grid.of(dataset, find_axes(dataset, name))


@given(
    flip=st.booleans(),
    repeat=st.booleans(),
    west=st.sampled_from([0.0, -180.0, -90.0, 30.0]),
    width=st.sampled_from([360.0, 60.0]),
)
def test_native_undoes_canonical(flip: bool, repeat: bool, west: float, width: float) -> None:
    dataset = make(4, flip=flip, repeat=repeat and width == 360, west=west, width=width)
    grid = grid_of(dataset)
    values = dataset["tas"].values
    inside = grid.canonical(values)
    np.testing.assert_array_equal(grid.native(inside), values)
    assert inside.shape[-2:] == (8, 12)
    assert (np.diff(grid.latitude) > 0).all()
    assert (np.diff(grid.longitude) > 0).all()
    assert grid.periodic == (width == 360)
    assert grid.repeats == (repeat and width == 360)


def test_jumps_in_longitude_are_unwrapped() -> None:
    plain = make(3, west=-180.0)
    jumping = plain.assign_coords(lon=("lon", np.mod(plain.lon.values, 360), plain.lon.attrs))
    assert np.diff(jumping.lon.values).min() < 0
    grid = grid_of(jumping)
    assert grid.periodic
    np.testing.assert_array_equal(grid.canonical(jumping["tas"].values), plain["tas"].values)
    backwards = plain.isel(lon=slice(None, None, -1))
    np.testing.assert_array_equal(grid_of(backwards).canonical(backwards["tas"].values), plain["tas"].values)
    assert grid_of(backwards).periodic


def test_a_layout_with_another_origin_is_aligned() -> None:
    a, b = make(3), make(3, west=-180.0, flip=True)
    columns = grid_of(a).align(grid_of(b))
    np.testing.assert_array_equal(grid_of(b).canonical(b["tas"].values)[..., columns], a["tas"].values)
    with pytest.raises(DataError, match="mismatched grids"):
        grid_of(a).align(grid_of(make(3, shape=(8, 16))))
    with pytest.raises(DataError, match="longitudes differ"):
        grid_of(a).align(grid_of(a.assign_coords(lon=("lon", a.lon.values + 10, a.lon.attrs))))


def test_weights_are_areas() -> None:
    # Zones between edges cover sin(upper) - sin(lower) of half the sphere: exact, poles included.
    edges = np.linspace(-90, 90, 13)
    middle = 0.5 * (edges[1:] + edges[:-1])
    zones = np.diff(np.sin(np.deg2rad(edges)))
    np.testing.assert_allclose(row_weights(middle), zones / zones.mean(), rtol=1e-12)
    poles = np.linspace(-90, 90, 19)  # rows on the poles themselves have half a cell each, not none
    weights = row_weights(poles)
    assert weights[0] > 0
    np.testing.assert_allclose(weights.sum(), 19)
    np.testing.assert_allclose(weights[0] / weights.sum(), (1 - np.sin(np.deg2rad(85))) / 2, rtol=1e-12)
    regional = row_weights(np.array([40.0, 50.0, 60.0]))
    zones = np.diff(np.sin(np.deg2rad([35.0, 45.0, 55.0, 65.0])))
    np.testing.assert_allclose(regional, zones / zones.mean(), rtol=1e-12)


def test_bounds_of_the_file_are_used() -> None:
    dataset = make(3)
    bounds = np.stack([dataset.lat.values - 11.25, dataset.lat.values + 11.25], axis=1)
    bounds[0, 1] = -60.0  # an uneven first zone
    dataset = dataset.assign(lat_bnds=(("lat", "bnds"), bounds))
    dataset["lat"].attrs["bounds"] = "lat_bnds"
    zone = np.sin(np.deg2rad(bounds[:, 1])) - np.sin(np.deg2rad(bounds[:, 0]))
    np.testing.assert_allclose(grid_of(dataset).area[:, 0], zone / zone.mean(), rtol=1e-12)


def test_curvilinear_areas_agree_with_regular_ones() -> None:
    regular = make(2, shape=(20, 30), width=30.0)
    lat, lon = np.meshgrid(regular.lat, regular.lon, indexing="ij")
    turned = regular.rename(lat="y", lon="x").drop_vars(["y", "x"])
    turned = turned.assign_coords(
        lat=(("y", "x"), lat, regular.lat.attrs), lon=(("y", "x"), lon, regular.lon.attrs)
    )
    turned["lat"].attrs.pop("axis"), turned["lon"].attrs.pop("axis")
    grid, plain = grid_of(turned), grid_of(regular.isel(lat=slice(0, 10)))
    assert grid.kind == "curvilinear"
    assert not grid.periodic
    ratio = grid.area[1:9, 5] / plain.area[1:9, 5]
    np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.01)


def test_global_curvilinear_grids_wrap() -> None:
    regular = make(2, shape=(8, 24))
    lat, lon = np.meshgrid(regular.lat, regular.lon, indexing="ij")
    turned = regular.rename(lat="y", lon="x").drop_vars(["y", "x"])
    turned = turned.assign_coords(
        nav_lat=(("y", "x"), lat, {"units": "degrees_north"}),
        nav_lon=(("y", "x"), lon, {"units": "degrees_east"}),
    )
    assert grid_of(turned).periodic
    assert grid_edges(grid_of(turned)) == ("replicate", "circular")


@given(west=st.sampled_from([0.0, -180.0]), lat=st.floats(-78, 78), lon=st.floats(-360, 720))
def test_points_lie_where_interpolation_is_exact(west: float, lat: float, lon: float) -> None:
    grid = grid_of(make(2, west=west))
    row, column = grid.index_of(np.array([lat]), np.array([lon]))[0]
    assert np.interp(row, np.arange(8), grid.latitude) == pytest.approx(lat, abs=1e-9)
    step = 30.0
    apart = (grid.longitude[0] + step * column - lon + 180) % 360 - 180
    assert apart == pytest.approx(0, abs=1e-6)


def test_points_outside_are_told() -> None:
    regional = grid_of(make(2, width=60.0, west=-30.0))
    inside = regional.index_of(np.array([31.0, 80.0, 50.0, 29.0]), np.array([0.0, 0.0, 100.0, 359.0]))
    assert np.isfinite(inside).all(axis=1).tolist() == [True, False, False, True]
    np.testing.assert_allclose(inside[3], [0.0, 5.8])  # half a cell below the first row belongs to it
    polar = grid_of(make(2)).index_of(np.array([89.9, -90.0]), np.array([10.0, 10.0]))
    np.testing.assert_allclose(polar[:, 0], [7, 0])


def test_points_on_a_curvilinear_grid() -> None:
    dataset = curvilinear(3)
    grid = grid_of(dataset)
    lat, lon = dataset.nav_lat.values, dataset.nav_lon.values
    found = grid.index_of(
        np.array([lat[3, 4], 0.5 * (lat[3, 4] + lat[3, 5])]),
        np.array([lon[3, 4], 0.5 * (lon[3, 4] + lon[3, 5])]),
    )
    np.testing.assert_allclose(found, [[3, 4], [3, 4.5]], atol=0.03)
    assert np.isnan(grid.index_of(np.array([-10.0]), np.array([5.0]))).all()


def test_edges_follow_the_grid() -> None:
    assert grid_edges(grid_of(make(2))) == ("pole", "circular")
    assert grid_edges(grid_of(make(2, width=60.0))) == ("replicate", "replicate")
    assert grid_of(make(2)).reaches_poles == (True, True)
    belt = make(2).isel(lat=slice(2, 6))
    assert grid_edges(grid_of(belt)) == ("replicate", "circular")


def test_grids_come_back_from_json() -> None:
    for dataset in (make(2, flip=True, repeat=True, west=-180.0), curvilinear(2)):
        grid = grid_of(dataset)
        again = Grid.from_dict(grid.to_dict())
        values = dataset["tas"].values
        np.testing.assert_array_equal(again.native(again.canonical(values)), values)
        assert (again.kind, again.periodic, again.shape) == (grid.kind, grid.periodic, grid.shape)
        np.testing.assert_array_equal(again.area, grid.area)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign_coords(lat=("lat", np.full(8, 10.0), d.lat.attrs)), "repeated"),
        (
            lambda d: d.assign_coords(lat=("lat", np.append(d.lat.values[:-1], np.nan), d.lat.attrs)),
            "missing values",
        ),
        (lambda d: d.assign_coords(lat=("lat", d.lat.values * 2, d.lat.attrs)), r"degrees in \[-90, 90\]"),
        (lambda d: d.isel(lat=slice(0, 1)), "at least 2 x 2"),
        (lambda d: d.assign_coords(lon=("lon", d.lon.values * 1.5, d.lon.attrs)), "more than once around"),
    ],
)
def test_bad_coordinates_are_refused(change: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        grid_of(change(make(2)))  # type: ignore[operator]
