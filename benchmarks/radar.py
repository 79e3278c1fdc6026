r"""Rain from radar five, ten and fifteen minutes ahead: a few tiles of one event, beside methods without advection.

The model is that of `configs/climate/radar.yaml`; the last fifty minutes are held out. CRPS and spread are those of
`forecast_study`, with its baselines. The fractions skill score (FSS) asks for rain above a rate in a box, and is
given for the model's ensemble, for its mean and for persistence. Methods that move the last image along are not among
the baselines.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from _common import Row, parser, print_rows, without_aims, write_rows

from sciLDM import fit, load
from sciLDM.data.cards import locate
from sciLDM.domains.climate.evaluation_data import StudyData
from sciLDM.domains.climate.forecast import ForecastSettings, Rollout
from sciLDM.domains.climate.forecast_study import (
    ForecastStudySettings,
    forecast_study,
    make_starts,
    model_members,
)
from sciLDM.domains.climate.outputs import NUMBER
from sciLDM.domains.climate.radar import rain_tiles
from sciLDM.domains.climate.scores import fss
from sciLDM.model import LatentDiffusion

CONFIG = Path(__file__).parents[1] / "configs" / "climate" / "radar.yaml"
CONTEXT, LEADS, MINUTES = 3, 3, 5
THRESHOLDS, WINDOWS = (0.5, 2.0), (1, 5)
OURS = "latent diffusion"


def scores(model: LatentDiffusion, settings: ForecastStudySettings, output: Path) -> list[Row]:
    """CRPS and spread beside the baselines."""
    study = forecast_study(model, settings=settings, output=output)
    rows: list[Row] = []
    for lead in range(1, LEADS + 1):
        kept = [r for r in study.rows if r["lead"] == lead and not r["calibrated"]]
        ours, told = next(r for r in kept if r["method"] == OURS), f"{lead * MINUTES} min"
        rows.append(Row(f"{told}: ours, CRPS", ours["crps"], "mm/h"))
        rows += [
            Row(f"{told}: ours / {r['method']}", r["crps_ratio"], "1", at_most=1.0,
                note=f"{r['crps']:.4f}; 95 % {r['crps_ratio_lower']:.3f} to {r['crps_ratio_upper']:.3f}")
            for r in kept if r["method"] != OURS
        ]  # fmt: skip
        rows.append(Row(f"{told}: ours, spread over skill", ours["spread_skill"], "1"))
        rows.append(Row(f"{told}: ours, coverage of 90 %", ours["coverage"], "1"))
    return rows


def fractions(model: LatentDiffusion, settings: ForecastStudySettings) -> list[Row]:
    """FSS of the test forecasts."""
    data = StudyData.of(model)
    rollout = Rollout(model, settings.forecast, seed=settings.seed)
    starts = make_starts(data, "test", rollout.context, LEADS, settings.cases)
    members = model_members(rollout, data, starts, settings.members)
    shape = data.exists.shape[1:]

    def maps(x: np.ndarray, *lead: str) -> xr.DataArray:
        return xr.DataArray(x.reshape(*x.shape[:-1], *shape), dims=(*lead, "y", "x"))

    rows: list[Row] = []
    last = data.row(starts.known[:, -1])
    for k in range(LEADS):
        truth = maps(starts.truth[:, k], "case")
        made: dict[str, xr.DataArray] = {
            "ours": maps(members[:, :, k], "case", NUMBER), "ours, mean": maps(members[:, :, k].mean(axis=1), "case"),
            "persistence": maps(last, "case"),
        }  # fmt: skip
        for threshold in THRESHOLDS:
            for window in WINDOWS:
                told = f"{(k + 1) * MINUTES} min: FSS of {threshold:g} mm/h in {4 * window} km"
                found: dict[str, Any] = {
                    name: fss(x, truth, threshold, window, space=("y", "x")) for name, x in made.items()
                }
                note = ", ".join(f"{name} {v:.3f}" for name, v in found.items() if name != "ours")
                rows.append(Row(told, found["ours"], "1", note=note))
    return rows


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument(
        "--work", type=Path, default=Path("runs/radar"), help="keeps data, model and scores"
    )
    arguments.add_argument("--model", help="a trained run, instead of training one")
    arguments.add_argument("--cases", type=int, default=120, help="test forecasts")
    arguments.add_argument("--members", type=int, default=16, help="of every ensemble")
    arguments.add_argument("--steps", type=int, default=20, help="of the sampler")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    data = options.work / "radar-tiles.nc"
    if not data.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        (path,) = locate("fmi_radar")
        with xr.open_dataset(path, mask_and_scale=False) as raw:
            rain_tiles(raw["raw"]).to_netcdf(data)
    overrides: dict[str, Any] = {"domain.init_args.data": str(data)}
    if options.quick:
        options.cases, options.members, options.steps = 4, 4, 2
        overrides |= {"autoencoder_stage.max_steps": 5, "denoiser_stage.max_steps": 2, "ignore_gate": True}
    model = load(options.model) if options.model else fit(CONFIG, options.work / "model", overrides=overrides)
    settings = ForecastStudySettings(
        leads=LEADS, members=options.members, cases=options.cases, validation=options.cases // 2,
        forecast=ForecastSettings(context=CONTEXT, sampler_steps=options.steps),
    )  # fmt: skip
    rows = scores(model, settings, options.work / "scores.json") + fractions(model, settings)
    rows = without_aims(rows) if options.quick else rows
    print_rows(rows)
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
