"""The adapter as the core sees it: contract, dates and conditions of samples, seams and poles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domain import Domain
from sciLDM.domains.climate import Climate, ClimateCodec, ConditionSettings
from sciLDM.domains.climate.corpus import ClimateCorpus
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource
from sciLDM.testing import check_domain
from tests.climate.fields import make, stored

SMALL = {"channels": 2, "patch": 4, "factors": [], "widths": [8], "blocks": [1], "pca": -1}
THREE = ("tas", "pr", "siconc")


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def prepared(data: Any, tmp_path: Path, **options: Any) -> tuple[ClimateCorpus, ClimateCodec]:
    settings = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,), pca=-1)
    domain = Climate(data, autoencoder=options.pop("autoencoder", settings), **options)
    corpus = domain.prepare(tmp_path, silent)
    codec = domain.codec(json.loads(json.dumps(corpus.state)))
    assert isinstance(corpus, ClimateCorpus)
    assert isinstance(codec, ClimateCodec)
    return corpus, codec


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Equal but for the minute at which they were made."""
    return a.drop_attrs(deep=False).identical(b.drop_attrs(deep=False))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    "layout", [{"land": True, "flip": True, "west": -180.0}, {"calendar": "noleap", "repeat": True}]
)
def test_the_adapter_conforms(frames: int, layout: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = stored(make(variables=THREE, **layout), tmp_path / "data.nc")
    options = {
        "data": data,
        "frames": frames,
        "variables": {"tas": {}, "pr": {}, "siconc": {"link": "logit"}},
        "explained": -9.0,
    }
    domain: Domain = Climate(**{**options, "autoencoder": _settings()})
    config = {
        "domain": {"class_path": "climate", "init_args": {**options, "autoencoder": SMALL}},
        "network": {"class_path": "DiTNetwork", "init_args": {"width": 32, "depth": 1, "heads": 2}},
    }
    model = check_domain(domain, tmp_path / "check", config=config, same=same)
    source = xr.open_dataset(data)
    samples = model.sample(3, steps=2, seed=1)
    np.testing.assert_array_equal(samples["lat"], source["lat"])
    np.testing.assert_array_equal(samples["lon"], source["lon"])
    assert samples["lon"].attrs == source["lon"].attrs
    for name in THREE:
        assert samples[name].attrs == source[name].attrs
        assert samples[name].dtype == source[name].dtype
        assert samples[name].dims == ("number", *(() if frames == 1 else ("time",)), "lat", "lon")
        holes = np.isnan(source[name].values[0])
        assert (np.isnan(samples[name].values) == holes).all()
    assert float(samples["pr"].min()) >= 0
    assert 0 <= float(samples["siconc"].min()) <= float(samples["siconc"].max()) <= 1
    # Sample 2 is what it is, alone or in company.
    alone = model.sample(1, steps=2, seed=1, first=2)
    np.testing.assert_allclose(alone["tas"].values[0], samples["tas"].values[2], rtol=1e-5)
    assert alone["number"].values.tolist() == [2]
    assert "seed 1" in samples.attrs["history"]
    source.close()


def _settings() -> GridSettings:
    return GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,), pca=-1)


def test_samples_nobody_dated_have_dates_of_the_training_period(tmp_path: Path) -> None:
    corpus, codec = prepared(make(200, step=5), tmp_path, frames=2)
    request = codec.plan(400, {}, NoiseSource(0), range(400))
    drawn, train = request.times.seconds, corpus.times("train").seconds
    assert set(drawn[:, 0]) <= set(train[:, 0])
    assert (np.diff(drawn, axis=1) == 5 * 86400).all()
    assert len(set(drawn[:, 0])) > 90
    angle = 2 * np.pi * request.times.phase[:, 0]
    np.testing.assert_allclose(
        request.cond["season"].numpy(), np.stack([np.sin(angle), np.cos(angle)], 1), atol=1e-6
    )
    part = codec.plan(10, {}, NoiseSource(0), range(390, 400))
    np.testing.assert_array_equal(part.times.seconds, drawn[390:])


def test_dates_and_days_can_be_asked_for(tmp_path: Path) -> None:
    _, codec = prepared(make(150, calendar="360_day"), tmp_path, frames=2)
    request = codec.plan(3, {"time": "2001-02-30"}, NoiseSource(0), range(3))
    assert request.times.take(slice(None)).text() == ["2001-02-30", "2001-03-05"] * 3
    days = codec.plan(2, {"day": [91, 1]}, NoiseSource(0), range(2))
    assert [(d.month, d.day) for d in days.times.dates[:, 0]] == [(4, 1), (1, 1)]
    dated = codec.plan(2, {"time": ["2001-01-01", "2002-06-01"]}, NoiseSource(0), range(2))
    assert [d.year for d in dated.times.dates[:, 0]] == [2001, 2002]
    for wanted, message in [
        ({"time": "2001-02-31"}, "no date of the calendar '360_day'"),
        ({"time": ["2001", "2002", "2003"]}, "one for each of 2 samples, got 3"),
        ({"season": 0.5}, "give `time`"),
        ({"day": 400}, "1 to 366"),
        ({"co2": 400}, "cannot condition on 'co2'"),
        ({"scenario": "ssp585"}, "trained without scenarios"),
    ]:
        with pytest.raises(ConfigError, match=message):
            codec.plan(2, wanted, NoiseSource(0), range(2))


def test_scenarios_years_and_forcings(tmp_path: Path) -> None:
    base = make(150, step=20, calendar="noleap")
    runs = xr.concat([base, base + 3.0], dim=xr.Variable("scenario", ["low", "high"]), join="exact")
    runs = runs.assign(co2=("time", np.linspace(350, 500, 150)))
    conditions = ConditionSettings(year=True, scenario={"ssp1": "low", "ssp5": "high"}, forcing=("co2",))
    corpus, codec = prepared(runs, tmp_path, conditions=conditions)
    assert [c.name for c in codec.conditions] == ["season", "scenario", "year", "co2"]
    free = codec.plan(100, {}, NoiseSource(1), range(100))
    labels, times = corpus.labels("train"), corpus.times("train").seconds[:, 0]
    for k in range(100):  # drawn together: the forcing is that of the date
        row = np.flatnonzero(times == free.times.seconds[k, 0])[0]
        assert float(free.cond["co2"][k]) == pytest.approx(float(labels["co2"][row]), rel=1e-6)
    assert set(free.cond["scenario"].tolist()) == {0, 1}
    asked = codec.plan(20, {"scenario": "ssp5", "year": 2004}, NoiseSource(1), range(20))
    assert set(asked.cond["scenario"].tolist()) == {1}
    assert {d.year for d in asked.times.dates[:, 0]} == {2004}
    far = codec.plan(2, {"year": 2090, "co2": 700}, NoiseSource(1), range(2))
    assert {d.year for d in far.times.dates[:, 0]} == {2090}
    assert far.cond["co2"].tolist() == [700, 700]
    assert torch.isnan(codec.plan(1, {"year": 2090}, NoiseSource(1), range(1)).cond["co2"]).all()
    with pytest.raises(ConfigError, match="this model knows ssp1, ssp5"):
        codec.plan(2, {"scenario": "ssp3"}, NoiseSource(1), range(2))


@pytest.mark.parametrize("frames", [1, 2])
def test_rolling_the_globe_rolls_the_reconstruction(frames: int, tmp_path: Path) -> None:
    """No seam: without components and fixed fields, turning the Earth by a patch turns what the autoencoder says."""
    settings = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(2,))
    corpus, codec = prepared(make(60, shape=(8, 16)), tmp_path, frames=frames, autoencoder=settings)
    autoencoder: Any = codec.autoencoder().eval()
    fields = corpus.fields("train", np.arange(2))
    with torch.no_grad():
        for p in autoencoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
        turned = fields._replace(values=fields.values.roll(4, -1))
        a = autoencoder.decode(autoencoder.code(fields)[0], None)
        b = autoencoder.decode(autoencoder.code(turned)[0], None)
    torch.testing.assert_close(a.roll(4, -1), b, atol=1e-5, rtol=1e-4)


def test_static_fields_have_no_date_line_and_no_pole(tmp_path: Path) -> None:
    _, codec = prepared(make(60, shape=(12, 24), land=True), tmp_path)
    assert codec.static is not None
    sphere = codec.static[:3]
    torch.testing.assert_close(sphere.square().sum(0), torch.ones(12, 24))
    across = (sphere[..., 0] - sphere[..., -1]).norm(dim=0)
    along = (sphere[..., 1] - sphere[..., 0]).norm(dim=0)
    torch.testing.assert_close(across, along, atol=1e-5, rtol=0)
    assert codec.static[3].sum() == codec.exists.sum()


def test_trajectories_are_coded_state_by_state(tmp_path: Path) -> None:
    corpus, codec = prepared(make(60), tmp_path, frames=3)
    single_corpus, single = prepared(make(60), tmp_path, frames=1)
    film: Any = codec.autoencoder().eval()
    film.prepare([corpus.fields("train", np.arange(30))])
    alone: Any = single.autoencoder().eval()
    alone.load_state_dict(film.states.state_dict())
    with torch.no_grad():
        z, _ = film.code(corpus.fields("train", np.array([5])))
        states, _ = alone.code(single_corpus.fields("train", np.array([5, 6, 7])))
        decoded = film.decode(z, None)
    assert z.shape[2:] == codec.shape
    torch.testing.assert_close(z[0].transpose(0, 1), states)
    torch.testing.assert_close(decoded[0].transpose(0, 1), alone.decode(states, None))
    scores = film.metrics(corpus.fields("train", np.array([5])), decoded)
    one_by_one = alone.metrics(single_corpus.fields("train", np.array([5, 6, 7])), alone.decode(states, None))
    torch.testing.assert_close(scores["explained"], one_by_one["explained"].mean()[None], atol=1e-5, rtol=0)
