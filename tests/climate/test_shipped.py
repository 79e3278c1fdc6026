"""The shipped climate model: plausible states of its region, and gaps filled from what is known of them."""

import numpy as np
import pytest
import xarray as xr

import sciLDM
from sciLDM.cli import main


def test_samples_are_pressures_of_the_region() -> None:
    model = sciLDM.load("ncep-slp")
    made = model.sample(6, steps=6, seed=0)["slp"]
    assert made.dims == ("number", "time", "lat", "lon")
    assert made.attrs["units"] == "Pa"
    assert 92_000 < float(made.min()) < float(made.max()) < 108_000
    # Iceland's low and the Azores' high.
    assert float(made.sel(lat=65, lon=-30).mean()) < float(made.sel(lat=35, lon=-30).mean())


def test_gaps_are_filled_with_error_bars() -> None:
    model = sciLDM.load("ncep-slp")
    truth = model.sample(1, steps=8, seed=5)["slp"].isel(number=0)
    days = np.datetime64("2007-01-10") + np.arange(truth.sizes["time"]).astype("m8[D]")
    truth = xr.DataArray(
        truth.values, dims=truth.dims, coords={"time": days, "lat": truth.lat, "lon": truth.lon}, name="slp",
        attrs={"units": "Pa"},
    )  # fmt: skip
    known = np.random.default_rng(0).random(truth.shape) < 0.1
    gappy = truth.where(xr.DataArray(known, dims=truth.dims)).to_dataset()
    filled = model.reconstruct(gappy, noise_std=50.0, samples=6, steps=8, seed=0)
    error = np.asarray(filled["slp"] - truth)[~known]
    spread = np.asarray(filled["slp_std"])[~known]
    assert np.sqrt((error**2).mean()) < 0.5 * float(truth.std())
    assert 0.5 < np.sqrt((error**2).mean() / (spread**2).mean()) < 2


def test_scores_need_a_run_folder_and_this_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "ncep-slp"]) == 2
    assert "came without the data" in " ".join(capsys.readouterr().err.split())
