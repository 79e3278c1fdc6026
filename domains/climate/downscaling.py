r"""Downscaling: fine fields from coarse ones, as a reconstruction of what a joint model has learnt together.

`downscaling_join.joined` puts fine fields and coarse predictors of the same dates into one data set on the fine grid. A
model of it is a joint prior, `p(fine, coarse)`; `downscale` observes the coarse variables and samples the rest,

    x ~ p(fine | M coarse + error),

so any subset of the predictors will do, and spread, units and calendar come with it. What is observed is the coarse
field itself, through an operator `M` that undoes the interpolation.

Predictors and targets must belong together day by day. A regional model follows the global model that drives it, and
no other one (`benchmarks/results/downscaling.json` has a pair that does not).
"""

import json
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
import xarray as xr

from sciLDM.domains.climate.axes import Axes
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.downscaling_join import (
    PREFIX,
    Interpolation,
    coarse_places,
    coarse_times,
    coarse_values,
    gridded,
    joined,
)
from sciLDM.domains.climate.outputs import NUMBER
from sciLDM.domains.climate.template import VariableTemplate
from sciLDM.domains.climate.transforms import Identity
from sciLDM.domains.climate.units import apply, convert
from sciLDM.errors import ConfigError, DataError
from sciLDM.operators import LinearMap
from sciLDM.rng import NoiseSource

__all__ = ["ERROR", "Downscales", "downscale", "joined", "targets_of"]

ERROR = 0.06
"""Error of coarse predictors, in their standard deviations."""

_BLOCK = 256


@runtime_checkable
class Downscales(Protocol):
    """What downscaling needs of a loaded model (`sciLDM.LatentDiffusion`)."""

    codec: Any
    reconstruct: Any


def targets_of(codec: ClimateCodec) -> dict[str, VariableTemplate]:
    """What a joint model downscales to, by the names that results have."""
    variables = [v for v in codec.template.variables if "predictor" not in v.attrs]
    return {str(v.attrs.get("target", v.name)): v for v in variables}


def downscale(
    model: Downscales,
    coarse: xr.Dataset,
    *,
    members: int = 32,
    error: float = ERROR,
    steps: int | None = None,
    seed: int = 0,
    solver: Any = None,
    batch_size: int = 256,
) -> xr.Dataset:
    """An ensemble of fine fields for every date of the coarse ones.

    Args:
        model: Loaded, and trained on a joint data set.
        coarse: Any of the predictors, on the grid that they had in training.
        members: Samples of each date.
        error: Of the coarse predictors, in standard deviations of each; larger trusts them less.
        steps: Of the sampler.
        seed: Member `k` of the `i`-th date depends on `(seed, i, k)` and the coarse values of that date.
        solver: How observations steer the model; its own choice when None.
        batch_size: Samples computed at once.

    Returns:
        The fine variables on their grid, with a dimension `number`.

    Raises:
        ConfigError: A model that was not trained on joint data.
        DataError: No known predictor, another coarse grid, other units, or missing values.
    """
    codec = model.codec
    if not isinstance(codec, ClimateCodec) or codec.frames != 1:
        raise ConfigError("downscale: expected a loaded climate model of single maps (`frames: 1`)")
    if not error > 0:
        raise ConfigError(f"error must be positive, got {error}")
    predictors = _predictors(codec, coarse)
    first = next(iter(predictors.values()))
    times = coarse_times(coarse, {p.name: p.axes for p in predictors.values()})
    variable = codec.template.variables[first.channel]
    places = (np.asarray(variable.attrs[f"predictor_{n}"], dtype=float) for n in ("latitude", "longitude"))
    between = Interpolation.of(codec.template.grid, *places)
    operator, observed = _observed(codec, coarse, list(predictors.values()), error, between)
    made = []
    before, codec.members = codec.members, True
    try:
        for block, start in enumerate(range(0, len(times), _BLOCK)):
            part = slice(start, start + _BLOCK)
            found = model.reconstruct(
                observed[part], operator, noise_std=1.0, cond={"time": times.take(part).text()}, samples=members,
                steps=steps, seed=NoiseSource(seed).fork(f"dates {block}").seed, solver=solver, batch_size=batch_size,
            )  # fmt: skip
            made.append(_fine(codec, found, between))
    finally:
        codec.members = before
    time = codec.template.axes.time or "time"
    result = (
        made[0] if len(made) == 1 else xr.concat(made, time, data_vars="minimal", combine_attrs="override")
    )
    dated = result.assign_coords({time: (time, times.native, dict(codec.template.time[0]))})
    dated[time].encoding = dict(codec.template.time[1])
    return dated if first.axes.time is not None else dated.isel({time: 0})


@final
@dataclass(frozen=True)
class _Predictor:
    """A predictor of a joint model, as a coarse data set holds it."""

    name: str
    channel: int
    axes: Axes
    units: str

    def values(self, coarse: xr.Dataset) -> np.ndarray:
        """`[time, row, column]` as in training: its units, its order, amounts by their square root."""
        conversion, _ = convert(self.name, coarse[self.name].attrs.get("units"), self.units)
        own = coarse[self.name]
        converted = coarse[[self.name]].assign({self.name: own.copy(data=apply(own.values, conversion))})
        return coarse_values(converted, self.name, self.axes)


def _predictors(codec: ClimateCodec, coarse: xr.Dataset) -> dict[str, _Predictor]:
    """Those that model and data share."""
    known = {
        v.attrs["predictor"]: k for k, v in enumerate(codec.template.variables) if "predictor" in v.attrs
    }
    if not known:
        raise ConfigError(
            f"downscale: this model knows {', '.join(codec.template.names)} and no predictors; train it on "
            "`joined(coarse, fine)`"
        )
    if not (shared := [n for n in known if n in coarse.data_vars]):
        raise DataError(
            f"coarse: expected some of {', '.join(known)}, got {', '.join(map(str, coarse.data_vars))}"
        )
    own = gridded(coarse[shared], "coarse")
    found = {}
    for name, axes in own.items():
        variable = codec.template.variables[known[name]]
        lat, lon = coarse_places(coarse, axes)
        for mine, trained in ((lat, "predictor_latitude"), (lon, "predictor_longitude")):
            then = np.asarray(variable.attrs[trained])
            if mine.shape != then.shape or np.abs(mine - then).max() > 0.02 * np.abs(np.diff(then)).min():
                raise DataError(
                    f"coarse {name!r}: mismatched grids, the model was trained on {_range(then)}, got {_range(mine)}; "
                    "regrid it"
                )
        link = codec.normaliser.links[known[name]]
        if not isinstance(link, Identity):
            raise ConfigError(f"{variable.name}: expected link identity, got {link.kind}; train again")
        found[name] = _Predictor(name, known[name], axes, variable.attrs["predictor_units"])
    return found


def _observed(
    codec: ClimateCodec, coarse: xr.Dataset, which: list[_Predictor], error: float, between: Interpolation
) -> tuple[LinearMap, torch.Tensor]:
    """The predictors in the basis of the interpolation, divided by their errors."""
    shape = (1, *codec.grid_shape)
    low, high = (
        codec.normaliser.to_units(torch.full(shape, x), torch.zeros(1, 1))[0].numpy() for x in (0.0, 1.0)
    )
    matrix, seen = [], []
    for predictor in which:
        # The link of a predictor is the identity: units are linear in what the model sees.
        std = error * float((high - low)[predictor.channel].mean())
        rows = np.zeros((len(between.undone), codec.grid_shape[0], between.undone.shape[1]))
        rows[:, predictor.channel] = between.undone / std
        matrix.append(rows.reshape(len(rows), -1))
        own = predictor.values(coarse)
        seen.append(own.reshape(len(own), -1) @ between.basis.T / std)
    whole = torch.from_numpy(np.concatenate(matrix)).float()
    return LinearMap(whole, codec.grid_shape), torch.from_numpy(np.concatenate(seen, axis=1)).float()


def _fine(codec: ClimateCodec, found: xr.Dataset, between: Interpolation) -> xr.Dataset:
    """Members of the targets alone, under their own names."""
    time = codec.template.axes.time or "time"
    parts = {}
    for name, variable in targets_of(codec).items():
        array = found[variable.name + "_members"].rename(name)
        if "target" in variable.attrs:
            array = _whole(codec, array, found[PREFIX + name + "_members"], variable, between)
        else:
            # Errors of the autoencoder are added in units: through the link and back, values keep their bounds.
            link = codec.normaliser.links[codec.template.variables.index(variable)]
            array = array.copy(data=link.inverse(link.forward(torch.from_numpy(array.values))).numpy())
            array.attrs = dict(variable.attrs)
        parts[name] = array.expand_dims(time) if time not in array.dims else array
    whole = xr.Dataset(parts, attrs=found.attrs).transpose(NUMBER, time, ...)
    return whole.assign_attrs(
        history=found.attrs["history"].replace("posterior of LinearMap", "downscaling", 1)
    )


def _whole(
    codec: ClimateCodec,
    departure: xr.DataArray,
    coarse: xr.DataArray,
    variable: VariableTemplate,
    between: Interpolation,
) -> xr.DataArray:
    """The field: its departure, and the splines of each member's own coarse field."""
    axes, grid = codec.template.axes, codec.template.grid
    order = (axes.y, axes.x)
    values = grid.canonical(departure.transpose(..., *order).values)
    theirs = grid.canonical(coarse.transpose(*departure.transpose(..., *order).dims).values)
    smooth = between.smooth(theirs.reshape(*theirs.shape[:-2], -1).astype(np.float64)).reshape(theirs.shape)
    total = values + smooth
    total = total.clip(min=0) ** 2 if variable.attrs["target_root"] else total
    made = departure.transpose(..., *order).copy(data=grid.native(total).astype(np.float32))
    made.attrs = json.loads(variable.attrs["target_attrs"])
    return made.transpose(*departure.dims)


def _range(x: np.ndarray) -> str:
    return f"{len(x)} from {x[0]:.4g} to {x[-1]:.4g}"
