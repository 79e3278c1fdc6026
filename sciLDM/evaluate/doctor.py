"""`diagnose`: what a model's sampler does to its latents, and the state of gate, training, loader and calibration.

The sampler is run on an exact Gaussian fitted to the latents, so that every departure is its own (`doctor_response`).
The network's errors are not seen here: `scildm evaluate` measures samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from sciLDM.domain import FieldCodec, Progress
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.doctor_gaussian import LatentGaussian
from sciLDM.evaluate.doctor_run import (
    Finding,
    Row,
    calibration_findings,
    data_facts,
    gate_rows,
    loader_facts,
    read_json,
    training_findings,
    worst_first,
)
from sciLDM.evaluate.doctor_sources import DoctorModel, Source, find_cache, find_source
from sciLDM.evaluate.doctor_study import TOLERANCE, Study

__all__ = ["STEPS", "Diagnosis", "diagnose"]

STEPS = (5, 10, 20, 50, 100, 200)
"""Numbers of steps that are tried."""


@final
@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        name: Of the run or model.
        source: Latents that were used, in words; None when there were none.
        latents: Facts about them.
        sampler: Facts about the sampler.
        solver: One row per number of steps, at temperature 1 and without guidance (`solver_rows`).
        extended: The same with the grid continued to low noise, where that changes anything.
        temperature: Spread at the model's own steps for several temperatures.
        guidance: Shift and spread for several scales and each condition.
        gate: Reconstruction beside its gate.
        loader: Speeds.
        calibration: Factors on the widths of reconstructions.
        findings: The verdict, worst first.
    """

    name: str
    source: str | None
    latents: Mapping[str, Any]
    sampler: Mapping[str, Any]
    solver: Sequence[Row]
    extended: Sequence[Row]
    temperature: Sequence[Row]
    guidance: Sequence[Row]
    gate: Sequence[Row]
    loader: Mapping[str, Any]
    calibration: Sequence[Row]
    findings: Sequence[Finding]

    @property
    def biased_steps(self) -> list[int]:
        """Numbers of steps that bias the spread by more than `TOLERANCE`."""
        return [row["steps"] for row in self.solver if abs(row["spread"] - 1) > TOLERANCE]


def diagnose(
    experiment: Any,
    *,
    model: DoctorModel | None = None,
    run: Path | None = None,
    name: str = "",
    steps: Sequence[int] = STEPS,
    count: int = 20_000,
    own: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine a run or a model.

    Args:
        experiment: `sciLDM.experiment.Experiment` of the run (`model.experiment`).
        model: The finished model, or None.
        run: The run folder; None for a model without one.
        name: For the heading.
        steps: Numbers of steps to try; the model's own is always among them.
        count: Most latents to read.
        own: Samples to draw from the model itself where no latents come with it; 0 draws none.
        seed: Of choices and samples.
        progress: Told about slow parts.

    Raises:
        ConfigError: A number of steps below 1.
    """
    if any(n < 1 for n in steps):
        raise ConfigError(f"steps: expected whole numbers from 1, got {list(steps)}")
    cache = find_cache(run, model)
    summary = _summary(run, model)
    findings: list[Finding] = []
    source = _source(model, cache, findings, count=count, own=own, seed=seed, progress=progress or _silent)
    study = Study(experiment, source.gaussian, sorted({*steps, experiment.sampler.steps})) if source else None
    findings += study.findings() if study else []
    gate, said = gate_rows(summary, experiment.domain.gate)
    loader, loader_said = loader_facts(
        run, cache[0] if cache else None, summary, experiment.denoiser_stage, seed
    )
    data, data_said = data_facts(experiment.domain, summary, experiment.autoencoder_stage)
    calibration, calibration_said = calibration_findings(
        getattr(model, "calibration", None), fields=isinstance(getattr(model, "codec", None), FieldCodec)
    )
    training = training_findings(run, summary, experiment.denoiser_stage, finished=model is not None)
    return Diagnosis(
        name=name,
        source=source.text if source else None,
        latents=_latent_facts(source.gaussian) if source else {},
        sampler=_sampler_facts(experiment),
        solver=study.solver if study else (),
        extended=study.extended if study else (),
        temperature=study.temperature if study else (),
        guidance=study.guidance if study else (),
        gate=gate,
        loader={**loader, **data},
        calibration=calibration,
        findings=worst_first([*findings, *said, *training, *loader_said, *data_said, *calibration_said]),
    )


def _source(
    model: DoctorModel | None,
    cache: Any,
    findings: list[Finding],
    *,
    count: int,
    own: int,
    seed: int,
    progress: Progress,
) -> Source | None:
    try:
        source = find_source(model, cache, count=count, own=own, seed=seed, progress=progress)
    except DataError as error:
        findings.append(Finding("problem", f"the sampler was not examined: {error}"))
        return None
    if source is None:
        findings.append(
            Finding("note", "the sampler was not examined: no latents yet, and no model to draw them from")
        )
    return source


def _summary(run: Path | None, model: DoctorModel | None) -> dict[str, Any]:
    found = read_json(run / "summary.json") if run is not None else {}
    return found or (dict(model.card.get("training", {})) if model is not None else {})


def _latent_facts(gaussian: LatentGaussian) -> dict[str, Any]:
    std = gaussian.variances.sqrt()
    quantiles = torch.quantile(std, torch.tensor([0.0, 0.5, 1.0], dtype=std.dtype)).tolist()
    return {
        "fitted on": f"{gaussian.count:,} latents",
        "directions": int(gaussian.first),
        "sizes": "; ".join(gaussian.notes) or None,
        "standard deviations": "smallest {:.3g}, median {:.3g}, largest {:.3g}".format(*quantiles),
        "beyond the Gaussian's 1 % and 99 %": f"{gaussian.tails:.2%} (2 % for a Gaussian)",
    }


def _sampler_facts(experiment: Any) -> dict[str, Any]:
    sampler = experiment.sampler
    grid = {k: v for k, v in vars(sampler.grid).items() if isinstance(v, int | float)}
    return {
        "schedule": type(experiment.schedule).__name__,
        "sampler": type(sampler).__name__,
        "grid": f"{type(sampler.grid).__name__}({', '.join(f'{k}={v:g}' for k, v in grid.items())})",
        "steps": sampler.steps,
        "temperature": sampler.temperature,
        "guidance": str(experiment.guidance),
    }


def _silent(_what: str, _done: int, _total: int) -> None:
    """No progress shown."""
