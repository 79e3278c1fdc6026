r"""Observations as scientists have them, turned into values and an operator; posteriors turned back.

| given | read as |
|---|---|
| a data set on the model's grid with gaps (NaN) | `Mask` |
| stations: a table with `lat`, `lon` (and `time`), or a data set with a dimension of points | `PointSampling` |
| a data set on a coarser grid whose cells are whole blocks of the model's | `BlockMean`, by area |
| numbers, and an operator | the operator's observations, one row a case |

A model of single maps takes every time as a case of its own; a model of trajectories takes windows of `frames`
consecutive times, the last one filled up with times nobody observed (they are not returned).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciLDM.domain import Task
from sciLDM.domains.climate.axes import Axes, find_axes
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.read import open_dataset
from sciLDM.domains.climate.requests import DatedRequest
from sciLDM.domains.climate.states import oriented
from sciLDM.domains.climate.stations import is_points, read_points
from sciLDM.domains.climate.template import Template
from sciLDM.domains.climate.units import apply, convert
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.operators import GaussianNoise, Observation, Operator
from sciLDM.operators.averaging import BlockMean
from sciLDM.operators.masking import Mask

if TYPE_CHECKING:
    from sciLDM.domains.climate.codec import ClimateCodec

__all__ = ["Native", "read_observed"]


@final
@dataclass(frozen=True)
class Native:
    """What delivery needs of what was observed.

    Attributes:
        times: Dates of the result, or None where there is no time.
        template: Layout of the result.
        columns: Column of the result's grid for each column of the model's.
        has_time: Whether the result has a time dimension.
        notes: Conversions and assumptions.
        kind: What was observed, in words.
    """

    times: Times
    template: Template
    columns: np.ndarray
    has_time: bool
    notes: list[str] = field(default_factory=list)
    kind: str = "gridded values with gaps"


def read_observed(
    codec: "ClimateCodec",
    observed: Any,
    operator: Operator | None,
    *,
    noise_std: float | None,
    cond: Mapping[str, Any],
) -> Task:
    """Read what was observed; see the head of this file.

    Args:
        codec: Of the model.
        observed: xarray or pandas objects, a path of a data set, or (with an operator) numbers `[case, *observation]`.
        operator: How it was observed; None where the observations say.
        noise_std: Standard deviation of the observation errors, in the model's units.
        cond: `time` where the observations have none, `scenario`, forcings.

    Raises:
        DataError: Unknown variables or units, another grid, points outside, or times without any observation.
        ConfigError: No date where one is needed.
        ShapeMismatch: Values that are not of the operator's shape.
    """
    cond = dict(cond)
    if isinstance(observed, str):
        observed = open_dataset(observed)
    noise = None if noise_std is None else GaussianNoise(noise_std)
    if operator is not None and not isinstance(observed, xr.Dataset | xr.DataArray):
        return _with_operator(codec, observed, operator, noise, cond)
    if isinstance(observed, xr.DataArray):
        name = observed.name if observed.name in codec.template.names else codec.template.names[0]
        if len(codec.template.names) > 1 and observed.name not in codec.template.names:
            raise DataError(
                f"observed: a DataArray called {observed.name!r}; the model knows {', '.join(codec.template.names)}"
            )
        observed = observed.to_dataset(name=name, promote_attrs=False)
    if is_points(observed):
        values, sampling, times, notes = read_points(codec, observed, cond.pop("time", None))
        native = Native(
            times, codec.template, np.arange(codec.template.grid.shape[1]), len(times) > 1, notes, "points"
        )
        windows, start, drop = _windows(codec, values, times)
        observation = Observation(torch.from_numpy(windows).float(), sampling, noise)
        return _task(codec, observation, start, cond, replace(native, has_time=len(times) > 1 or drop))
    if not isinstance(observed, xr.Dataset):
        raise DataError(
            f"observed: expected an xarray object, a table with lat and lon, or numbers with an operator, got "
            f"{type(observed).__name__}"
        )
    return _gridded(codec, observed, operator, noise, cond)


def _gridded(
    codec: "ClimateCodec", observed: xr.Dataset, operator: Operator | None, noise: Any, cond: dict[str, Any]
) -> Task:
    present = [n for n in codec.template.names if n in observed]
    if not present:
        raise DataError(
            f"observed: expected variables {', '.join(codec.template.names)}, got "
            f"{', '.join(map(str, observed.data_vars))}"
        )
    axes = {n: find_axes(observed, n) for n in present}
    first = axes[present[0]]
    if first.runs is not None:
        raise DataError(f"observed: it has a dimension {first.runs!r}; select one run")
    grid, notes = Grid.of(observed, first), []
    times = _dates(codec, observed, first, cond)
    fine = codec.template.grid
    coarse = operator is None and grid.shape != fine.shape
    factors = _blocks(fine, grid) if coarse else (1, 1)
    columns = np.arange(grid.shape[1]) if coarse or operator is not None else fine.align(grid)
    values = np.full((len(times), codec.template.channels, *grid.shape), np.nan, dtype=np.float32)
    channel = 0
    for variable in codec.template.variables:
        here = slice(channel, channel + variable.channels)
        channel += variable.channels
        if variable.name not in present:
            continue
        array = oriented(observed[variable.name], axes[variable.name])
        raw = np.asarray(array.values, dtype=np.float64).reshape(len(times), -1, *grid.native_shape)
        if raw.shape[1] != variable.channels:
            raise DataError(
                f"observed {variable.name!r}: expected {dict(variable.extra)} levels, got {raw.shape[1]}"
            )
        conversion, note = convert(variable.name, observed[variable.name].attrs.get("units"), variable.units)
        notes += [note] if note else []
        values[:, here] = apply(grid.canonical(raw), conversion)[..., columns]
    if coarse:
        layout, kept, kind = (
            codec.template,
            np.arange(fine.shape[1]),
            f"means over {factors[0]} x {factors[1]} cells",
        )
    else:
        layout = _layout(codec, observed, present, axes, grid)
        kept, kind = columns, "gridded values with gaps"
        values[:, ~codec.exists.numpy()] = np.nan
    native = Native(times, layout, kept, first.time is not None, notes, kind)
    windows, start, _ = _windows(codec, values, times)
    if coarse:
        lead = () if codec.frames == 1 else (1,)
        operator = BlockMean(
            codec.grid_shape, (*lead, *factors), weights=codec.area if not lead else codec.area[None]
        )
    observation = _observation(codec, torch.from_numpy(windows), operator, noise)
    return _task(codec, observation, start, cond, native)


def _observation(codec: "ClimateCodec", values: Tensor, operator: Operator | None, noise: Any) -> Observation:
    if operator is None:
        # Only places that some case observed; gaps that differ between cases stay NaN.
        seen = torch.isfinite(values).any(dim=0)
        operator = Mask(seen)
        return Observation(values.flatten(1)[:, seen.flatten()], operator, noise)
    if tuple(values.shape[1:]) != operator.out_shape:
        raise ShapeMismatch(
            f"observed values have shape {tuple(values.shape[1:])} (channel, {'time, ' if codec.frames > 1 else ''}"
            f"rows, columns), {type(operator).__name__} gives {operator.out_shape}"
        )
    return Observation(values, operator, noise)


def _with_operator(
    codec: "ClimateCodec", observed: Any, operator: Operator, noise: Any, cond: dict[str, Any]
) -> Task:
    values = torch.as_tensor(np.asarray(observed), dtype=torch.float32)
    if tuple(values.shape) == operator.out_shape:
        values = values[None]
    observation = Observation(values, operator, noise)
    time = cond.pop("time", None)
    if time is None and _needs_time(codec):
        raise ConfigError(
            "observed: numbers have no dates; say them in cond, for instance {'time': '2007-01-15'}"
        )
    start = codec.asked.draw(
        len(values), {"time": time} if time is not None else {}, np.full(len(values), 0.5)
    )[0]
    shown = codec.asked.step.after(start, codec.frames)
    times = Times(shown.seconds.reshape(-1), shown.calendar, shown.dtype)
    columns = np.arange(codec.template.grid.shape[1])
    native = Native(times, codec.template, columns, len(times) > 1, [], type(operator).__name__)
    return _task(codec, observation, start, cond, native)


def _task(
    codec: "ClimateCodec", observation: Observation, start: Times, cond: dict[str, Any], native: Native
) -> Task:
    labels = codec.asked.labels(start, cond)
    times = codec.asked.step.after(start, codec.frames)
    request = DatedRequest(codec.shape, labels, None, codec.asked.always, times=times)
    return Task(observation, request, {"phase": request.phase}, native)


def _windows(codec: "ClimateCodec", values: np.ndarray, times: Times) -> tuple[np.ndarray, Times, bool]:
    """Cases `[case, channel, (frames,) *place]` with their first dates; whether the last was filled up.

    Raises:
        DataError: Times that do not follow each other, or a window that nobody observed.
    """
    frames = codec.frames
    filled = -(-len(values) // frames) * frames
    if frames > 1:
        if not codec.asked.step.follows(times).all():
            raise DataError(
                f"irregular time: a model of {frames} states {codec.asked.step} apart needs observed times that follow "
                f"each other at that distance; fill absent times with NaN (`resample` or `reindex`)"
            )
        more = np.full((filled - len(values), *values.shape[1:]), np.nan, dtype=values.dtype)
        values = np.moveaxis(np.concatenate([values, more]).reshape(-1, frames, *values.shape[1:]), 1, 2)
    empty = ~np.isfinite(values).reshape(len(values), -1).any(axis=1)
    if empty.any():
        shown = times.take(np.flatnonzero(empty)[:3] * frames).text()
        raise DataError(
            f"no observed value from {', '.join(shown)} on ({int(empty.sum())} of {len(empty)} "
            f"{'windows of ' + str(frames) + ' states' if frames > 1 else 'times'}); drop those times, or sample them"
        )
    return values, times.take(slice(0, None, frames)), filled > len(times)


def _dates(codec: "ClimateCodec", observed: xr.Dataset, axes: Axes, cond: dict[str, Any]) -> Times:
    own = codec.asked.drawn.calendar
    if axes.time is not None:
        cond.pop("time", None)
        times = Times.of(observed[axes.time].values)
        alike = {"standard", "gregorian", "proleptic_gregorian"}
        if times.calendar != own and not {times.calendar, own} <= alike:
            raise DataError(
                f"observed: the calendar is {times.calendar!r}, the model's {own!r}; convert with `convert_calendar`"
            )
        return Times(times.seconds, own, codec.asked.drawn.dtype) if times.calendar != own else times
    scalar = next(
        (
            observed[n].values
            for n in ("time", "valid_time")
            if n in observed.coords and observed[n].ndim == 0
        ),
        None,
    )
    time = cond.pop("time", scalar)
    if time is None and _needs_time(codec):
        raise ConfigError(
            "observed: it has no date, which this model needs; give cond={'time': '2007-01-15'}"
        )
    if isinstance(time, np.ndarray):
        time = time[()]
    return codec.asked.draw(1, {} if time is None else {"time": time}, np.array([0.5]))[0]


def _needs_time(codec: "ClimateCodec") -> bool:
    return codec.asked.season or codec.normaliser.terms > 1


def _blocks(fine: Grid, coarse: Grid) -> tuple[int, int]:
    """Fine cells per coarse cell along both axes.

    Raises:
        DataError: The coarse cells are no whole blocks of fine ones.
    """
    factors = []
    for n, m in zip(fine.shape, coarse.shape, strict=True):
        if m > n or n % m:
            raise DataError(
                f"mismatched grids: the model's is {fine.shape[0]} x {fine.shape[1]} ({fine}), the observations' "
                f"{coarse.shape[0]} x {coarse.shape[1]} ({coarse}); expected the same grid, or whole blocks of its "
                "cells; regrid, or give `operator`"
            )
        factors.append(n // m)
    if fine.kind == coarse.kind == "regular":
        lat = fine.latitude.reshape(-1, factors[0]).mean(axis=1)
        lon = fine.longitude.reshape(-1, factors[1]).mean(axis=1)
        size = [
            abs(float(np.median(np.diff(v)))) if len(v) > 1 else 1.0
            for v in (coarse.latitude, coarse.longitude)
        ]
        off = (np.abs(lat - coarse.latitude).max(), np.abs((lon - coarse.longitude + 180) % 360 - 180).max())
        if off[0] > 0.1 * size[0] or off[1] > 0.1 * size[1]:
            raise DataError(
                f"mismatched grids: blocks of {factors[0]} x {factors[1]} cells have other centres than the "
                f"observations ({coarse}); regrid, or give `operator`"
            )
    return factors[0], factors[1]


def _layout(
    codec: "ClimateCodec", observed: xr.Dataset, present: list[str], axes: dict[str, Axes], grid: Grid
) -> Template:
    """The observations' layout; variables they lack come in the model's."""
    theirs = Template.of(observed, present, axes, grid)
    if tuple(present) != codec.template.names:
        return replace(codec.template)
    named = tuple(
        replace(
            v, attrs={**m.attrs, **v.attrs, **({"units": m.attrs["units"]} if "units" in m.attrs else {})}
        )
        for v, m in zip(theirs.variables, codec.template.variables, strict=True)
    )
    return replace(theirs, variables=named)
