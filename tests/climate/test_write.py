"""Large outputs: block by block, interrupted and continued, one member alone; the same numbers as in memory."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciLDM.cli import main
from sciLDM.data.draft import Draft, plain
from sciLDM.data.ensemble import block_size, members_again, write_ensemble
from sciLDM.domains.climate import ClimateCodec
from sciLDM.domains.climate.forecast import ForecastSettings, forecast
from sciLDM.domains.climate.write import write_filled, write_forecast
from sciLDM.errors import ConfigError
from sciLDM.experiment import instantiate, read_config
from sciLDM.model import LatentDiffusion
from tests.climate.fields import make, stored

FAST = ForecastSettings(sampler_steps=2)


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def model_of(folder: Path, *, frames: int = 1, **options: Any) -> LatentDiffusion:
    """Random weights: what it samples is not the question."""
    data = stored(make(90, step=2, flip=True, land=True), folder / "data.nc")
    autoencoder = {"channels": 2, "patch": 4, "factors": [], "widths": [8], "blocks": [1], "pca": -1}
    domain = {"data": data, "autoencoder": autoencoder, "frames": frames, **options}
    config = read_config(
        {
            "domain": {"class_path": "climate", "init_args": domain},
            "network": {"class_path": "DiTNetwork", "init_args": {"width": 16, "depth": 1, "heads": 2}},
        }
    )
    corpus = instantiate(config).domain.prepare(folder, silent)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LatentDiffusion(config, corpus.state)
        model.autoencoder.prepare([corpus.fields("train", np.arange(40))])
        for parameter in model.denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return model_of(tmp_path_factory.mktemp("maps"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return model_of(tmp_path_factory.mktemp("films"), frames=3, conditions={"context": True})


def tree(path: Path) -> dict[str, str]:
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in path.rglob("*")
        if p.is_file()
    }


def dying(model: Any, after: int) -> None:
    """From the `after`-th call on, sampling ends like a killed process."""
    sample, calls = model.sample, []

    def once(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return sample(*args, **options)

    model.sample = once


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal runs write equal histories."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


@pytest.mark.parametrize("kind", ["maps", "films"])
def test_a_store_holds_what_sampling_in_memory_gives(kind: str, tmp_path: Path, request: Any) -> None:
    model = request.getfixturevalue(kind)
    path = write_ensemble(model, tmp_path / "out.zarr", 11, steps=2, seed=3, batch_size=4)
    assert not (tmp_path / "out.zarr.partial").exists()
    whole = model.sample(11, steps=2, seed=3)
    with xr.open_dataset(path, engine="zarr") as written:
        assert written["tas"].dims == whole["tas"].dims
        for name, coordinate in whole.coords.items():
            xr.testing.assert_equal(written.coords[name], coordinate)
        np.testing.assert_allclose(written["tas"], whole["tas"], rtol=1e-5)
        np.testing.assert_array_equal(np.isnan(written["tas"]), np.isnan(whole["tas"]))
        assert written["tas"].attrs == whole["tas"].attrs
        assert written.attrs["history"].split("\n")[0].endswith("block 4)")
        assert written["tas"].encoding["chunks"][0] == 1
        assert written["tas"].encoding["shards"][0] == 4


@pytest.mark.usefixtures("clock")
def test_what_was_killed_goes_on_and_ends_with_the_same_bytes(maps: LatentDiffusion, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 2, "seed": 1, "batch_size": 3}
    whole = write_ensemble(maps, tmp_path / "whole" / "out.zarr", 10, **options)
    broken = tmp_path / "broken" / "out.zarr"
    plain_sample = maps.sample
    try:
        for after in (2, 1):
            dying(maps, after)
            with pytest.raises(KeyboardInterrupt):
                write_ensemble(maps, broken, 10, **options)
            maps.sample = plain_sample  # type: ignore[method-assign]
        assert not broken.exists()
        assert sorted(p.name for p in (tmp_path / "broken" / "out.zarr.partial" / "done").iterdir()) == [
            "0", "1", "2", "created",
        ]  # fmt: skip
        with pytest.raises(ConfigError, match="seed was 1, is 2"):
            write_ensemble(maps, broken, 10, steps=2, seed=2, batch_size=3)
        told: list[int] = []
        write_ensemble(maps, broken, 10, **options, progress=lambda done, _: told.append(done))
    finally:
        maps.sample = plain_sample  # type: ignore[method-assign]
    assert told == [10]
    assert tree(broken) == tree(whole)


def test_a_member_alone_equals_that_of_the_whole_run(maps: LatentDiffusion, tmp_path: Path) -> None:
    dates = [f"2001-01-{1 + k:02d}" for k in range(10)]
    options: dict[str, Any] = {"steps": 2, "seed": 5, "batch_size": 4, "cond": {"time": dates}}
    path = write_ensemble(maps, tmp_path / "out.zarr", 10, **options)
    found = members_again(maps, [9, 5], count=10, **options)
    assert sorted(found) == [4, 8]
    with xr.open_dataset(path, engine="zarr") as written:
        assert [str(t)[:10] for t in written["time"].values] == dates
        for first, part in found.items():
            np.testing.assert_array_equal(part["tas"], written["tas"].isel(number=slice(first, first + 4)))
    with pytest.raises(ConfigError, match="from 0 to 9, got 10"):
        members_again(maps, [10], count=10, **options)
    with pytest.raises(ConfigError, match="one for each of 10 samples, got 9"):
        write_ensemble(maps, tmp_path / "x.zarr", 10, cond={"time": dates[:9]}, steps=2)


def test_what_cannot_be_written_is_said_before_the_work(maps: LatentDiffusion, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected an ending \.zarr"):
        write_ensemble(maps, tmp_path / "out.nc", 3)
    with pytest.raises(ConfigError, match="at least 1"):
        write_ensemble(maps, tmp_path / "out.zarr", 0)
    assert block_size(2**20, 512, 600) == 256
    assert block_size(2**40, 512, 600) == 1
    assert block_size(10, 512, 5) == 5


def test_drafts_keep_to_their_request(tmp_path: Path) -> None:
    request = {"a": plain(np.float32(2.0)), "b": plain(torch.arange(3)), "c": plain(np.zeros(2000))}
    draft = Draft.open(tmp_path / "x", request)
    assert not draft.created
    draft.content.mkdir()
    draft.created_now()
    draft.mark(1)
    again = Draft.open(tmp_path / "x", request)
    assert again.created
    assert again.pending(3) == [0, 2]
    with pytest.raises(ConfigError, match=r"b was \[0, 1, 2\], is \[0, 1\]"):
        Draft.open(tmp_path / "x", {**request, "b": [0, 1]})
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    (again.content / "new").touch()
    assert [p.name for p in again.finish().iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("context", [1, 2])
def test_written_forecasts_are_those_in_memory(films: LatentDiffusion, context: int, tmp_path: Path) -> None:
    initial = make(90, step=2, flip=True, land=True).isel(time=slice(-3, None))
    settings = ForecastSettings(sampler_steps=2, context=context)
    whole = forecast(films, initial, steps=7, members=5, seed=2, settings=settings)
    options: dict[str, Any] = {"steps": 7, "members": 5, "seed": 2, "settings": settings}
    path = write_forecast(films, initial, tmp_path / "a.zarr", members_at_once=2, **options)
    with xr.open_dataset(path, engine="zarr") as written:
        np.testing.assert_allclose(written["tas"], whole["tas"], rtol=1e-4)
        for name in ("time", "number", "forecast_reference_time", "lat"):
            xr.testing.assert_equal(written[name], whole[name])
    told: list[int] = []

    def stop(done: int, _total: int) -> None:
        told.append(done)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_forecast(films, initial, tmp_path / "b.zarr", members_at_once=2, progress=stop, **options)
    write_forecast(films, initial, tmp_path / "b.zarr", members_at_once=2, progress=stop, **options)
    assert told == [2, 4, 5]
    assert tree(tmp_path / "b.zarr") == tree(path)


def test_long_gaps_are_filled_some_times_at_a_time(films: LatentDiffusion, tmp_path: Path) -> None:
    data = make(8, step=2, flip=True, land=True)
    rng = np.random.default_rng(0)
    gappy = data.assign(tas=data["tas"].where(rng.random(data["tas"].shape) < 0.5))
    options: dict[str, Any] = {"noise_std": 1.0, "samples": 2, "steps": 2, "members": True}
    path = write_filled(films, gappy.chunk(time=5), tmp_path / "a.zarr", cases_at_once=1, **options)
    codec = films.codec
    assert isinstance(codec, ClimateCodec)
    assert codec.members is False
    with xr.open_dataset(path, engine="zarr") as written:
        assert dict(written.sizes) == {"time": 8, "lat": 8, "lon": 12, "number": 2}
        xr.testing.assert_equal(written["time"], data["time"])
        for name in ("tas", "tas_std", "tas_lower", "tas_upper", "tas_members"):
            assert bool(np.isfinite(written[name]).any(("lat", "lon")).all())
        assert written["tas_std"].attrs["units"] == "K"
        assert "in blocks of times" in written.attrs["history"].splitlines()[0]


def test_the_accessor_streams_where_a_path_is_given(films: LatentDiffusion, tmp_path: Path) -> None:
    data = make(90, step=2, flip=True, land=True)
    ahead = data.ldm.forecast(films, steps=3, members=2, settings=FAST, path=tmp_path / "f.zarr")
    held = data.ldm.forecast(films, steps=3, members=2, settings=FAST)
    np.testing.assert_allclose(ahead["tas"], held["tas"], rtol=1e-4)
    drawn = data.isel(time=slice(0, 2)).ldm.sample(films, 3, steps=2, path=tmp_path / "s.zarr")
    assert [str(t)[:10] for t in drawn["valid_time"].values[:, 0]] == [
        "2001-01-01",
        "2001-01-03",
        "2001-01-01",
    ]
    filled = data.isel(time=slice(0, 3)).ldm.fill(
        films, noise_std=1.0, samples=2, steps=2, path=tmp_path / "g.zarr"
    )
    assert filled["tas"].sizes["time"] == 3


def test_the_command_line_writes_in_blocks(films: LatentDiffusion, tmp_path: Path, capsys: Any) -> None:
    films.save(tmp_path / "model")
    last = stored(make(90, step=2, flip=True, land=True).isel(time=slice(-2, None)), tmp_path / "last.nc")
    common = ["--device", "cpu", "--steps", "2"]
    run = str(tmp_path / "model")
    assert (
        main(["sample", run, "--count", "5", "--batch-size", "2", "-o", str(tmp_path / "s.zarr"), *common])
        == 0
    )
    for name in ("f.zarr", "f.nc"):
        output = str(tmp_path / name)
        asked = ["--leads", "3", "--members", "3"]
        assert main(["forecast", run, "--input", last, "--output", output, *asked, *common]) == 0
    assert "written" in capsys.readouterr().err
    with xr.open_dataset(tmp_path / "s.zarr", engine="zarr") as samples:
        assert samples.sizes["number"] == 5
    with xr.open_dataset(tmp_path / "f.zarr", engine="zarr") as a, xr.open_dataset(tmp_path / "f.nc") as b:
        np.testing.assert_allclose(a["tas"], b["tas"], rtol=1e-4)
    assert main(["forecast", run, "--input", last, "--output", "f.csv", *common]) == 2
    assert "expected an ending .nc, .zarr" in capsys.readouterr().err
