"""The latent cache gives back what was written, in any order and from RAM or disk, and is never half there."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import sciLDM.data.latent_cache as module
from sciLDM.autoencoders import KLBottleneck, LatentStats, NoiseBottleneck
from sciLDM.data.latent_cache import LatentCache, cache_key, module_hash
from sciLDM.errors import DataError, ShapeMismatch

KEY = cache_key("corpus", "weights", "train")
COUNT = 23


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows a chunk, so that 23 samples are three chunks."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 800)


def data(
    count: int = COUNT, *, masked: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, np.ndarray]]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, 3, 5, generator=generator)
    mask = torch.rand(count, 5, generator=generator) > 0.3 if masked else None
    gap = np.random.default_rng(0).normal(size=count)
    gap[::4] = np.nan
    cond = {"gap": gap, "group": np.arange(count) % 3 - 1, "code": np.zeros((count, 2))}
    return z, mask, cond


def batched(
    size: int, count: int = COUNT, *, masked: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, dict[str, np.ndarray]]]:
    z, mask, cond = data(count, masked=masked)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        yield z[rows], None if mask is None else mask[rows], {k: v[rows] for k, v in cond.items()}


def same(cache: LatentCache, indices: np.ndarray, *, masked: bool = True) -> None:
    z, mask, cond = data(len(cache), masked=masked)
    got_z, got_mask, got_cond = cache.fields(indices)
    assert torch.equal(got_z, z[indices])
    assert (got_mask is None) if mask is None else torch.equal(got_mask, mask[indices])
    assert set(got_cond) == set(cond)
    np.testing.assert_array_equal(
        got_cond["gap"].numpy(), cond["gap"][indices].astype(np.float32)
    )  # NaN included
    assert got_cond["group"].tolist() == cond["group"][indices].tolist()
    assert got_cond["group"].dtype == torch.int64
    assert got_cond["code"].shape == (len(indices), 2)


@settings(max_examples=15)
@given(
    size=st.integers(1, COUNT + 3),
    limit=st.sampled_from([0, 800, 1600, 2**20]),
    indices=st.lists(st.integers(0, COUNT - 1), max_size=40),
    masked=st.booleans(),
)
def test_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, size: int, limit: int, indices: list[int], masked: bool
) -> None:
    """Any batch size in, any memory limit, any indices (unsorted, repeated, none) out."""
    folder = tmp_path_factory.mktemp("cache")
    LatentCache.write(folder, KEY, batched(size, masked=masked), COUNT)
    cache = LatentCache.open(folder, KEY, memory_limit_bytes=limit)
    assert cache is not None
    assert cache.in_memory == (limit == 2**20)
    assert (len(cache), cache.channels, cache.shape) == (COUNT, 3, (5,))
    same(cache, np.array(indices, dtype=int), masked=masked)
    same(cache, np.arange(COUNT)[::-1].copy(), masked=masked)


@pytest.mark.parametrize("limit", [700, 1400, 2**20])
def test_an_epoch_visits_every_sample_once_and_each_chunk_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 200)
    LatentCache.write(tmp_path, KEY, batched(4), COUNT)
    cache = LatentCache.open(tmp_path, KEY, memory_limit_bytes=limit)
    assert cache is not None
    reads = []
    original = LatentCache._read
    monkeypatch.setattr(LatentCache, "_read", lambda self, rows: reads.append(rows) or original(self, rows))
    order = cache.epoch(np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(COUNT))
    assert order.tolist() != sorted(order.tolist())
    assert order.tolist() != cache.epoch(np.random.default_rng(1)).tolist()
    for start in range(0, COUNT, 4):
        same(cache, order[start : start + 4])
    starts = [rows.start for rows in reads]
    assert len(starts) == len(set(starts))


def test_batches_feed_the_latent_statistics(tmp_path: Path) -> None:
    cache = LatentCache.write(tmp_path, KEY, batched(5), COUNT, memory_limit_bytes=0)
    z, mask, _ = data()
    assert mask is not None
    stats = LatentStats(3).fit(cache.batches(7))
    cells = z.movedim(1, -1)[mask].double()
    torch.testing.assert_close(stats.mean.double(), cells.mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(stats.std.double(), cells.std(0, correction=0), atol=1e-6, rtol=1e-5)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    LatentCache.write(tmp_path, KEY, batched(10), COUNT, progress=lambda *call: seen.append(call))
    assert seen == [("latents", 10, COUNT), ("latents", 20, COUNT), ("latents", 23, COUNT)]


# --- never half there ------------------------------------------------------------------------------------


def test_a_write_that_dies_leaves_no_cache_and_is_done_again(tmp_path: Path) -> None:
    def dying() -> Iterator[tuple[torch.Tensor, torch.Tensor | None, dict[str, np.ndarray]]]:
        yield from list(batched(5))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LatentCache.write(tmp_path, KEY, dying(), COUNT)
    assert LatentCache.open(tmp_path, KEY) is None
    assert not list(tmp_path.iterdir())
    same(LatentCache.write(tmp_path, KEY, batched(5), COUNT), np.arange(COUNT))


def test_a_cache_without_its_last_attribute_is_unfinished(tmp_path: Path) -> None:
    LatentCache.write(tmp_path, KEY, batched(5), COUNT)
    path = tmp_path / f"{KEY}.zarr" / "zarr.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    assert LatentCache.open(tmp_path, KEY) is None
    same(LatentCache.write(tmp_path, KEY, batched(5), COUNT), np.arange(COUNT))


@pytest.mark.parametrize("what", ["delete", "truncate", "flip", "metadata"])
@pytest.mark.parametrize("array", ["z", "mask", "cond/gap"])
def test_a_damaged_cache_is_found_and_written_again(tmp_path: Path, what: str, array: str) -> None:
    LatentCache.write(tmp_path, KEY, batched(5), COUNT)
    folder = tmp_path / f"{KEY}.zarr" / array
    chunk = sorted(path for path in (folder / "c").rglob("*") if path.is_file())[-1]
    if what == "delete":
        chunk.unlink()
    elif what == "truncate":
        chunk.write_bytes(chunk.read_bytes()[:-3])
    elif what == "flip":
        raw = bytearray(chunk.read_bytes())
        raw[0] ^= 1
        chunk.write_bytes(raw)
    else:
        (folder / "zarr.json").write_text("{")
    assert LatentCache.open(tmp_path, KEY) is None
    same(LatentCache.write(tmp_path, KEY, batched(5), COUNT), np.arange(COUNT))


def test_damage_that_comes_later_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    cache = LatentCache.write(tmp_path, KEY, batched(5), COUNT, memory_limit_bytes=0)
    for chunk in (tmp_path / f"{KEY}.zarr" / "z" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"")
    with pytest.raises(DataError, match=r"damaged: .*start the run again to rebuild it"):
        cache.fields([0])


def test_a_run_that_was_slower_takes_the_cache_that_is_there(tmp_path: Path) -> None:
    def overtaken() -> Iterator[tuple[torch.Tensor, torch.Tensor | None, dict[str, np.ndarray]]]:
        yield from batched(5)
        LatentCache.write(tmp_path, KEY, batched(3), COUNT)

    same(LatentCache.write(tmp_path, KEY, overtaken(), COUNT), np.arange(COUNT))
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.zarr"]


def test_drafts_of_killed_runs_are_swept_and_young_ones_are_not(tmp_path: Path) -> None:
    for name, age in (("old", 2e5), ("new", 0.0)):
        draft = tmp_path / f".{KEY}.{name}.tmp"
        draft.mkdir()
        (draft / "chunk").write_bytes(b"1")
        when = (draft / "chunk").stat().st_mtime - age
        os.utime(draft / "chunk", (when, when))
    LatentCache.write(tmp_path, KEY, batched(5), COUNT)
    assert {path.name for path in tmp_path.iterdir()} == {f".{KEY}.new.tmp", f"{KEY}.zarr"}


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, COUNT - 1, COUNT + 1])
def test_the_wrong_number_of_latents(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match=rf"expected {count} latents, got"):
        LatentCache.write(tmp_path, KEY, batched(5), count)
    with pytest.raises(DataError, match="expected 3 latents, got 0"):
        LatentCache.write(tmp_path, KEY, iter(()), 3)


def test_latents_that_are_not_finite_are_named(tmp_path: Path) -> None:
    batches = list(batched(5))
    batches[2][0][1, 0, 0] = float("inf")
    with pytest.raises(DataError, match=r"latent of sample 11 is not finite \(1 of 5.*diverge"):
        LatentCache.write(tmp_path, KEY, batches, COUNT)


def test_batches_must_fit_together(tmp_path: Path) -> None:
    first, second = next(batched(5)), list(batched(5))[1]
    others = [
        (second[0][..., :4], second[1], second[2]),
        (second[0], None, second[2]),
        (second[0], second[1], {}),
        (second[0][:3], second[1], second[2]),
    ]
    for other in others:
        with pytest.raises(ShapeMismatch, match="do not fit together: expected"):
            LatentCache.write(tmp_path, KEY, [first, other], 10)


def test_indices_out_of_range(tmp_path: Path) -> None:
    cache = LatentCache.write(tmp_path, KEY, batched(5), COUNT)
    for bad in ([-1], [0, COUNT]):
        with pytest.raises(DataError, match=r"holds samples 0 to 22, got indices from"):
            cache.fields(bad)


# --- the key ---------------------------------------------------------------------------------------------


def test_keys_differ_when_anything_does() -> None:
    parts = ("a", "b", "c")
    changed = [("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x"), ("ab", "", "c"), ("b", "a", "c")]
    assert len({cache_key(*parts), *(cache_key(*other) for other in changed)}) == 6
    assert cache_key(*parts) == cache_key(*parts)


def test_module_hash_sees_weights_names_types_and_settings() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    same_net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert module_hash(net) != module_hash(same_net)
    same_net.load_state_dict(net.state_dict())
    before = module_hash(net)
    assert before == module_hash(same_net)
    net.eval()
    assert before == module_hash(net)  # how it is run does not change what is stored
    assert before != module_hash(net.double())
    assert before != module_hash(nn.ModuleDict({"a": same_net[0], "b": same_net[1]}))
    with torch.no_grad():
        same_net[0].weight[0, 0] += 1e-6
    assert before != module_hash(same_net)
    hashes = {module_hash(m) for m in (NoiseBottleneck(0.3), NoiseBottleneck(0.3, bound=2.0), KLBottleneck())}
    assert len(hashes) == 3  # none of these has weights


def test_module_hash_reads_bfloat16() -> None:
    net = nn.Linear(3, 2).bfloat16()
    before = module_hash(net)
    with torch.no_grad():
        net.weight[0, 0] *= 2
    assert module_hash(net) != before
