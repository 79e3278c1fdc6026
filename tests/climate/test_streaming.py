"""Data larger than memory: the same states, statistics and samples as in memory; blocks are read once, in windows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.climate import Climate, ConditionSettings, LoadingSettings, MaskSettings
from sciLDM.domains.climate.blocks import BlockReader, StreamedStates, chunk_length
from sciLDM.domains.climate.corpus import ClimateCorpus
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.read import open_source
from sciLDM.errors import ConfigError, DataError
from sciLDM.training.data import SplitData
from sciLDM.training.plan import BatchPlan
from tests.climate.fields import make

SMALL = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,))
STREAMED = LoadingSettings(memory_gib=0.0, threads=2)


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def corpus(data: Any, tmp_path: Path, **options: Any) -> ClimateCorpus:
    loading = options.pop("loading", LoadingSettings())
    domain = Climate(data, autoencoder=SMALL, **options)
    domain.loading = loading
    found = domain.prepare(tmp_path, silent)
    assert isinstance(found, ClimateCorpus)
    return found


def zarr_of(data: xr.Dataset, path: Path, chunk: int) -> str:
    data.drop_encoding().chunk(time=chunk).to_zarr(path, consolidated=False, zarr_format=3)
    return str(path)


def netcdf_of(data: xr.Dataset, path: Path, chunk: int) -> str:
    encoding = {n: {"chunksizes": (chunk, *data[n].shape[1:])} for n in data.data_vars}
    data.drop_encoding().to_netcdf(path, encoding=encoding)
    return str(path)


def gappy(data: xr.Dataset) -> xr.Dataset:
    """Scattered gaps, an empty state, a state that comes twice, two that changed places, an undeclared fill value."""
    rng = np.random.default_rng(0)
    for name in data.data_vars:
        data[name] = data[name].where(rng.random(data[name].shape) > 0.05)
        data[name][dict(time=17)] = np.nan
        data[name][dict(time=30, lat=0, lon=0)] = 9.97e36
    order = np.arange(data.sizes["time"])
    order[[40, 41]] = [41, 40]
    order = np.insert(order, 60, 59)
    return data.isel(time=order)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", ["zarr", "netcdf", "dask", "gaps"])
def test_streamed_data_are_those_in_memory(kind: str, frames: int, tmp_path: Path) -> None:
    variables = ("tas", "pr") if kind == "zarr" else ("tas",)
    data = make(150, step=2, flip=True, west=-180.0, land=True, variables=variables)
    data = gappy(data) if kind == "gaps" else data
    source: Any = {
        "zarr": lambda: zarr_of(data, tmp_path / "x.zarr", 7),
        "netcdf": lambda: netcdf_of(data, tmp_path / "x.nc", 16),
        "dask": lambda: data.chunk(time=9),
        "gaps": lambda: zarr_of(data, tmp_path / "x.zarr", 11),
    }[kind]()
    plain = corpus(source, tmp_path, frames=frames)
    streamed = corpus(source, tmp_path, frames=frames, loading=STREAMED)
    assert streamed.fingerprint == plain.fingerprint
    assert streamed.state == plain.state
    assert dict(streamed.sizes) == dict(plain.sizes)
    assert any("block by block" in note for note in streamed.notes)
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for indices in (rng.permutation(plain.sizes[split])[:20], np.arange(20)):
            a, b = plain.fields(split, indices), streamed.fields(split, indices)
            torch.testing.assert_close(a.values, b.values, rtol=1e-5, atol=2e-5)
            assert torch.equal(a.weight, b.weight)
        for name, label in plain.labels(split).items():
            np.testing.assert_array_equal(label, streamed.labels(split)[name])
    plain.write_reference(tmp_path / "a")
    streamed.write_reference(tmp_path / "b")
    for name in ("test-0.nc", "train-0.nc"):
        with xr.open_dataset(tmp_path / "a" / name) as a, xr.open_dataset(tmp_path / "b" / name) as b:
            # In memory states went through the normaliser and back.
            xr.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_users_arrays_stay_as_they_were(tmp_path: Path) -> None:
    data = make(90)
    before = data.copy(deep=True)
    for given in (data, data.chunk(time=30)):
        found = corpus(given, tmp_path, loading=STREAMED)
        found.fields("train", np.arange(40))
        xr.testing.assert_identical(data, before)


def test_a_second_preparation_reads_the_files_once_less(tmp_path: Path, monkeypatch: Any) -> None:
    path = zarr_of(make(120), tmp_path / "x.zarr", 10)
    first = corpus(path, tmp_path / "cache", loading=STREAMED)
    reads: list[int] = []
    plain = StreamedStates.read

    def counted(self: StreamedStates, states: np.ndarray, channels: slice = slice(None)) -> np.ndarray:
        reads.append(len(states))
        return plain(self, states, channels)

    monkeypatch.setattr(StreamedStates, "read", counted)
    again = corpus(path, tmp_path / "cache", loading=STREAMED)
    assert again.fingerprint == first.fingerprint
    trained = first.sizes["train"]
    assert sum(reads) == 3 * trained  # sample, climatology, spread; the look at all states was kept
    changed = make(120, seed=1)
    zarr_of(changed, tmp_path / "y.zarr", 10)
    assert (
        corpus(str(tmp_path / "y.zarr"), tmp_path / "cache", loading=STREAMED).fingerprint
        != first.fingerprint
    )


def test_mask_variables_hold_for_streamed_states(tmp_path: Path) -> None:
    data = make(100, land=True)
    sea = xr.DataArray(np.zeros((8, 12), dtype=np.float32), dims=("lat", "lon"))
    sea[2:6, 3:] = 1.0
    data["sea"] = sea
    mask = MaskSettings("sea")
    found = [
        corpus(data, tmp_path, mask=mask, variables=["tas"], loading=s) for s in (LoadingSettings(), STREAMED)
    ]
    assert found[0].fingerprint == found[1].fingerprint
    a, b = (c.fields("train", np.arange(9)) for c in found)
    torch.testing.assert_close(a.values, b.values, rtol=1e-5, atol=2e-5)
    assert bool((b.values[..., 0, 0] == 0).all())


def streamed_states(data: xr.Dataset, budget: int) -> StreamedStates:
    source = open_source(data)
    grid = Grid.of(source.first, source.axes["tas"])
    return StreamedStates(source, grid, 1, budget=budget, threads=2)


def reader_of(data: xr.Dataset, budget: int, frames: int = 1) -> BlockReader:
    states = streamed_states(data, budget)
    starts = np.arange(states.shape[0] - frames + 1)
    return BlockReader(states, starts, frames, lambda values, _rows: values, budget=budget)


def test_blocks_are_whole_chunks(tmp_path: Path) -> None:
    source = open_source(zarr_of(make(100), tmp_path / "x.zarr", 12))
    part = source.series[0].parts[0]
    assert chunk_length(part, source) == 12
    states = StreamedStates(source, Grid.of(source.first, source.axes["tas"]), 1, budget=2**19, threads=1)
    assert all(span.start % 12 == 0 for span in states.spans)
    assert sum(span.stop - span.start for span in states.spans) == 100
    # 0.5 MiB / 16 hold 85 maps of 8 x 12: seven chunks of 12.
    assert states.spans[0].stop == 84
    source.close()


def test_an_epoch_is_a_permutation_that_keeps_to_its_window() -> None:
    data = make(600, step=1).chunk(time=10)
    state = 4 * 8 * 12
    reader = reader_of(data, budget=10 * state * 12)
    assert reader.window == 6
    order = reader.epoch(np.random.default_rng(0))
    assert sorted(order) == list(range(600))
    np.testing.assert_array_equal(order, reader_of(data, 10 * state * 12).epoch(np.random.default_rng(0)))
    assert not np.array_equal(order, reader.epoch(np.random.default_rng(1)))
    block = order // 10
    first = {k: int(np.flatnonzero(block == k)[0]) for k in range(60)}
    last = {k: int(np.flatnonzero(block == k)[-1]) for k in range(60)}
    alive = [sum(first[k] <= at <= last[k] for k in range(60)) for at in range(600)]
    assert max(alive) <= reader.window + 1
    # Within the window samples are well mixed: neighbours in the order are rarely neighbours in time.
    inside = slice(100, 500)
    assert np.mean(np.abs(np.diff(order[inside])) == 1) < 0.06
    assert np.mean(np.diff(block[inside]) == 0) < 2.5 / reader.window


def test_an_epoch_reads_every_block_once(monkeypatch: Any) -> None:
    data = make(400, step=1).chunk(time=10)
    reads: list[tuple[int, int]] = []
    plain = StreamedStates.read

    def counted(self: StreamedStates, states: np.ndarray, channels: slice = slice(None)) -> np.ndarray:
        reads.append((int(states[0]), len(states)))
        return plain(self, states, channels)

    monkeypatch.setattr(StreamedStates, "read", counted)
    for frames, extra in ((1, 0), (3, 2)):
        reader = reader_of(data, budget=10 * 4 * 96 * 12, frames=frames)
        order = reader.epoch(np.random.default_rng(0))
        expected = data["tas"].values
        reads.clear()
        for start in range(0, len(order), 16):
            taken = order[start : start + 16]
            rows = taken[:, None] + np.arange(frames)
            np.testing.assert_array_equal(reader(taken)[:, :, 0], expected[rows])
        assert len(reads) == len(set(reads)) == 40
        assert max(size for _, size in reads) == 10 + extra
        assert len(reader._blocks) <= reader._capacity


def test_a_batch_depends_on_seed_epoch_and_step_alone(tmp_path: Path) -> None:
    data = make(300, step=1).chunk(time=10)
    threads = [LoadingSettings(memory_gib=0.0, threads=n) for n in (1, 3)]
    one, other = (SplitData(corpus(data, tmp_path, loading=s), "train") for s in threads)
    plan = BatchPlan(5, len(one), 16, one.epoch)
    seen = [plan.indices(step) for step in range(40)]
    assert sorted(np.concatenate(seen)[: len(one)]) == list(range(len(one)))
    resumed = BatchPlan(5, len(other), 16, other.epoch)
    for step in (39, 23, 24, 3):
        np.testing.assert_array_equal(resumed.indices(step), seen[step])
        assert torch.equal(other.fields(seen[step]).values, one.fields(seen[step]).values)
    assert not np.array_equal(BatchPlan(6, len(one), 16, one.epoch).indices(0), seen[0])


def test_streamed_data_train_the_same_statistics_and_refuse_the_same_faults(tmp_path: Path) -> None:
    data = make(100)
    data["tas"][:] = np.nan
    with pytest.raises(DataError, match="all are NaN"):
        corpus(data.chunk(time=10), tmp_path, loading=STREAMED)
    late = make(100)
    late["tas"][dict(time=slice(0, 70))] = np.nan
    late["tas"][dict(time=slice(0, 70), lat=0, lon=0)] = 280.0
    assert corpus(late.chunk(time=10), tmp_path, loading=STREAMED).state["exists"]
    context = ConditionSettings(context=True)
    films = corpus(make(100).chunk(time=10), tmp_path, frames=3, conditions=context, loading=STREAMED)
    assert films.fields("train", np.array([5, 2])).values.shape == (2, 1, 3, 8, 12)


def test_memory_is_a_property_of_the_machine(monkeypatch: Any) -> None:
    monkeypatch.setenv("SCILDM_MEMORY_GIB", "0.5")
    assert Climate(make(10)).loading == LoadingSettings(memory_gib=0.5)
    monkeypatch.setenv("SCILDM_MEMORY_GIB", "much")
    with pytest.raises(ConfigError, match="SCILDM_MEMORY_GIB: expected a number, got 'much'"):
        Climate(make(10))
