"""What `scildm doctor` says about reading the data: how fast, how chunked, and what would help."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from sciLDM.domains.climate.blocks import StreamedStates, chunk_length
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.read import Source
from sciLDM.domains.climate.settings import LoadingSettings
from sciLDM.domains.climate.states import channels_of
from sciLDM.domains.climate.streaming import state_bytes
from sciLDM.evaluate.doctor_run import Finding

__all__ = ["Chunking", "chunking", "examine"]

_SECONDS = 2.0
_AHEAD = 2.0
"""The loader should be this many times faster than the training."""

_CHUNK = 2**24
"""Bytes of a good chunk, about."""

_WINDOW = 4
"""Fewer blocks than this in memory shuffle poorly."""

_PIECES = 8
"""More chunks than this for one map of one variable cost more than decoding them."""


@final
@dataclass(frozen=True)
class Chunking:
    """How states lie in their files.

    Attributes:
        times: States of a chunk.
        pieces: Chunks that one state of one variable is spread over, at most.
        state: Bytes of one state.
        window: Blocks that are shuffled together.
    """

    times: int
    pieces: int
    state: int
    window: int

    @property
    def advice(self) -> str | None:
        """What is wrong with it, and the remedy; None where nothing is."""
        good = max(1, min(256, _CHUNK // max(self.state, 1)))
        remedy = (
            f"rewrite them once: `ds.chunk(time={good}, <space>=-1).to_zarr('faster.zarr', zarr_format=3)`"
        )
        if self.pieces > _PIECES:
            return f"a map is spread over {self.pieces} chunks, all of which are read for it; {remedy}"
        if self.window < _WINDOW and self.times > good:
            size = self.times * self.state / 2**20
            return (
                f"a chunk holds {self.times} times ({size:,.0f} MiB), so that only {self.window} fit in memory to be "
                f"shuffled together; raise SCILDM_MEMORY_GIB, or {remedy}"
            )
        return None


def chunking(source: Source, loading: LoadingSettings) -> Chunking:
    """How the states of a source lie in their files."""
    part = source.series[0].parts[0]
    grid = Grid.of(source.first, source.axes[source.variables[0]])
    state = 4 * len(channels_of(source)) * grid.shape[0] * grid.shape[1]
    pieces = 1
    for name in source.variables:
        axes, variable = source.axes[name], part.dataset[name].variable
        sizes = dict(zip(variable.dims, variable.chunks or [], strict=False))
        stored = variable.encoding.get("preferred_chunks") or {}
        number = 1
        for dim in (*axes.extra, axes.y, axes.x):
            length = variable.sizes[dim]
            own = len(sizes[dim]) if dim in sizes else -(-length // max(1, int(stored.get(dim, length))))
            number *= own
        pieces = max(pieces, number)
    times = max(chunk_length(p, source) for series in source.series for p in series.parts)
    return Chunking(times, pieces, state, max(2, loading.budget // (2 * times * state)))


def examine(
    source: Source, loading: LoadingSettings, wanted: float | None
) -> tuple[dict[str, Any], Sequence[Finding]]:
    """Facts and verdict.

    Args:
        source: The opened data.
        loading: How training reads them.
        wanted: Samples a second that training the autoencoder takes; None where not known.
    """
    size = state_bytes(source)
    if size <= loading.budget:
        facts = {"data": f"{size / 2**30:.3g} GiB, in memory"}
        return facts, [Finding("good", f"data: {size / 2**30:.3g} GiB are kept in memory while training")]
    found = chunking(source, loading)
    speed = _speed(source, loading)
    facts = {
        "data": f"{size / 2**30:.3g} GiB, read block by block",
        "chunks": f"{found.times} times, {found.pieces} to a map; {found.window} blocks are shuffled together",
        "reading [states/s]": speed,
        "reading [MiB/s]": speed * found.state / 2**20,
        "autoencoder training [samples/s]": wanted,
    }
    text = f"data: {speed:,.0f} states/s ({speed * found.state / 2**20:,.0f} MiB/s) are read in whole chunks"
    slow = wanted is not None and speed < _AHEAD * wanted
    if wanted is not None:
        text += f", training takes {wanted:,.0f} samples/s: {speed / wanted:,.1f} times as fast"
    if found.advice is not None:
        return facts, [Finding("problem" if slow or wanted is None else "note", f"{text}; {found.advice}")]
    if slow:
        remedy = "raise SCILDM_READERS, use a faster disk, or a lighter compression (zstd 1)"
        return facts, [Finding("problem", f"{text}; {remedy}")]
    return facts, [Finding("good", f"{text}, no bottleneck")]


def _speed(source: Source, loading: LoadingSettings) -> float:
    """States a second, in blocks of whole chunks and in the files' order, for some seconds."""
    grid = Grid.of(source.first, source.axes[source.variables[0]])
    streamed = StreamedStates(
        source, grid, len(channels_of(source)), budget=loading.budget, threads=loading.threads
    )
    start, read = time.perf_counter(), 0
    length = streamed.spans[0].stop - streamed.spans[0].start
    for _, values in streamed.in_order(np.arange(streamed.shape[0]), length):
        read += len(values)
        if time.perf_counter() - start > _SECONDS:
            break
    return read / (time.perf_counter() - start)
