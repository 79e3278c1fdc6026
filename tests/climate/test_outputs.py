"""What leaves the model: CF layout, files, posteriors in the observations' layout, errors said clearly."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.climate import Climate, ClimateCodec
from sciLDM.domains.climate.outputs import read_dataset, write_dataset
from sciLDM.domains.climate.units import convert
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.operators.averaging import BlockMean
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource
from tests.climate.fields import curvilinear, make


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def codec_of(data: xr.Dataset, tmp_path: Path, **options: Any) -> ClimateCodec:
    settings = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,))
    domain = Climate(data, autoencoder=settings, **options)
    codec = domain.codec(domain.prepare(tmp_path, silent).state)
    assert isinstance(codec, ClimateCodec)
    return codec


def posterior_of(codec: ClimateCodec, truth: xr.Dataset, task: Any, *, spread: float = 0.5) -> Posterior:
    """What a perfect model would return: the truth, with members about it."""
    raw = np.stack(
        [codec.template.grid.canonical(truth[n].transpose("time", ...).values) for n in codec.template.names],
        1,
    )
    cases = len(task.observation.values)
    padded = np.concatenate([raw, np.repeat(raw[-1:], cases * codec.frames - len(raw), axis=0)])
    x = torch.from_numpy(np.nan_to_num(padded)).float().unflatten(0, (cases, codec.frames)).transpose(1, 2)
    x = x.squeeze(2) if codec.frames == 1 else x
    offsets = spread * torch.linspace(-2, 2, 5).view(1, 5, *[1] * (x.ndim - 1))
    return Posterior(
        x, torch.full_like(x, spread), x[:, None] + offsets, torch.ones(cases), torch.zeros_like(x)
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, ClimateCodec]:
    data = make(120, flip=True, west=-180.0, land=True)
    return data, codec_of(data, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("frames", [1, 3])
def test_gaps_are_read_and_the_answer_has_the_gaps_layout(frames: int, tmp_path: Path) -> None:
    data = make(120, land=True)
    codec = codec_of(data, tmp_path, frames=frames)
    other = make(120, land=True, flip=True, west=-180.0, repeat=True, order=("lat", "time", "lon"))
    holes = other.isel(time=slice(100, 107)).copy(deep=True)
    keep = np.random.default_rng(0).random(holes["tas"].shape) < 0.4
    holes["tas"] = holes["tas"].where(xr.DataArray(keep, dims=holes["tas"].dims))
    holes["tas"].attrs = other["tas"].attrs
    task = codec.task(holes, None, noise_std=0.5)
    assert task.observation.values.shape[0] == -(-7 // frames)
    # The operator takes from the true field what was observed, value by value.
    full = posterior_of(codec, data.isel(time=slice(100, 107)), task)
    seen = task.observation.operator(full.mean)
    there = task.observation.present
    torch.testing.assert_close(seen[there], task.observation.values[there].float())
    # The repeated column is no second observation.
    expected = holes["tas"].isel(lon=slice(0, 12)).notnull().sum()
    assert int(there.sum()) == int(expected)
    answer = codec.deliver(full, task)
    assert answer["tas"].dims == holes["tas"].dims
    truth = other["tas"].isel(time=slice(100, 107))
    np.testing.assert_allclose(answer["tas"].values, truth.values, rtol=1e-6)
    np.testing.assert_array_equal(answer["time"].values, truth["time"].values)
    np.testing.assert_array_equal(answer["lat"].values, truth["lat"].values)
    np.testing.assert_allclose(answer["tas_std"].values[answer["tas"].notnull()], 0.5)
    width = float((full.quantiles([0.95])[0] - full.mean).max())
    np.testing.assert_allclose((answer["tas_upper"] - answer["tas"]).max(), width, rtol=1e-3)
    assert set(answer.data_vars) == {"tas", "tas_std", "tas_lower", "tas_upper"}
    assert answer["tas_std"].attrs["units"] == "K"
    assert "standard_name" not in answer["tas_std"].attrs
    for name, value in truth.attrs.items():
        assert answer["tas"].attrs[name] == value
    assert "posterior of gridded values with gaps" in answer.attrs["history"]


def test_members_on_request(plain: tuple[xr.Dataset, ClimateCodec]) -> None:
    data, codec = plain
    task = codec.task(data.isel(time=[50, 51]), None, noise_std=0.1)
    posterior = posterior_of(codec, data.isel(time=[50, 51]), task)
    codec.members = True
    answer = codec.deliver(posterior, task)
    codec.members = False
    assert answer["tas_members"].dims == ("number", "time", "lat", "lon")
    np.testing.assert_allclose(answer["tas_members"].values[4], data["tas"].values[50:52] + 1.0, rtol=1e-6)
    assert answer["number"].attrs["standard_name"] == "realization"


def test_stations(plain: tuple[xr.Dataset, ClimateCodec], tmp_path: Path) -> None:
    data, codec = plain
    days = data["time"].values[[60, 61]]
    place = [(0.0, 10.0), (78.75, -170.0), (30.0, 200.0), (-89.5, 0.0)]
    rows = [{"time": t, "lat": a, "lon": b, "tas": 280.0 + k} for k, t in enumerate(days) for a, b in place]
    table = pd.DataFrame(rows[:-1])
    task = codec.task(table, None, noise_std=0.3)
    assert task.observation.values.shape == (2, 1, 4)
    assert int(task.observation.present.sum()) == 7
    # An interpolated field: exactly what xarray's own interpolation gives where no pole or date line is near.
    linear = data.isel(time=[60]).copy(deep=True)
    linear["tas"][:] = (data.lat * 0.5 + data.lon * 0.1 + 280).transpose("lat", "lon").values
    x = torch.from_numpy(codec.template.grid.canonical(linear["tas"].values)).float()[:, None]
    found = task.observation.operator(x)[0, 0]
    np.testing.assert_allclose(sorted(found.tolist())[2], 280 + 0 + 1.0, rtol=1e-5)  # (0, 10)
    far = pd.DataFrame([{"lat": 0.0, "lon": 400.0, "tas": 1.0}])
    with pytest.raises(ConfigError, match="points without dates"):
        codec.task(far, None)
    assert codec.task(far, None, cond={"time": "2001-05-01"}).observation.values.shape == (1, 1, 1)
    three = ("station", [0.0, 10.0, 20.0])
    points = xr.Dataset(
        {"tas": (("time", "station"), np.full((2, 3), 15.0), {"units": "degC"})},
        coords={"time": days, "lat": three, "lon": three},
    )
    task = codec.task(points, None, noise_std=0.3)
    np.testing.assert_allclose(task.observation.values, 288.15)
    assert "converted from degC to K" in task.native.notes[0]
    answer = codec.deliver(posterior_of(codec, data.isel(time=[60, 61]), task), task)
    np.testing.assert_allclose(answer["tas"].values, data["tas"].values[60:62], rtol=1e-6)
    table.to_csv(tmp_path / "stations.csv", index=False)
    observed, operator = codec.read_observation(tmp_path / "stations.csv", None)
    assert operator is None
    torch.testing.assert_close(
        codec.task(observed, None).observation.values,
        codec.task(table, None).observation.values,
        equal_nan=True,
    )


def test_stations_of_a_regional_model_may_lie_outside(tmp_path: Path) -> None:
    codec = codec_of(make(80, width=60.0), tmp_path, frames=2)
    table = pd.DataFrame(
        {"lat": [40.0, 0.0], "lon": [10.0, 10.0], "tas": [280.0, 281.0], "time": ["2001-03-02"] * 2}
    )
    task = codec.task(table, None)
    assert task.observation.values.shape == (1, 1, 2, 1)
    assert any("1 of 2 points lie outside" in note for note in task.native.notes)
    with pytest.raises(DataError, match="no point lies inside"):
        codec.task(table.iloc[1:], None)


def test_coarse_means(tmp_path: Path) -> None:
    data = make(120, shape=(8, 12))
    codec = codec_of(data, tmp_path)
    area = xr.DataArray(codec.template.grid.area, dims=("lat", "lon"))
    fine = data.isel(time=[90, 91])
    coarse = ((fine["tas"] * area).coarsen(lat=4, lon=3).sum() / area.coarsen(lat=4, lon=3).sum()).to_dataset(
        name="tas"
    )
    coarse["tas"].attrs["units"] = "degC"
    coarse["tas"] = (("time", "lat", "lon"), coarse["tas"].values - 273.15, {"units": "degC"})
    task = codec.task(coarse, None, noise_std=0.1)
    assert isinstance(task.observation.operator, BlockMean)
    x = torch.from_numpy(fine["tas"].values)[:, None]
    torch.testing.assert_close(
        task.observation.operator(x), task.observation.values.float(), rtol=1e-5, atol=1e-3
    )
    answer = codec.deliver(posterior_of(codec, fine, task), task)
    assert answer["tas"].shape == (2, 8, 12)
    np.testing.assert_array_equal(answer["time"].values, fine["time"].values)
    with pytest.raises(DataError, match="other centres"):
        codec.task(coarse.assign_coords(lat=coarse.lat + 20), None)


def test_what_cannot_be_read_is_refused(plain: tuple[xr.Dataset, ClimateCodec]) -> None:
    data, codec = plain
    some = data.isel(time=[60, 61])
    wrong = some.copy(deep=True)
    wrong["tas"].attrs["units"] = "furlong"
    cases: list[tuple[Any, str]] = [
        (wrong, "expected units 'K'.*got 'furlong'"),
        (some.rename(tas="ts"), "expected variables tas, got ts"),
        (some.isel(lat=slice(0, 7)), "mismatched grids"),
        (some.assign_coords(lat=some.lat + 3), "mismatched grids"),
        (some.where(False), "no observed value from 2001-10-28"),
        (some.isel(lon=0, drop=True), "no latitude and longitude found"),
        ([1, 2, 3], "expected an xarray object"),
        (some.convert_calendar("noleap"), "the calendar is 'noleap'"),
    ]
    for observed, message in cases:
        with pytest.raises(DataError, match=message):
            codec.task(observed, None)
    operator = BlockMean(codec.grid_shape, (4, 3))
    with pytest.raises(ShapeMismatch):
        codec.task(np.zeros((1, 1, 5, 5)), operator, cond={"time": "2001"})
    with pytest.raises(ConfigError, match="numbers have no dates"):
        codec.task(np.zeros((1, 1, 2, 4)), operator)
    task = codec.task(np.zeros((3, 1, 2, 4)), operator, cond={"time": "2001-05"})
    assert task.context["phase"].shape == (3, 1)


def test_trajectories_need_regular_times(tmp_path: Path) -> None:
    data = make(80)
    codec = codec_of(data, tmp_path, frames=2)
    with pytest.raises(DataError, match="irregular time: a model of 2 states 5 d apart"):
        codec.task(data.isel(time=[1, 2, 5]), None)
    one = codec.task(data.isel(time=[1]), None)
    assert one.observation.values.shape[0] == 1


@pytest.mark.parametrize(
    ("given", "wanted", "value", "expected"),
    [("degC", "K", 10.0, 283.15), ("K", "degC", 283.15, 10.0), ("hPa", "Pa", 1013.0, 101300.0),
     ("Pa", "mbar", 101300.0, 1013.0), ("mm/day", "kg m-2 s-1", 86400.0, 1.0), ("%", "1", 50.0, 0.5),
     ("kelvin", "K", 3.0, 3.0), ("m2 s-2", "m**2 s**-2", 7.0, 7.0)],
)  # fmt: skip
def test_trivial_conversions(given: str, wanted: str, value: float, expected: float) -> None:
    (factor, offset), note = convert("x", given, wanted)
    assert factor * value + offset == pytest.approx(expected)
    assert (note is None) == (value == expected)


def test_unknown_units_are_said_or_refused() -> None:
    assert convert("x", None, "K") == ((1.0, 0.0), "x: the observations have no units; taken as K")
    assert convert("x", "widgets", "widgets") == ((1.0, 0.0), None)
    with pytest.raises(DataError, match="expected units 'm'"):
        convert("x", "Pa", "m")


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("frames", [1, 2])
def test_samples_are_written_and_read(frames: int, suffix: str, tmp_path: Path) -> None:
    data = make(60, calendar="360_day", land=True)
    codec = codec_of(data, tmp_path, frames=frames)
    request = codec.plan(3, {}, NoiseSource(0), range(3))
    z = torch.randn(3, 2, *codec.shape)
    samples = codec.decode(codec.autoencoder().eval(), z, request)
    path = write_dataset(samples, tmp_path / f"samples{suffix}")
    again = read_dataset(path)
    xr.testing.assert_allclose(again.drop_encoding(), samples, rtol=1e-6)
    assert again["tas"].attrs == data["tas"].attrs
    assert again.attrs["Conventions"] == "CF-1.11"
    assert again.attrs["history"].endswith("\nmade")
    name = "time" if frames == 1 else "valid_time"
    assert again[name].values.ravel()[0].calendar == "360_day"
    with pytest.raises(DataError, match=r"ending .nc or .zarr"):
        write_dataset(samples, tmp_path / "samples.csv")


def test_a_common_date_is_a_coordinate(plain: tuple[xr.Dataset, ClimateCodec]) -> None:
    _, codec = plain
    request = codec.plan(2, {"time": "2001-07-01"}, NoiseSource(0), range(2))
    samples = codec.decode(codec.autoencoder().eval(), torch.randn(2, 2, *codec.shape), request)
    assert samples["time"].ndim == 0
    assert samples["time"].values == np.datetime64("2001-07-01")


def test_packed_integers_stay_packed_while_they_fit(tmp_path: Path) -> None:
    data = make(60)
    data["tas"].encoding = {
        "dtype": "int16",
        "scale_factor": 0.01,
        "add_offset": 270.0,
        "_FillValue": np.int16(-32768),
    }
    template = codec_of(data, tmp_path).template
    fits = template.dataset(np.full((1, 8, 12), 280.0, dtype=np.float32), ())
    assert fits["tas"].encoding["dtype"] == np.int16
    large = template.dataset(np.full((1, 8, 12), 900.0, dtype=np.float32), ())
    assert "scale_factor" not in large["tas"].encoding
    write_dataset(large, tmp_path / "large.nc")
    np.testing.assert_allclose(read_dataset(tmp_path / "large.nc")["tas"], 900.0)


def test_curvilinear_layout_survives(tmp_path: Path) -> None:
    data = curvilinear(60)
    data["tas"].attrs["grid_mapping"] = "crs"
    data = data.assign(crs=((), np.int32(0), {"grid_mapping_name": "latitude_longitude"}))
    codec = codec_of(data, tmp_path)
    samples = codec.decode(
        codec.autoencoder().eval(),
        torch.randn(2, 2, *codec.shape),
        codec.plan(2, {}, NoiseSource(0), range(2)),
    )
    xr.testing.assert_identical(samples["nav_lat"].variable, data["nav_lat"].variable)
    assert samples["crs"].attrs == {"grid_mapping_name": "latitude_longitude"}
    assert samples["tas"].dims == ("number", "j", "i")
