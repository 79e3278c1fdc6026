"""Latents of a whole data set, computed once: training the denoiser then never runs the encoder.

A zarr (version 3) group per split, one row a sample:

    <key>.zarr/ z [count, channel, *shape] float32    mask [count, *shape] bool (optional)    cond/<name> [count, ...]

The key is a hash of everything that decides the numbers, so a cache is never stale: it is right, or it is not found.
A draft becomes the cache by a rename once its last attribute, `complete`, is written; what a killed run leaves
behind is therefore recognised and done again, and two runs that write the same cache do not disturb each other.
"""

import hashlib
import os
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final
from urllib.parse import quote, unquote

import numpy as np
import torch
import zarr
from jaxtyping import Bool, Float
from torch import Tensor, nn
from zarr.codecs import Crc32cCodec

from sciLDM.domain import Progress
from sciLDM.errors import DataError, ShapeMismatch

__all__ = ["LatentCache", "cache_key", "module_hash"]

FORMAT_VERSION = 1
CHUNK_BYTES = 2**21
STALE_SECONDS = 86400.0  # a draft that nobody has touched for a day belongs to a killed run

Batch = tuple[Tensor, Tensor | None, Mapping[str, np.ndarray]]


def module_hash(module: nn.Module) -> str:
    """sha256 of what a module computes: its weights, and the plain settings (say, a bound) of all its parts."""
    digest = hashlib.sha256()
    for name, part in sorted(module.named_modules()):
        settings = {k: v for k, v in vars(part).items() if not k.startswith("_") and k != "training"}
        plain = {k: v for k, v in settings.items() if isinstance(v, bool | int | float | str | tuple)}
        digest.update(repr((name, type(part).__qualname__, sorted(plain.items()))).encode())
    for name, tensor in sorted(module.state_dict().items()):
        stored = tensor.detach().cpu().contiguous()
        digest.update(repr((name, str(stored.dtype), tuple(stored.shape))).encode())
        digest.update(stored.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cache_key(fingerprint: str, autoencoder: str, split: str) -> str:
    """The key of a split's latents.

    Args:
        fingerprint: `Corpus.fingerprint`.
        autoencoder: `module_hash` of the autoencoder, bottleneck included.
        split: Name of the split.
    """
    parts = (FORMAT_VERSION, fingerprint, autoencoder, split)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@final
class LatentCache:
    """Latents, masks and labels by sample index; made by `write` or `open`, not by hand.

    What fits in `memory_limit_bytes` is read once and kept; of a larger cache, the chunks used last are.

    Args:
        group: The zarr group.
        memory_limit_bytes: How much memory to use.
    """

    def __init__(self, group: zarr.Group, *, memory_limit_bytes: int) -> None:
        self._arrays = dict(_arrays(group))
        self._rows: int = self._arrays["z"].chunks[0]
        self._limit = memory_limit_bytes
        self._bytes_per_row = sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in self._arrays.values())
        self._chunks: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._all: dict[str, Tensor] | None = None
        if len(self) * self._bytes_per_row <= memory_limit_bytes:
            self._all = self._read(slice(None))

    @staticmethod
    def open(
        folder: str | os.PathLike[str], key: str, *, memory_limit_bytes: int = 2**32
    ) -> "LatentCache | None":
        """The complete cache of that key in `folder`, or None: absent, unfinished or damaged, so write it."""
        path = Path(folder) / f"{key}.zarr"
        if not path.is_dir():
            return None
        try:
            group = zarr.open_group(path, mode="r", zarr_format=3)
            wanted = {"key": key, "format_version": FORMAT_VERSION, "complete": True}
            if any(group.attrs.get(name) != value for name, value in wanted.items()):
                return None
            # zarr reads a chunk whose file is gone as zeros, so the files are counted.
            if any(array.nchunks_initialized != array.nchunks for _, array in _arrays(group)):
                return None
            return LatentCache(group, memory_limit_bytes=memory_limit_bytes)
        except MemoryError:
            raise
        except Exception:  # whatever a damaged file raises, in whichever library: the remedy is the same
            return None

    @staticmethod
    def write(
        folder: str | os.PathLike[str],
        key: str,
        batches: Iterable[Batch],
        count: int,
        *,
        memory_limit_bytes: int = 2**32,
        progress: Progress | None = None,
    ) -> "LatentCache":
        """Write the cache, and open it.

        Args:
            folder: Where caches lie.
            key: From `cache_key`.
            batches: `(z [batch, channel, *shape], mask [batch, *shape] or None, labels by name)`, in sample order.
            count: Number of samples in all.
            memory_limit_bytes: As for `open`.
            progress: Called as `progress("latents", done, count)`.

        Raises:
            DataError: Latents that are not finite, too few or too many of them, or a disk that lost them.
            ShapeMismatch: Batches that do not fit together.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, key)
        draft = folder / f".{key}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            group = zarr.create_group(draft, zarr_format=3)
            group.attrs.update({"key": key, "format_version": FORMAT_VERSION, "count": count})
            _fill(group, batches, count, progress)
            group.attrs["complete"] = True
            if (done := LatentCache.open(folder, key, memory_limit_bytes=memory_limit_bytes)) is not None:
                return done  # another run was faster
            shutil.rmtree(folder / f"{key}.zarr", ignore_errors=True)
            draft.rename(folder / f"{key}.zarr")
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        cache = LatentCache.open(folder, key, memory_limit_bytes=memory_limit_bytes)
        if cache is None:
            raise DataError(
                f"the latents written to {folder} cannot be read back; expected {count}; check the disk"
            )
        return cache

    def __len__(self) -> int:
        return self._arrays["z"].shape[0]

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self._arrays["z"].shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The latent grid."""
        return tuple(self._arrays["z"].shape[2:])

    @property
    def in_memory(self) -> bool:
        """Whether all of it is kept in memory."""
        return self._all is not None

    def fields(
        self, indices: np.ndarray | Sequence[int]
    ) -> tuple[Float[Tensor, "batch channel *shape"], Bool[Tensor, "batch *shape"] | None, dict[str, Tensor]]:
        """Latents, mask and labels of these samples, in this order.

        Raises:
            DataError: An index out of range, or a file that was damaged since the cache was opened.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise DataError(
                f"this cache holds samples 0 to {len(self) - 1}, got indices from {wanted.min()} to {wanted.max()}"
            )
        index = torch.from_numpy(wanted)
        if self._all is not None:
            rows = {name: tensor[index] for name, tensor in self._all.items()}
        else:
            rows = self._gather(index)
        labels = {name.removeprefix("cond/"): rows[name] for name in rows if name.startswith("cond/")}
        return rows["z"], rows.get("mask"), labels

    def batches(self, size: int = 4096) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All `(z, mask)` in order, as `LatentStats.fit` takes them."""
        for start in range(0, len(self), size):
            z, mask, _ = self.fields(np.arange(start, min(start + size, len(self))))
            yield z, mask

    def epoch(self, rng: np.random.Generator) -> np.ndarray:
        """A random order of all samples.

        In memory it is a permutation. Otherwise as many random chunks as fit in half the memory are shuffled
        together, so that each chunk is read once an epoch.
        """
        if self._all is not None:
            return rng.permutation(len(self))
        starts = rng.permutation(np.arange(0, len(self), self._rows))
        together = max(1, self._limit // (2 * self._rows * self._bytes_per_row))
        parts = []
        for first in range(0, len(starts), together):
            rows = [np.arange(s, min(s + self._rows, len(self))) for s in starts[first : first + together]]
            parts.append(rng.permutation(np.concatenate(rows)))
        return np.concatenate(parts)

    def _gather(self, index: Tensor) -> dict[str, Tensor]:
        out = {
            name: torch.empty(len(index), *a.shape[1:], dtype=torch.from_numpy(np.empty(0, a.dtype)).dtype)
            for name, a in self._arrays.items()
        }
        chunk_of = index // self._rows
        # What is in memory first: else reading another chunk could push it out just before it is needed.
        for number in sorted(chunk_of.unique().tolist(), key=lambda number: number not in self._chunks):
            here = chunk_of == number
            for name, tensor in self._chunk(number).items():
                out[name][here] = tensor[index[here] - number * self._rows]
        return out

    def _chunk(self, number: int) -> dict[str, Tensor]:
        if number in self._chunks:
            self._chunks.move_to_end(number)
            return self._chunks[number]
        chunk = self._read(slice(number * self._rows, (number + 1) * self._rows))
        self._chunks[number] = chunk
        while len(self._chunks) > max(2, self._limit // (self._rows * self._bytes_per_row)):
            self._chunks.popitem(last=False)
        return chunk

    def _read(self, rows: slice) -> dict[str, Tensor]:
        try:
            return {name: torch.from_numpy(np.asarray(array[rows])) for name, array in self._arrays.items()}
        except (OSError, ValueError) as error:
            raise DataError(
                f"the latent cache is damaged: {error}; start the run again to rebuild it"
            ) from error


def _arrays(group: zarr.Group) -> Iterator[tuple[str, Any]]:
    yield "z", group["z"]
    if "mask" in group:
        yield "mask", group["mask"]
    labels = group["cond"]
    assert isinstance(labels, zarr.Group)
    for name in sorted(labels.array_keys()):
        yield f"cond/{unquote(name)}", labels[name]


def _sweep(folder: Path, key: str) -> None:
    for draft in folder.glob(f".{key}.*.tmp"):
        touched = max((path.stat().st_mtime for path in draft.rglob("*")), default=draft.stat().st_mtime)
        if time.time() - touched > STALE_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)


def _fill(group: zarr.Group, batches: Iterable[Batch], count: int, progress: Progress | None) -> None:
    """Write batches as whole chunks; what is left over waits for the next batch."""
    arrays: dict[str, Any] = {}
    waiting: dict[str, np.ndarray] = {}
    written = 0
    for batch in batches:
        rows = _rows(batch, written + (len(waiting["z"]) if waiting else 0))
        if not arrays:
            arrays = _create(group, rows, count)
        _check_alike(rows, arrays)
        waiting = {k: np.concatenate([waiting[k], v]) for k, v in rows.items()} if waiting else rows
        chunk = arrays["z"].chunks[0]
        ready = len(waiting["z"]) // chunk * chunk
        if written + len(waiting["z"]) > count:
            raise DataError(f"expected {count} latents, got at least {written + len(waiting['z'])}")
        _put(arrays, waiting, written, ready)
        written, waiting = written + ready, {name: values[ready:] for name, values in waiting.items()}
        if progress is not None:
            progress("latents", written + len(waiting["z"]), count)
    rest = len(waiting["z"]) if waiting else 0
    if written + rest != count or not arrays:
        raise DataError(
            f"expected {count} latents, got {written + rest}; is the corpus the one that was counted?"
        )
    _put(arrays, waiting, written, rest)


def _put(arrays: Mapping[str, Any], rows: Mapping[str, np.ndarray], start: int, number: int) -> None:
    if number:
        for name, array in arrays.items():
            array[start : start + number] = rows[name][:number]


def _rows(batch: Batch, first: int) -> dict[str, np.ndarray]:
    """A batch as arrays by name, in the types that are stored."""
    z, mask, cond = batch
    rows = {"z": z.detach().to("cpu", torch.float32).numpy()}
    bad = ~np.isfinite(rows["z"]).reshape(len(z), -1).all(axis=1)
    if bad.any():
        raise DataError(
            f"the latent of sample {first + int(bad.argmax())} is not finite ({int(bad.sum())} of {len(z)} in its "
            "batch); did the autoencoder's training diverge?"
        )
    if mask is not None:
        rows["mask"] = mask.detach().cpu().numpy().astype(bool)
    for name, label in cond.items():
        label = np.asarray(label)
        rows[f"cond/{name}"] = label.astype(np.float32 if label.dtype.kind == "f" else np.int64)
    return rows


def _create(group: zarr.Group, rows: Mapping[str, np.ndarray], count: int) -> dict[str, Any]:
    bytes_per_row = sum(values[:1].nbytes for values in rows.values())
    chunk = int(np.clip(CHUNK_BYTES // max(bytes_per_row, 1), 1, max(count, 1)))
    labels = group.create_group("cond")
    arrays = {}
    for name, values in rows.items():
        home = labels if name.startswith("cond/") else group
        arrays[name] = home.create_array(
            quote(name.removeprefix("cond/"), safe=""),  # a slash, as in "gap/eV", would make a folder
            shape=(count, *values.shape[1:]),
            chunks=(chunk, *(max(n, 1) for n in values.shape[1:])),
            dtype=values.dtype,
            compressors=[
                Crc32cCodec()
            ],  # a checksum; latents are close to noise, so compressing gains nothing
            config={"write_empty_chunks": True},  # so that every chunk has a file, and a lost one is noticed
        )
    return arrays


def _check_alike(rows: Mapping[str, np.ndarray], arrays: Mapping[str, Any]) -> None:
    expected = {name: tuple(array.shape[1:]) for name, array in arrays.items()}
    got = {name: tuple(values.shape[1:]) for name, values in rows.items()}
    if got != expected or len({len(values) for values in rows.values()}) != 1:
        sizes = {name: len(values) for name, values in rows.items()}
        raise ShapeMismatch(
            f"batches of latents do not fit together: expected {expected} per sample, got {got} for {sizes} samples; "
            "pad all samples to one grid"
        )
