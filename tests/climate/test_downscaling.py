"""Downscaling: what joins and what does not, the operator that undoes interpolation, posteriors against exact ones."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.baselines import Predictions
from sciLDM.domains.climate.downscaling import downscale
from sciLDM.domains.climate.downscaling_join import PREFIX, Interpolation, joined
from sciLDM.domains.climate.downscaling_study import (
    DownscalingData,
    DownscalingStudySettings,
    coarsened,
    downscaling_study,
)
from sciLDM.domains.climate.evaluation_scoring import case_crps
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.rotated import places, with_places
from sciLDM.domains.climate.scores_extremes import distribution
from sciLDM.errors import ConfigError, DataError
from sciLDM.fitting import fit

DAYS = 160
SHAPE = (12, 14)


def fine_fields(days: int = DAYS, *, seed: int = 0) -> xr.Dataset:
    """Temperature (degC) and precipitation (mm/day) of random waves on a regional grid, 0.5 degrees apart."""
    rng = np.random.default_rng(seed)
    lat, lon = 40 + 0.5 * np.arange(SHAPE[0]), 2 + 0.5 * np.arange(SHAPE[1])
    y, x = np.meshgrid(np.arange(SHAPE[0]) / SHAPE[0], np.arange(SHAPE[1]) / SHAPE[1], indexing="ij")
    waves = np.stack(
        [np.cos(np.pi * (m * y + n * x) + 0.7 * m) / (1 + m + n) for m in range(4) for n in range(4)]
    )
    tas = 8 + 4 * np.einsum("td,dhw->thw", rng.normal(size=(days, 16)), waves)
    pr = np.maximum(np.einsum("td,dhw->thw", rng.normal(size=(days, 16)), waves), 0) ** 2 * 3
    time = np.datetime64("2000-12-01", "ns") + np.arange(days) * np.timedelta64(1, "D")
    return xr.Dataset(
        {
            "tas": (("time", "lat", "lon"), tas.astype("f4"), {"units": "degC", "long_name": "temperature"}),
            "pr": (("time", "lat", "lon"), pr.astype("f4"), {"units": "mm day-1"}),
        },
        coords={
            "time": time,
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
        attrs={"source": "synthetic"},
    )


def coarse_grid() -> xr.Dataset:
    """A grid of 1.5 degrees over the same region."""
    lat, lon = 40.5 + 1.5 * np.arange(4), 2.5 + 1.5 * np.arange(5)
    return xr.Dataset({"z": (("lat", "lon"), np.zeros((4, 5)))}, coords={"lat": lat, "lon": lon})


def pair() -> tuple[xr.Dataset, xr.Dataset]:
    fine = fine_fields()
    return coarsened(fine, coarse_grid()), fine


def apart(a: xr.Dataset, b: xr.Dataset) -> float:
    """Root mean square difference over the spread: equations are solved iteratively, to a tolerance."""
    spread = b.var("number", ddof=1).mean()
    return float(np.sqrt((((a - b) ** 2).mean() / spread).to_array().max()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, xr.Dataset, xr.Dataset]:
    """A joint model of Gaussian latents."""
    coarse, fine = pair()
    folder = tmp_path_factory.mktemp("downscaling")
    joined(coarse, fine).to_netcdf(folder / "joint.nc")
    config = {
        "domain": {
            "class_path": "climate",
            "init_args": {
                "data": str(folder / "joint.nc"),
                "variables": {
                    "tas_departure": {},
                    "pr_departure": {"link": "identity"},
                    "coarse_tas": {},
                    "coarse_pr": {"link": "identity"},
                },
                "split": {
                    "train": ["2000-12-01", "2001-03-31"],
                    "validation": ["2001-04-01", "2001-04-15"],
                    "test": ["2001-04-16", "2001-05-09"],
                },
                "autoencoder": {
                    "patch": 2,
                    "factors": [1],
                    "widths": [4, 4],
                    "blocks": [0, 0],
                    "channels": 2,
                    "pca": -1,
                },
                "explained": 0.5,
            },
        },
        "gaussian_start": True,
        "network": {"class_path": "DiTNetwork", "init_args": {"width": 16, "depth": 1, "heads": 1}},
        "objective": {"self_condition": 0.0},
        "autoencoder_stage": {"max_steps": 1, "batch_size": 8, "learning_rate": 1.0e-6, "warmup_steps": 0},
        "denoiser_stage": {"max_steps": 1, "batch_size": 8, "learning_rate": 1.0e-6, "warmup_steps": 0},
    }
    return fit(config, folder / "run", say=lambda _line: None), coarse, fine


def test_interpolation_is_undone_exactly() -> None:
    coarse, fine = pair()
    joint = joined(coarse, fine)
    grid = Grid.of(fine, find_axes(fine, "tas"))
    between = Interpolation.of(grid, coarse.lat.values, coarse.lon.values)
    operator, basis = between.undone, between.basis
    splines = joint["coarse_tas"].values.reshape(DAYS, -1).astype(float)
    np.testing.assert_allclose(
        splines @ operator.T, coarse["tas"].values.reshape(DAYS, -1) @ basis.T, rtol=0, atol=2e-4
    )
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-9)
    assert len(basis) == 20  # every coarse cell reaches some fine one


def test_coarse_cells_are_means_and_amounts_enter_by_their_root() -> None:
    coarse, fine = pair()
    block = fine["tas"].isel(lat=slice(0, 3), lon=slice(0, 3))
    area = np.cos(np.deg2rad(block.lat))
    expected = block.weighted(area).mean(("lat", "lon"))
    np.testing.assert_allclose(coarse["tas"][:, 0, 0], expected, rtol=1e-5)
    joint = joined(coarse, fine)
    assert joint["coarse_pr"].attrs["units"] == "(mm day-1)0.5"
    assert float(joint["coarse_pr"].max()) < 2 * float(coarse["pr"].max()) ** 0.5
    assert list(joint.data_vars) == ["tas_departure", "pr_departure", "coarse_tas", "coarse_pr"]
    np.testing.assert_allclose(joint["tas_departure"] + joint["coarse_tas"], fine["tas"], atol=1e-4)
    np.testing.assert_allclose((joint["pr_departure"] + joint["coarse_pr"]) ** 2, fine["pr"], atol=1e-4)
    whole = joined(coarse, fine, departures=False)
    assert list(whole.data_vars) == ["tas", "pr", "coarse_tas", "coarse_pr"]
    xr.testing.assert_equal(whole["tas"], fine["tas"])


def test_dates_join_by_day_and_not_by_hour() -> None:
    coarse, fine = pair()
    noon = coarse.assign_coords(time=coarse.time + np.timedelta64(12, "h")).isel(time=slice(5, None, 2))
    joint = joined(noon, fine)
    assert joint.sizes["time"] == len(range(5, DAYS, 2))
    xr.testing.assert_equal(
        joint["coarse_tas"], joined(coarse, fine)["coarse_tas"].isel(time=slice(5, None, 2))
    )


def test_what_does_not_belong_together_is_refused() -> None:
    coarse, fine = pair()
    bare = coarse.copy()
    bare["tas"].attrs.pop("units")
    with pytest.raises(DataError, match="no units for coarse_tas: say them"):
        joined(bare, fine)
    kelvin = joined(bare.assign(tas=bare["tas"] + 273.15), fine, units={"coarse_tas": "K"})
    np.testing.assert_allclose(kelvin["coarse_tas"], joined(coarse, fine)["coarse_tas"], atol=1e-3)
    with pytest.raises(DataError, match="no variable 'ta'"):
        joined(coarse, fine, units={"ta": "K"})
    with pytest.raises(DataError, match="no common dates"):
        joined(coarse.assign_coords(time=coarse.time + np.timedelta64(3650, "D")), fine)
    with pytest.raises(DataError, match="lie outside the coarse grid"):
        joined(coarse.assign_coords(lat=coarse.lat - 50), fine)
    with pytest.raises(DataError, match="missing values"):
        joined(coarse.where(coarse.lat > 41), fine)
    with pytest.raises(DataError, match="calendars differ"):
        joined(coarse.convert_calendar("noleap"), fine)
    with pytest.raises(DataError, match="several states of one date"):
        joined(xr.concat([coarse, coarse], "time").sortby("time"), fine)


def test_rotated_poles_lead_to_places() -> None:
    # The rotated origin lies 90 degrees from the rotated pole, on the meridian opposite to it.
    lat, lon = places(np.array([0.0, 90.0]), np.array([0.0, 0.0]), pole_latitude=39.25, pole_longitude=-162.0)
    np.testing.assert_allclose(lat, [50.75, 39.25], atol=1e-9)
    np.testing.assert_allclose([lon[0], lon[1] % 360], [18.0, 198.0], atol=1e-6)
    rotated = fine_fields(3).assign_coords(
        lat=-14 + 0.44 * np.arange(SHAPE[0]), lon=-22 + 0.44 * np.arange(SHAPE[1])
    )
    placed = with_places(rotated, pole_latitude=39.25, pole_longitude=-162.0)
    axes = find_axes(placed, "tas")
    assert (axes.latitude, axes.longitude, axes.y, axes.x) == ("lat", "lon", "rlat", "rlon")
    grid = Grid.of(placed, axes)
    assert grid.kind == "curvilinear"
    assert 30 < grid.latitudes.min() < grid.latitudes.max() < 45
    with pytest.raises(DataError, match="1-D coordinates"):
        with_places(placed, pole_latitude=39.25, pole_longitude=-162.0)


def test_an_ensemble_follows_the_predictors_and_keeps_the_layout(
    trained: tuple[object, xr.Dataset, xr.Dataset],
) -> None:
    model, coarse, fine = trained
    test = slice("2001-04-16", "2001-05-09")
    made = downscale(model, coarse.sel(time=test), members=6, steps=8)
    assert dict(made.sizes) == {"number": 6, "time": 24, "lat": SHAPE[0], "lon": SHAPE[1]}
    assert made["tas"].attrs == fine["tas"].attrs
    assert "downscaling" in made.attrs["history"]
    np.testing.assert_array_equal(made.time, fine.sel(time=test).time)
    assert float(made["pr"].min()) >= 0
    truth = fine.sel(time=test)
    weights = np.ones(SHAPE[0] * SHAPE[1])
    for name in ("tas", "pr"):
        y = truth[name].values.reshape(24, -1)
        members = made[name].transpose("time", "number", ...).values.reshape(24, 6, -1)
        other = fine[name].values[:120].reshape(120, -1)
        climate = np.stack([other[k : k + 96 : 16] for k in range(24)])
        ours, theirs = (case_crps(Predictions.of(m), y, weights).mean() for m in (members, climate))
        assert ours < 0.5 * theirs
    means = coarsened(made.isel(number=0, drop=True), coarse_grid())["tas"]
    error = float(np.sqrt(((means - coarse["tas"].sel(time=test)) ** 2).mean()))
    assert error < 0.1 * float(coarse["tas"].std())


def test_a_member_depends_on_seed_and_place_in_the_series(
    trained: tuple[object, xr.Dataset, xr.Dataset],
) -> None:
    model, coarse, _ = trained
    days = coarse.isel(time=slice(130, 133))
    whole = downscale(model, days, members=2, steps=8)
    assert apart(downscale(model, days, members=2, steps=8, batch_size=1), whole) < 0.05
    assert apart(downscale(model, days, members=2, steps=8, seed=1), whole) > 0.5


def test_fewer_predictors_leave_more_spread(trained: tuple[object, xr.Dataset, xr.Dataset]) -> None:
    model, coarse, _ = trained
    days = coarse.isel(time=slice(130, 134))
    spread = [
        float(downscale(model, part, members=8, steps=6)["tas"].std("number").mean())
        for part in (days, days[["pr"]])
    ]
    assert spread[1] > 2 * spread[0]


def test_units_are_converted_and_other_grids_refused(trained: tuple[object, xr.Dataset, xr.Dataset]) -> None:
    model, coarse, _ = trained
    days = coarse.isel(time=slice(130, 132))
    kelvin = days.assign(tas=(days.tas + 273.15).assign_attrs(units="K"))
    assert apart(*(downscale(model, d, members=2, steps=8) for d in (kelvin, days))) < 0.05
    with pytest.raises(DataError, match="mismatched grids"):
        downscale(model, days.assign_coords(lat=days.lat + 0.3))
    with pytest.raises(DataError, match="expected some of tas, pr"):
        downscale(model, days.rename(tas="t", pr="p"))
    with pytest.raises(ConfigError, match="error must be positive"):
        downscale(model, days, error=0.0)


def test_the_study_scores_all_methods_alike_and_goes_on(
    trained: tuple[object, xr.Dataset, xr.Dataset], tmp_path: Path
) -> None:
    model, coarse, fine = trained
    data = DownscalingData.of(model, coarse, fine, thin=2)
    settings = DownscalingStudySettings(members=4, steps=4, block=8)
    study = downscaling_study(model, data, settings=settings, folder=tmp_path, output=tmp_path / "study.json")
    rows = {(r["variable"], r["method"], r["calibrated"]): r for r in study.rows}
    assert study.protocol["cases"] == {"train": 121, "validation": 8, "test": 24}
    for name in ("tas", "pr"):
        ours, mapped = rows[name, "latent diffusion", False], rows[name, "bicubic + quantile mapping", False]
        assert ours["crps_ratio"] == 1
        assert ours["crps"] < mapped["crps"]
        assert rows[name, "climatology", False]["crps"] > 2 * ours["crps"]
    assert (name, "bicubic + quantile mapping", True) not in rows  # nothing to scale
    written = sorted(tmp_path.glob("*.nc"))
    stamps = [p.stat().st_mtime_ns for p in written]
    again = downscaling_study(model, data, settings=settings, folder=tmp_path)
    assert [p.stat().st_mtime_ns for p in written] == stamps
    assert again.rows[0]["crps"] == pytest.approx(study.rows[0]["crps"], rel=1e-6)


def test_the_distribution_of_the_truth_has_no_error() -> None:
    truth = fine_fields(40)["pr"].values.reshape(40, -1).astype(float)
    weights = np.ones(truth.shape[1])
    same = distribution(truth[:, None], truth, SHAPE, weights, amount=True)
    for name in ("p1_error", "p99_error", "rx1day_bias", "spectral_distance", "wet_share_bias", "sdii_bias"):
        assert same[name] == pytest.approx(0, abs=1e-12)
    double = distribution(2 * truth[:, None], truth, SHAPE, weights, amount=True)
    assert double["spectral_distance"] == pytest.approx(10 * np.log10(4))
    assert double["rx1day_bias"] == pytest.approx(truth.max(0).mean())


def test_predictors_are_known_by_their_prefix() -> None:
    coarse, fine = pair()
    assert {n for n in joined(coarse, fine).data_vars if str(n).startswith(PREFIX)} == {
        "coarse_tas",
        "coarse_pr",
    }
