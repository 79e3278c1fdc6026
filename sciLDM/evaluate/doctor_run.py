"""What a run folder, or a model's card, says about gate, training, loader and calibration."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, final, runtime_checkable

import numpy as np

from sciLDM.data.latent_cache import LatentCache
from sciLDM.errors import DataError
from sciLDM.evaluate.curves import read_metrics
from sciLDM.evaluate.html import number
from sciLDM.posterior.conformal import Conformal

__all__ = [
    "ExaminesLoading",
    "Finding",
    "Row",
    "calibration_findings",
    "data_facts",
    "gate_rows",
    "loader_facts",
    "read_json",
    "training_findings",
    "worst_first",
]

Row: TypeAlias = Mapping[str, Any]

_FALLING = 0.02
"""Relative fall of the held-out loss over the last quarter of training that counts as still falling."""

_RISEN = 0.02
_AHEAD = 3.0
"""The loader should be this many times faster than the training."""

_MEASURED_SECONDS = 1.0


@final
@dataclass(frozen=True)
class Finding:
    """One line of the verdict.

    Attributes:
        kind: `problem` (something to put right), `note` (a choice with an effect, or something unknown), `good`.
        text: What was found, and what to do about it.
    """

    kind: Literal["problem", "note", "good"]
    text: str


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping; empty where there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def gate_rows(summary: Row, gate: Mapping[str, float]) -> tuple[Sequence[Row], list[Finding]]:
    """Held-out reconstruction beside its gate."""
    stage = summary.get("autoencoder") or {}
    validation, test = stage.get("validation") or {}, stage.get("test") or {}
    rows = [
        {"score": name, "gate": least, "validation": validation.get(name), "test": test.get(name)}
        for name, least in gate.items()
    ]
    if not gate:
        return rows, [Finding("note", "reconstruction: this domain sets no gate")]
    known = [r for r in rows if r["test"] is not None or r["validation"] is not None]
    if not known:
        return rows, [Finding("note", "reconstruction gate: not recorded, stage 1 is unfinished or older")]
    worst = {r["score"]: min(v for v in (r["test"], r["validation"]) if v is not None) for r in known}
    missed = [
        f"{name} {number(worst[name])} (asked: {gate[name]})" for name in worst if worst[name] < gate[name]
    ]
    if missed:
        text = f"reconstruction gate missed: {', '.join(missed)}; what is not rebuilt cannot be generated"
        return rows, [Finding("problem", f"{text}. Train stage 1 longer, or widen the autoencoder")]
    passed = ", ".join(f"{name} {number(value)}" for name, value in worst.items())
    return rows, [Finding("good", f"reconstruction gate passed: {passed} at worst of validation and test")]


def training_findings(run: Path | None, summary: Row, settings: Any, *, finished: bool) -> list[Finding]:
    """Whether training ended, why, and whether the held-out loss was still falling, or rising, at its end.

    Args:
        run: The run folder, for its curves; None for a shipped model.
        summary: `summary.json`, or the card's copy.
        settings: `Experiment.denoiser_stage`.
        finished: Whether there is a model.
    """
    found = []
    steps = (summary.get("denoiser") or {}).get("steps")
    if not finished:
        found.append(
            Finding("problem", "training has not finished: run the same `scildm fit` again to continue")
        )
    elif steps is not None and steps < settings.max_steps:
        limit = f"the limit of {settings.max_minutes:g} minutes" if settings.max_minutes else "an earlier end"
        found.append(
            Finding("note", f"stage 2 stopped at step {steps:,} of {settings.max_steps:,} by {limit}")
        )
    curve = read_metrics(run / "denoiser" / "metrics.csv").get("val/loss") if run is not None else None
    if curve is None or len(curve[0]) < 4:
        why = "no curves came with this model" if run is None or finished else "too few validations yet"
        found.append(Finding("note", f"whether the held-out loss was still falling is not known: {why}"))
        return found
    at, loss = (np.asarray(c) for c in curve)
    earlier = float(np.interp(at[0] + 0.75 * (at[-1] - at[0]), at, loss))
    fall, best = 1 - float(loss[-1]) / earlier, int(loss.argmin())
    if loss[-1] > (1 + _RISEN) * loss[best]:
        text = f"the held-out loss has risen from {loss[best]:.4g} (step {at[best]:,.0f}) to {loss[-1]:.4g}"
        found.append(Finding("problem", f"{text}: overfitted; stop earlier, regularise, or add data"))
    elif fall > _FALLING:
        text = f"the held-out loss still fell by {fall:.1%} over the last quarter of training"
        found.append(Finding("note", f"{text}: more steps would help"))
    else:
        found.append(Finding("good", f"the held-out loss has settled ({fall:+.1%} over the last quarter)"))
    return found


def loader_facts(
    run: Path | None, cache: LatentCache | None, summary: Row, settings: Any, seed: int
) -> tuple[dict[str, Any], list[Finding]]:
    """Speed of reading random batches of cached latents, measured now, beside that of the training."""
    trained = _training_speed(run, summary, settings.batch_size)
    if cache is None:
        return {"training [samples/s]": trained}, [
            Finding("note", "loader: not measured, there is no latent cache here")
        ]
    rng, size = np.random.default_rng(seed), min(settings.batch_size, len(cache))
    read, start = 0, time.perf_counter()
    order = cache.epoch(rng)
    while (spent := time.perf_counter() - start) < _MEASURED_SECONDS and read + size <= len(order):
        cache.fields(order[read : read + size])
        read += size
    speed = read / spent if read else None
    facts = {
        "loader [samples/s]": speed,
        "training [samples/s]": trained,
        "latents": "in memory" if cache.in_memory else "read from disk",
    }
    if speed is None or trained is None:
        return facts, [Finding("note", "loader: its speed could not be compared with the training's")]
    text = f"loader {speed:,.0f} samples/s, training {trained:,.0f}: {speed / trained:,.1f} times as fast"
    if speed < _AHEAD * trained:
        return facts, [Finding("problem", f"{text}; raise denoiser_stage.workers, or use a faster disk")]
    return facts, [Finding("good", f"{text}, no bottleneck")]


@runtime_checkable
class ExaminesLoading(Protocol):
    """A domain that can say how fast its own data are read."""

    def examine_loading(self, wanted: float | None) -> tuple[Mapping[str, Any], Sequence[Finding]]:
        """Facts and verdict; `wanted` is the speed of training the autoencoder in samples a second, if known."""
        ...


def data_facts(domain: Any, summary: Row, settings: Any) -> tuple[dict[str, Any], list[Finding]]:
    """Speed of reading the data themselves, where the domain can tell.

    Args:
        domain: Of the run.
        summary: `summary.json`, or the card's copy.
        settings: `Experiment.autoencoder_stage`.
    """
    if not isinstance(domain, ExaminesLoading):
        return {}, []
    stage = summary.get("autoencoder") or {}
    known = stage.get("steps") and stage.get("seconds")
    wanted = float(stage["steps"]) * settings.batch_size / float(stage["seconds"]) if known else None
    try:
        facts, found = domain.examine_loading(wanted)
    except DataError as error:
        return {}, [Finding("note", f"data: not examined, {error}")]
    return dict(facts), list(found)


def calibration_findings(
    calibration: Conformal | None, *, fields: bool
) -> tuple[Sequence[Row], list[Finding]]:
    """What the artefact knows of calibrated error bars.

    Args:
        calibration: The model's.
        fields: Whether the model can reconstruct fields at all.
    """
    if calibration is None or not calibration.families:
        text = "no calibration is stored: error bars of reconstructions are not called calibrated"
        return [], [Finding("note", text)] if fields else []
    rows = [
        {
            "family": name,
            "cases": f.cases,
            "region": region,
            "level": level,
            "factor": calibration.factor(name, region, level),
        }
        for name, f in calibration.families.items()
        for region, levels in f.quantiles.items()
        for level in levels
    ]
    wide = [r for r in rows if not 0.5 < r["factor"] < 2.0]
    found = [Finding("good", f"calibrated operator families: {', '.join(calibration.families)}")]
    if wide:
        said = sorted({f"{r['family']} (region {r['region']})" for r in wide})
        text = f"calibration changes widths more than twofold for {', '.join(said)}"
        found.append(Finding("note", f"{text}: the ensemble itself is far from calibrated there"))
    return rows, found


def _training_speed(run: Path | None, summary: Row, batch: int) -> float | None:
    stage = summary.get("denoiser") or {}
    if stage.get("steps") and stage.get("seconds"):
        return float(stage["steps"]) * batch / float(stage["seconds"])
    curve = read_metrics(run / "denoiser" / "metrics.csv").get("seconds") if run is not None else None
    if curve is None or not curve[1][-1]:
        return None
    return curve[0][-1] * batch / curve[1][-1]


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Problems, then notes, then what is well; in the order found within each."""
    return [f for kind in ("problem", "note", "good") for f in findings if f.kind == kind]
