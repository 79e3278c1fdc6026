"""States: every date of every run on the internal grid, with what was wrong with the data.

In memory they are one float32 array `[state, channel, H, W]`, filled in chunks straight from the files, so that memory
is that of the array; larger ones stay in their files (`streaming`). Channels are variables times their further
dimensions (levels).
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import xarray as xr

from sciLDM.domains.climate.axes import Axes
from sciLDM.domains.climate.blocks import chunk_length, read_states
from sciLDM.domains.climate.calendar import Step, Times
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.read import Part, Series, Source
from sciLDM.domains.climate.settings import MaskSettings
from sciLDM.errors import DataError

__all__ = [
    "Channel",
    "Dates",
    "States",
    "channels_of",
    "dates_of",
    "distinct",
    "existing",
    "load_states",
    "mask_cells",
    "oriented",
    "read_part",
    "states_of",
    "usable",
]

_CHUNK_BYTES = 2**26
_SHARE = 0.6
_CHANNELS = 512


@final
@dataclass(frozen=True)
class Channel:
    """One channel: a variable, and where in its further dimensions."""

    variable: str
    index: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """`t[3]` for the fourth level of `t`."""
        return self.variable + (f"[{','.join(map(str, self.index))}]" if self.index else "")


@final
@dataclass(frozen=True, eq=False)
class States:
    """All states.

    Attributes:
        values: `[state, channel, H, W]` in the variables' units, NaN where missing; or left in their files.
        times: Of each state.
        run: Number of the run of each state.
        runs: Names of the runs.
        channels: What each channel is.
        grid: The internal grid.
        exists: Cells that ever have a value, `[channel, H, W]`.
        step: Distance of consecutive states.
        follows: Whether a state is one step after the state before, in the same run.
        forcing: Values of each forcing, `[state]`.
        notes: What was left out.
    """

    values: Any
    times: Times
    run: np.ndarray
    runs: tuple[str, ...]
    channels: tuple[Channel, ...]
    grid: Grid
    exists: np.ndarray
    step: Step
    follows: np.ndarray
    forcing: dict[str, np.ndarray]
    notes: list[str]

    def starts(self, frames: int) -> np.ndarray:
        """First states of all trajectories of `frames` consecutive states."""
        if frames == 1:
            return np.arange(len(self.times))
        ahead = np.lib.stride_tricks.sliding_window_view(self.follows[1:], frames - 1)
        return np.flatnonzero(ahead.all(axis=1))


def channels_of(source: Source) -> tuple[Channel, ...]:
    """The channels of a source.

    Raises:
        DataError: Too many levels.
    """
    found = []
    for name in source.variables:
        sizes = [source.first[name].sizes[d] for d in source.axes[name].extra]
        found += [Channel(name, tuple(int(i) for i in index)) for index in np.ndindex(*sizes)]
    if len(found) > _CHANNELS:
        shapes = {v: dict(source.first[v].sizes) for v in source.variables}
        raise DataError(
            f"{len(found)} channels ({shapes}) are more than {_CHANNELS}; select levels or variables"
        )
    return tuple(found)


def load_states(
    source: Source,
    mask: MaskSettings,
    forcing: tuple[str, ...],
    progress: Callable[[int, int], None],
) -> States:
    """Read everything.

    Raises:
        DataError: A variable without any value, grids that differ between files, too little memory, or no time left.
    """
    notes = list(source.notes)
    channels = channels_of(source)
    grid = Grid.of(source.first, source.axes[source.variables[0]])
    dates = dates_of(source, grid, forcing)
    count = len(dates.run)
    _check_memory(count, len(channels), grid.shape)
    values = np.empty((count, len(channels), *grid.shape), dtype=np.float32)
    filled = 0
    for series in source.series:
        for part in series.parts:
            for done, block in read_part(part, source, grid):
                values[filled + done : filled + done + len(block)] = block
                progress(filled + done + len(block), count)
            filled += len(part.times)
    finite = np.concatenate([np.isfinite(values[i : i + 256]).any(axis=(2, 3)) for i in range(0, count, 256)])
    keep = usable(finite, dates, channels, notes)
    if not (len(keep) == count and bool((keep == np.arange(count)).all())):
        values = values[keep]
    counts = np.zeros(values.shape[1:], dtype=np.int64)
    for i in range(0, len(values), 256):
        counts += np.isfinite(values[i : i + 256]).sum(axis=0)
    chosen = None if mask.variable is None else mask_cells(source, grid, mask)
    exists = existing(counts, len(values), chosen, channels, notes, mask)
    if chosen is not None:
        values[:, ~exists] = np.nan
    return states_of(values, dates.take(keep), source, channels, grid, exists, notes)


@final
@dataclass(frozen=True, eq=False)
class Dates:
    """What is known of all states without reading their values.

    Attributes:
        times: Of each state.
        run: Number of the run of each.
        forcing: Values of each forcing.
    """

    times: Times
    run: np.ndarray
    forcing: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> "Dates":
        """Of some states."""
        return Dates(self.times.take(rows), self.run[rows], {n: v[rows] for n, v in self.forcing.items()})


def dates_of(source: Source, grid: Grid, forcing: tuple[str, ...]) -> Dates:
    """Dates, runs and forcings, in the order of the files.

    Raises:
        DataError: Parts on different grids.
    """
    seconds, run, extra = [], [], {name: [] for name in forcing}
    for number, series in enumerate(source.series):
        for part in series.parts:
            _same_grid(part, source, grid, series)
            for name in forcing:
                extra[name].append(_forcing(part, name, source))
            seconds.append(part.times.seconds)
            run.append(np.full(len(part.times), number))
    model = source.series[0].parts[0].times
    times = Times(np.concatenate(seconds), model.calendar, model.dtype)
    return Dates(times, np.concatenate(run), {n: np.concatenate(v) for n, v in extra.items()})


def states_of(
    values: Any,
    dates: Dates,
    source: Source,
    channels: tuple[Channel, ...],
    grid: Grid,
    exists: np.ndarray,
    notes: list[str],
) -> States:
    """States with their steps and runs."""
    step, follows = _steps(dates.times, dates.run, notes)
    runs = tuple(series.run for series in source.series)
    return States(
        values, dates.times, dates.run, runs, channels, grid, exists, step, follows, dates.forcing, notes
    )


def read_part(part: Part, source: Source, grid: Grid) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks `[state, channel, H, W]` of a part, each with the number of its first state."""
    per_state = 4 * int(np.prod(grid.native_shape)) * len(channels_of(source))
    chunk = chunk_length(part, source)
    size = chunk * max(1, _CHUNK_BYTES // (chunk * per_state))  # whole chunks: none is decoded twice
    for start in range(0, len(part.times), size):
        yield start, read_states(part, source, grid, slice(start, start + size))


def oriented(array: xr.DataArray, axes: Axes) -> xr.DataArray:
    """Dimensions in the order (time, further ones, y, x)."""
    order = [d for d in (axes.time, *axes.extra, axes.y, axes.x) if d is not None and d in array.dims]
    return array.transpose(*order)


def usable(finite: np.ndarray, dates: Dates, channels: tuple[Channel, ...], notes: list[str]) -> np.ndarray:
    """States to keep, in order of run and time: no duplicates, none that is missing altogether.

    Args:
        finite: Whether a channel of a state has any value, `[state, channel]`.
        dates: Of all states.
        channels: For messages.
        notes: Told what is left out.

    Raises:
        DataError: A channel without any value, or hardly any states.
    """
    for c in np.flatnonzero(~finite.any(axis=0)):
        raise DataError(
            f"variable {channels[c].label!r} has no finite value at any time: all are NaN; leave it out of "
            "`variables`, or check its fill value"
        )
    times, empty = dates.times, ~finite.any(axis=1)
    if empty.any():
        notes.append(f"{int(empty.sum())} of {len(empty)} times are missing altogether and left out "
                     f"({_some(times, empty)})")  # fmt: skip
    order, first = distinct(dates)
    if (order != np.arange(len(order))).any():
        notes.append("times were not in order; they are sorted")
    if not first.all():
        twice = np.zeros(len(order), dtype=bool)
        twice[order[~first]] = True
        notes.append(f"{int(twice.sum())} times occur twice; the first is kept ({_some(times, twice)})")
    keep = order[first & ~empty[order]]
    if len(keep) < 3:
        raise DataError(
            f"only {len(keep)} usable times; training, validation and test need at least one each"
        )
    return keep


def distinct(dates: Dates) -> tuple[np.ndarray, np.ndarray]:
    """All states in order of run and time, and which of them are not there twice."""
    seconds, run = dates.times.seconds, dates.run
    order = np.lexsort((np.arange(len(seconds)), seconds, run))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(seconds[order]) != 0) | (np.diff(run[order]) != 0)
    return order, first


def _some(times: Times, which: np.ndarray) -> str:
    texts = times.take(np.flatnonzero(which)[:3]).text()
    return ", ".join(texts) + (", ..." if which.sum() > 3 else "")


def existing(
    counts: np.ndarray,
    states: int,
    chosen: np.ndarray | None,
    channels: tuple[Channel, ...],
    notes: list[str],
    mask: MaskSettings,
) -> np.ndarray:
    """Cells that ever have a value, and that the mask variable chooses; notes on what is missing.

    Args:
        counts: Values of each cell, `[channel, H, W]`.
        states: Number of states.
        chosen: Cells that the mask variable chooses, `[H, W]`; None for all.
        channels: For messages.
        notes: Told how many values are missing.
        mask: For messages.
    """
    exists = counts > 0
    if chosen is not None:
        exists &= chosen
        if not exists.any():
            raise DataError(f"mask.variable {mask.variable!r} leaves no cell; see `above` and `invert`")
    cells = exists.shape[1] * exists.shape[2]
    for c, channel in enumerate(channels):
        if (absent := int((~exists[c]).sum())) > 0:
            notes.append(
                f"{channel.label}: {absent} of {cells} cells never have a value (land, or outside the domain)"
            )
        gaps = int((states - counts[c])[exists[c]].sum())
        if gaps:
            share = gaps / (states * max(int(exists[c].sum()), 1))
            told = (
                f"{gaps:,} further values ({share:.2%}) are missing; they count neither as data nor as zero"
            )
            notes.append(f"{channel.label}: {told}")
    return exists


def mask_cells(source: Source, grid: Grid, mask: MaskSettings) -> np.ndarray:
    """Cells that the mask variable chooses, `[H, W]`."""
    axes = source.axes[source.variables[0]]
    array = source.series[0].parts[0].dataset[mask.variable]
    array = array.isel({d: 0 for d in array.dims if d not in (axes.y, axes.x)})
    if set(array.dims) != {axes.y, axes.x}:
        raise DataError(
            f"mask.variable {mask.variable!r}: expected dimensions ({axes.y}, {axes.x}), got {array.dims}"
        )
    values = grid.canonical(np.asarray(array.transpose(axes.y, axes.x).values, dtype=float))
    return ~(values > mask.above) if mask.invert else values > mask.above


def _steps(times: Times, run: np.ndarray, notes: list[str]) -> tuple[Step, np.ndarray]:
    longest = np.bincount(run).argmax()
    step = Step.infer(times.take(run == longest))
    follows = np.zeros(len(run), dtype=bool)
    follows[1:] = step.follows(times) & (np.diff(run) == 0)
    breaks = int((~follows).sum()) - len(np.unique(run))
    if breaks:
        notes.append(
            f"steps of {step}, with {breaks} gaps or irregular steps; trajectories do not cross them"
        )
    return step, follows


def _same_grid(part: Part, source: Source, grid: Grid, series: Series) -> None:
    for name in source.variables:
        axes, first = source.axes[name], source.first[name]
        shape = {d: part.dataset[name].sizes[d] for d in (*axes.extra, axes.y, axes.x)}
        want = {d: first.sizes[d] for d in (*axes.extra, axes.y, axes.x)}
        if shape != want:
            raise DataError(
                f"mismatched grids: {name!r} of {series.run or 'a file'} is {shape}, others are {want}"
            )
    other = Grid.of(part.dataset, source.axes[source.variables[0]])
    try:
        same = bool((grid.align(other) == np.arange(grid.shape[1])).all())
    except DataError as error:
        raise DataError(
            f"{series.run or 'a file'} lies on another grid than the first file: {error}"
        ) from error
    if not same or (other.rows != grid.rows).any():
        raise DataError(
            f"{series.run or 'a file'}: latitudes or longitudes run in another order than in the first file"
        )


def _forcing(part: Part, name: str, source: Source) -> np.ndarray:
    time = source.axes[source.variables[0]].time
    array = part.dataset[name]
    if array.dims != (time,):
        raise DataError(f"conditions.forcing {name!r}: expected dimensions ({time},), got {array.dims}")
    return np.asarray(array.values, dtype=float)


def _check_memory(count: int, channels: int, shape: tuple[int, int]) -> None:
    need = 4.0 * count * channels * shape[0] * shape[1]
    try:
        have = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return
    if need > _SHARE * have:
        raise DataError(
            f"the states need {need / 2**30:.1f} GiB, this machine has {have / 2**30:.1f}; choose fewer variables, a "
            "shorter period or a coarser grid"
        )
