"""Preparation: splits by time, statistics of the training period alone, trajectories, labels, round trips."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.climate import Climate, ConditionSettings, MaskSettings, SplitSettings
from sciLDM.domains.climate.corpus import ClimateCorpus
from sciLDM.errors import ConfigError, DataError
from tests.climate.fields import make

SMALL = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,))


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def corpus(data: Any, tmp_path: Path, **options: Any) -> ClimateCorpus:
    found = Climate(data, autoencoder=SMALL, **options).prepare(tmp_path, silent)
    assert isinstance(found, ClimateCorpus)
    return found


def test_periods_are_apart_in_time(tmp_path: Path) -> None:
    data = make(200, step=2)
    found = corpus(data, tmp_path, frames=3)
    spans = {split: found.times(split).seconds for split in found.sizes}
    assert spans["train"].max() < spans["validation"].min()
    assert spans["validation"].max() < spans["test"].min()
    used = {split: set(np.unique(s)) for split, s in spans.items()}
    assert not used["train"] & used["validation"]
    assert not used["validation"] & used["test"]
    assert sum(map(len, used.values())) == 200
    assert found.sizes == {split: len(u) - 2 for split, u in used.items()}


def test_explicit_periods_and_whole_runs(tmp_path: Path) -> None:
    one = make(400, step=2)
    split = SplitSettings(train=("2001", "2001-06"), validation=("2001-07", "2001-08"), test=("2002", "2002"))
    found = corpus(one, tmp_path, split=split)
    assert found.times("train").take(slice(None)).dates.ravel()[-1].month == 6
    assert {d.year for d in found.times("test").dates.ravel()} == {2002}
    members = xr.concat([one.isel(time=slice(0, 100)) + k for k in range(3)], dim="member", join="exact")
    held = corpus(members, tmp_path, split=SplitSettings(test_runs=("2",)))
    assert held.sizes["test"] == 100
    assert held.sizes["train"] + held.sizes["validation"] == 200
    with pytest.raises(ConfigError, match="train and test overlap"):
        corpus(one, tmp_path, split=SplitSettings(train=("2001", "2002"), test=("2002", "2002")))
    with pytest.raises(ConfigError, match="match none of the runs"):
        corpus(members, tmp_path, split=SplitSettings(test_runs=("9",)))
    with pytest.raises(DataError, match=r"split\.test: no state in an empty period"):
        corpus(one, tmp_path, split=SplitSettings(test=("1990", "1991")))


def test_statistics_know_nothing_of_later_times(tmp_path: Path) -> None:
    data = make(200, step=2, variables=("tas", "pr"))
    changed = data.copy(deep=True)
    changed["tas"][160:] += 50
    changed["pr"][160:] *= 9
    split = SplitSettings(
        train=("2001-01", "2001-08"), validation=("2001-09", "2001-10"), test=("2001-11", "2002")
    )
    a, b = (corpus(d, tmp_path, split=split) for d in (data, changed))
    assert a.state["normaliser"] == b.state["normaliser"]
    assert a.fingerprint != b.fingerprint
    np.testing.assert_array_equal(
        a.fields("train", np.arange(5)).values.numpy(), b.fields("train", np.arange(5)).values.numpy()
    )
    train = a.fields("train", np.arange(a.sizes["train"]))
    weight = train.weight.expand_as(train.values)
    for c in range(2):
        mean = (train.values * weight)[:, c].sum() / weight[:, c].sum()
        square = (train.values.square() * weight)[:, c].sum() / weight[:, c].sum()
        assert abs(float(mean)) < 1e-3
        assert float(square) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("calendar", ["noleap", "360_day", None])
@pytest.mark.parametrize("frames", [1, 3])
def test_fields_come_back_as_the_users_values(calendar: str | None, frames: int, tmp_path: Path) -> None:
    data = make(
        90,
        calendar=calendar,
        flip=True,
        west=-180.0,
        repeat=True,
        land=True,
        variables=("tas", "pr", "siconc"),
    )
    data["tas"][12, 6, 7] = np.nan
    found = corpus(
        data, tmp_path, frames=frames, variables={"tas": {}, "pr": {}, "siconc": {"link": "logit"}}
    )
    codec, template = found._codec, found._codec.template
    index = np.arange(3)
    fields = found.fields("train", index)
    context = {"phase": torch.from_numpy(found.times("train").phase[index]).float()}
    units = codec.to_units(fields.values, context)
    again = codec.from_units(units, context)
    there = fields.weight > 0
    there = there.expand_as(units)
    torch.testing.assert_close(again.values[there], fields.values[there], atol=1e-3, rtol=0)
    states = codec.states_of(torch.where(there.expand_as(units), units, torch.nan))
    native = template.dataset(states, ("case", "time"))
    for name in ("tas", "pr", "siconc"):
        for case in range(3):
            expected = data[name].isel(time=slice(case, case + frames)).values
            got = native[name].isel(case=case).values
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
            np.testing.assert_allclose(
                got, expected, rtol=1e-5, atol=2e-4 if name == "siconc" else 1e-9 if name == "pr" else 0
            )
    assert (native["pr"].values[:, 0][data["pr"].values[:3] == 0] == 0).all()
    assert native["tas"].attrs == data["tas"].attrs
    assert native["tas"].dims == ("case", *data["tas"].dims)


def test_missing_values_have_no_weight(tmp_path: Path) -> None:
    data = make(60, land=True)
    data["tas"][4, 7, 1] = np.nan
    found = corpus(data, tmp_path)
    assert found.state["gaps"] is True
    fields = found.fields("train", np.array([3, 4]))
    land = np.isnan(data["tas"].values[0])
    assert (fields.weight[:, 0].numpy() == 0)[:, land].all()
    assert float(fields.weight[1, 0, 7, 1]) == 0
    assert float(fields.weight[0, 0, 7, 1]) > 0
    assert (fields.values[fields.weight == 0] == 0).all()
    area = found._codec.template.grid.area
    np.testing.assert_allclose(fields.weight[0, 0].numpy()[~land], area[~land], rtol=1e-6)
    assert corpus(make(60, land=True), tmp_path).state["gaps"] is False


def test_cells_that_only_later_times_know_do_not_exist(tmp_path: Path) -> None:
    data = make(100)
    data["tas"][:90, 3, 3] = np.nan
    found = corpus(data, tmp_path)
    assert not found._codec.exists[0, 3, 3]
    late = data.copy(deep=True)
    late["tas"][:70] = np.nan
    split = SplitSettings(
        train=("2001-01", "2001-10"), validation=("2001-12", "2002-01"), test=("2002-02", "2003")
    )
    with pytest.raises(DataError, match=r"split\.train: no state"):
        corpus(late, tmp_path, split=split)


def test_trajectories_do_not_cross_gaps(tmp_path: Path) -> None:
    data = make(60, step=1).isel(time=[*range(20), *range(25, 60)])
    found = corpus(data, tmp_path, frames=4)
    seconds = np.concatenate([found.times(s).seconds for s in found.sizes])
    assert (np.diff(seconds, axis=1) == 86400).all()
    with pytest.raises(DataError, match="irregular time: nowhere are there 50 consecutive"):
        corpus(data.isel(time=slice(0, 50)), tmp_path, frames=50)


def test_labels_in_the_users_units(tmp_path: Path) -> None:
    base = make(150, calendar="noleap")
    runs = xr.concat([base, base + 3.0], dim=xr.Variable("scenario", ["low", "high"]), join="exact")
    runs = runs.assign(co2=("time", np.linspace(350, 500, 150)))
    wanted = ConditionSettings(year=True, scenario={"ssp1": "low", "ssp5": "high"}, forcing=("co2",))
    found = corpus(runs, tmp_path, conditions=wanted)
    labels = found.labels("train")
    assert set(labels) == {"season", "scenario", "year", "co2"}
    times = found.times("train").take(slice(None))
    phase = np.arctan2(labels["season"][:, 0], labels["season"][:, 1]) / (2 * np.pi) % 1
    expected = [((d.dayofyr - 1) / 365) for d in times.dates[:, 0]]
    np.testing.assert_allclose(phase, expected, atol=1e-6)
    assert set(labels["scenario"]) == {0, 1}
    assert labels["year"].min() == pytest.approx(2001.0)
    assert labels["co2"].max() < 480
    with pytest.raises(ConfigError, match="matches none of the runs 'low', 'high'"):
        corpus(runs, tmp_path, conditions=ConditionSettings(scenario={"x": "*ssp*"}))
    with pytest.raises(ConfigError, match="'co2' is constant"):
        corpus(runs.assign(co2=("time", np.ones(150))), tmp_path, conditions=wanted)


def test_the_state_is_plain_json_and_small(tmp_path: Path) -> None:
    found = corpus(make(60), tmp_path, conditions=ConditionSettings(year=True))
    text = json.dumps(found.state, allow_nan=False)
    assert json.loads(text) == found.state
    assert len(text) < 30_000


def test_the_reference_is_the_test_period_in_the_users_layout(tmp_path: Path) -> None:
    data = make(100, flip=True, west=-180.0, land=True, calendar="360_day", variables=("pr",))
    found = corpus(data, tmp_path, frames=2)
    found.write_reference(tmp_path / "reference")
    index = json.loads((tmp_path / "reference" / "reference.json").read_text())
    with xr.open_dataset(tmp_path / "reference" / index["runs"][0]["file"]) as test:
        expected = data.sel(time=test.time)
        assert len(test.time) == index["runs"][0]["states"] == found.sizes["test"] + 1
        np.testing.assert_allclose(test["pr"].values, expected["pr"].values, rtol=1e-4, atol=1e-12)
        np.testing.assert_array_equal(test["lat"].values, data["lat"].values)
        assert test["pr"].attrs == data["pr"].attrs


def test_a_mask_variable_reaches_the_weights(tmp_path: Path) -> None:
    keep = np.zeros((8, 12))
    keep[2:6, 3:9] = 1
    data = make(60).assign(lsm=(("lat", "lon"), keep))
    found = corpus(data, tmp_path, mask=MaskSettings("lsm"))
    fields = found.fields("train", np.arange(2))
    np.testing.assert_array_equal(fields.weight[0, 0].numpy() > 0, keep > 0)
    assert any("72 of 96 cells never have a value" in note for note in found.notes)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no variable 'tos' in the data; there are tas"):
        corpus(make(60), tmp_path, variables={"tos": {"link": "sqrt"}})
    with pytest.raises(ConfigError, match="frames must be at least 1"):
        Climate(make(10), frames=0)
    with pytest.raises(ConfigError, match="variables must differ"):
        Climate(make(10), variables=["tas", "tas"])
    with pytest.raises(ConfigError, match="names of other conditions"):
        ConditionSettings(forcing=("year",))
