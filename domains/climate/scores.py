r"""Scores of fields and ensembles, in the conventions of WeatherBench 2 (Rasp et al. 2024, arXiv:2308.15560).

With area weights `w` of mean 1, `<.>` the weighted mean over a map and a bar the mean over cases,

    RMSE   sqrt( bar <(x - y)^2> )                        the root after the mean over time
    ACC    bar [ <x' y'> / sqrt(<x'^2> <y'^2>) ]          x', y' departures from climatology
    CRPS   bar < E|X - y| - E|X - X'| / 2 >               fair: unbiased for any number of members (Ferro 2014)
    SSR    sqrt((M + 1) / M) sqrt( bar <var> / bar <(mean - y)^2> )       (Fortin et al. 2014)
    ES     bar [ E||X - y|| - E||X - X'|| / 2 ],  ||x||^2 = <x^2>         fair as well

Missing values (NaN in either field) count nowhere. All functions take and give xarray objects; the dimensions that are
averaged over in space are those of the weights. Calibration with intervals is `sciLDM.evaluate.calibration`.
"""

from collections.abc import Sequence

import numpy as np
import scoringrules
import torch
import xarray as xr

from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.outputs import NUMBER
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.calibration import ranks
from sciLDM.rng import NoiseSource

__all__ = ["acc", "area_weights", "bias", "coverage", "energy_score", "fair_crps", "fss", "quantile_maps",
           "rank_histogram", "rmse", "spread_skill"]  # fmt: skip


def area_weights(field: xr.Dataset | xr.DataArray, name: str | None = None) -> xr.DataArray:
    """Cell areas of a grid, mean 1.

    Args:
        field: Fields with their coordinates.
        name: A variable of a data set; its first one when None.
    """
    dataset = field.to_dataset(name=field.name or "field") if isinstance(field, xr.DataArray) else field
    axes = find_axes(dataset, name or str(next(iter(dataset.data_vars))))
    grid = Grid.of(dataset, axes)
    area = xr.DataArray(grid.native(grid.area), dims=(axes.y, axes.x))
    return area / area.mean()


def rmse(
    prediction: xr.DataArray, truth: xr.DataArray, weights: xr.DataArray, *, over: Sequence[str] = ("time",)
) -> xr.DataArray:
    """Root mean square error; the root is taken last.

    Args:
        prediction: Fields.
        truth: Fields of the same dates.
        weights: Cell areas.
        over: Dimensions of the cases; those that are absent are passed over.
    """
    return np.sqrt(_mean((prediction - truth) ** 2, weights, over))


def bias(
    prediction: xr.DataArray, truth: xr.DataArray, weights: xr.DataArray, *, over: Sequence[str] = ("time",)
) -> xr.DataArray:
    """Mean error."""
    return _mean(prediction - truth, weights, over)


def acc(
    prediction: xr.DataArray,
    truth: xr.DataArray,
    climatology: xr.DataArray,
    weights: xr.DataArray,
    *,
    over: Sequence[str] = ("time",),
) -> xr.DataArray:
    """Anomaly correlation of each date, then their mean."""
    a, b = prediction - climatology, truth - climatology
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a.where(known), b.where(known)
    found = _space(a * b, weights) / np.sqrt(_space(a**2, weights) * _space(b**2, weights))
    return found.mean(_present(found, over))


def fair_crps(
    members: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    number: str = NUMBER,
    over: Sequence[str] = ("time",),
) -> xr.DataArray:
    """Fair continuous ranked probability score, in the data's units; the map of it where `weights` is None."""
    _check_members(members, number)
    found = xr.apply_ufunc(
        lambda y, x: scoringrules.crps_ensemble(y, x, estimator="pwm", backend="numpy"),
        truth.astype("f8"),
        members.astype("f8"),
        input_core_dims=[[], [number]],
    )
    return found.mean(_present(found, over)) if weights is None else _mean(found, weights, over)


def spread_skill(
    members: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray,
    *,
    number: str = NUMBER,
    over: Sequence[str] = ("time",),
) -> xr.DataArray:
    """Spread over error of the ensemble mean; 1 when reliable, whatever the number of members."""
    count = _check_members(members, number)
    error = (members.mean(number) - truth) ** 2
    variance = members.astype("f8").var(number, ddof=1).where(np.isfinite(error))
    return np.sqrt((count + 1) / count * _mean(variance, weights, over) / _mean(error, weights, over))


def energy_score(
    members: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray,
    *,
    number: str = NUMBER,
    over: Sequence[str] = ("time",),
) -> xr.DataArray:
    """Fair energy score of whole maps (Gneiting & Raftery 2007), in the data's units."""
    count = _check_members(members, number)
    first = np.sqrt(_space((members - truth) ** 2, weights)).mean(number)
    between = 0.0
    for k in range(1, count):
        # One shift at a time: all pairs at once would need M copies of the ensemble.
        shifted = members.roll({number: k}, roll_coords=False)
        between = between + np.sqrt(_space((members - shifted) ** 2, weights)).sum(number)
    score = first - 0.5 * between / (count * (count - 1))
    return score.mean(_present(score, over))


def rank_histogram(
    members: xr.DataArray, truth: xr.DataArray, *, number: str = NUMBER, seed: int = 0
) -> np.ndarray:
    """Share of true values by rank among the members, `[M + 1]`, ties broken at random."""
    count = _check_members(members, number)
    aligned = xr.broadcast(truth, members.isel({number: 0}, drop=True))[0]
    lead = members.transpose(number, *aligned.dims).values[None]
    u = ranks(torch.from_numpy(np.ascontiguousarray(lead)), torch.from_numpy(aligned.values[None].copy()),
              NoiseSource(seed))  # fmt: skip
    found = u[torch.isfinite(u)].numpy()
    if not found.size:
        raise DataError("rank histogram: no true value is known")
    rank = np.minimum((found * (count + 1)).astype(int), count)
    return np.bincount(rank, minlength=count + 1) / len(rank)


def coverage(
    members: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray,
    *,
    level: float = 0.9,
    number: str = NUMBER,
    over: Sequence[str] = ("time",),
) -> xr.DataArray:
    """Share of true values inside the central interval between quantiles of the members.

    Quantiles at `(k - 1/2) / M` spread over the members; biased low for few members, unlike
    `sciLDM.evaluate.calibration`.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level: expected a coverage between 0 and 1, got {level}")
    _check_members(members, number)
    ends = members.quantile([(1 - level) / 2, (1 + level) / 2], dim=number, method="hazen")
    inside = (truth >= ends.isel(quantile=0, drop=True)) & (truth <= ends.isel(quantile=1, drop=True))
    return _mean(inside.astype("f8").where(np.isfinite(truth)), weights, over)


def quantile_maps(
    fields: xr.DataArray, levels: Sequence[float] = (0.01, 0.99), *, over: Sequence[str] = ("time",)
) -> xr.DataArray:
    """Quantiles at every cell, over dates and members alike."""
    return fields.quantile(list(levels), dim=_present(fields, [*over, NUMBER]), skipna=True)


def fss(
    prediction: xr.DataArray,
    truth: xr.DataArray,
    threshold: float,
    window: int,
    *,
    space: tuple[str, str],
    number: str = NUMBER,
) -> float:
    """Fractions skill score (Roberts & Lean 2008): agreement on how much of each `window x window` box is above.

    With members, the fraction is their mean (probabilistic FSS). Boxes are cut at the borders of the map.

    Args:
        prediction: Fields, with or without members.
        truth: Fields.
        threshold: In the data's units.
        window: Cells; 1 compares cell by cell.
        space: The two horizontal dimensions.
        number: The dimension of members.

    Returns:
        Over all cases together: 1 for a perfect forecast; NaN where nothing is above in either.
    """
    if window < 1:
        raise ConfigError(f"window must be at least 1 cell, got {window}")
    known = np.isfinite(truth) & np.isfinite(prediction)
    event = (prediction > threshold).where(known).astype("f8")
    if number in event.dims:
        event = event.mean(number)
        known = known.all(number)
    seen = (truth > threshold).where(known).astype("f8")
    a, b = (_fractions(v, window, space) for v in (event, seen))
    difference = float(((a - b) ** 2).mean())
    reference = float((a**2).mean() + (b**2).mean())
    return 1 - difference / reference if reference > 0 else float("nan")


def _fractions(x: xr.DataArray, window: int, space: tuple[str, str]) -> xr.DataArray:
    """Mean over the known cells of the box around each cell."""
    known = np.isfinite(x)
    total, count = x.fillna(0.0), known.astype("f8")
    for dim in space:
        total, count = (_running_sum(v, window, dim) for v in (total, count))
    return (total / count.where(count > 0)).where(known)


def _running_sum(x: xr.DataArray, window: int, dim: str) -> xr.DataArray:
    size = x.sizes[dim]
    axis = x.get_axis_num(dim)
    running = np.concatenate([np.zeros_like(x.values.take([0], axis)), x.values.cumsum(axis)], axis=axis)
    centre = np.arange(size)
    low = np.clip(centre - (window - 1) // 2, 0, size)
    high = np.clip(centre + window // 2 + 1, 0, size)
    return x.copy(data=running.take(high, axis) - running.take(low, axis))


def _check_members(members: xr.DataArray, number: str) -> int:
    if number not in members.dims or members.sizes[number] < 2:
        raise DataError(
            f"expected at least 2 members along {number!r}, got dimensions {dict(members.sizes)}; name the ensemble "
            "dimension with `number=`"
        )
    return int(members.sizes[number])


def _present(x: xr.DataArray, dims: Sequence[str]) -> list[str]:
    return [d for d in dims if d in x.dims]


def _space(x: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    known = np.isfinite(x)
    return (x.fillna(0.0) * weights).sum(weights.dims) / (known * weights).sum(weights.dims)


def _mean(x: xr.DataArray, weights: xr.DataArray, over: Sequence[str]) -> xr.DataArray:
    """Weighted mean over the map and the cases together, so that a case with few known values weighs little."""
    dims = [*weights.dims, *_present(x, over)]
    known = np.isfinite(x)
    return (x.fillna(0.0) * weights).sum(dims) / (known * weights).sum(dims)
