r"""Daily sea-level pressure: gap filling and forecasts of two held-out years, ours beside the classical methods.

The model is that of `configs/climate/ncep_slp.yaml`, trained in the work folder unless `--model` names a run. Scores
are kept there case by case (a mask and a share of observed places; the forecasts), so a run that was stopped goes on
where it was. What is tuned (radii of localisation, numbers of modes, factors on the spread) is tuned on the validation
period.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import Row, machine, parser, print_rows, versions, without_aims, write_rows

from sciLDM import fit, load
from sciLDM.domains.climate.evaluation_gaps import GapSettings, gap_filling
from sciLDM.domains.climate.forecast_study import ForecastStudySettings, forecast_study
from sciLDM.model import LatentDiffusion

OURS, DAILY, WINDOW = "latent diffusion", "localised EnOI", "localised EnOI, "
CONFIG = Path(__file__).parents[1] / "configs" / "climate" / "ncep_slp.yaml"
MASKS, FRACTIONS = ("random", "stations", "swath"), (0.01, 0.05, 0.2)
SIMPLE = ("climatology", "persistence", "linear inverse model", "analogs")
SHOWN = ("method", "calibrated", "factor", "rmse", "crps", "spread_skill", "coverage", "chi2", "crps_ratio")


def gaps(model: LatentDiffusion, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Rows of every case, by its name."""
    settings = GapSettings(
        members=options.members, windows=options.windows, validation=options.validation, steps=options.steps
    )
    found = {}
    for mask in options.masks:
        for fraction in options.fractions:
            name = f"{mask} {fraction:g}"
            path = _path(options, f"gaps-{mask}-{fraction:g}-{options.windows}-{options.members}")
            if not path.exists():
                began = time.perf_counter()
                study = gap_filling(model, masks=[mask], fractions=[fraction], settings=settings, output=path)
                print(f"{name}: {time.perf_counter() - began:.0f} s\n{study.table(SHOWN)}", flush=True)
            found[name] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return found


def forecasts(model: LatentDiffusion, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all leads."""
    path = _path(options, f"forecasts-{options.cases}-{options.members}")
    if not path.exists():
        settings = ForecastStudySettings(members=options.members, cases=options.cases)
        study = forecast_study(model, settings=settings, output=path)
        print(study.table(("lead", *SHOWN)), flush=True)
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def gap_rows(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """The table, with the aims on our rows: both as sampled and scaled."""
    made = []
    for case, rows in found.items():
        for calibrated in (False, True):
            kept = {r["method"]: r for r in rows if r["calibrated"] is calibrated}
            ours, told = kept[OURS], f"{case}{', scaled' if calibrated else ''}"
            made.append(Row(f"{told}: ours, CRPS", ours["crps"], "Pa"))
            for name, r in kept.items():
                if name == DAILY or (name.startswith(WINDOW) and "seasonal" not in name):
                    note = (
                        f"{r['crps']:.1f} Pa; 95 % {r['crps_ratio_lower']:.3f} to {r['crps_ratio_upper']:.3f}"
                    )
                    made.append(Row(f"{told}: ours / {name}", r["crps_ratio"], "1", at_most=1.0, note=note))
            made += _calibration(told, ours)
            if ours.get("chi2") is not None:
                made.append(Row(f"{told}: ours, chi-square", ours["chi2"], "1"))
    return made


def forecast_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table, with the aims on our rows."""
    made = []
    for lead in sorted({r["lead"] for r in rows}):
        for calibrated in (False, True):
            kept = {r["method"]: r for r in rows if r["lead"] == lead and r["calibrated"] is calibrated}
            ours, told = kept[OURS], f"{lead} d ahead{', scaled' if calibrated else ''}"
            made.append(Row(f"{told}: ours, CRPS", ours["crps"], "Pa"))
            for name in SIMPLE:
                if name in kept:
                    r = kept[name]
                    note = (
                        f"{r['crps']:.1f} Pa; 95 % {r['crps_ratio_lower']:.3f} to {r['crps_ratio_upper']:.3f}"
                    )
                    made.append(Row(f"{told}: ours / {name}", r["crps_ratio"], "1", at_most=1.0, note=note))
            made += _calibration(told, ours)
    return made


def _calibration(told: str, ours: Mapping[str, Any]) -> list[Row]:
    spread, coverage = ours["spread_skill"], ours["coverage"]
    return [
        Row(f"{told}: ours, spread over skill", spread, "1", note=_aim(spread, 0.9, 1.1)),
        Row(f"{told}: ours, coverage of 90 %", coverage, "1", note=_aim(coverage, 0.87, 0.93)),
    ]


def _aim(value: float, low: float, high: float) -> str:
    return f"aim {low:g} to {high:g} {'met' if low <= value <= high else 'MISSED'}"


def _path(options: argparse.Namespace, name: str) -> Path:
    path = options.work / "scores" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--work", type=Path, default=Path("runs/climate"), help="keeps model and scores")
    arguments.add_argument("--model", help="a trained run, instead of training one")
    arguments.add_argument("--masks", nargs="*", default=MASKS, help="some of the masks")
    arguments.add_argument("--fractions", nargs="*", type=float, default=FRACTIONS)
    arguments.add_argument("--windows", type=int, default=48, help="test windows of gap filling")
    arguments.add_argument("--validation", type=int, default=48, help="validation windows, at most")
    arguments.add_argument("--cases", type=int, default=120, help="test forecasts")
    arguments.add_argument("--members", type=int, default=32, help="of every ensemble")
    arguments.add_argument("--steps", type=int, help="of the sampler; the model's default")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.windows, options.validation, options.cases, options.members, options.steps = 2, 2, 4, 4, 4
        options.masks, options.fractions = MASKS[:1], FRACTIONS[:1]
    quick = {"autoencoder_stage.max_steps": 20, "denoiser_stage.max_steps": 2, "ignore_gate": True}
    if options.model:
        model = load(options.model)
    else:
        model = fit(CONFIG, options.work / "model", overrides=quick if options.quick else None)
    found, ahead = gaps(model, options), forecasts(model, options)
    made = gap_rows(found) + forecast_rows(ahead)
    made = without_aims(made) if options.quick else made
    print_rows(made)
    write_rows(made, options.json)
    whole = tuple(options.masks) == MASKS and tuple(options.fractions) == FRACTIONS
    if whole and not options.quick:
        summary = {
            "machine": machine(),
            "versions": versions(["sciLDM", "torch"]),
            "training": model.card.get("training", {}),
            "windows": options.windows,
            "members": options.members,
            "gaps": found,
            "forecasts": ahead,
        }
        path = Path(__file__).parent / "results" / "climate.json"
        path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
