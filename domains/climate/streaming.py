"""Small data into memory; larger ones are looked through once and left in their files."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from sciLDM.domain import Progress
from sciLDM.domains.climate.blocks import StreamedStates
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.read import Source
from sciLDM.domains.climate.settings import LoadingSettings, MaskSettings
from sciLDM.domains.climate.states import (
    Dates,
    States,
    channels_of,
    dates_of,
    distinct,
    existing,
    load_states,
    mask_cells,
    states_of,
    usable,
)

__all__ = ["open_states", "state_bytes"]

_STATES = 2**25  # bytes looked through at once


def state_bytes(source: Source) -> int:
    """Size of all states as float32."""
    grid = Grid.of(source.first, source.axes[source.variables[0]])
    count = sum(len(part.times) for series in source.series for part in series.parts)
    return 4 * count * len(channels_of(source)) * grid.shape[0] * grid.shape[1]


def open_states(
    source: Source,
    mask: MaskSettings,
    forcing: tuple[str, ...],
    loading: LoadingSettings,
    *,
    cache: Path,
    progress: Progress,
) -> States:
    """States in memory, or, where they are larger than `loading.memory_gib`, left in their files.

    Either way the same states are used, and the same fingerprint is found.

    Args:
        source: What was opened; must stay open for states that are left in their files.
        mask: Which cells exist.
        forcing: Variables with time alone.
        loading: How much memory to use.
        cache: Keeps what looking through large files has found.
        progress: Told how far it has come.

    Raises:
        DataError: As `load_states`.
    """
    size = state_bytes(source)
    if size <= loading.budget:
        return load_states(source, mask, forcing, lambda done, total: progress("reading", done, total))
    channels = channels_of(source)
    grid = Grid.of(source.first, source.axes[source.variables[0]])
    streamed = StreamedStates(source, grid, len(channels), budget=loading.budget, threads=loading.threads)
    notes = [
        *source.notes,
        f"{size / 2**30:.3g} GiB of states are read block by block ({loading.memory_gib:g} GiB in memory; "
        "SCILDM_MEMORY_GIB)",
    ]
    dates = dates_of(source, grid, forcing)
    chosen = None if mask.variable is None else mask_cells(source, grid, mask)
    look = _look(streamed, dates, chosen, _key(source, mask), cache, progress)
    keep = usable(look.finite, dates, channels, notes)
    exists = existing(look.counts, len(keep), chosen, channels, notes, mask)
    streamed.choose(keep, chosen, look.counts)
    digest = look.digest if look.keep_assumed == _hash(keep) else _digest(streamed, dates.take(keep))
    streamed.digest = bytes.fromhex(digest)
    return states_of(streamed, dates.take(keep), source, channels, grid, exists, notes)


@final
@dataclass(frozen=True)
class _Look:
    """What one pass over all states says.

    Attributes:
        finite: Whether a channel of a state has any value, `[state, channel]`.
        counts: Values of each cell, `[channel, H, W]`, states that occur twice counted once.
        digest: Hash of dates and values, if all states but doubles are used.
        keep_assumed: Hash of the states that the digest is of.
    """

    finite: np.ndarray
    counts: np.ndarray
    digest: str
    keep_assumed: str


def _look(
    streamed: StreamedStates,
    dates: Dates,
    chosen: np.ndarray | None,
    key: str | None,
    cache: Path,
    progress: Progress,
) -> _Look:
    """The pass, or what an earlier one over the same files found."""
    path = None if key is None else cache / f"climate-{key}.npz"
    if path is not None and path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return _Look(
                    stored["finite"], stored["counts"], str(stored["digest"]), str(stored["keep_assumed"])
                )
        except (OSError, ValueError, KeyError):
            path.unlink(missing_ok=True)
    order, first = distinct(dates)
    assumed = order[first]
    digest = _start(dates.take(assumed))
    # Where states lie in order, their hash comes with the same pass; else it takes another one.
    hashed = bool((np.diff(assumed) > 0).all())
    single = np.zeros(len(order), dtype=bool)
    single[assumed] = True
    count = len(order)
    finite = np.zeros((count, streamed.shape[1]), dtype=bool)
    counts = np.zeros(streamed.shape[1:], dtype=np.int64)
    for place, values in streamed.in_order(np.arange(count), streamed.states_in(_STATES)):
        known = np.isfinite(values)
        finite[place] = known.any(axis=(2, 3))
        counts += known[single[place]].sum(axis=0)
        if hashed:
            digest.update(np.ascontiguousarray(_chosen(values[single[place]], chosen)).tobytes())
        progress("reading", place.stop, count)
    found = _Look(finite, counts, digest.hexdigest() if hashed else "", _hash(assumed) if hashed else "")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(partial, **vars(found))
        partial.replace(path)
    return found


def _digest(streamed: StreamedStates, dates: Dates) -> str:
    digest = _start(dates)
    for _, values in streamed.in_order(np.arange(len(dates.run)), streamed.states_in(_STATES)):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _start(dates: Dates) -> "hashlib._Hash":
    return hashlib.sha256(dates.times.seconds.tobytes() + dates.run.tobytes())


def _chosen(values: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
    return values if chosen is None else np.where(chosen, values, np.float32(np.nan))


def _hash(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).tobytes()).hexdigest()


def _key(source: Source, mask: MaskSettings) -> str | None:
    """Tells these files, as they are now, from others; None where that cannot be told without reading them."""
    if not source.paths or not all(Path(p).exists() for p in source.paths):
        return None
    stats = [(str(f), s.st_size, s.st_mtime_ns) for f, s in _files([Path(p) for p in source.paths])]
    asked = [stats, source.variables, mask.variable, mask.above, mask.invert]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _files(paths: list[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield file.resolve(), file.stat()
