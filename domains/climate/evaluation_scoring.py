"""Tables of scores: one code for the model and every baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import scoringrules
import torch
from jaxtyping import Float

from sciLDM.domains.climate.baselines import Predictions
from sciLDM.evaluate.calibration import Scores
from sciLDM.evaluate.calibration_statistics import bootstrap
from sciLDM.rng import NoiseSource

__all__ = ["Study", "case_crps", "compare", "conformal_factor", "scaled", "score"]

LEVEL = 0.9
_MOST_COMPARED, _MOST_FACTOR = 2**22, 16.0


@final
@dataclass(frozen=True)
class Study:
    """A table, and how it was made.

    Attributes:
        rows: One per method and setting.
        protocol: Periods, numbers of cases and members, noise, tuned values.
    """

    rows: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def table(self, columns: Sequence[str]) -> str:
        """As text, columns aligned."""
        lines = [list(columns)] + [[_text(row.get(c)) for c in columns] for row in self.rows]
        width = [max(len(line[k]) for line in lines) for k in range(len(columns))]
        return "\n".join(
            "  ".join(t.ljust(w) for t, w in zip(line, width, strict=True)).rstrip() for line in lines
        )

    def write(self, path: str | Path) -> Path:
        """As JSON."""
        from sciLDM.domains.climate.evaluation_data import write_json

        return write_json(asdict(self), path)


def score(
    predicted: Predictions,
    truth: Float[np.ndarray, "case *value"],
    weights: Float[np.ndarray, "value"],
    *,
    chi2: Float[np.ndarray, "case"] | None = None,
) -> dict[str, Any]:
    """Scores with 95 % intervals by a bootstrap over cases.

    Args:
        predicted: In the data's units.
        truth: NaN where nothing is to be scored.
        weights: Areas, along the last axis.
        chi2: Of the observations.

    Returns:
        `rmse`, `crps` (fair), `spread_skill`, `coverage` (90 %, of the samples' interval), their `_lower` and `_upper`
        ends, `chi2`, `rank_histogram`.
    """
    scores = Scores((LEVEL,))
    as_tensor = torch.from_numpy
    known = np.isfinite(truth)
    members = as_tensor(np.ascontiguousarray(predicted.members, dtype=np.float64))
    scores.add(
        members, as_tensor(np.ascontiguousarray(truth, dtype=np.float64)),
        mean=as_tensor(np.ascontiguousarray(predicted.mean, dtype=np.float64)),
        std=as_tensor(np.ascontiguousarray(predicted.std, dtype=np.float64)),
        weights=as_tensor(np.ascontiguousarray(weights)),
    )  # fmt: skip
    found = scores.result()[0]
    share = weights * known
    square = np.where(known, (predicted.mean - truth) ** 2, 0.0)
    axes = tuple(range(1, truth.ndim))
    rmse = bootstrap((square * share).sum(axes), share.sum(axes), NoiseSource(0), root=True)
    row: dict[str, Any] = {}
    for name, entry in (
        ("rmse", rmse), ("crps", found.crps), ("spread_skill", found.spread_skill),
        ("coverage", found.coverage[LEVEL]),
    ):  # fmt: skip
        row |= {name: entry.value, f"{name}_lower": entry.lower, f"{name}_upper": entry.upper}
    row["chi2"] = None if chi2 is None else float(np.mean(chi2))
    row["rank_histogram"] = list(found.rank_histogram)
    return row


def case_crps(
    predicted: Predictions, truth: Float[np.ndarray, "case *value"], weights: Float[np.ndarray, "value"]
) -> Float[np.ndarray, "case"]:
    """Fair CRPS of each case."""
    known = np.isfinite(truth)
    y = np.where(known, truth, 0.0).astype(np.float64)
    members = np.moveaxis(predicted.members, 1, -1).astype(np.float64)
    crps = scoringrules.crps_ensemble(y, members, estimator="pwm", backend="numpy")
    share = weights * known
    axes = tuple(range(1, truth.ndim))
    return (crps * share).sum(axes) / share.sum(axes)


def compare(
    ours: Float[np.ndarray, "case"], theirs: Float[np.ndarray, "case"], resamples: int = 2000
) -> dict[str, float]:
    """Our mean score over theirs, case against case, with a 95 % interval: below 1 is better."""
    found = bootstrap(ours, theirs, NoiseSource(0), resamples)
    return {"crps_ratio": found.value, "crps_ratio_lower": found.lower, "crps_ratio_upper": found.upper}


def conformal_factor(predicted: Predictions, truth: Float[np.ndarray, "case *value"]) -> float:
    """By how much the validation period wants the spread to be multiplied, at 90 % coverage.

    Split conformal on the samples themselves: the least factor at which their central interval, of exact probability at
    any number of members (`evaluate.calibration`), holds 90 % of the values. A standard deviation estimated from few
    members would want a larger one for its own scatter.
    """
    known = np.isfinite(truth)
    members = np.moveaxis(predicted.members, 1, -1)[known]
    mean, y = predicted.mean[known], truth[known]
    step = -(-len(y) * members.shape[1] // _MOST_COMPARED)
    members, mean, y = members[::step], mean[::step], y[::step]
    edges = np.arange(members.shape[1] + 2) / (members.shape[1] + 1)
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    inside = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0, None) / np.diff(edges)

    def short(factor: float) -> bool:
        # Widening the samples is narrowing the errors.
        rank = (members < (mean + (y - mean) / factor)[:, None]).sum(axis=1)
        return bool(inside[rank].mean() < LEVEL)

    below, above = 1 / _MOST_FACTOR, _MOST_FACTOR
    for _ in range(24):
        middle = math.sqrt(below * above)
        below, above = (middle, above) if short(middle) else (below, middle)
    return above


def scaled(predicted: Predictions, factor: float) -> Predictions:
    """Spread of members and standard deviation multiplied about the mean."""
    centre = predicted.mean[:, None]
    return replace(
        predicted, members=centre + factor * (predicted.members - centre), std=predicted.std * factor
    )


def calibrated_rows(
    run: Callable[[str], tuple[Predictions, Float[np.ndarray, "case *value"]]],
    rows: Callable[[Predictions, Float[np.ndarray, "case *value"], dict[str, Any]], None],
) -> None:
    """Report a method as it is, and scaled by what the validation period says.

    Args:
        run: From the name of a period to predictions and truth.
        rows: Takes predictions, truth and labels.
    """
    predicted, truth = run("test")
    rows(predicted, truth, {"calibrated": False, "factor": 1.0})
    if not (predicted.std > 0).all():
        return  # a forecast without spread has nothing to scale
    factor = conformal_factor(*run("validation"))
    rows(scaled(predicted, factor), truth, {"calibrated": True, "factor": factor})


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
