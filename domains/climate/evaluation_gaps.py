"""Gap filling: the model's posterior beside interpolation by Gaussians, from the same observations.

States of the validation and the test period are observed at some places, with errors of a known size; what is scored is
the rest. Everything that can be tuned (the radius of localisation, factors on the spread) is tuned on the validation
period, with the same kind of mask. The model sees windows of its trajectory's length; ensemble optimal interpolation is
run for each date alone and for the same windows (4-D), the latter also with the season's variances.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import xarray as xr

from sciLDM.domains.climate.baselines import Predictions
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.evaluation_data import Model, StudyData
from sciLDM.domains.climate.evaluation_interpolation import Interpolation, Method
from sciLDM.domains.climate.evaluation_model import reconstruct_windows
from sciLDM.domains.climate.evaluation_scoring import Study, calibrated_rows, case_crps, compare, score
from sciLDM.domains.climate.evaluation_windows import Windows, observe
from sciLDM.errors import ConfigError

__all__ = ["GapSettings", "gap_filling"]


@final
@dataclass(frozen=True)
class GapSettings:
    """How much of a study to run.

    Attributes:
        members: Samples of every method.
        windows: Test windows, spread evenly over the period; None for all that do not overlap.
        validation: Most validation windows; what tunes radii and factors.
        noise: Standard deviation of the observation errors, as a share of the variables' own; see `noise_std`.
        noise_std: The same in the data's units.
        steps: Steps of the sampler; the model's default when None.
        batch_size: Samples that the model computes at once.
        seed: Of masks, observation errors and samples.
        baselines: Whether to run them.
    """

    members: int = 32
    windows: int | None = 48
    validation: int = 48
    noise: float = 0.1
    noise_std: float | None = None
    steps: int | None = None
    batch_size: int = 64
    seed: int = 0
    baselines: bool = True


def gap_filling(
    model: Model,
    data: xr.Dataset | str | None = None,
    *,
    fractions: Sequence[float] = (0.01, 0.05, 0.2),
    masks: Sequence[str] = ("random", "stations", "swath"),
    settings: GapSettings | None = None,
    output: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Study:
    """Reconstruct held-out states from few observations.

    Args:
        model: A loaded climate model.
        data: What to read the periods from; the model's own data when None.
        fractions: Shares of places that are observed.
        masks: Kinds, see `evaluation_masks`.
        settings: Sizes of the study.
        output: JSON file to write.
        progress: `progress(what, done, total)`.

    Returns:
        Rows `mask`, `fraction`, `method`, `calibrated`, and the scores of `evaluation_scoring.score` at unobserved
        places, with the CRPS relative to ours case by case.

    Raises:
        ConfigError: Several variables and no `noise_std`.
    """
    settings = settings or GapSettings()
    study = StudyData.of(model, data)
    noise_std = _noise_std(study, settings)
    rows: list[dict[str, Any]] = []
    cases = [(kind, fraction) for kind in masks for fraction in fractions]
    interpolation = Interpolation(study) if settings.baselines else None
    radii: dict[str, Any] = {}
    for done, (kind, fraction) in enumerate(cases):
        windows = {
            name: observe(study, name, kind, fraction, count, noise_std, settings.seed)
            for name, count in (("validation", settings.validation), ("test", settings.windows))
        }
        methods: dict[str, Method] = {
            "latent diffusion": lambda w: reconstruct_windows(
                model, study, w.observed, w.times, noise_std=noise_std, members=settings.members,
                steps=settings.steps, seed=settings.seed, batch_size=settings.batch_size,
            )
        }  # fmt: skip
        if interpolation is not None:
            tuned = interpolation.tune(windows["validation"])
            radii[f"{kind} {fraction:g}"] = tuned
            methods |= interpolation.methods(tuned, settings.members, settings.seed)
        rows += _scored(methods, windows, study, noise_std, {"mask": kind, "fraction": fraction})
        if progress is not None:
            progress("gap filling", done + 1, len(cases))
    protocol = {
        "study": "gap filling", "members": settings.members, "noise_std": noise_std, "seed": settings.seed,
        "steps": settings.steps, "windows": {k: len(w.truth) for k, w in windows.items()},
        "states per window": study.codec.frames, "tuned radii": radii,
        "periods": study.codec.state["source"]["periods"], "units": [v.units for v in study.codec.template.variables],
    }  # fmt: skip
    found = Study(rows, protocol)
    if output is not None:
        found.write(output)
    return found


def _scored(
    methods: dict[str, Method],
    windows: dict[str, Windows],
    study: StudyData,
    noise_std: float,
    labels: dict[str, Any],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    ours: dict[bool, np.ndarray] = {}
    for name, method in methods.items():

        def run(period: str, method: Method = method) -> tuple[Predictions, np.ndarray]:
            return method(windows[period]), windows[period].hidden

        def add(predicted: Predictions, truth: np.ndarray, extra: dict[str, Any], name: str = name) -> None:
            w = windows["test"]
            miss = np.where(w.seen[:, None], predicted.members - w.observed[:, None], 0.0) / noise_std
            chi2 = (miss**2).sum((1, 2, 3)) / (w.seen.sum((1, 2)) * predicted.members.shape[1])
            crps = case_crps(predicted, truth, study.weights)
            ours.setdefault(extra["calibrated"], crps)
            row = score(predicted, truth, study.weights, chi2=chi2)
            ratio = compare(ours[extra["calibrated"]], crps)
            rows.append({**labels, "method": name, **extra, **row, **ratio})

        calibrated_rows(run, add)
    return rows


def _noise_std(study: StudyData, settings: GapSettings) -> float:
    if settings.noise_std is not None:
        if not settings.noise_std > 0:
            raise ConfigError(f"noise_std must be positive, got {settings.noise_std}")
        return float(settings.noise_std)
    if len(study.codec.template.variables) > 1 or not study.linear:
        raise ConfigError(
            "noise_std: several or transformed variables have no common scale; give it in their units"
        )
    spread = study.spread(
        Times(np.zeros((1, 1)), study.codec.asked.drawn.calendar, study.codec.asked.drawn.dtype)
    )
    return float(settings.noise * (spread[0, 0] * study.history().std).mean())
