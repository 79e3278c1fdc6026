"""What studies work on: the states of each period, in units and as anomalies of all existing cells in one row.

A study reads the data once more, by the model's own settings, so that its periods are those of the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float

from sciLDM.domains.climate.baselines import History, Predictions
from sciLDM.domains.climate.baselines_interpolation import distances
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.corpus import split_states
from sciLDM.domains.climate.domain import Climate
from sciLDM.domains.climate.read import open_source
from sciLDM.domains.climate.states import load_states
from sciLDM.domains.climate.transforms import Identity
from sciLDM.errors import ConfigError, DataError

__all__ = ["Model", "Period", "StudyData", "make_period", "spread_over", "write_json"]

_AT_ONCE = 2**23


@runtime_checkable
class Model(Protocol):
    """What studies need of a loaded model (`sciLDM.LatentDiffusion`)."""

    codec: Any
    experiment: Any
    reconstruct: Any


@final
@dataclass(frozen=True, eq=False)
class Period:
    """Consecutive states.

    Attributes:
        values: In the data's units, NaN where missing or not existing.
        anomalies: Normalised as the autoencoder sees them, existing values in one row, 0 where missing.
        known: Which of them are not missing.
        times: Dates.
        follows: Whether a state is one step after the one before, in the same run.
    """

    values: Float[np.ndarray, "time channel row column"]
    anomalies: Float[np.ndarray, "time value"]
    known: Bool[np.ndarray, "time value"]
    times: Times
    follows: Bool[np.ndarray, "time"]

    def starts(self, frames: int) -> np.ndarray:
        """First rows of unbroken runs of `frames` states."""
        if frames == 1:
            return np.arange(len(self.follows))
        ahead = np.lib.stride_tricks.sliding_window_view(self.follows[1:], frames - 1)
        return np.flatnonzero(ahead.all(axis=1))


@final
class StudyData:
    """The data of a model, period by period.

    Args:
        codec: Of the model.
        periods: `train`, `validation`, `test`.

    Attributes:
        exists: Existing values, `[channel, row, column]`; their order is that of a row of anomalies.
        weights: Area of each value, mean 1.
    """

    def __init__(self, codec: ClimateCodec, periods: Mapping[str, Period]) -> None:
        self.codec, self.periods = codec, dict(periods)
        self.exists = codec.exists.numpy()
        area = np.broadcast_to(codec.template.grid.area, self.exists.shape)[self.exists]
        self.weights = area / area.mean()

    @staticmethod
    def of(model: Model, data: xr.Dataset | str | None = None) -> "StudyData":
        """Read again what the model was trained on (or `data` of the same layout), split as in training.

        Raises:
            ConfigError: No climate model.
        """
        codec, domain = model.codec, model.experiment.domain
        if not isinstance(codec, ClimateCodec) or not isinstance(domain, Climate):
            raise ConfigError(f"expected a loaded climate model, got one with a {type(codec).__name__}")
        source = open_source(
            domain.data if data is None else data,
            variables=codec.template.names,
            mask=domain.mask.variable,
            forcing=domain.conditions.forcing,
        )
        try:
            states = load_states(source, domain.mask, domain.conditions.forcing, lambda _d, _n: None)
        finally:
            source.close()
        if states.grid.shape != codec.template.grid.shape or len(states.channels) != codec.template.channels:
            raise DataError(
                f"the data have {len(states.channels)} channels on {states.grid.shape} cells, the model "
                f"{codec.template.channels} on {codec.template.grid.shape}; give the data that it was trained on"
            )
        periods = {}
        for name, inside in split_states(states, domain.split).items():
            rows = np.flatnonzero(inside)
            follows = states.follows[rows].copy()
            follows[1:] &= np.diff(rows) == 1
            follows[:1] = False
            periods[name] = make_period(codec, states.values[rows], states.times.take(rows), follows)
        return StudyData(codec, periods)

    def history(self, name: str = "train") -> History:
        """A period as baselines take it."""
        period = self.periods[name]
        return History(period.anomalies.astype(np.float64), period.times.phase, period.follows, self.weights)

    def to_units(
        self, anomalies: Float[np.ndarray, "case *lead value"], times: Times
    ) -> Float[np.ndarray, "case *lead value"]:
        """Anomalies in the data's units.

        Args:
            anomalies: `[case, (member,) state, value]`.
            times: Dates, `[case, state]`.
        """
        shape = anomalies.shape
        cases, states, count = shape[0], shape[-2], shape[-1]
        rows = anomalies.reshape(cases, -1, states, count)
        out = np.empty(rows.shape, dtype=np.float32)
        phase = torch.from_numpy(times.phase).float()
        for i, row in enumerate(rows):
            step = max(1, _AT_ONCE // (states * self.exists.size))
            for start in range(0, len(row), step):
                part = row[start : start + step]
                field = np.zeros((len(part), states, *self.exists.shape), dtype=np.float32)
                field[..., self.exists] = part
                x = torch.from_numpy(field).transpose(1, 2)
                units = self.codec.normaliser.to_units(x, phase[i].expand(len(part), -1))
                out[i, start : start + step] = units.transpose(1, 2).numpy()[..., self.exists]
        return out.reshape(shape)

    def from_units(
        self, units: Float[np.ndarray, "case state value"], times: Times
    ) -> Float[np.ndarray, "case state value"]:
        """Anomalies of values in the data's units; NaN stays NaN."""
        field = np.full((*units.shape[:2], *self.exists.shape), np.nan, dtype=np.float32)
        field[..., self.exists] = units
        phase = torch.from_numpy(times.phase).float()
        x = self.codec.normaliser.from_units(torch.from_numpy(field).transpose(1, 2), phase)
        return x.transpose(1, 2).numpy()[..., self.exists]

    @property
    def linear(self) -> bool:
        """Whether units are an affine function of anomalies everywhere."""
        return all(isinstance(link, Identity) for link in self.codec.normaliser.links)

    def predictions(self, anomalies: Predictions, times: Times) -> Predictions:
        """In the data's units."""
        members = self.to_units(anomalies.members, times)
        if not self.linear:
            return Predictions.of(members)
        return Predictions(members, self.to_units(anomalies.mean, times), anomalies.std * self.spread(times))

    def row(self, values: Float[np.ndarray, "*case channel row column"]) -> Float[np.ndarray, "*case value"]:
        """Existing values in one row."""
        return values[..., self.exists]

    def spread(self, times: Times) -> Float[np.ndarray, "case state value"]:
        """What one unit of anomaly is in the data's units, about the climatology."""
        shape = (*times.seconds.shape, int(self.exists.sum()))
        step = 0.05
        up, down = (self.to_units(np.full(shape, s), times) for s in (step, -step))
        return np.abs(up - down) / (2 * step)

    def distance(self) -> Float[np.ndarray, "place place"]:
        """Distances between the values of one state: kilometres, or cells on a grid without coordinates.

        Channels at one place are 0 apart.
        """
        grid = self.codec.template.grid
        lat = np.broadcast_to(grid.latitudes, self.exists.shape)[self.exists]
        lon = np.broadcast_to(grid.longitudes, self.exists.shape)[self.exists]
        if grid.kind != "plain":
            return distances(lat, lon)
        return np.hypot(lat[:, None] - lat[None], lon[:, None] - lon[None])


def make_period(
    codec: ClimateCodec,
    values: Float[np.ndarray, "time channel row column"],
    times: Times,
    follows: Bool[np.ndarray, "time"],
) -> Period:
    """A period from states in their units."""
    exists = codec.exists.numpy()
    anomalies = np.empty((len(values), int(exists.sum())), dtype=np.float32)
    phase = torch.from_numpy(times.phase).float()[:, None]
    for start in range(0, len(values), 256):
        part = slice(start, start + 256)
        x = codec.normaliser.from_units(torch.from_numpy(values[part]), phase[part]).numpy()
        anomalies[part] = x[:, exists]
    known = np.isfinite(anomalies)
    return Period(values, np.where(known, anomalies, 0.0), known, times, follows)


def spread_over(rows: Sequence[int] | np.ndarray, count: int | None, apart: int = 1) -> np.ndarray:
    """At most `count` of these ascending rows, at least `apart` from each other, spread evenly."""
    kept: list[int] = []
    for row in rows:
        if not kept or row - kept[-1] >= apart:
            kept.append(int(row))
    found = np.array(kept)
    if count is None or len(found) <= count:
        return found
    return found[np.round(np.linspace(0, len(found) - 1, count)).astype(int)]


def write_json(content: Any, path: str | Path) -> Path:
    """Write a study's result; replaced only when complete."""
    import json

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")
    partial.replace(path)
    return path
