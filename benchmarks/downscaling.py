r"""Downscaling over Iberia: 1.4 to 0.44 degrees, winters 1995/96 to 1997/98 held out.

perfect   predictors are means of the fine fields over the cells of CNRM-CM5, the same days by construction: skill of
          single days
cmip5     predictors of CNRM-CM5 itself (tas, pr, psl, ta850, hus850). The fine run was driven by another global model
          (EC-EARTH): both share the season and not the day, and no method can be better than climatology
days      whether the files of CNRM-CM5 and of the fine run share their days: correlations, day by day and shifted
transfer  tas and pr of CNRM-CM5, quantile-mapped to the predictors of `perfect` and downscaled by its model: a climate

Needs the files of the data card `iberia`. Work is kept in a folder: joint data, models, ensembles block by block; a run
that was stopped goes on there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from _common import machine, versions

import sciLDM
from sciLDM.data.cards import locate
from sciLDM.domains.climate.baselines_downscaling import QuantileMapping
from sciLDM.domains.climate.downscaling import downscale
from sciLDM.domains.climate.downscaling_join import joined
from sciLDM.domains.climate.downscaling_study import (
    COLUMNS,
    DownscalingData,
    DownscalingStudySettings,
    coarsened,
    downscaling_study,
)
from sciLDM.domains.climate.maps import draw_maps
from sciLDM.domains.climate.rotated import with_places
from sciLDM.domains.climate.scores_extremes import distribution

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "climate" / "iberia.yaml"
UNITS = {"coarse": {"tas": "K", "pr": "kg m-2 s-1", "psl": "Pa", "ta": "K", "hus": "1"},
         "fine": {"tas": "degC", "pr": "mm day-1"}}  # fmt: skip
ERRORS = {"perfect": 0.03, "cmip5": 3.0}
"""Errors of predictors, chosen on the validation winters: those of another model say little about the day."""


def read() -> tuple[xr.Dataset, xr.Dataset]:
    """Coarse and fine, with units, on one daily time axis, fine cells with their places (pole of EURO-CORDEX)."""
    parts: dict[str, list[xr.Dataset]] = {"coarse": [], "fine": []}
    for path in locate("iberia"):
        parts["coarse" if path.name.startswith("cmip5") else "fine"].append(xr.open_dataset(path).load())
    coarse, fine = (
        xr.merge(p, combine_attrs="drop_conflicts", compat="override", join="exact") for p in parts.values()
    )
    for which, dataset in (("coarse", coarse), ("fine", fine)):
        for name, unit in UNITS[which].items():
            dataset[name].attrs["units"] = unit
    coarse = coarse.assign_coords(time=fine["time"])  # noon and midnight of the same days
    return coarse, with_places(fine, pole_latitude=39.25, pole_longitude=-162.0)


def trained(work: Path, name: str, coarse: xr.Dataset, fine: xr.Dataset) -> Any:
    """The model of a pair, trained once."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.nc"
    if not path.exists():
        joined(coarse, fine).to_netcdf(path)
    variables: dict[str, Any] = {"tas_departure": {}, "pr_departure": {"link": "identity"}}
    variables |= {f"coarse_{n}": {"link": "identity"} for n in map(str, coarse.data_vars)}
    overrides = {"domain.init_args.data": str(path), "domain.init_args.variables": variables}
    run = work / f"{name}-run"
    return sciLDM.load(run) if (run / "model").exists() else sciLDM.fit(CONFIG, run, overrides=overrides)


def transferred(
    work: Path, model: Any, pair: DownscalingData, other: DownscalingData, members: int
) -> list[Any]:
    """Distributions of downscaled fields of the global model, corrected towards the predictors of training."""
    corrected = other.coarse["test"][list(pair.coarse["train"].data_vars)].copy(deep=True)
    for name in corrected.data_vars:
        mapping = QuantileMapping.fit(
            other.coarse["train"][name].values, pair.coarse["train"][name].values, amounts=name == "pr"
        )
        units = pair.coarse["train"][name].attrs["units"]
        corrected[name] = (
            corrected[name].dims,
            mapping(corrected[name].values).astype("f4"),
            {"units": units},
        )
    path = work / "transfer.nc"
    made = xr.open_dataset(path) if path.exists() else downscale(model, corrected, members=members, steps=10)
    if not path.exists():
        made.to_netcdf(path)
    rows = []
    for name, truth in pair.targets.items():
        drawn = made[name].transpose("time", "number", ...).values
        flat = drawn.reshape(*drawn.shape[:2], -1).astype(float)
        found = distribution(flat, truth["test"], pair.grid.shape, pair.weights, amount=name == "pr")
        rows.append({"variable": name, "method": "transferred latent diffusion", **found})
    return rows


def same_days(coarse: xr.Dataset, means: xr.Dataset) -> dict[str, Any]:
    """Correlations of daily anomalies of two data sets on one grid: same days, days apart, other winters.

    Anomalies are those of each day of the winter, from its mean over all winters smoothed by a fortnight. Winters are
    paired with every other one: what two winters have in common that share no day.
    """
    winter = (coarse["time"].dt.year + (coarse["time"].dt.month == 12)).values
    order = np.concatenate([np.arange((winter == w).sum()) for w in np.unique(winter)])
    found: dict[str, Any] = {}
    for name in ("tas", "pr"):
        parts = []
        for dataset in (coarse, means):
            values = dataset[name].transpose("time", ...).values.reshape(len(order), -1).astype(float)
            daily = np.stack(
                [values[np.abs(order - day) <= 7].mean(axis=0) for day in range(order.max() + 1)]
            )
            parts.append([(values - daily[order])[winter == w] for w in np.unique(winter)])
        a, b = parts

        def alike(pairs: list[tuple[int, int]], lag: int = 0, a: Any = a, b: Any = b) -> float:
            """Mean over cells."""
            xs, ys = [], []
            for i, j in pairs:
                n = min(len(a[i]), len(b[j]))
                x, y = a[i][:n], b[j][:n]
                xs.append(x[max(0, -lag) : n - max(0, lag)])
                ys.append(y[max(0, lag) : n - max(0, -lag)])
            x, y = np.concatenate(xs), np.concatenate(ys)
            x, y = x - x.mean(0), y - y.mean(0)
            return float(((x * y).mean(0) / np.sqrt((x**2).mean(0) * (y**2).mean(0))).mean())

        count = len(a)
        same = [(k, k) for k in range(count)]
        others = [alike([(k, (k + shift) % count) for k in range(count)]) for shift in range(1, count)]
        found[name] = {
            "same days": alike(same),
            "most of lags -10 to 10": max(alike(same, lag) for lag in range(-10, 11)),
            "other winters, least and most": [min(others), max(others)],
        }
    return found


def picture(work: Path, data: DownscalingData, folder: Path, day: int) -> None:
    """Predictor, truth, mean, two members and spread of one day."""
    block = 32 * (day // 32)
    made = xr.open_dataset(folder / f"test-{block}.nc").isel(time=day - block)
    for name in data.targets:
        drawn = made[name].transpose("number", ...).values
        fields = {
            "coarse (splines)": data.interpolated[name]["test"][day].reshape(data.grid.shape),
            "truth": data.targets[name]["test"][day].reshape(data.grid.shape),
            "ensemble mean": drawn.mean(0), "member 0": drawn[0], "member 1": drawn[1], "spread": drawn.std(0, ddof=1),
        }  # fmt: skip
        units = str(data.fine["test"][name].attrs["units"])
        draw_maps(fields, data.grid, units=units, columns=3, spread=("spread",)).savefig(
            work / f"{name}.png", dpi=110
        )


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--work", type=Path, default=Path("downscaling-work"))
    arguments.add_argument("--members", type=int, default=8)
    arguments.add_argument("--validation", type=int, default=3, help="every how many-th validation date")
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--only", nargs="+", default=["days", "perfect", "cmip5", "transfer"])
    arguments.add_argument("--day", type=int, default=45, help="test day of the picture")
    arguments.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "downscaling.json")
    options = arguments.parse_args()
    coarse, fine = read()
    pairs = {"perfect": coarsened(fine, coarse), "cmip5": coarse}
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    models, data = {}, {}
    if "days" in options.only:
        result["days"] = {
            "CNRM-CM5 and the fine run": same_days(coarse, pairs["perfect"]),
            "the fine run and itself a day later": same_days(pairs["perfect"].roll(time=1), pairs["perfect"]),
        }
        print(json.dumps(result["days"], indent=2))
        write(options.json, result)
    for name, predictors in pairs.items():
        if name not in options.only and "transfer" not in options.only:
            continue
        models[name] = trained(options.work, name, predictors, fine)
        data[name] = DownscalingData.of(models[name], predictors, fine, thin=options.validation)
        if name not in options.only:
            continue
        settings = DownscalingStudySettings(
            members=options.members, validation=options.validation, error=ERRORS[name], steps=options.steps
        )
        folder = options.work / f"{name}-{options.members}"
        study = downscaling_study(models[name], data[name], settings=settings, folder=folder, progress=print)
        print(study.table(COLUMNS))
        result[name] = {"protocol": dict(study.protocol), "rows": list(study.rows)}
        if name == "perfect":
            picture(options.work, data[name], folder, options.day)
        write(options.json, result)
    if "transfer" in options.only:
        result["transfer"] = transferred(options.work, models["perfect"], data["perfect"], data["cmip5"], 2)
        write(options.json, result)


def write(path: Path, result: dict[str, Any]) -> None:
    """The results so far."""
    about = {"machine": machine(), "versions": versions(("sciLDM", "torch", "numpy", "xarray"))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **result}, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
