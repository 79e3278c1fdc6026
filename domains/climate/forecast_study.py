"""Forecasts of the test period: the model's ensembles beside those of the baselines, lead by lead."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sciLDM.domains.climate.baselines import (
    ClimatologyForecast,
    DampedPersistence,
    Forecaster,
    Initial,
    Persistence,
    Predictions,
)
from sciLDM.domains.climate.baselines_dynamics import Analogs, LinearInverseModel
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.evaluation_data import Model, StudyData, spread_over
from sciLDM.domains.climate.evaluation_scoring import Study, calibrated_rows, case_crps, compare, score
from sciLDM.domains.climate.forecast import ForecastSettings, Rollout
from sciLDM.rng import NoiseSource

__all__ = ["ForecastStudySettings", "Starts", "forecast_study", "make_starts", "model_members"]

_MODES = (10, 20, 40, 80)
_TUNED_ON = 60

Method = Callable[["Starts"], Predictions]


@final
@dataclass(frozen=True)
class ForecastStudySettings:
    """How much of a study to run.

    Attributes:
        leads: Steps ahead.
        members: Of every ensemble.
        cases: Test forecasts, spread evenly over the period; None for all.
        validation: Validation forecasts.
        seed: Of all members.
        forecast: How the model forecasts.
        baselines: Whether to run them.
    """

    leads: int = 3
    members: int = 32
    cases: int | None = 120
    validation: int = 60
    seed: int = 0
    forecast: ForecastSettings = ForecastSettings()  # noqa: RUF009 - frozen
    baselines: bool = True


@final
@dataclass(frozen=True, eq=False)
class Starts:
    """Forecasts to make.

    Attributes:
        known: The states before, in the data's units.
        known_times: Their dates, `[case, state]`.
        initial: The last of them as anomalies.
        truth: What came, in the data's units.
        times: Its dates, `[case, lead]`.
    """

    known: Float[np.ndarray, "case known channel row column"]
    known_times: Times
    initial: Initial
    truth: Float[np.ndarray, "case lead value"]
    times: Times


def forecast_study(
    model: Model,
    data: xr.Dataset | str | None = None,
    *,
    settings: ForecastStudySettings | None = None,
    output: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Study:
    """Forecast the test period.

    Args:
        model: A loaded climate model, trained with random context.
        data: What to read the periods from; the model's own data when None.
        settings: Sizes of the study.
        output: JSON file to write.
        progress: `progress(what, done, total)`.

    Returns:
        Rows `lead`, `method`, `calibrated` and the scores of `evaluation_scoring.score`, with the CRPS relative to ours
        case by case. Ensembles are scaled lead by lead where `calibrated`, by factors from the validation period.
    """
    settings = settings or ForecastStudySettings()
    study = StudyData.of(model, data)
    rollout = Rollout(model, settings.forecast, seed=settings.seed)  # type: ignore[arg-type]
    counts = {"validation": settings.validation, "test": settings.cases}
    starts = {
        name: make_starts(study, name, rollout.context, settings.leads, n) for name, n in counts.items()
    }
    methods: dict[str, Method] = {
        "latent diffusion": lambda s: Predictions.of(model_members(rollout, study, s, settings.members))
    }
    tuned: dict[str, Any] = {}
    if settings.baselines:
        found, tuned = _baselines(study, starts["validation"], settings)
        methods |= found
    rows: list[dict[str, Any]] = []
    ours: dict[tuple[int, bool], np.ndarray] = {}
    for done, (name, method) in enumerate(methods.items()):
        made = {period: method(s) for period, s in starts.items()}
        for lead in range(settings.leads):
            rows += _rows(name, lead, made, starts, study, ours)
        if progress is not None:
            progress("forecasts", done + 1, len(methods))
    protocol = {
        "study": "forecasts", "members": settings.members, "context": rollout.context, "seed": settings.seed,
        "cases": {k: len(s.truth) for k, s in starts.items()}, "step": str(study.codec.asked.step),
        "periods": study.codec.state["source"]["periods"], **tuned,
        "units": [v.units for v in study.codec.template.variables],
    }  # fmt: skip
    result = Study(sorted(rows, key=lambda r: r["lead"]), protocol)
    if output is not None:
        result.write(output)
    return result


def make_starts(study: StudyData, name: str, context: int, leads: int, count: int | None) -> Starts:
    """Forecasts of a period, spread evenly over it; known states and truth both lie inside."""
    period = study.periods[name]
    begin = spread_over(period.starts(context + leads), count)
    known = begin[:, None] + np.arange(context)
    ahead = begin[:, None] + context + np.arange(leads)
    last = known[:, -1]

    def dates(rows: np.ndarray) -> Times:
        return Times(period.times.seconds[rows], period.times.calendar, period.times.dtype)

    initial = Initial(period.anomalies[last].astype(np.float64), period.times.phase[last])
    return Starts(
        period.values[known], dates(known), initial, study.row(period.values[ahead]).astype(np.float32),
        dates(ahead),
    )  # fmt: skip


def model_members(
    rollout: Rollout, study: StudyData, starts: Starts, members: int
) -> Float[np.ndarray, "case member lead value"]:
    """The model's ensembles, in the data's units."""
    cases, leads = starts.truth.shape[:2]
    known = torch.from_numpy(starts.known).transpose(1, 2).contiguous().float()
    z = rollout.encode(known, starts.known_times).repeat_interleave(members, dim=0)
    seconds = np.repeat(starts.known_times.seconds, members, axis=0)
    dates = replace(starts.known_times, seconds=seconds)
    blocks = [
        study.row(block.values.transpose(1, 2).numpy())
        for block in rollout.blocks(z, dates, leads, range(cases * members))
    ]
    drawn = np.concatenate(blocks, axis=1)
    return drawn.reshape(cases, members, *drawn.shape[1:])


def _baselines(
    study: StudyData, validation: Starts, settings: ForecastStudySettings
) -> tuple[dict[str, Method], dict[str, Any]]:
    history, noise = study.history(), NoiseSource(settings.seed).fork("baseline forecasts")
    part = slice(None, None, max(1, len(validation.truth) // _TUNED_ON))
    small = Starts(
        validation.known[part], replace(validation.known_times, seconds=validation.known_times.seconds[part]),
        Initial(validation.initial.states[part], validation.initial.phase[part]), validation.truth[part],
        replace(validation.times, seconds=validation.times.seconds[part]),
    )  # fmt: skip

    def made(forecaster: Forecaster, starts: Starts) -> Predictions:
        found = forecaster.forecast(starts.initial, settings.leads, settings.members, noise)
        return Predictions.of(study.to_units(found.astype(np.float32), starts.times))

    def best(kind: Callable[[int], Forecaster]) -> tuple[Method, list[int]]:
        """The number of modes that suits each lead best: a baseline is given its best chance."""
        modes = [m for m in _MODES if m <= min(history.anomalies.shape)] or [min(history.anomalies.shape)]
        candidates = [kind(m) for m in modes]
        scores = np.array([_by_lead(made(c, small), small.truth, study.weights) for c in candidates])
        chosen = scores.argmin(axis=0)

        def run(starts: Starts) -> Predictions:
            whole = {k: made(candidates[k], starts) for k in set(chosen.tolist())}
            parts = [(whole[int(k)], lead) for lead, k in enumerate(chosen)]
            return Predictions(
                np.stack([p.members[:, :, lead] for p, lead in parts], axis=2),
                np.stack([p.mean[:, lead] for p, lead in parts], axis=1),
                np.stack([p.std[:, lead] for p, lead in parts], axis=1),
            )

        return run, [modes[int(k)] for k in chosen]

    lim, lim_modes = best(lambda m: LinearInverseModel(history, modes=m))
    analogs, analog_modes = best(lambda m: Analogs(history, modes=m))
    forecasters = {
        "climatology": ClimatologyForecast(history),
        "persistence": Persistence(),
        "damped persistence": DampedPersistence(history),
    }
    methods: dict[str, Method] = {name: (lambda s, f=f: made(f, s)) for name, f in forecasters.items()}
    methods |= {"linear inverse model": lim, "analogs": analogs}
    return methods, {"linear inverse model modes": lim_modes, "analog modes": analog_modes}


def _by_lead(predicted: Predictions, truth: np.ndarray, weights: np.ndarray) -> list[float]:
    """Mean CRPS of each lead."""
    found = []
    for lead in range(truth.shape[1]):
        one = Predictions(predicted.members[:, :, lead], predicted.mean[:, lead], predicted.std[:, lead])
        found.append(float(case_crps(one, truth[:, lead], weights).mean()))
    return found


def _rows(
    name: str,
    lead: int,
    made: dict[str, Predictions],
    starts: dict[str, Starts],
    study: StudyData,
    ours: dict[tuple[int, bool], np.ndarray],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def run(period: str) -> tuple[Predictions, np.ndarray]:
        p = made[period]
        return Predictions(p.members[:, :, lead], p.mean[:, lead], p.std[:, lead]), starts[period].truth[
            :, lead
        ]

    def add(predicted: Predictions, truth: np.ndarray, extra: dict[str, Any]) -> None:
        crps = case_crps(predicted, truth, study.weights)
        key = (lead, extra["calibrated"])
        ours.setdefault(key, crps)
        scores = score(predicted, truth, study.weights)
        rows.append({"lead": lead + 1, "method": name, **extra, **scores, **compare(ours[key], crps)})

    calibrated_rows(run, add)
    return rows
