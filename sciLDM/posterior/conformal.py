r"""Split-conformal scaling: error bars that hold on held-out cases (Lei et al. 2018, arXiv:1604.04173; Angelopoulos &
Bates 2021, arXiv:2107.07511).

From calibration cases with known truth, the scores of a region are

    s = |x - mean| / std,        q = the smallest number that a share `level` of the scores does not exceed,

so that `mean +- q std` covers that share. Widths are multiplied by `q / z`, `z` the standard normal's quantile: the
scaled standard deviation can then be read as usual, 90 % lying within 1.645 of them.

**What is guaranteed.** Whole cases are exchangeable; the voxels of one case are not independent of each other. So:

- A derived quantity has one value a case: `ConformalInterval` (`conformal_interval.py`) covers that of a new case with
  probability at least `level` and, without ties, less than `level + 1 / (K + 1)`, for any model and any number `K` of
  calibration cases.
- Voxels, `hierarchical=True`: a random voxel of the region in a new case is covered with probability at least `level`.
  Every case weighs the same, and one unseen case may miss everything (Lee, Barber & Willett 2023, arXiv:2306.06342;
  equal to conformal risk control of the missed share, Angelopoulos et al. 2022, arXiv:2208.02814). Wide for small `K`,
  and impossible below `level / (1 - level)` cases (9 for 90 %).
- Voxels, plain (the default): without that unseen case. Right as `K` grows; for few cases the coverage of a new one
  scatters around `level`, and nothing is guaranteed.

All hold on average over voxels of the region, never for one voxel or one kind of anatomy, and only for operators,
noise and data like those of the calibration: hence one calibration per operator family.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.posterior.result import Posterior

__all__ = ["LEVELS", "Conformal", "Regions", "StdBins", "check_levels", "pairs", "quantile", "scores"]

Regions: TypeAlias = Tensor | Callable[[Posterior], Tensor]
"""Integer labels that broadcast to `[case, channel, *grid]`, or a rule that makes them from a posterior. Negative
labels are left out of the fit and of the scaling."""

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Nominal coverages."""

_FORMAT = 1


@final
@dataclass(frozen=True)
class StdBins:
    """Regions by predicted spread: label `k` where `k` thresholds are at most `std`.

    Attributes:
        thresholds: Increasing, in the data's units.
    """

    thresholds: tuple[float, ...]

    @staticmethod
    def of(posteriors: Sequence[Posterior], count: int = 4) -> "StdBins":
        """`count` bins that are equally full over these posteriors."""
        values = torch.cat([p.std.flatten() for p in posteriors]).double().sort().values
        at = [min(len(values) * k // count, len(values) - 1) for k in range(1, count)]
        return StdBins(tuple(dict.fromkeys(float(values[i]) for i in at)))

    def __call__(self, posterior: Posterior) -> Int[Tensor, "case channel *grid"]:
        """Labels."""
        edges = torch.tensor(self.thresholds, dtype=torch.float64, device=posterior.std.device)
        return torch.bucketize(posterior.std.double().contiguous(), edges, right=True)


@final
@dataclass(frozen=True)
class _Family:
    """What is known of one operator family: `quantiles[region][level]`."""

    cases: int
    hierarchical: bool
    quantiles: Mapping[int, Mapping[float, float]]


@final
@dataclass(frozen=True)
class Conformal:
    """Factors on the widths of a posterior, per operator family and region. Made by `fit` or `from_state`.

    Attributes:
        families: By name of the operator family (`Operator.family`).
    """

    families: Mapping[str, _Family] = field(default_factory=dict)

    @staticmethod
    def fit(
        posteriors: Sequence[Posterior],
        truths: Sequence[Float[Tensor, "case channel *grid"]],
        *,
        family: str,
        regions: Regions | None = None,
        levels: Sequence[float] = LEVELS,
        hierarchical: bool = False,
    ) -> "Conformal":
        """Calibrate one operator family on cases that neither training nor tuning has seen.

        Args:
            posteriors: Uncalibrated reconstructions, one or more cases each.
            truths: What they should have been, in the same units; NaN where unknown.
            family: Name to file the factors under.
            regions: One calibration each; the whole grid when None.
            levels: Nominal coverages between 0 and 1.
            hierarchical: Demand the guarantee for a new case (see the module).

        Raises:
            ConfigError: Levels out of range, or a posterior that is scaled already.
            ShapeMismatch: Truths that do not belong to the posteriors.
            DataError: No usable value, too few cases for a level, or no spread where there are errors.
        """
        check_levels(levels)
        found: dict[int, list[Tensor]] = {}
        count = 0
        for posterior, truth in pairs(posteriors, truths):
            labels = _labels(posterior, regions)
            score = scores(truth, posterior.mean, posterior.std)
            for s, label in zip(score, labels, strict=True):
                count += 1
                there = ~s.isnan() & (label >= 0)
                for region in label[there].unique().tolist():
                    found.setdefault(int(region), []).append(s[there & (label == region)])
        if not found:
            raise DataError(
                f"calibrating {family!r}: no value with a known truth inside a region; check both"
            )
        quantiles = {
            region: {
                level: quantile(cases, level, hierarchical, f"{family!r}, region {region}")
                for level in levels
            }
            for region, cases in sorted(found.items())
        }
        return Conformal({family: _Family(count, hierarchical, quantiles)})

    def joined(self, other: "Conformal") -> "Conformal":
        """Both; where a family is in both, `other` has it."""
        return Conformal({**self.families, **other.families})

    def factor(self, family: str, region: int = 0, level: float = 0.9) -> float:
        """`q / z`: what the standard deviation is multiplied by.

        Raises:
            ConfigError: Not calibrated for this family, region or level.
        """
        known = self.families.get(family)
        if known is None:
            raise ConfigError(
                f"operator family {family!r} is not calibrated (calibrated: {', '.join(self.families) or 'none'})"
            )
        if region not in known.quantiles:
            raise ConfigError(
                f"{family!r} has no calibration for region {region} (it has {sorted(known.quantiles)}); use the "
                "regions of the calibration, or negative labels for what needs none"
            )
        if level not in known.quantiles[region]:
            raise ConfigError(
                f"{family!r} is not calibrated at level {level} (it is at {sorted(known.quantiles[region])})"
            )
        return known.quantiles[region][level] / NormalDist().inv_cdf((1 + level) / 2)

    def apply(
        self, posterior: Posterior, family: str, regions: Regions | None = None, *, level: float = 0.9
    ) -> Posterior:
        """Scale the spread, of samples about the mean and of the standard deviation, region by region.

        A family that was not calibrated gives the posterior back as it is, not called calibrated, and says so in
        `details["calibration"]`.

        Args:
            posterior: From the same solver and settings as the calibration's.
            family: `Operator.family`.
            regions: As in `fit`.
            level: Coverage at which the factor was taken; others follow as well as the errors are Gaussian.

        Raises:
            ConfigError: Already scaled, or a region or level that was not calibrated.
        """
        if posterior.calibrated:
            raise ConfigError("this posterior is calibrated already; apply the factors once")
        if family not in self.families:
            note = f"none: operator family {family!r} was not calibrated"
            return replace(posterior, details={**posterior.details, "calibration": note})
        labels = _labels(posterior, regions)
        factors = torch.ones_like(posterior.std)
        for region in labels.unique().tolist():
            if region >= 0:
                factors = factors.masked_fill(labels == region, self.factor(family, int(region), level))
        known = self.families[family]
        note = {
            "family": family, "level": level, "cases": known.cases, "hierarchical": known.hierarchical,
            "share scaled": float((labels >= 0).float().mean()),
        }  # fmt: skip
        centre = posterior.mean.unsqueeze(1)
        return replace(
            posterior,
            std=posterior.std * factors,
            samples=centre + factors.unsqueeze(1) * (posterior.samples - centre),
            calibrated=True,
            details={**posterior.details, "calibration": note},
        )

    def state(self) -> dict[str, Any]:
        """Plain JSON, for the artefact's card."""
        return {
            "format": _FORMAT,
            "families": {
                name: {
                    "cases": f.cases,
                    "hierarchical": f.hierarchical,
                    "quantiles": {
                        str(r): {str(v): q for v, q in levels.items()} for r, levels in f.quantiles.items()
                    },
                }
                for name, f in self.families.items()
            },
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "Conformal":
        """Inverse of `state`.

        Raises:
            DataError: Written by a newer version, or damaged.
        """
        if state.get("format") != _FORMAT:
            raise DataError(
                f"calibration of format {state.get('format')}, expected {_FORMAT}; update sciLDM, or calibrate again"
            )
        try:
            return Conformal({
                name: _Family(
                    int(f["cases"]),
                    bool(f["hierarchical"]),
                    {int(r): {float(v): float(q) for v, q in lv.items()} for r, lv in f["quantiles"].items()},
                )
                for name, f in state["families"].items()
            })  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the stored calibration is damaged ({error!r}); calibrate again") from error


def check_levels(levels: Sequence[float]) -> None:
    """Raises `ConfigError` unless all are coverages."""
    if not levels or any(not 0 < level < 1 for level in levels):
        raise ConfigError(f"levels: expected coverages between 0 and 1, got {list(levels)}")


def pairs(posteriors: Sequence[Posterior], truths: Sequence[Tensor]) -> Iterable[tuple[Posterior, Tensor]]:
    """Each posterior with its truth; raises `ShapeMismatch` where they do not belong together."""
    if len(posteriors) != len(truths):
        raise ShapeMismatch(f"expected one truth for each of {len(posteriors)} posteriors, got {len(truths)}")
    for posterior, truth in zip(posteriors, truths, strict=True):
        if truth.shape != posterior.mean.shape:
            raise ShapeMismatch(
                f"a truth has shape {tuple(truth.shape)}, its posterior {tuple(posterior.mean.shape)}; both need "
                "[case, channel, *grid]"
            )
        yield posterior, truth


def scores(truth: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`|truth - mean| / std` in float64; an exact value without spread scores 0, NaN stays NaN."""
    error = (truth.double() - mean.double()).abs()
    return torch.where((error == 0) & (std == 0), 0.0, error / std.double())


def _labels(posterior: Posterior, regions: Regions | None) -> Tensor:
    if regions is None:
        return torch.zeros_like(posterior.std, dtype=torch.long)
    labels = regions if isinstance(regions, Tensor) else regions(posterior)
    if labels.is_floating_point() or labels.is_complex():
        raise ConfigError(f"regions: expected integer labels (or booleans), got {labels.dtype}")
    try:
        return labels.long().to(posterior.std.device).expand_as(posterior.std)
    except RuntimeError as error:
        raise ShapeMismatch(
            f"regions of shape {tuple(labels.shape)} do not broadcast to {tuple(posterior.std.shape)}"
        ) from error


def quantile(cases: Sequence[Tensor], level: float, hierarchical: bool, what: str) -> float:
    """Smallest score that a share `level` of the weighted scores does not exceed; every case has the same weight.

    Plain: `ceil((N + 1) level)`-th of `N` scores when cases are of equal size. Hierarchical: weights
    `1 / ((K + 1) n_k)`, the rest of the mass at infinity.
    """
    count = len(cases)
    values, order = torch.cat(list(cases)).sort()
    weights = torch.cat([torch.full((len(s),), 1.0 / len(s), dtype=torch.float64) for s in cases])[
        order.cpu()
    ]
    total = count + 1.0 if hierarchical else count * (1.0 + 1.0 / len(values))
    # Rounding must not push the rank that the level names exactly to the next score.
    at = int(torch.searchsorted(weights.cumsum(0), level * total - 1e-9 * total))
    if at >= len(values):
        least = math.ceil(level / (1 - level) - 1e-9)
        raise DataError(
            f"calibrating {what}: level {level} needs at least {least} {'cases' if hierarchical else 'values'}, got "
            f"{count if hierarchical else len(values)}; add cases or lower the level"
        )
    if not math.isfinite(float(values[at])):
        raise DataError(
            f"calibrating {what}: the ensemble has no spread where there are errors; draw more samples, or give these "
            "places a negative region"
        )
    return float(values[at])
