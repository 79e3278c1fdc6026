"""`ds.ldm`: thin, and honest about what it scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import sciLDM.domains.climate  # noqa: F401 - registers the accessor
from sciLDM.errors import ConfigError, DataError
from tests.climate.fields import make


class Codec:
    """A codec that remembers whether members were asked for."""

    members = False


class Model:
    """A model that returns what it was asked."""

    def __init__(self) -> None:
        self.codec = Codec()
        self.asked: dict[str, Any] = {}

    def reconstruct(self, observed: Any, **options: Any) -> xr.Dataset:
        self.asked = {**options, "observed": observed, "members": self.codec.members}
        if options.get("seed") == 13:
            raise DataError("unlucky")
        return make(2)


def test_fill_passes_on_and_puts_back() -> None:
    model, data = Model(), make(2)
    data.ldm.fill(model, noise_std=0.5, samples=4, members=True, cond={"scenario": "ssp1"})
    assert model.asked["observed"] is data
    assert (model.asked["noise_std"], model.asked["samples"], model.asked["members"]) == (0.5, 4, True)
    assert model.codec.members is False
    with pytest.raises(DataError, match="unlucky"):
        data.ldm.fill(model, seed=13, members=True)
    assert model.codec.members is False


def test_reconstruct_takes_the_date_of_the_data_set() -> None:
    model, day = Model(), make(3).isel(time=1)
    day.ldm.reconstruct(model, "table")
    assert model.asked["observed"] == "table"
    assert model.asked["cond"]["time"] == day["time"].values
    make(3).ldm.reconstruct(model, "table")
    assert "time" not in model.asked["cond"]


def test_scores_are_weighted_by_area() -> None:
    truth = make(6, shape=(18, 36), land=True)
    found = truth.copy(deep=True)
    found["tas"] = truth["tas"] + xr.where(truth.lat > 60, 2.0, 0.0)
    found["tas_std"] = xr.full_like(truth["tas"], 0.5)
    found["tas_lower"], found["tas_upper"] = (
        truth["tas"] - 1,
        truth["tas"] + xr.where(truth.lat < 0, 1.0, -0.5),
    )
    share = 1 - np.sin(np.deg2rad(60))
    land = np.isnan(truth["tas"].values[0]).any(axis=1)
    assert not land[truth.lat.values > 60].any()
    area = np.sin(np.deg2rad(truth.lat.values + 5)) - np.sin(np.deg2rad(truth.lat.values - 5))
    cells = np.isfinite(truth["tas"].values[0]).sum(axis=1)
    share = (area * cells)[truth.lat.values > 60].sum() / (area * cells).sum()
    scores = found.ldm.score(truth)["tas"]
    assert scores["rmse"] == pytest.approx(2 * np.sqrt(share), rel=1e-5)
    assert scores["bias"] == pytest.approx(2 * share, rel=1e-5)
    assert scores["spread_skill"] == pytest.approx(0.5 / scores["rmse"], rel=1e-5)
    south = (area * cells)[truth.lat.values < 0].sum() / (area * cells).sum()
    assert scores["coverage"] == pytest.approx(south, rel=1e-5)
    with pytest.raises(DataError, match="no common variable"):
        found.ldm.score(truth.rename(tas="ts"))


def test_files_and_models_are_checked(tmp_path: Path) -> None:
    data = make(3)
    again = xr.open_dataset(data.ldm.write(tmp_path / "x.nc"))
    np.testing.assert_array_equal(again["tas"], data["tas"])
    again.close()
    assert data.ldm.stage(tmp_path) == data.ldm.stage(tmp_path)

    class Nothing:
        codec, reconstruct = None, None

    with pytest.raises(ConfigError, match="expected a loaded climate model, got Nothing"):
        data.ldm.fill(Nothing())
