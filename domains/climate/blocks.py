r"""States that do not fit in memory: read in whole storage chunks along time, shuffled within a window of blocks.

Random access to chunked files decodes a chunk for every sample. Here a *block* is a number of whole chunks of
consecutive states; each is read once an epoch, by threads, a little before it is needed, and normalised there. The
order of an epoch gives the samples of the block that comes `j`-th the keys `j + W u` (`u` uniform in [0, 1), `W` the
window) and sorts them: at any moment samples come from at most `W + 1` blocks, the others are not in memory, and
blocks arrive evenly. The order depends on the generator and the settings alone, not on the machine or its threads.

Blocks of trajectories hold the states after their last start too, so that a sample lies in one block.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import numpy as np

from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.read import Part, Source

__all__ = ["BlockReader", "Span", "StreamedStates", "chunk_length", "read_states"]

_LEAST_BYTES = 2**23
"""Smaller blocks are not worth a call."""

_SMALL = 2**13
"""Bytes of a sample below which numpy's own gathering is faster than one copy a sample."""

_SENTINEL = 1e19
"""Larger magnitudes are fill values that nobody declared (NetCDF's default is 9.97e36, CMIP's 1e20)."""


@final
@dataclass(frozen=True)
class Span:
    """Consecutive states of one part.

    Attributes:
        part: Where they are.
        start: First state in the part.
        stop: After the last one.
        row: Number of the first among all states, as they lie in the files.
    """

    part: Part
    start: int
    stop: int
    row: int


def chunk_length(part: Part, source: Source) -> int:
    """States of one storage chunk: the longest of all variables; 1 where states lie one by one."""
    longest = 1
    for name in source.variables:
        variable, time = part.dataset[name].variable, source.axes[name].time
        if variable.chunks is not None:
            longest = max(longest, max(variable.chunks[variable.dims.index(time)]))
        else:
            longest = max(longest, int((variable.encoding.get("preferred_chunks") or {}).get(time, 1)))
    return min(longest, len(part.times))


def read_states(
    part: Part, source: Source, grid: Grid, which: slice | np.ndarray, channels: slice = slice(None)
) -> np.ndarray:
    """States of a part, `[state, channel, H, W]` in the variables' units on the internal grid, NaN where missing.

    Args:
        part: Where they are.
        source: What was opened.
        grid: The internal grid.
        which: States, by their numbers in the part.
        channels: Channels wanted; variables without any of them are not read.
    """
    blocks, first = [], 0
    total = sum(_levels(source, name) for name in source.variables)
    wanted = range(*channels.indices(total))
    for name in source.variables:
        axes, levels = source.axes[name], _levels(source, name)
        own = range(max(wanted.start - first, 0), min(wanted.stop - first, levels))
        first += levels
        if not own:
            continue
        array = part.dataset[name].isel({axes.time: which})
        order = [d for d in (axes.time, *axes.extra, axes.y, axes.x) if d is not None and d in array.dims]
        raw = np.asarray(array.transpose(*order).values, dtype=np.float32)
        raw = raw.reshape(len(raw), -1, *raw.shape[-2:])
        blocks.append(_masked(grid.canonical(raw[:, own.start : own.stop])))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


def _levels(source: Source, name: str) -> int:
    return int(np.prod([source.first[name].sizes[d] for d in source.axes[name].extra], dtype=int))


def _masked(values: np.ndarray) -> np.ndarray:
    if values.size and values.min() > -_SENTINEL and values.max() < _SENTINEL:  # false for NaN
        return values
    return np.where(np.abs(values) < _SENTINEL, values, np.float32(np.nan))


@final
class StreamedStates:
    """All states of a source, left in their files.

    Args:
        source: What was opened; stays open.
        grid: The internal grid.
        channels: Number of channels.
        budget: Bytes of states to keep.
        threads: That read and decode.

    Attributes:
        spans: Blocks, in the order of the files.
        state_bytes: Size of one state.
        keep: Rows of the files that are used, in order of the states.
        counts: Values of each cell, `[channel, H, W]`.
        digest: Hash of dates and values.
    """

    def __init__(self, source: Source, grid: Grid, channels: int, *, budget: int, threads: int) -> None:
        self.source, self.grid, self.budget, self.threads = source, grid, budget, threads
        self.state_bytes = 4 * channels * grid.shape[0] * grid.shape[1]
        self.spans = self._spans()
        self._first = np.array([span.row for span in self.spans])
        self.keep = np.arange(self.spans[-1].row + self.spans[-1].stop - self.spans[-1].start)
        self.counts, self.digest = np.zeros(0, dtype=np.int64), b""
        self._channels, self._chosen = channels, None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(state, channel, H, W)`."""
        return len(self.keep), self._channels, *self.grid.shape

    def choose(self, keep: np.ndarray, cells: np.ndarray | None, counts: np.ndarray) -> None:
        """From now on only these states count, in this order, and only these cells `[H, W]`."""
        self.keep, self.counts = keep, counts
        self._chosen = None if cells is None else ~cells

    def states_in(self, size: int) -> int:
        """States that this many bytes hold; at least one."""
        return max(1, size // self.state_bytes)

    def span_of(self, rows: np.ndarray) -> np.ndarray:
        """Number of the span that each of these rows of the files lies in."""
        return np.searchsorted(self._first, rows, side="right") - 1

    def read(self, states: np.ndarray, channels: slice = slice(None)) -> np.ndarray:
        """Values of these states, in their units, in an array of their own. Nothing is kept."""
        rows = self.keep[states]
        shape = (len(rows), len(range(*channels.indices(self._channels))), *self.grid.shape)
        out: np.ndarray | None = None
        number = self.span_of(rows)
        for k in np.unique(number):
            here = np.flatnonzero(number == k)
            span = self.spans[k]
            local = rows[here] - span.row + span.start
            part = read_states(span.part, self.source, self.grid, _selection(local), channels)
            if not self.source.paths:
                part = part.copy()  # it may be a view of the user's own array
            if self._chosen is not None:
                part[:, :, self._chosen] = np.nan
            if len(here) == len(rows):
                return part
            out = np.empty(shape, dtype=np.float32) if out is None else out
            out[here] = part
        return np.empty(shape, dtype=np.float32) if out is None else out

    def in_order(
        self, states: np.ndarray, size: int, channels: slice = slice(None)
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """All of `states`, `size` at a time and read ahead by threads, with their places in `states`."""
        # Cut where blocks end, so that no chunk is decoded twice; then put together in pieces of `size`.
        cuts = np.flatnonzero(np.diff(self.span_of(self.keep[states]))) + 1
        pieces = np.split(states, cuts) if len(states) else []
        held: list[np.ndarray] = []
        start = count = 0
        with ThreadPoolExecutor(self.threads) as pool:
            for part in _ahead(pool, lambda piece: self.read(piece, channels), pieces, self.threads + 1):
                held.append(part)
                count += len(part)
                while count >= size or (held and start + count == len(states)):
                    whole = held[0] if len(held) == 1 else np.concatenate(held)
                    taken = min(size, len(whole))
                    yield slice(start, start + taken), whole[:taken]
                    held = [whole[taken:]] if taken < len(whole) else []
                    start, count = start + taken, count - taken

    def _spans(self) -> list[Span]:
        found, row = [], 0
        for series in self.source.series:
            for part in series.parts:
                chunk = chunk_length(part, self.source)
                # Whole chunks, enough of them for a call to be worth it, few enough for a window of blocks.
                wanted = min(_LEAST_BYTES, self.budget // 16) // (chunk * self.state_bytes)
                length = chunk * max(1, wanted)
                for start in range(0, len(part.times), length):
                    stop = min(start + length, len(part.times))
                    found.append(Span(part, start, stop, row))
                    row += stop - start
        return found


def _selection(local: np.ndarray) -> slice | np.ndarray:
    """A slice where the numbers are consecutive: libraries read those much faster."""
    if len(local) and local[-1] - local[0] == len(local) - 1 and bool((np.diff(local) == 1).all()):
        return slice(int(local[0]), int(local[-1]) + 1)
    return local


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[np.ndarray], np.ndarray], pieces: list[np.ndarray], most: int
) -> Iterator[np.ndarray]:
    """`map` with a bounded number of pieces under way."""
    waiting: list[Future[np.ndarray]] = []
    rest = iter(pieces)
    for piece in rest:
        waiting.append(pool.submit(read, piece))
        if len(waiting) >= most:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


@final
class BlockReader:
    """Trajectories of one split from streamed states, normalised, through a bounded cache of blocks.

    Args:
        states: All states.
        starts: First state of each trajectory.
        frames: States of a trajectory.
        prepare: Turns values of states (with the states' numbers) into what the autoencoder sees; called by threads.
        budget: Bytes to keep.
    """

    def __init__(
        self,
        states: StreamedStates,
        starts: np.ndarray,
        frames: int,
        prepare: Callable[[np.ndarray, np.ndarray], np.ndarray],
        *,
        budget: int,
    ) -> None:
        self._states, self._starts, self._frames, self._prepare = states, starts, frames, prepare
        span = states.span_of(states.keep[starts])
        self._spans, self._block = np.unique(span, return_inverse=True)
        order = np.argsort(self._block, kind="stable")
        self._samples = np.split(order, np.cumsum(np.bincount(self._block))[:-1])
        most = max(len(s) for s in self._samples) + frames - 1
        affordable = budget // max(most * states.state_bytes, 1)
        self.window = max(2, affordable // 2)
        self._capacity = max(affordable, self.window + states.threads + 2)
        self._arrivals, self._place = np.arange(len(self._spans)), np.arange(len(self._spans))
        self._pid, self._lock = -1, threading.Lock()
        self._blocks: OrderedDict[int, Future[tuple[np.ndarray, np.ndarray]]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def epoch(self, rng: np.random.Generator) -> np.ndarray:
        """An order of all samples in which every block is read once; see the module's text."""
        arrivals = rng.permutation(len(self._spans))
        place = np.empty_like(arrivals)
        place[arrivals] = np.arange(len(arrivals))
        key = place[self._block] + self.window * rng.random(len(self._block))
        self._arrivals, self._place = arrivals, place
        return np.argsort(key, kind="stable")

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Samples `[sample, state, channel, H, W]`, in this order."""
        self._own()
        indices = np.asarray(indices)
        shape = self._states.shape
        out = np.empty((len(indices), self._frames, *shape[1:]), dtype=np.float32)
        block = self._block[indices]
        in_order = len(indices) > 1 and bool((np.diff(indices) == 1).all())
        place = np.arange(len(self._spans)) if in_order else self._place
        needed = sorted(np.unique(block).tolist(), key=lambda k: place[k])
        futures = {k: self._load(k) for k in needed}
        self._read_ahead(needed, place)
        for k, future in futures.items():
            states, values = future.result()
            here = np.flatnonzero(block == k)
            local = np.searchsorted(states, self._starts[indices[here]])
            if out[0].nbytes < _SMALL:
                out[here] = values[local[:, None] + np.arange(self._frames)]
                continue
            for place, first in zip(here, local, strict=True):
                out[place] = values[first : first + self._frames]
        return out

    def _read_ahead(self, needed: list[int], place: np.ndarray) -> None:
        """Start with the blocks that come next, and forget those used longest ago."""
        arrivals = np.argsort(place) if place is not self._place else self._arrivals
        last = max((int(place[k]) for k in needed), default=-1)
        for k in arrivals[last + 1 : last + 1 + self._states.threads]:
            self._load(int(k))
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def _load(self, k: int) -> "Future[tuple[np.ndarray, np.ndarray]]":
        if k in self._blocks:
            self._blocks.move_to_end(k)
            return self._blocks[k]
        assert self._pool is not None
        self._blocks[k] = self._pool.submit(self._read, k)
        return self._blocks[k]

    def _read(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The block's states, in order, and their values. These are ours, so that `prepare` may change them."""
        starts = self._starts[self._samples[k]]
        states = np.unique(starts[:, None] + np.arange(self._frames))
        return states, self._prepare(self._states.read(states), states)

    def _own(self) -> None:
        """Threads do not survive a fork: a loader's process starts its own."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._blocks = OrderedDict()
                self._pool = ThreadPoolExecutor(self._states.threads, thread_name_prefix="states")
