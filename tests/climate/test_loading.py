"""What the doctor says about chunks: long ones, scattered ones, good ones."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.climate import Climate, LoadingSettings
from sciLDM.domains.climate.loading import chunking, examine
from sciLDM.domains.climate.read import open_source
from sciLDM.evaluate.doctor import diagnose
from sciLDM.experiment import instantiate, read_config
from tests.climate.fields import make

SMALL = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,))


def source_of(chunks: dict[str, int], folder: Path) -> Any:
    data = make(240, shape=(16, 32), step=1).drop_encoding()
    data.chunk(chunks).to_zarr(folder / "x.zarr", consolidated=False, zarr_format=3)
    return open_source(str(folder / "x.zarr"))


def test_chunks_are_judged(tmp_path: Path) -> None:
    state = 4 * 16 * 32
    loading = LoadingSettings(memory_gib=100 * state / 2**30)
    for name, chunks, times, pieces, problem in (
        ("good", {"time": 8}, 8, 1, None),
        ("scattered", {"time": 8, "lat": 4, "lon": 8}, 8, 16, "spread over 16 chunks"),
    ):
        (tmp_path / name).mkdir()
        source = source_of(chunks, tmp_path / name)
        found = chunking(source, loading)
        assert (found.times, found.pieces, found.state) == (times, pieces, state)
        _, (finding,) = examine(source, loading, wanted=1e9)
        assert finding.kind == "problem"
        assert (problem or "SCILDM_READERS") in finding.text
        facts, (fine,) = examine(source, loading, wanted=1e-3)
        assert fine.kind == ("good" if problem is None else "note")
        assert facts["reading [states/s]"] > 0
        source.close()


def test_chunks_that_are_too_long_to_shuffle(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sciLDM.domains.climate.loading._CHUNK", 2**14)
    source = source_of({"time": 120}, tmp_path)
    found = chunking(source, LoadingSettings(memory_gib=100 * 4 * 16 * 32 / 2**30))
    assert found.window == 2
    assert "a chunk holds 120 times" in str(found.advice)
    assert "chunk(time=8, <space>=-1)" in str(found.advice)
    source.close()


def test_the_doctor_asks_the_domain(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SCILDM_MEMORY_GIB", "1e-4")
    source_of({"time": 8, "lat": 4, "lon": 8}, tmp_path).close()
    autoencoder = {"channels": 2, "patch": 4, "factors": [], "widths": [8], "blocks": [1]}
    options = {"data": str(tmp_path / "x.zarr"), "autoencoder": autoencoder}
    experiment = instantiate(read_config({"domain": {"class_path": "climate", "init_args": options}}))
    found = diagnose(experiment, run=tmp_path, own=0)
    assert any("spread over 16 chunks" in f.text for f in found.findings)
    assert "chunks" in found.loader
    monkeypatch.delenv("SCILDM_MEMORY_GIB")
    kept = Climate(options["data"], autoencoder=SMALL)
    facts, (finding,) = kept.examine_loading(None)
    assert finding.kind == "good"
    assert "in memory" in facts["data"]


def test_data_that_have_gone_are_no_crash(tmp_path: Path) -> None:
    xr.Dataset({"tas": (("time", "lat", "lon"), np.zeros((2, 3, 4)))})
    options = {"data": str(tmp_path / "gone.nc")}
    experiment = instantiate(read_config({"domain": {"class_path": "climate", "init_args": options}}))
    found = diagnose(experiment, run=tmp_path, own=0)
    assert any("data: not examined" in f.text for f in found.findings)
