r"""Daily sea-level pressure: two held-out years compressed, filled, forecast and synthesised, beside classical methods.

The model is that of `configs/climate/ncep_slp.yaml`, trained in the work folder unless `--model` names a run. Scores
are kept there case by case (a mask and a share of observed places; the forecasts), so a run that was stopped goes on
where it was. What is tuned (radii of localisation, numbers of modes, factors on the spread) is tuned on the validation
period.

Synthesis has models of its own, trained on 5 % of the days before the held-out years (`synthesis_study`): blocks of
five days, or single ones, spread evenly.
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
from sciLDM.data.cards import locate
from sciLDM.domains.climate.evaluation_compression import compression
from sciLDM.domains.climate.evaluation_gaps import GapSettings, gap_filling
from sciLDM.domains.climate.forecast import ForecastSettings
from sciLDM.domains.climate.forecast_study import ForecastStudySettings, forecast_study
from sciLDM.domains.climate.read import open_dataset
from sciLDM.domains.climate.synthesis_study import COLUMNS, SynthesisSettings, synthesis_study, thinned
from sciLDM.model import LatentDiffusion

OURS, DAILY, WINDOW = "latent diffusion", "localised EnOI", "localised EnOI, "
CONFIGS = Path(__file__).parents[1] / "configs" / "climate"
CONFIG, SYNTHESIS = CONFIGS / "ncep_slp.yaml", CONFIGS / "ncep_slp_few.yaml"
PARTS = ("compression", "gaps", "forecasts", "synthesis")
CONTEXT = 3
"""Known states of a forecast, chosen on the validation period: 209, 345 and 402 Pa after 1, 2 and 3 days; two known
states 213, 348 and 404, one 244, 372 and 414."""
SHARE, HELD_OUT = 0.05, "2007"
BLOCKS = {"blocks of five days": 5, "single days": 1}
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
        how = ForecastSettings(context=CONTEXT, sampler_steps=options.steps)
        settings = ForecastStudySettings(members=options.members, cases=options.cases, forecast=how)
        study = forecast_study(model, settings=settings, output=path)
        print(study.table(("lead", *SHOWN)), flush=True)
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def compressed(model: LatentDiffusion, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of autoencoder and principal components."""
    path = _path(options, "compression")
    if not path.exists():
        compression(model, output=path)
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def synthesis(options: argparse.Namespace) -> dict[str, Any]:
    """Studies of models of few days, by how these days are spread."""
    found = {}
    (whole,) = locate("ncep_slp")
    for told, block in BLOCKS.items():
        path, data = _path(options, f"synthesis-{block}"), options.work / f"few-{block}.nc"
        if not path.exists():
            thinned(open_dataset(whole).load(), HELD_OUT, share=SHARE, block=block).to_netcdf(data)
            quick = {"autoencoder_stage.max_steps": 5, "denoiser_stage.max_steps": 2} if options.quick else {}
            overrides = {"domain.init_args.data": str(data), "ignore_gate": options.quick, **quick}
            model = fit(SYNTHESIS, options.work / f"few-{block}", overrides=overrides)
            settings = SynthesisSettings(
                steps=options.steps, **({"count": 40, "resamples": 5} if options.quick else {})
            )
            study = synthesis_study(model, "ncep_slp", settings=settings, output=path)
            print(f"{told}\n{study.table(COLUMNS)}", flush=True)
        found[told] = json.loads(path.read_text(encoding="utf-8"))
    return found


def compression_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table, with the aims on our row."""
    ours, theirs = rows
    return [
        Row("autoencoder: compression", ours["ratio"], "1", at_least=8.0),
        Row("autoencoder: rmse / PCA", ours["rmse"] / theirs["rmse"], "1", at_most=1.0,
            note=f"{ours['rmse']:.4f}, PCA {theirs['rmse']:.4f} of the training deviation"),
        Row("autoencoder: spectral ratio, smallest", ours["spectral_ratio_min"], "1", at_least=0.8,
            note=f"PCA {theirs['spectral_ratio_min']:.3f}"),
        Row("autoencoder: spectral ratio, largest", ours["spectral_ratio_max"], "1", at_most=1.25),
    ]  # fmt: skip


def synthesis_rows(found: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Shares within the sampling error, and copies."""
    made = []
    for told, study in found.items():
        kept = {r["fields"]: r for r in study["rows"]}
        ours = kept["latent diffusion"]
        for name in ("std", "p1", "p99", "eof"):
            others = ", ".join(
                f"{k} {kept[k][f'{name}_within']:.2f}" for k in kept if k != "latent diffusion"
            )
            made.append(
                Row(f"{told}: {name} within sampling error", ours[f"{name}_within"], "1", note=others)
            )
        note = f"share of copies {ours['copies']:.3f} (held-out fields: 0.01)"
        made.append(
            Row(f"{told}: nearest training field, ours / held-out", ours["distance_ratio"], "1", note=note)
        )
    return made


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


def _lean(content: Any) -> Any:
    """Without rank histograms, which the scores in the work folder keep."""
    if isinstance(content, Mapping):
        return {k: _lean(v) for k, v in content.items() if k != "rank_histogram"}
    return [_lean(v) for v in content] if isinstance(content, list) else content


def _path(options: argparse.Namespace, name: str) -> Path:
    path = options.work / "scores" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--work", type=Path, default=Path("runs/climate"), help="keeps model and scores")
    arguments.add_argument("--model", help="a trained run, instead of training one")
    arguments.add_argument("--parts", nargs="*", default=PARTS, help="some of the parts")
    arguments.add_argument("--masks", nargs="*", default=MASKS, help="some of the masks")
    arguments.add_argument("--fractions", nargs="*", type=float, default=FRACTIONS)
    arguments.add_argument("--windows", type=int, default=48, help="test windows of gap filling")
    arguments.add_argument("--validation", type=int, default=48, help="validation windows, at most")
    arguments.add_argument("--cases", type=int, default=120, help="test forecasts")
    arguments.add_argument("--members", type=int, default=32, help="of every ensemble")
    arguments.add_argument("--steps", type=int, help="of the sampler; the model's defaults")
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
    made: list[Row] = []
    summary: dict[str, Any] = {
        name: getattr(options, name) for name in ("windows", "validation", "members", "cases", "steps")
    }
    summary["context"] = CONTEXT
    if "compression" in options.parts:
        summary["compression"] = compressed(model, options)
        made += compression_rows(summary["compression"])
    if "gaps" in options.parts:
        summary["gaps"] = gaps(model, options)
        made += gap_rows(summary["gaps"])
    if "forecasts" in options.parts:
        summary["forecasts"] = forecasts(model, options)
        made += forecast_rows(summary["forecasts"])
    if "synthesis" in options.parts:
        summary["synthesis"] = synthesis(options)
        made += synthesis_rows(summary["synthesis"])
    made = without_aims(made) if options.quick else made
    print_rows(made)
    write_rows(made, options.json)
    whole = (tuple(options.parts), tuple(options.masks), tuple(options.fractions)) == (
        PARTS,
        MASKS,
        FRACTIONS,
    )
    if whole and not options.quick:
        about = {"machine": machine(), "versions": versions(["sciLDM", "torch"])}
        content = _lean({**about, "training": model.card.get("training", {}), **summary})
        path = Path(__file__).parent / "results" / "climate.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
