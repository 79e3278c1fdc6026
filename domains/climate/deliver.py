"""Posteriors as data sets: mean, spread and interval of every variable, where and when the observations were."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from torch import Tensor

from sciLDM.domain import Task
from sciLDM.domains.climate.observations import Native
from sciLDM.domains.climate.outputs import NUMBER, provenance, with_number
from sciLDM.domains.climate.template import Template
from sciLDM.posterior.result import Posterior

if TYPE_CHECKING:
    from sciLDM.domains.climate.codec import ClimateCodec

__all__ = ["LEVEL", "deliver_dataset"]

LEVEL = 0.9
"""Coverage of the interval from `<var>_lower` to `<var>_upper`."""

_TOLD = {
    "_std": "posterior standard deviation of {}",
    "_lower": "lower end of the central 90 % interval of {}",
    "_upper": "upper end of the central 90 % interval of {}",
}


def deliver_dataset(codec: "ClimateCodec", posterior: Posterior, task: Task) -> xr.Dataset:
    """`<var>` (mean), `<var>_std`, `<var>_lower`, `<var>_upper`, and `<var>_members` where `codec.members`.

    The layout is that of the observations where they lie on the model's grid, else the training data's.
    """
    native = task.native
    assert isinstance(native, Native), "a task of this codec carries its layout"
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    lower, upper = posterior.quantiles(ends)
    fields = {"": posterior.mean, "_std": posterior.std, "_lower": lower, "_upper": upper}
    time = native.template.axes.time or "time"
    lead = (time,) if native.has_time else ()
    parts = []
    for suffix, values in fields.items():
        part = native.template.dataset(_laid_out(codec, values, native, lead), lead, suffix=suffix)
        parts.append(_described(part, native.template, suffix))
    if codec.members:
        members = posterior.samples.transpose(0, 1)
        stacked = np.stack([_laid_out(codec, m, native, lead) for m in members])
        parts.append(native.template.dataset(stacked, (NUMBER, *lead), suffix="_members"))
    dataset = xr.merge(parts, compat="override", join="override", combine_attrs="override")
    dataset = native.template.with_times(dataset, native.times, lead)
    if codec.members:
        dataset = with_number(dataset, range(posterior.samples.shape[1]))
    for name in native.template.names:
        dataset[name].attrs["ancillary_variables"] = " ".join(name + suffix for suffix in fields if suffix)
    details = {
        **codec.provenance,
        "chi2": f"{float(posterior.chi2.mean()):.3g}",
        "calibrated": posterior.calibrated,
    }
    for key in ("solver", "steps", "seed", "noise_std"):
        if isinstance(posterior.details.get(key), str | int | float):
            details[key] = posterior.details[key]
    if native.notes:
        details["notes"] = "; ".join(native.notes)
    return provenance(dataset, f"posterior of {native.kind}", details)


def _laid_out(codec: "ClimateCodec", x: Tensor, native: Native, lead: tuple[str, ...]) -> np.ndarray:
    """`[case, channel, (state,) H, W]` as `[*lead, channel, H, W]` on the grid of the result, filling-up cut off."""
    values = codec.states_of(x.detach().cpu().float())
    values = values.reshape(-1, *values.shape[2:])[: len(native.times)]
    out = np.empty_like(values)
    out[..., native.columns] = values
    return out if lead else out[0]


def _described(dataset: xr.Dataset, template: Template, suffix: str) -> xr.Dataset:
    if not suffix:
        return dataset
    for variable in template.variables:
        attrs = dataset[variable.name + suffix].attrs
        label = attrs.get("long_name", variable.name)
        # A standard name is that of the quantity itself; its spread is none.
        kept = {k: v for k, v in attrs.items() if k in ("units", "grid_mapping", "coordinates")}
        dataset[variable.name + suffix].attrs = {"long_name": _TOLD[suffix].format(label), **kept}
        for key in ("scale_factor", "add_offset", "dtype", "_FillValue", "missing_value"):
            if (
                "scale_factor" in variable.encoding
                or np.dtype(variable.encoding.get("dtype", "f4")).kind != "f"
            ):
                dataset[variable.name + suffix].encoding.pop(key, None)
    return dataset
