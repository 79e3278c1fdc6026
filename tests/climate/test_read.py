"""Whatever the container, the same states; whatever is wrong with it, said before any training."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.read import Source, open_source, stage
from sciLDM.domains.climate.settings import MaskSettings
from sciLDM.domains.climate.states import States, load_states
from sciLDM.errors import DataError
from tests.climate.fields import curvilinear, make, stored


def load(data: object, **options: object) -> States:
    source = open_source(data, **options)  # type: ignore[arg-type]
    return states(source)


def states(source: Source) -> States:
    try:
        return load_states(source, MaskSettings(), (), lambda *_: None)
    finally:
        source.close()


@pytest.fixture(scope="module")
def plain() -> xr.Dataset:
    return make(40)


def test_every_container_gives_the_same_states(plain: xr.Dataset, tmp_path: Path) -> None:
    expected = load(plain)
    path = stored(plain, tmp_path / "all.nc")
    parts = tmp_path / "parts"
    parts.mkdir()
    for k in range(4):
        stored(plain.isel(time=slice(10 * k, 10 * k + 10)), parts / f"part{3 - k}.nc")
    plain.drop_encoding().to_zarr(tmp_path / "all.zarr", zarr_format=3, consolidated=False)
    others = {
        "file": path,
        "glob": str(parts / "part*.nc"),
        "folder": str(parts),
        "list": [str(parts / f"part{k}.nc") for k in range(4)],
        "zarr": str(tmp_path / "all.zarr"),
        "dask": plain.chunk(time=7, lat=4),
        "array": plain["tas"],
        "order": plain.transpose("lat", "lon", "time"),
        "staged": stage(plain.chunk(time=7), tmp_path / "staged"),
    }
    for name, other in others.items():
        found = load(other)
        np.testing.assert_array_equal(found.values, expected.values, err_msg=name)
        np.testing.assert_array_equal(found.times.seconds, expected.times.seconds, err_msg=name)
        assert found.runs == ("",), name
        assert found.follows.sum() == 39, name


def test_equal_data_are_staged_once(plain: xr.Dataset, tmp_path: Path) -> None:
    first = stage(plain, tmp_path)
    assert stage(plain.copy(deep=True), tmp_path) == first
    assert stage(plain + 1, tmp_path) != first


def test_axes_are_found_by_attributes_not_position(plain: xr.Dataset) -> None:
    odd = plain.rename(lat="a", lon="b", time="c").transpose("b", "c", "a")
    axes = find_axes(odd, "tas")
    assert (axes.y, axes.x, axes.time, axes.latitude, axes.longitude) == ("a", "b", "c", "a", "b")
    bare = plain.copy()
    for name in ("lat", "lon", "time"):
        bare[name].attrs = {}
    assert find_axes(bare, "tas").x == "lon"
    np.testing.assert_array_equal(load(odd).values, load(plain).values)


def test_levels_become_channels_and_members_become_runs(plain: xr.Dataset) -> None:
    stacked = xr.concat([plain.assign_coords(number=k) + k for k in range(3)], dim="number", join="exact")
    levels = xr.concat(
        [stacked, stacked + 100.0],
        dim=xr.Variable("plev", [850.0, 500.0], {"units": "hPa", "axis": "Z"}),
        join="exact",
    )
    found = load(levels)
    assert [c.label for c in found.channels] == ["tas[0]", "tas[1]"]
    assert found.runs == ("0", "1", "2")
    base = load(plain).values[:, 0]
    np.testing.assert_allclose(found.values[40:80, 1], base + 101, rtol=1e-6)
    assert not found.follows[[0, 40, 80]].any()


def test_files_of_the_same_dates_are_runs(plain: xr.Dataset, tmp_path: Path) -> None:
    for name in ("ssp126_x", "ssp585_x"):
        stored(plain, tmp_path / f"tas_{name}.nc")
    found = load(str(tmp_path / "*.nc"))
    assert found.runs == ("tas_ssp126_x", "tas_ssp585_x")
    assert len(found.times) == 80


def test_files_of_different_variables_are_put_side_by_side(tmp_path: Path) -> None:
    both = make(30, variables=("tas", "pr"))
    for name in ("tas", "pr"):
        stored(both[[name]], tmp_path / f"{name}.nc")
    found = load(str(tmp_path / "*.nc"), variables=["tas", "pr"])
    np.testing.assert_array_equal(found.values, load(both).values)
    stored(both[["pr"]].isel(time=slice(0, 20)), tmp_path / "pr.nc")
    with pytest.raises(DataError, match="mismatched grids or times"):
        load(str(tmp_path / "*.nc"), variables=["tas", "pr"])


def test_dates_may_lie_beside_the_time_dimension(plain: xr.Dataset) -> None:
    nemo = plain.rename(time="time_counter").assign_coords(time_counter=("time_counter", np.arange(40.0)))
    nemo["time_counter"].attrs = {"axis": "T"}
    nemo = nemo.assign_coords(time_centered=("time_counter", plain["time"].values, {"standard_name": "time"}))
    np.testing.assert_array_equal(load(nemo).times.seconds, load(plain).times.seconds)


def test_curvilinear_and_plain_grids(tmp_path: Path) -> None:
    twod = curvilinear(20)
    found = load(stored(twod.reset_coords(["nav_lat", "nav_lon"]), tmp_path / "nemo.nc"))
    assert found.grid.kind == "curvilinear"
    np.testing.assert_array_equal(found.values[:, 0], twod["tas"].values)
    radar = twod.drop_vars(["nav_lat", "nav_lon"]).rename(j="y", i="x")
    assert load(radar).grid.kind == "plain"
    assert (load(radar).grid.area == 1).all()


def test_what_is_left_out_is_said(plain: xr.Dataset) -> None:
    holes = plain.copy(deep=True)
    holes["tas"][3] = np.nan
    holes["tas"][5, 2, 2] = np.nan
    holes = xr.concat([holes, holes.isel(time=[7])], dim="time").isel(time=[1, 0, *range(2, 41)])
    static = holes.assign(
        orog=(("lat", "lon"), np.ones((8, 12))), lat_bnds=(("lat", "bnds"), np.zeros((8, 2)))
    )
    found = load(static)
    text = " | ".join(found.notes)
    assert "1 of 41 times are missing altogether" in text
    assert "2001-01-16" in text
    assert "1 times occur twice" in text
    assert "not in order" in text
    assert "variables left out (no time, or no grid): orog" in text
    assert "further values (0.03%) are missing" in text
    assert "1 gaps or irregular steps" in text
    assert len(found.times) == 39
    assert found.exists.all()
    assert (np.diff(found.times.seconds) > 0).all()


def test_undeclared_fill_values_are_missing(plain: xr.Dataset) -> None:
    filled = plain.copy(deep=True)
    filled["tas"][:, 0, 0] = 1e20
    filled["tas"][4, 1, 1] = 9.96921e36
    found = load(filled)
    assert not found.exists[0, 0, 0]
    assert np.isnan(found.values[4, 0, 1, 1])


def test_a_mask_variable_decides(plain: xr.Dataset) -> None:
    sea = plain.assign(lsm=(("lat", "lon"), (np.arange(96).reshape(8, 12) % 2).astype(float)))
    source = open_source(sea, mask="lsm")
    found = load_states(source, MaskSettings("lsm", invert=True), (), lambda *_: None)
    assert found.exists[0, 0].tolist() == [True, False] * 6
    with pytest.raises(DataError, match="leaves no cell"):
        load_states(source, MaskSettings("lsm", above=2.0), (), lambda *_: None)


def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.nc"
    path.write_bytes(b"this is no NetCDF")
    return str(path)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda d, _t: d.isel(time=0, drop=True), "no variable with two horizontal dimensions and time.*tas"),
        (lambda d, _t: d.isel(lat=0, drop=True), "no variable with two horizontal dimensions"),
        (lambda d, _t: d.drop_vars("time").rename(time="t"), "dimension 't' has no dates"),
        (lambda d, _t: d.where(False), "'tas' has no finite value at any time"),
        (lambda d, _t: d.isel(time=slice(0, 2)), "only 2 usable times"),
        (lambda d, t: str(t / "nothing.nc"), "there is no .*nothing.nc.*data cards.*ncep_slp"),
        (lambda d, t: str(t / "none*.nc"), "no file matches"),
        (lambda d, t: broken(t), "cannot read .*broken.nc"),
        (lambda d, t: "qm9", "is of the domain 'molecules'"),
        (lambda d, _t: d.assign_coords(time=np.arange(40)), "expected dates"),
        (
            lambda d, _t: d.rename(lat="cell").isel(lon=0, drop=True).assign_coords(
                lat=("cell", np.linspace(-80, 80, 8), {"units": "degrees_north"}),
                lon=("cell", np.linspace(0, 300, 8), {"units": "degrees_east"}),
            ).drop_vars("cell"),
            "no variable with two horizontal dimensions",
        ),
    ],
)  # fmt: skip
def test_bad_data_are_refused(plain: xr.Dataset, tmp_path: Path, make_it: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(make_it(plain, tmp_path))  # type: ignore[operator]


def test_unknown_and_unsuitable_variables_are_named(plain: xr.Dataset) -> None:
    with pytest.raises(DataError, match=r"no variable 'tass'.*did you mean 'tas'"):
        load(plain, variables=["tass"])
    static = plain.assign(orog=(("lat", "lon"), np.ones((8, 12))))
    with pytest.raises(DataError, match="no time found"):
        load(static, variables=["orog"])


def test_other_grids_among_the_files_are_refused(plain: xr.Dataset, tmp_path: Path) -> None:
    stored(plain.isel(time=slice(0, 20)), tmp_path / "a.nc")
    late = plain.isel(time=slice(20, 40))
    stored(late.isel(lat=slice(None, None, -1)), tmp_path / "b.nc")
    with pytest.raises(DataError, match="run in another order"):
        load(str(tmp_path / "*.nc"))
    stored(late.isel(lat=slice(0, 7)), tmp_path / "b.nc")
    with pytest.raises(DataError, match="mismatched grids"):
        load(str(tmp_path / "*.nc"))


def test_files_in_the_shared_folder(data_root: Path) -> None:
    slp = load("ncep_slp")
    assert slp.values.shape == (2922, 1, 17, 33)
    assert slp.step.seconds == 86400
    assert slp.follows.sum() == 2921
    pcm = load("pcm_trefht")
    assert len(pcm.runs) == 5
    assert pcm.step.months == 12
    assert pcm.grid.periodic
    assert pcm.follows.sum() == 5 * 109  # though the month of its dates drifts
    ipsl = load("ipsl_tas")
    assert len(ipsl.runs) == 2
    assert ipsl.step.months == 1
    winters = load(str(data_root / "climate" / "downscaling" / "cordex_iberia_tas_hist.nc"))
    assert (~winters.follows).sum() == 16
    radar = load("fmi_radar")
    assert radar.grid.kind == "plain"
    assert str(radar.step) == "5 min"
