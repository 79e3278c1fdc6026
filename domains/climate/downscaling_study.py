r"""Downscaling of the test period: the model's ensembles beside climatology, bicubic + quantile mapping and regression.

Besides probabilistic scores, what users of climate projections ask of a downscaled field (Maraun et al. 2015,
doi:10.1002/2014EF000259): wet days, extremes, spectra, and whether its coarse means are those of the predictors.

Predictors of another model than the one that drove the regional run share its climate and not its days. For those the
scores of single days say only whether a method knows that, and `coarsened` makes predictors that do belong to the fine
fields (a perfect-model test).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, final

import numpy as np
import xarray as xr
from jaxtyping import Float

from sciLDM.domains.climate import baselines_downscaling as baselines
from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.baselines import Predictions, pick, season_distance
from sciLDM.domains.climate.baselines_downscaling import bicubic, dressed
from sciLDM.domains.climate.calendar import Times, period
from sciLDM.domains.climate.downscaling import ERROR, Downscales, downscale, targets_of
from sciLDM.domains.climate.downscaling_join import PREFIX
from sciLDM.domains.climate.evaluation_scoring import (
    Study,
    case_crps,
    compare,
    conformal_factor,
    scaled,
    score,
)
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.outputs import NUMBER, read_dataset, write_dataset
from sciLDM.domains.climate.scores_extremes import distribution
from sciLDM.domains.climate.states import oriented
from sciLDM.domains.climate.transforms import Identity
from sciLDM.errors import ConfigError, DataError
from sciLDM.rng import NoiseSource

__all__ = ["COLUMNS", "DownscalingData", "DownscalingStudySettings", "coarsened", "downscaling_study"]

COLUMNS = ("variable", "method", "calibrated", "crps", "crps_lower", "crps_upper", "crps_ratio", "rmse", "spread_skill",
           "coverage", "p1_error", "p99_error", "rx1day_bias", "wet_share_bias", "spectral_distance")  # fmt: skip
"""Of the table."""

OURS = "latent diffusion"
_MODES, _RIDGES = (44, 88, 176), (1e-3, 1e-2, 3e-2)
_WIDTH = 0.04
"""Half width of a season, as a share of the year."""

Method = Callable[[str], Predictions]


@final
@dataclass(frozen=True)
class DownscalingStudySettings:
    """How much of a study to run.

    Attributes:
        members: Of every ensemble.
        validation: Every how many-th validation date is used, to tune baselines and scale spreads.
        error: Of the predictors, in their standard deviations.
        steps: Of the sampler.
        seed: Of all members.
        block: Dates between two savings, where a folder is given.
    """

    members: int = 8
    validation: int = 3
    error: float = ERROR
    steps: int | None = None
    seed: int = 0
    block: int = 32


@final
@dataclass(frozen=True, eq=False)
class DownscalingData:
    """Both resolutions of all periods.

    Attributes:
        coarse: Predictors of the model.
        fine: Targets.
        times: Dates, by period.
        predictors: Coarse predictors as regression takes them, in one row, of order one; amounts by their root.
        targets: By variable and period, `[date, cell]`.
        interpolated: Those predictors that are targets as well, at the fine cells.
        grid: The fine grid.
    """

    coarse: Mapping[str, xr.Dataset]
    fine: Mapping[str, xr.Dataset]
    times: Mapping[str, Times]
    predictors: Mapping[str, Float[np.ndarray, "date predictor"]]
    targets: Mapping[str, Mapping[str, Float[np.ndarray, "date cell"]]]
    interpolated: Mapping[str, Mapping[str, Float[np.ndarray, "date cell"]]]
    grid: Grid

    @staticmethod
    def of(model: Any, coarse: xr.Dataset, fine: xr.Dataset, *, thin: int = 1) -> "DownscalingData":
        """Split as the model was.

        Args:
            model: With periods in its `split`.
            coarse: Predictors.
            fine: Targets at the same dates.
            thin: Every how many-th validation date is kept.

        Raises:
            ConfigError: A model without stated periods.
            DataError: Dates that do not match.
        """
        split = model.experiment.domain.split
        spans = {name: getattr(split, name) for name in ("train", "validation", "test")}
        if None in spans.values():
            raise ConfigError("downscaling_study: state `split.train`, `split.validation` and `split.test`")
        names = [n for n in targets_of(model.codec) if n in fine]
        axes = find_axes(fine, names[0])
        assert axes.time is not None
        if coarse.sizes[axes.time] != fine.sizes[axes.time]:
            raise DataError("coarse and fine have different numbers of dates; select the common ones")
        times = Times.of(fine[axes.time].values)
        rows = {name: np.flatnonzero(period(times, span, name)) for name, span in spans.items()}
        rows["validation"] = rows["validation"][::thin]
        parts = {k: (coarse.isel({axes.time: r}), fine.isel({axes.time: r})) for k, r in rows.items()}
        grid = Grid.of(fine, axes)
        wanted = [v.attrs["predictor"] for v in model.codec.template.variables if "predictor" in v.attrs]
        chosen = [n for n in wanted if n in coarse]
        return DownscalingData(
            {k: c for k, (c, _) in parts.items()},
            {k: f for k, (_, f) in parts.items()},
            {k: times.take(r) for k, r in rows.items()},
            _rows({k: c for k, (c, _) in parts.items()}, chosen, model),
            {n: {k: _field(f, n).reshape(len(rows[k]), -1) for k, (_, f) in parts.items()} for n in names},
            {n: {k: _spline(c, n, grid) for k, (c, _) in parts.items()} for n in names if n in chosen},
            grid,
        )

    @property
    def weights(self) -> Float[np.ndarray, "cell"]:
        """Areas, mean 1."""
        return (self.grid.area / self.grid.area.mean()).ravel()


def coarsened(fine: xr.Dataset, like: xr.Dataset) -> xr.Dataset:
    """Means of the fine cells that lie in each cell of another grid: predictors that belong to the fine fields.

    Args:
        fine: With latitudes and longitudes of its cells.
        like: A data set on the coarse grid, with 1-D latitude and longitude.

    Raises:
        DataError: A coarse cell without any fine one.
    """
    names = [str(n) for n in fine.data_vars if fine[n].ndim == 3]
    axes, own = find_axes(fine, names[0]), find_axes(like, str(next(iter(like.data_vars))))
    grid, other = Grid.of(fine, axes), Grid.of(like, own)
    index = other.index_of(grid.latitudes.ravel(), grid.longitudes.ravel())
    inside = np.isfinite(index).all(axis=1)
    place = np.round(index[inside]).astype(int)
    cell = place[:, 0] * other.shape[1] + place[:, 1]
    area = grid.area.ravel()[inside]
    total = np.bincount(cell, area, minlength=other.shape[0] * other.shape[1])
    if (total == 0).any():
        raise DataError(
            f"{int((total == 0).sum())} coarse cells hold no fine cell; select a part of the coarse grid"
        )
    weights = np.zeros((len(total), grid.latitudes.size))
    weights[cell, np.flatnonzero(inside)] = area / total[cell]
    coords = {own.y: like[own.y], own.x: like[own.x], axes.time: fine[axes.time]}
    found = {}
    for name in names:
        values = grid.canonical(oriented(fine[name], axes).values.astype(float)).reshape(
            -1, grid.latitudes.size
        )
        means = other.native((values @ weights.T).reshape(-1, *other.shape))
        kept = {
            k: fine[name].attrs[k] for k in ("units", "standard_name", "long_name") if k in fine[name].attrs
        }
        found[name] = ((axes.time, own.y, own.x), means.astype(np.float32), kept)
    return xr.Dataset(found, coords=coords)


def downscaling_study(
    model: Downscales,
    data: DownscalingData,
    *,
    settings: DownscalingStudySettings | None = None,
    folder: str | Path | None = None,
    output: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Study:
    """Downscale the test period.

    Args:
        model: Loaded, and trained on `joined` data.
        data: From `DownscalingData.of`.
        settings: Sizes of the study.
        folder: Where ensembles are kept block by block; a study that was stopped goes on there.
        output: JSON file to write.
        progress: `progress(what, done, total)`.

    Returns:
        Rows `variable`, `method`, `calibrated` with the scores of `evaluation_scoring.score`, the CRPS relative to ours
        date by date, and `scores_extremes.distribution`. All ensembles have `members` members; spreads are scaled by
        what the validation period says where `calibrated`.
    """
    settings = settings or DownscalingStudySettings()
    drawn = {k: _ours(model, data, k, settings, folder, progress) for k in ("validation", "test")}
    rows, tuned = [], {}
    for variable, truth in data.targets.items():
        methods: dict[str, Method] = {OURS: lambda k, v=variable: drawn[k][v]}
        made, chosen = _baselines(data, variable, settings, _amount(model, variable))
        tuned[variable] = chosen
        rows += _scored(methods | made, variable, truth, data, _amount(model, variable))
    protocol = {
        "study": "downscaling", **asdict(settings), "tuned": tuned,
        "cases": {k: len(t.seconds) for k, t in data.times.items()},
        "periods": {k: t.take([0, -1]).text() for k, t in data.times.items()},
        "cells": data.grid.latitudes.size, "predictors": next(iter(data.predictors.values())).shape[1],
    }  # fmt: skip
    study = Study(rows, protocol)
    if output is not None:
        study.write(output)
    return study


def _ours(
    model: Downscales,
    data: DownscalingData,
    name: str,
    settings: DownscalingStudySettings,
    folder: str | Path | None,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Predictions]:
    coarse, time = data.coarse[name], model.codec.template.axes.time or "time"
    starts = range(0, coarse.sizes[time], settings.block)
    found: dict[str, list[np.ndarray]] = {v: [] for v in data.targets}
    for done, start in enumerate(starts):
        path = None if folder is None else Path(folder) / f"{name}-{start}.nc"
        if path is not None and path.exists():
            part = read_dataset(path)
        else:
            block = coarse.isel({time: slice(start, start + settings.block)})
            seed = NoiseSource(settings.seed).fork(f"{name} {start}").seed
            part = downscale(
                model, block, members=settings.members, error=settings.error, steps=settings.steps, seed=seed
            )
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_dataset(part, path)
        for v, parts in found.items():
            array = part[v].transpose(time, NUMBER, ...)
            parts.append(data.grid.canonical(array.values).reshape(*array.shape[:2], -1))
        if progress is not None:
            progress(f"downscaling, {name}", done + 1, len(starts))
    return {v: Predictions.of(np.concatenate(parts).astype(np.float64)) for v, parts in found.items()}


def _baselines(
    data: DownscalingData, variable: str, settings: DownscalingStudySettings, amount: bool
) -> tuple[dict[str, Method], dict[str, Any]]:
    noise, truth = NoiseSource(settings.seed).fork(f"downscaling {variable}"), data.targets[variable]
    phase, members = {k: t.phase for k, t in data.times.items()}, settings.members

    def climatology(name: str) -> Predictions:
        """Maps of the same season of other years."""
        rows = []
        for i, p in enumerate(phase[name]):
            away = season_distance(phase["train"], p)
            least = np.sort(away)[min(members, len(away)) - 1]
            near = np.flatnonzero(away <= max(_WIDTH, least))
            rows.append(near[pick(noise, i, members, len(near))])
        return Predictions.of(truth["train"][np.stack(rows)])

    methods: dict[str, Method] = {"climatology": climatology}
    if variable in data.interpolated:
        splines = data.interpolated[variable]
        mapping = baselines.QuantileMapping.fit(splines["train"], truth["train"], amounts=amount)
        mapped = {k: mapping(x) for k, x in splines.items()}
        residuals = truth["train"] - mapped["train"]
        methods["bicubic + quantile mapping"] = lambda k: Predictions.of(mapped[k][:, None].repeat(2, axis=1))
        methods["bicubic + quantile mapping, dressed"] = lambda k: _bounded(
            dressed(mapped[k], residuals, members, noise), amount
        )
    made, tuned = _regression(data, variable, settings, noise, amount)
    return methods | {"regression": made}, tuned


def _regression(
    data: DownscalingData,
    variable: str,
    settings: DownscalingStudySettings,
    noise: NoiseSource,
    amount: bool,
) -> tuple[Method, dict[str, Any]]:
    """With what suits the validation period best: modes, ridge, root (of amounts), departures from interpolation."""
    x, truth, found = data.predictors, data.targets[variable], []
    most = min(len(x["train"]), truth["train"].shape[1], x["train"].shape[1])
    zero = {k: np.zeros((1, 1)) for k in truth}
    splines = data.interpolated.get(variable)
    for root, departing in product(
        (False, True) if amount else (False,), (False, True) if splines else (False,)
    ):
        power = 0.5 if root else 1.0
        base = (
            {k: v.clip(min=0) ** power if root else v for k, v in splines.items()}
            if departing and splines
            else zero
        )
        y = (truth["train"].clip(min=0) ** power if root else truth["train"]) - base["train"]
        mean = y.mean(0)
        for modes, ridge in product(sorted({min(m, most) for m in _MODES}), _RIDGES):
            fitted = baselines.RegressionDownscaling(
                x["train"], y - mean, modes=modes, ridge=ridge, weights=data.weights
            )

            def run(
                name: str, fitted: Any = fitted, mean: np.ndarray = mean, base: Any = base, root: bool = root
            ) -> Predictions:
                drawn = fitted.predict(x[name], settings.members, noise).members + mean + base[name][:, None]
                drawn = drawn.clip(min=0) if amount else drawn
                return Predictions.of(drawn**2 if root else drawn)

            crps = case_crps(run("validation"), truth["validation"], data.weights).mean()
            chosen = {"modes": modes, "ridge": ridge, "root": root, "departures": departing}
            found.append((float(crps), chosen, run))
    best = min(found, key=lambda entry: entry[0])
    return best[2], best[1]


def _scored(
    methods: Mapping[str, Method],
    variable: str,
    truth: Mapping[str, np.ndarray],
    data: DownscalingData,
    amount: bool,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    ours: dict[bool, np.ndarray] = {}
    for name, method in methods.items():
        test, spread = method("test"), (method("validation").std > 0).any()
        factor = conformal_factor(method("validation"), truth["validation"]) if spread else 1.0
        for calibrated in (False, True) if spread else (False,):
            made = _bounded(scaled(test, factor), amount) if calibrated else test
            crps = case_crps(made, truth["test"], data.weights)
            ours.setdefault(calibrated, crps)
            rows.append(
                {
                    "variable": variable,
                    "method": name,
                    "calibrated": calibrated,
                    "factor": factor if calibrated else 1.0,
                    **score(made, truth["test"], data.weights),
                    **compare(ours[calibrated], crps),
                    **distribution(made.members, truth["test"], data.grid.shape, data.weights, amount=amount),
                }
            )
    return rows


def _bounded(predicted: Predictions, amount: bool) -> Predictions:
    return replace(predicted, members=predicted.members.clip(min=0)) if amount else predicted


def _amount(model: Any, variable: str) -> bool:
    target = targets_of(model.codec)[variable]
    link = model.codec.normaliser.links[model.codec.template.variables.index(target)]
    return bool(target.attrs.get("target_root", not isinstance(link, Identity)))


def _field(dataset: xr.Dataset, name: str) -> np.ndarray:
    axes = find_axes(dataset, name)
    return Grid.of(dataset, axes).canonical(oriented(dataset[name], axes).values.astype(np.float64))


def _spline(coarse: xr.Dataset, name: str, fine: Grid) -> np.ndarray:
    grid = Grid.of(coarse, find_axes(coarse, name))
    values = _field(coarse, name)
    return bicubic(values, grid.latitude, grid.longitude, fine.latitudes, fine.longitudes).reshape(
        len(values), -1
    )


def _rows(parts: Mapping[str, xr.Dataset], names: list[str], model: Any) -> dict[str, np.ndarray]:
    """Anomalies over the spread of the training period, all predictors in one row."""
    found: dict[str, list[np.ndarray]] = {k: [] for k in parts}
    for name in names:
        attrs = model.codec.template.variables[model.codec.template.names.index(PREFIX + name)].attrs
        power = 0.5 if attrs["predictor_root"] else 1.0
        raw = {k: _field(p, name).reshape(p.sizes["time"], -1) for k, p in parts.items()}
        values = {k: v.clip(min=0) ** power if power != 1 else v for k, v in raw.items()}
        mean, spread = values["train"].mean(0), values["train"].std()
        for k, v in values.items():
            found[k].append((v - mean) / spread)
    return {k: np.concatenate(v, axis=1) for k, v in found.items()}
