"""The user's layout: names, order of dimensions, coordinates, attributes, encodings; arrays in, a data set out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import xarray as xr

from sciLDM.domains.climate.axes import Axes
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.packing import (
    pack_attrs,
    pack_variable,
    unpack_attrs,
    unpack_variable,
)
from sciLDM.errors import DataError

__all__ = ["Template", "VariableTemplate"]

_TIME_ENCODING = ("units", "calendar", "dtype")


@final
@dataclass(frozen=True)
class VariableTemplate:
    """One variable without its values.

    Attributes:
        name: Its name.
        dims: Its dimensions in the user's order, runs left out.
        extra: Sizes of its further dimensions (levels), in order.
        dtype: Of its decoded values.
        attrs: CF attributes.
        encoding: Of the file it came from.
    """

    name: str
    dims: tuple[str, ...]
    extra: Mapping[str, int]
    dtype: str
    attrs: Mapping[str, Any]
    encoding: Mapping[str, Any]

    @property
    def channels(self) -> int:
        """How many channels it takes."""
        return int(np.prod(list(self.extra.values()), dtype=int))

    @property
    def units(self) -> str | None:
        """Its units, if they are known."""
        return self.attrs.get("units")


@final
@dataclass(frozen=True, eq=False)
class Template:
    """A data set without its values.

    Attributes:
        variables: In the order of the channels.
        axes: Names of the common dimensions.
        grid: The horizontal grid.
        coords: Coordinates and auxiliary variables (bounds, grid mapping) that do not depend on time.
        time: Attributes and encoding of the time coordinate.
        attrs: Global attributes.
    """

    variables: tuple[VariableTemplate, ...]
    axes: Axes
    grid: Grid
    coords: Mapping[str, xr.Variable]
    time: tuple[Mapping[str, Any], Mapping[str, Any]]
    attrs: Mapping[str, Any]

    @staticmethod
    def of(dataset: xr.Dataset, names: Sequence[str], axes: Mapping[str, Axes], grid: Grid) -> "Template":
        """The layout of some variables of a data set.

        Args:
            dataset: As the user gave it.
            names: Which variables.
            axes: Of each.
            grid: The grid of all.
        """
        first = axes[names[0]]
        variables = []
        for name in names:
            array = dataset[name]
            dims = tuple(str(d) for d in array.dims if d != first.runs)
            extra = {d: int(array.sizes[d]) for d in axes[name].extra}
            stored = pack_variable(array.variable, values=False)
            variables.append(
                VariableTemplate(
                    name, dims, extra, array.dtype.str, dict(array.attrs), unpack_attrs(stored["encoding"])
                )
            )
        space = {first.y, first.x, *(d for a in axes.values() for d in a.extra)}
        coords = {
            str(n): _loaded(v.variable) for n, v in dataset.coords.items() if _static(v.variable, space)
        }
        for variable in [*coords.values(), *(dataset[n].variable for n in names)]:
            for key in ("bounds", "grid_mapping"):
                other = variable.attrs.get(key, variable.encoding.get(key))
                if other in dataset.variables and _static(
                    dataset[other].variable, {*space, *dataset[other].dims}
                ):
                    coords[str(other)] = _loaded(dataset[other].variable)
        attrs, encoding = {}, {}
        if first.time in dataset.coords:
            variable = dataset[first.time].variable
            attrs = {k: v for k, v in variable.attrs.items() if k != "bounds"}
            encoding = {
                k: variable.encoding[k] for k in _TIME_ENCODING if variable.encoding.get(k) is not None
            }
        return Template(tuple(variables), first, grid, coords, (attrs, encoding), dict(dataset.attrs))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(v.name for v in self.variables)

    @property
    def channels(self) -> int:
        """Channels of all variables together."""
        return sum(v.channels for v in self.variables)

    def dataset(self, values: np.ndarray, lead: Sequence[str], *, suffix: str = "") -> xr.Dataset:
        """Values as variables, without time coordinates (see `with_times`).

        Args:
            values: `[*lead, channel, H, W]` on the internal grid, NaN where a cell does not exist.
            lead: Names of the leading dimensions; among them perhaps the time dimension.
            suffix: Appended to the variables' names.
        """
        native = self.grid.native(values)
        found, channel = {}, 0
        for variable in self.variables:
            part = native[..., channel : channel + variable.channels, :, :]
            channel += variable.channels
            part = part.reshape(*part.shape[: len(lead)], *variable.extra.values(), *part.shape[-2:])
            dtype = np.dtype(variable.dtype)
            array = xr.Variable(
                (*lead, *variable.extra, self.axes.y, self.axes.x),
                part.astype(dtype if dtype.kind == "f" else np.float32),
                attrs=dict(variable.attrs),
                encoding=_encoding(variable.encoding, part),
            )
            order = [d for d in variable.dims if d in array.dims]
            ahead = [d for d in array.dims if d not in order]
            found[variable.name + suffix] = array.transpose(*ahead, *order)
        # An auxiliary variable that is no coordinate in the file is one here: it has no values of ours.
        coords = {name: v.copy() for name, v in self.coords.items()}
        return xr.Dataset(found, coords=coords, attrs=dict(self.attrs))

    def with_times(self, dataset: xr.Dataset, times: Times, dims: tuple[str, ...]) -> xr.Dataset:
        """The data set with dates: a coordinate of the time dimension, or `valid_time` where members differ.

        Args:
            dataset: From `dataset`.
            times: Dates of the shape of `dims`.
            dims: Dimensions of the dates: none, `(time,)`, `(number,)` or `(number, time)`.
        """
        name = self.axes.time or "time"
        own = dims in ((name,), ())
        if own and name not in dataset.dims and dims:
            raise DataError(f"the data set has no dimension {name!r}")
        native = times.native.reshape([dataset.sizes[d] for d in dims])
        if not dims and times.dtype == "cftime":
            native = np.array(native, dtype=object)
        variable = xr.Variable(dims, native, attrs={**self.time[0]}, encoding={**self.time[1]})
        if not own:
            variable.attrs.pop("axis", None)
            variable.attrs.setdefault("standard_name", "time")
        label = name if own else ("valid_time" if len(dims) > 1 else name)
        return dataset.assign_coords({label: variable})

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        a = self.axes
        return {
            "variables": [
                {
                    "name": v.name, "dims": list(v.dims), "extra": dict(v.extra), "dtype": v.dtype,
                    "attrs": pack_attrs(v.attrs), "encoding": pack_attrs(v.encoding),
                }
                for v in self.variables
            ],
            "axes": {"y": a.y, "x": a.x, "time": a.time, "runs": a.runs, "extra": list(a.extra),
                     "latitude": a.latitude, "longitude": a.longitude},
            "grid": self.grid.to_dict(),
            "coords": {name: pack_variable(v) for name, v in self.coords.items()},
            "time": [pack_attrs(self.time[0]), pack_attrs(self.time[1])],
            "attrs": pack_attrs(self.attrs),
        }  # fmt: skip

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> "Template":
        """The template of `to_dict`."""
        variables = tuple(
            VariableTemplate(
                v["name"],
                tuple(v["dims"]),
                dict(v["extra"]),
                v["dtype"],
                unpack_attrs(v["attrs"]),
                unpack_attrs(v["encoding"]),
            )
            for v in state["variables"]
        )
        axes = Axes(**{**state["axes"], "extra": tuple(state["axes"]["extra"])})
        coords = {name: unpack_variable(v) for name, v in state["coords"].items()}
        time = (unpack_attrs(state["time"][0]), unpack_attrs(state["time"][1]))
        return Template(
            variables, axes, Grid.from_dict(state["grid"]), coords, time, unpack_attrs(state["attrs"])
        )


def _loaded(variable: xr.Variable) -> xr.Variable:
    """In memory, since the file will be closed."""
    return xr.Variable(variable.dims, variable.values, variable.attrs, variable.encoding)


def _static(variable: xr.Variable, dims: set[Any]) -> bool:
    """Whether a coordinate belongs to every state: no time, no run, values that can be stored."""
    if variable.dtype.kind == "O":
        return all(isinstance(v, str) for v in np.ravel(variable.values)) and set(variable.dims) <= dims
    return set(variable.dims) <= dims and variable.dtype.kind not in "mM"


def _encoding(encoding: Mapping[str, Any], values: np.ndarray) -> dict[str, Any]:
    """The file's encoding, but for a packing that could not hold these values."""
    kept = dict(encoding)
    dtype = np.dtype(kept.get("dtype", "f4"))
    if dtype.kind in "iu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN fields have no extremes
            low, high = float(np.nanmin(values, initial=np.inf)), float(np.nanmax(values, initial=-np.inf))
        scale, offset = float(kept.get("scale_factor", 1.0)), float(kept.get("add_offset", 0.0))
        ends = sorted(((low - offset) / scale, (high - offset) / scale))
        packed = "scale_factor" in kept and "_FillValue" in kept
        limits = np.iinfo(dtype)
        if not packed or ends[0] < limits.min + 1 or ends[1] > limits.max - 1:
            for name in ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value"):
                kept.pop(name, None)
    return kept
