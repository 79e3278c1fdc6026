"""The model inside a study: its posteriors and fields as arrays."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sciLDM.domains.climate.baselines import Predictions
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.evaluation_data import Model, StudyData
from sciLDM.domains.climate.outputs import NUMBER
from sciLDM.operators.masking import Mask
from sciLDM.rng import NoiseSource

__all__ = ["field_values", "reconstruct_windows"]


def field_values(
    codec: ClimateCodec, dataset: xr.Dataset, lead: Sequence[str], *, suffix: str = ""
) -> Float[np.ndarray, "*lead channel row column"]:
    """Values of all channels on the internal grid.

    Args:
        codec: Of the model whose layout the data set has.
        dataset: Results of that model.
        lead: Leading dimensions, in the order wanted; absent ones become axes of length 1.
        suffix: Of the variables' names.
    """
    template = codec.template
    parts = []
    for variable in template.variables:
        # Coordinates off: members with dates of their own have a `time` that is no dimension.
        array = dataset[variable.name + suffix].reset_coords(drop=True)
        array = array.expand_dims([d for d in lead if d not in array.dims])
        array = array.transpose(*lead, *variable.extra, template.axes.y, template.axes.x)
        shape = array.shape[: len(lead)]
        values = np.asarray(array.values, dtype=np.float32)
        parts.append(template.grid.canonical(values.reshape(*shape, -1, *values.shape[-2:])))
    return np.concatenate(parts, axis=-3)


def reconstruct_windows(
    model: Model,
    study: StudyData,
    observed: Float[np.ndarray, "case state value"],
    times: Times,
    *,
    noise_std: float,
    members: int,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    solver: Any = None,
) -> Predictions:
    """Posterior of each window, uncalibrated, in the data's units.

    Args:
        model: A loaded climate model.
        study: Its data.
        observed: NaN where not observed.
        times: Dates, `[case, state]`.
        noise_std: Of the observation errors.
        members: Samples.
        steps: Of the sampler.
        seed: Of the samples.
        batch_size: Samples at once.
        solver: How observations steer the model; its own choice when None.
    """
    codec = study.codec
    cases, states, _ = observed.shape
    field = np.full((cases, states, *study.exists.shape), np.nan, dtype=np.float32)
    field[..., study.exists] = observed
    field = field.swapaxes(1, 2) if codec.frames > 1 else field[:, 0]
    before = codec.members, getattr(model, "calibration", None)
    codec.members = True
    _calibrate(model, None)
    found: list[Predictions] = []
    try:
        for case in range(cases):
            # One by one: an operator for all would see every place that is observed in any of them.
            start = Times(times.seconds[case : case + 1, 0], times.calendar, times.dtype)
            seen = torch.from_numpy(np.isfinite(field[case]))
            made = model.reconstruct(
                torch.from_numpy(field[case])[seen][None], Mask(seen), noise_std=noise_std, cond={"time": start.text()},
                samples=members, steps=steps, seed=NoiseSource(seed).fork(f"case {case}").seed, solver=solver,
                batch_size=batch_size,
            )  # fmt: skip
            found.append(_predictions(study, made, states))
    finally:
        codec.members = before[0]
        _calibrate(model, before[1])
    return Predictions(*(np.concatenate([getattr(p, f.name) for p in found]) for f in fields(Predictions)))


def _predictions(study: StudyData, made: xr.Dataset, states: int) -> Predictions:
    """Of one window."""
    codec = study.codec
    time = codec.template.axes.time or "time"

    def rows(suffix: str, lead: tuple[str, ...]) -> np.ndarray:
        found = study.row(field_values(codec, made, lead, suffix=suffix))
        return found.reshape(*found.shape[: len(lead) - 1], 1, states, found.shape[-1])

    drawn = np.moveaxis(rows("_members", (NUMBER, time)), 0, 1)
    return Predictions(drawn, rows("", (time,)), rows("_std", (time,)))


def _calibrate(model: Any, calibration: Any) -> None:
    if hasattr(model, "calibration"):
        model.calibration = calibration
