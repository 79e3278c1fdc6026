"""Long forecasts and long reconstructions, written region by region: memory is that of one region.

Both go on where they stopped when they were interrupted and are called again with the same arguments; the output
appears when it is complete (`sciLDM.data.draft`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciLDM.data.draft import Draft, plain
from sciLDM.data.ensemble import EnsembleModel, model_hash
from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.forecast import ForecastSettings, Rollout, read_initial
from sciLDM.domains.climate.outputs import NUMBER, provenance
from sciLDM.domains.climate.store import create_store, samples_layout, stretched, write_region
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

__all__ = ["lead_dates", "write_filled", "write_forecast"]

_REGION_BYTES = 2**26
"""States of a forecast that are kept before they are written."""

_AT_ONCE = 16

Progress = Callable[[int, int], None]


def write_forecast(
    model: EnsembleModel,
    initial: xr.Dataset,
    path: str | Path,
    *,
    steps: int,
    members: int = 16,
    seed: int = 0,
    settings: ForecastSettings | None = None,
    members_at_once: int = _AT_ONCE,
    progress: Progress | None = None,
) -> Path:
    """An ensemble forecast of any length as a sharded zarr store.

    Args:
        model: A loaded climate model, trained with random context.
        initial: The last known states, as for `forecast`.
        path: A `.zarr` store.
        steps: States to forecast.
        members: Size of the ensemble.
        seed: Of the members.
        settings: How to forecast.
        members_at_once: Members that are continued together; part of the request, since last bits depend on it.
        progress: `progress(done, members)` after each group of members.

    Raises:
        ConfigError: A model that cannot forecast, settings out of range, or an unfinished output of another request.
        DataError: Initial states that are incomplete, irregular, or of another grid.
    """
    if min(steps, members, members_at_once) < 1:
        raise ConfigError(f"steps, members and members_at_once must be at least 1, got {steps}, {members} and "
                          f"{members_at_once}")  # fmt: skip
    path, settings = _store_path(path), settings or ForecastSettings()
    rollout = Rollout(model, settings, seed=seed)  # type: ignore[arg-type]
    values, times = read_initial(rollout.codec, initial, rollout.context)
    block = min(members_at_once, members)
    request = {
        "what": "forecast", "model": model_hash(model), "steps": steps, "members": members, "block": block,
        "seed": seed, "settings": plain(vars(settings)), "initial": plain(values), "last": times.text()[-1:],
    }  # fmt: skip
    draft = Draft.open(path, request)
    if draft.finished:
        return draft.finish()
    dates = lead_dates(rollout, times, steps)
    if not draft.created:
        draft.clear()
        layout = _forecast_layout(rollout, times, Times(np.concatenate([d.seconds for d in dates], axis=1),
                                                        times.calendar, times.dtype), members)  # fmt: skip
        region = _region_states(rollout.codec, [d.seconds.shape[1] for d in dates], block)
        create_store(draft.content, layout, along={NUMBER: block, _time(rollout.codec): region})
        draft.created_now()
    known = rollout.encode(values, times)
    starts = range(0, members, block)
    for k in draft.pending(len(starts)):
        ids = range(starts[k], min(starts[k] + block, members))
        _write_members(rollout, known, times, steps, ids, draft.content)
        draft.mark(k)
        if progress is not None:
            progress(ids.stop, members)
    return draft.finish()


def write_filled(
    model: Any,
    observed: xr.Dataset,
    path: str | Path,
    *,
    noise_std: float | None = None,
    samples: int = 16,
    steps: int | None = None,
    seed: int = 0,
    members: bool = False,
    cond: Mapping[str, Any] | None = None,
    cases_at_once: int = _AT_ONCE,
    progress: Progress | None = None,
) -> Path:
    """Fill the gaps of a long data set (also a lazily opened one) and write mean, spread and interval as zarr.

    Args:
        model: A loaded climate model of the same grid.
        observed: Fields with gaps, and a time dimension.
        path: A `.zarr` store.
        noise_std: As in `LatentDiffusion.reconstruct`; None estimates it for every block of cases.
        samples: As there.
        steps: As there.
        seed: As there; every block of cases has a seed of its own that follows from this one.
        members: Also write the samples.
        cond: As there, for all cases alike.
        cases_at_once: Cases (states, or windows of them) of a block.
        progress: `progress(done, times)` after each block.

    Raises:
        ConfigError: Settings out of range, no time dimension, or an unfinished output of another request.
    """
    if min(samples, cases_at_once) < 1:
        raise ConfigError(f"samples and cases_at_once must be at least 1, got {samples} and {cases_at_once}")
    path, codec = _store_path(path), model.codec
    assert isinstance(codec, ClimateCodec)
    time = find_axes(observed, codec.template.names[0]).time
    if time is None:
        raise ConfigError("write_filled: expected observations with a time dimension; use `fill` for one map")
    count, block = observed.sizes[time], codec.frames * cases_at_once
    options = {"noise_std": noise_std, "samples": samples, "steps": steps, "cond": dict(cond or {})}
    request = {
        "what": "filled", "model": model_hash(model), "times": [str(t) for t in observed[time].values[[0, -1]]],
        "count": count, "block": block, "seed": seed, "members": members, **plain(options),
    }  # fmt: skip
    draft = Draft.open(path, request)
    if draft.finished:
        return draft.finish()
    starts = range(0, count, block)
    source, before = NoiseSource(seed), codec.members
    try:
        codec.members = members
        for k in draft.pending(len(starts)):
            part = observed.isel({time: slice(starts[k], starts[k] + block)}).load()
            made = model.reconstruct(part, seed=source.fork(f"block {k}").seed, **options)
            made = made if time in made.dims else made.expand_dims(time)
            if not draft.created:
                draft.clear()
                _create_filled(draft.content, codec, made, observed, time, block, seed)
                draft.created_now()
            write_region(draft.content, made, {time: starts[k]})
            draft.mark(k)
            if progress is not None:
                progress(min(starts[k] + block, count), count)
    finally:
        codec.members = before
    return draft.finish()


def lead_dates(rollout: Rollout, times: Times, steps: int) -> list[Times]:
    """Dates of the states of every block of a forecast, `[1, state]`, as `Rollout.blocks` gives them.

    Args:
        rollout: The forecast.
        times: Of the known states, `[1, state]`.
        steps: States to forecast.
    """
    found: list[Times] = []
    done, known = 0, _columns(times, slice(-rollout.context, None))
    while done < steps:
        given = known.seconds.shape[1]
        dates = rollout.codec.asked.step.after(_columns(known, 0), rollout.codec.frames)
        count = min(rollout.codec.frames - given, steps - done)
        found.append(_columns(dates, slice(given, given + count)))
        known, done = _columns(dates, slice(-rollout.context, None)), done + count
    return found


def _write_members(rollout: Rollout, known: Tensor, times: Times, steps: int, ids: range, path: Path) -> None:
    """The whole forecast of some members, in regions of some blocks."""
    codec, count = rollout.codec, len(ids)
    known = known.expand(count, *[-1] * (known.ndim - 1))
    dates = Times(np.repeat(times.seconds, count, axis=0), times.calendar, times.dtype)
    per_state = 4 * count * codec.template.channels * math.prod(codec.template.grid.shape)
    for first, values in _gathered(rollout.blocks(known, dates, steps, ids), _REGION_BYTES // per_state):
        dataset = codec.template.dataset(codec.states_of(values), (NUMBER, _time(codec)))
        write_region(path, dataset, {NUMBER: ids.start, _time(codec): first})


def _gathered(blocks: Iterator[Any], most: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks joined to at most `most` states (at least one block each), with the number of their first state."""
    waiting: list[Tensor] = []
    first, held = 0, 0
    for block in blocks:
        size = block.values.shape[2]
        if waiting and held + size > most:
            yield first, torch.cat(waiting, dim=2)
            first, held, waiting = first + held, 0, []
        waiting.append(block.values)
        held += size
    yield first, torch.cat(waiting, dim=2)


def _region_states(codec: ClimateCodec, sizes: list[int], block: int) -> int:
    """States that divide all regions of a forecast, so that shards do."""
    per_state = 4 * block * codec.template.channels * math.prod(codec.template.grid.shape)
    most, starts, held, first = _REGION_BYTES // per_state, [], 0, 0
    for size in sizes:
        if held and held + size > most:
            first, held = first + held, 0
            starts.append(first)
        held += size
    return math.gcd(*starts) if starts else sum(sizes)


def _forecast_layout(rollout: Rollout, known: Times, dates: Times, members: int) -> xr.Dataset:
    codec = rollout.codec
    reference = _columns(known, -1)
    all_dates = Times(np.repeat(dates.seconds, members, axis=0), dates.calendar, dates.dtype)
    layout = samples_layout(
        codec.template, all_dates, range(members), film=True,
        what=f"{members}-member forecast from {reference.text()[0]}",
        details={**codec.provenance, "seed": rollout.seed, "context": min(known.seconds.shape[1], rollout.context)},
    )  # fmt: skip
    attrs = {"standard_name": "forecast_reference_time", "long_name": "last known date"}
    return layout.assign_coords(forecast_reference_time=((), reference.native[0], attrs))


def _create_filled(
    path: Path,
    codec: ClimateCodec,
    made: xr.Dataset,
    observed: xr.Dataset,
    time: str,
    block: int,
    seed: int,
) -> None:
    """The layout of the whole result, from the first block that was made."""
    layout = stretched(made, {time: observed.sizes[time]})
    layout = layout.assign_coords({time: observed[time].variable})
    # The first block's own line and source say less than all blocks': they are written anew.
    attrs = {**made.attrs, "history": "\n".join(str(made.attrs.get("history", "")).splitlines()[1:])}
    attrs["source"] = codec.template.attrs.get("source", "")
    told = {**codec.provenance, "seed": seed, "block": block}
    layout = provenance(layout.assign_attrs(attrs), "posterior of gaps, in blocks of times", told)
    lead = {NUMBER: made.sizes[NUMBER]} if NUMBER in made.dims else {}
    create_store(path, layout, along={time: block, **lead})


def _store_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".zarr":
        raise ConfigError(f"{path}: expected a store that ends in .zarr")
    return path


def _time(codec: ClimateCodec) -> str:
    return codec.template.axes.time or "time"


def _columns(times: Times, which: Any) -> Times:
    return Times(times.seconds[:, which], times.calendar, times.dtype)
