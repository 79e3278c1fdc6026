r"""Ensemble forecasts with a model of short trajectories, block by block.

The denoiser was trained with random context (`sciLDM.objectives.RandomContext`): given the latents of the first states
of a trajectory it samples the others. A forecast encodes the last known states, samples the rest of their trajectory,
keeps its last states as the context of the next block, and so on; what is held in memory is one block.

Member `k` of block `b` depends on `(seed, b, k)` and its own past alone, whatever the batch size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from sciLDM.conditions import FieldMap
from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.outputs import provenance, samples_dataset
from sciLDM.domains.climate.requests import DatedRequest
from sciLDM.domains.climate.states import oriented
from sciLDM.domains.climate.units import apply, convert
from sciLDM.errors import ConfigError, DataError
from sciLDM.posterior.latent_map import LatentMap
from sciLDM.rng import NoiseSource

__all__ = ["Block", "ForecastSettings", "Forecasts", "Rollout", "forecast", "forecast_blocks"]

_BATCH = 256


@runtime_checkable
class Forecasts(Protocol):
    """What a forecast needs of a loaded model (`sciLDM.LatentDiffusion`)."""

    codec: Any
    autoencoder: Any
    stats: Any
    sample_latents: Any
    experiment: Any


@final
@dataclass(frozen=True)
class ForecastSettings:
    """How to forecast.

    Attributes:
        context: Known states at the start of each block; half of the trajectory when None, fewer where fewer are given.
        sampler_steps: Steps of the sampler; the model's default when None.
        batch_size: Members sampled at once.
        autoencoder_error: Add what the autoencoder loses to each member, so that the spread is that of whole fields.
        guidance: As in `LatentDiffusion.sample`.
        cond: Conditions besides the dates and the known states.
    """

    context: int | None = None
    sampler_steps: int | None = None
    batch_size: int = _BATCH
    autoencoder_error: bool = True
    guidance: float | None = None
    cond: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, eq=False)
class Block:
    """Some states further.

    Attributes:
        values: In the data's units.
        times: Dates, `[row, state]`.
    """

    values: Float[Tensor, "row channel state height width"]
    times: Times


@final
class Rollout:
    """Autoregressive sampling of many rows (members of one or of several forecasts).

    Args:
        model: A loaded model of trajectories, trained with random context.
        settings: How to forecast.
        seed: Of the members.

    Raises:
        ConfigError: A model without trajectories or context, or a context of the wrong length.
    """

    def __init__(self, model: Forecasts, settings: ForecastSettings, *, seed: int = 0) -> None:
        codec = model.codec
        if not isinstance(codec, ClimateCodec):
            raise ConfigError(f"forecast: expected a climate model, got one with a {type(codec).__name__}")
        known = [c for c in codec.conditions if isinstance(c, FieldMap)]
        if codec.frames < 2 or not known:
            raise ConfigError(
                "forecast: this model was not trained to continue trajectories; train with `frames: 2` or more, "
                "`conditions: {context: true}` and an objective with `context: RandomContext`"
            )
        most = codec.frames - 1
        if settings.context is not None and not 1 <= settings.context <= most:
            raise ConfigError(f"context: expected 1 to {most} known states for trajectories of {codec.frames}, got "
                              f"{settings.context}")  # fmt: skip
        self.model, self.codec, self.settings, self.seed = model, codec, settings, seed
        self.name = known[0].name
        self.context = max(1, codec.frames // 2) if settings.context is None else settings.context

    @torch.no_grad()
    def encode(
        self, values: Float[Tensor, "row channel state height width"], times: Times
    ) -> Float[Tensor, "row latent state *coarse"]:
        """Normalised latents of known states; each state is coded on its own."""
        frames, known = self.codec.frames, values.shape[2]
        # The autoencoder takes whole trajectories; the last state fills it up.
        index = torch.arange(frames).clamp(max=known - 1)
        phase = torch.from_numpy(times.phase).float()[:, index]
        model, found = self.model, []
        for start in range(0, len(values), _BATCH):
            part = slice(start, start + _BATCH)
            fields = self.codec.from_units(values[part][:, :, index], {"phase": phase[part]})
            device = model.stats.mean.device
            code, _ = model.autoencoder.code(fields.to(device) if hasattr(fields, "to") else fields)
            found.append(model.stats.normalise(code)[:, :, :known].cpu())
        return torch.cat(found)

    def blocks(
        self,
        known: Float[Tensor, "row latent state *coarse"],
        times: Times,
        steps: int,
        ids: range,
    ) -> Iterator[Block]:
        """The states after the known ones.

        Args:
            known: Normalised latents of the known states.
            times: Their dates, `[row, state]`.
            steps: How many states.
            ids: Number of every row.
        """
        noise, done, number = NoiseSource(self.seed), 0, 0
        known, times = known[:, :, -self.context :], _last(times, self.context)
        while done < steps:
            latents, dates = self._block(known, times, noise.fork(f"block {number}"), ids)
            given = known.shape[2]
            count = min(self.codec.frames - given, steps - done)
            values = self._decode(latents, dates, noise.fork(f"error {number}"), ids)
            new = slice(given, given + count)
            yield Block(values[:, :, new], _states(dates, new))
            # Known states stay as they were given; sampled ones follow.
            z = torch.cat([known, self.model.stats.normalise(latents)[:, :, given:].cpu()], dim=2)
            known, times = z[:, :, -self.context :], _last(dates, self.context)
            done, number = done + count, number + 1

    @torch.no_grad()
    def _block(
        self, known: Tensor, times: Times, noise: NoiseSource, ids: range
    ) -> tuple[Float[Tensor, "row latent state *coarse"], Times]:
        """Latents of a whole trajectory that begins with the known states."""
        codec, settings = self.codec, self.settings
        context = torch.full((*known.shape[:2], *codec.shape), torch.nan)
        context[:, :, : known.shape[2]] = known
        start = Times(times.seconds[:, 0], times.calendar, times.dtype)
        dates = codec.asked.step.after(start, codec.frames)
        labels = codec.asked.labels(start, settings.cond)
        request = DatedRequest(
            codec.shape, {**labels, self.name: context}, None, codec.asked.always | {self.name}, times=dates,
            seed=self.seed, ids=tuple(ids),
        )  # fmt: skip
        steps = settings.sampler_steps
        sampler = None if steps is None else self.model.experiment.sampler.with_steps(steps)
        latents = self.model.sample_latents(
            request, ids, noise, guidance=settings.guidance, sampler=sampler, batch_size=settings.batch_size
        )
        return latents.cpu(), dates

    @torch.no_grad()
    def _decode(self, latents: Tensor, dates: Times, noise: NoiseSource, ids: range) -> Tensor:
        model, found = self.model, []
        error = getattr(model, "autoencoder_error", None) if self.settings.autoencoder_error else None
        # What a sharpened decoder adds would be counted twice.
        decoder = model.autoencoder if error is None else model.autoencoder.estimator()
        device = model.stats.mean.device
        for start in range(0, len(latents), _BATCH):
            part = slice(start, start + _BATCH)
            phase = torch.from_numpy(dates.phase[part]).float().to(device)
            data = LatentMap(decoder, model.stats, self.codec, context={"phase": phase})
            decoded = data.decoded(model.stats.normalise(latents[part].to(device)))
            x = data.units(decoded)
            if error is not None:
                spread = error.covariance(error.variance(decoded).sqrt() * data.slope(decoded), smooth=True)
                x = x + spread.draw(noise.normal(ids[part], tuple(x.shape[1:]), device=x.device))
            found.append(x.cpu())
        return torch.cat(found)


def forecast_blocks(
    model: Forecasts,
    initial: xr.Dataset,
    *,
    steps: int,
    members: int = 16,
    seed: int = 0,
    settings: ForecastSettings | None = None,
) -> Iterator[xr.Dataset]:
    """An ensemble forecast, a few states at a time: memory stays that of one block.

    Args:
        model: A loaded climate model, trained with random context.
        initial: The last known states, in order; complete, on the model's grid.
        steps: States to forecast.
        members: Size of the ensemble; member `k` does not depend on it.
        seed: Of the members.
        settings: How to forecast.

    Yields:
        Data sets in the training data's layout with `number` and the valid `time`; `forecast_reference_time` is the
        last known date.

    Raises:
        ConfigError: A model that cannot forecast, or settings out of range.
        DataError: Initial states that are incomplete, irregular, or of another grid.
    """
    if steps < 1 or members < 1:
        raise ConfigError(f"steps and members must be at least 1, got {steps} and {members}")
    rollout = Rollout(model, settings or ForecastSettings(), seed=seed)
    values, times = read_initial(rollout.codec, initial, rollout.context)
    return _datasets(rollout, values, times, steps, members)


def forecast(
    model: Forecasts,
    initial: xr.Dataset,
    *,
    steps: int,
    members: int = 16,
    seed: int = 0,
    settings: ForecastSettings | None = None,
) -> xr.Dataset:
    """An ensemble forecast in one data set; arguments as in `forecast_blocks`."""
    blocks = list(forecast_blocks(model, initial, steps=steps, members=members, seed=seed, settings=settings))
    time = model.codec.template.axes.time or "time"
    names = model.codec.template.names
    whole = xr.concat(
        [b[list(names)] for b in blocks], dim=time, join="exact", coords="minimal", compat="override"
    )
    return whole.assign_attrs(blocks[0].attrs)


def read_initial(
    codec: ClimateCodec, initial: xr.Dataset, most: int
) -> tuple[Float[Tensor, "1 channel state height width"], Times]:
    """The last states of a data set, at most `most`, in the model's units.

    Raises:
        DataError: Variables or times missing, gaps, irregular steps, or another grid.
    """
    absent = [n for n in codec.template.names if n not in initial]
    if absent:
        raise DataError(f"initial: no variables {absent}; a forecast starts from all that the model knows")
    axes = find_axes(initial, codec.template.names[0])
    if axes.time is None or axes.runs is not None:
        raise DataError(
            "initial: expected a time dimension and no ensemble; select one run and keep its dates"
        )
    initial = initial.isel({axes.time: slice(-most, None)})
    times = Times.of(initial[axes.time].values)
    if len(times) > 1 and not codec.asked.step.follows(times).all():
        raise DataError(
            f"initial: known states must follow each other at {codec.asked.step}, got {', '.join(times.text())}"
        )
    own = codec.asked.drawn
    alike = {"standard", "gregorian", "proleptic_gregorian"}
    if times.calendar != own.calendar and not {times.calendar, own.calendar} <= alike:
        raise DataError(f"initial: the calendar is {times.calendar!r}, the model's {own.calendar!r}; convert with "
                        "`convert_calendar`")  # fmt: skip
    grid = Grid.of(initial, axes)
    columns = codec.template.grid.align(grid)
    parts = []
    for variable in codec.template.variables:
        array = oriented(initial[variable.name], find_axes(initial, variable.name))
        raw = np.asarray(array.values, dtype=np.float64).reshape(len(times), -1, *grid.native_shape)
        if raw.shape[1] != variable.channels:
            raise DataError(
                f"initial {variable.name!r}: expected levels {dict(variable.extra)}, got {raw.shape[1]}"
            )
        conversion, _ = convert(variable.name, initial[variable.name].attrs.get("units"), variable.units)
        parts.append(apply(grid.canonical(raw), conversion)[..., columns])
    values = np.concatenate(parts, axis=1).astype(np.float32)
    if not codec.state["gaps"] and not np.isfinite(values[:, codec.exists.numpy()]).all():
        raise DataError("initial: values are missing; fill them first (`ds.ldm.fill`)")
    seconds = Times(times.seconds[None], own.calendar, own.dtype)
    return torch.from_numpy(values)[None].transpose(1, 2).contiguous(), seconds


def _datasets(
    rollout: Rollout, values: Tensor, times: Times, steps: int, members: int
) -> Iterator[xr.Dataset]:
    codec = rollout.codec
    known = rollout.encode(values, times).expand(members, *[-1] * (len(codec.shape) + 1))
    dates = Times(np.repeat(times.seconds, members, axis=0), times.calendar, times.dtype)
    reference = Times(times.seconds[:, -1], times.calendar, times.dtype)
    attrs = {"standard_name": "forecast_reference_time", "long_name": "last known date"}
    for block in rollout.blocks(known, dates, steps, range(members)):
        fields = codec.states_of(block.values)
        dataset = samples_dataset(codec.template, fields, block.times, range(members), film=True)
        dataset = dataset.assign_coords(forecast_reference_time=((), reference.native[0], attrs))
        told = {**codec.provenance, "seed": rollout.seed, "context": known.shape[2]}
        yield provenance(dataset, f"{members}-member forecast from {reference.text()[0]}", told)


def _last(times: Times, count: int) -> Times:
    return _states(times, slice(max(times.seconds.shape[1] - count, 0), None))


def _states(times: Times, which: slice) -> Times:
    return Times(times.seconds[:, which], times.calendar, times.dtype)
