"""What a sampler does to Gaussian latents: by number of steps, grid, temperature and guidance; and a verdict."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from sciLDM.evaluate.doctor_gaussian import LatentGaussian
from sciLDM.evaluate.doctor_response import guided_response, left_by_the_end, response
from sciLDM.evaluate.doctor_run import Finding, Row
from sciLDM.samplers import Sampler
from sciLDM.schedules import Schedule

__all__ = ["TOLERANCE", "Study", "solver_rows"]

TOLERANCE = 0.02
"""Bias of the spread from which on it is flagged."""

_SCALES = (1.0, 1.5, 2.0, 4.0)
_LOW_NOISE = 5.0
"""`lmbda` to which a grid is continued to see what its end costs."""

_TAIL = 2.3263478740408408
"""99 % quantile of the standard normal."""

_KURTOSIS = 1.0
"""Excess kurtosis from which on latents are called not Gaussian."""


def solver_rows(
    sampler: Sampler, schedule: Schedule, gaussian: LatentGaussian, steps: Sequence[int]
) -> list[dict[str, Any]]:
    """What the sampler does at each number of steps, exactly, at temperature 1.

    Returns:
        Rows with `steps`; `spread`, the root of generated over true total variance; `end`, the part of it that the
        last estimate takes whatever the steps (`left_by_the_end`), and `solver`, the rest, `spread / end`;
        `narrowest` and `widest`, the extreme ratios of standard deviations over directions; `mean`, the largest
        error of a mean in true standard deviations; `tails`, the share of values beyond the true 1 % and 99 %
        quantiles (2 % when right); `lmbda`, where the last estimate is made; `affine`.
    """
    plain = copy.copy(sampler)
    plain.temperature = 1.0
    true = gaussian.variances.sqrt()
    rows = []
    for number in steps:
        one = plain.with_steps(number)
        mean, std, affine = response(one, schedule, gaussian.mean, gaussian.variances)
        left, lmbda = left_by_the_end(one, schedule, gaussian.variances)
        ratio = std / true
        spread, end = (_overall(gaussian, r) for r in (ratio, left))
        rows.append({
            "steps": number, "spread": spread, "end": end, "solver": spread / end,
            "narrowest": float(ratio.min()), "widest": float(ratio.max()),
            "mean": float(((mean - gaussian.mean) / true).abs().max()),
            "tails": gaussian.average(torch.special.erfc(_TAIL / ratio / math.sqrt(2))),
            "lmbda": lmbda, "affine": affine,
        })  # fmt: skip
    return rows


@final
class Study:
    """The Gaussian part of a diagnosis: tables as attributes, a verdict from `findings`.

    Args:
        experiment: With `sampler`, `schedule` and `guidance`.
        gaussian: Fitted to the latents.
        steps: Numbers of steps to try; the sampler's own among them.
    """

    def __init__(self, experiment: Any, gaussian: LatentGaussian, steps: Sequence[int]) -> None:
        self.sampler: Sampler = experiment.sampler
        self.gaussian = gaussian
        self.schedule: Schedule = experiment.schedule
        schedule = self.schedule
        self.solver = solver_rows(self.sampler, schedule, gaussian, steps)
        self.own = next(r for r in self.solver if r["steps"] == self.sampler.steps)
        longer = _extended(self.sampler)
        wanted = longer is not None and abs(self.own["end"] - 1) > TOLERANCE
        self.extended = solver_rows(longer, schedule, gaussian, steps) if longer and wanted else []
        temperatures = sorted({1.0, 0.95, 0.9, 0.8, self.sampler.temperature}, reverse=True)
        # Exact: every noise is scaled, and the sampler is affine in its noises.
        self.temperature = [{"temperature": t, "spread": t * self.own["spread"]} for t in temperatures]
        self.guidance = list(self._guided(experiment.guidance))

    def findings(self) -> list[Finding]:
        """The verdict on sampler and latents."""
        return [*self._spread(), *self._end(), *self._temperature(), *self._shape()]

    def _spread(self) -> list[Finding]:
        own, number = self.own, self.own["steps"]
        biased = [r for r in self.solver if abs(r["spread"] - 1) > TOLERANCE]
        fine = [f"{r['steps']}" for r in self.solver if abs(r["spread"] - 1) <= TOLERANCE]
        listed = ", ".join(f"{r['steps']} ({r['spread'] - 1:+.2%})" for r in biased)
        found = []
        if biased:
            text = f"steps that bias the spread by more than {TOLERANCE:.0%} at temperature 1: {listed}"
            rest = f"; within it: {', '.join(fine)}" if fine else ""
            mine = abs(own["spread"] - 1) > TOLERANCE
            found.append(Finding("problem" if mine else "note", f"{text}{rest}. The model's own: {number}"))
        else:
            found.append(
                Finding("good", f"the spread is within {TOLERANCE:.0%} at all of {', '.join(fine)} steps")
            )
        cancelled = [
            f"{r['steps']}"
            for r in self.solver
            if abs(r["spread"] - 1) <= TOLERANCE < max(abs(r["end"] - 1), abs(r["solver"] - 1))
        ]
        if cancelled:
            text = f"at {', '.join(cancelled)} steps two errors of the spread cancel: do not read this as accuracy"
            found.append(Finding("note", f"{text}; see the columns “grid's end” and “solver”"))
        if own["mean"] > TOLERANCE:
            found.append(Finding("problem", f"a mean is off by {own['mean']:.1%} of its standard deviation"))
        if not own["affine"]:
            text = "the sampler is not affine in its noises (does it clip?)"
            found.append(Finding("note", f"{text}: the figures are those of small noises around the mean"))
        return found

    def _end(self) -> list[Finding]:
        own = self.own
        if abs(own["end"] - 1) <= TOLERANCE:
            return []
        left, _ = left_by_the_end(self.sampler, self.schedule, self.gaussian.variances)
        text = (
            f"the grid ends at lmbda {own['lmbda']:.3g}: the last estimate keeps {own['end']:.1%} of the spread, and "
            f"{float(left.min()):.0%} in the narrowest direction, whatever the number of steps"
        )
        better = next((r for r in self.extended if r["steps"] == own["steps"]), None)
        if better is not None:
            text += f"; continued to lmbda {better['lmbda']:.3g}, {own['steps']} steps keep {better['spread']:.1%}"
        return [
            Finding(
                "problem", f"{text} (`sampler.grid.lmbda_max`; meant, if detail below that level is noise)"
            )
        ]

    def _temperature(self) -> list[Finding]:
        t, total = self.sampler.temperature, self.sampler.temperature * self.own["spread"]
        if t == 1.0:
            return []
        text = f"temperature {t:g} multiplies every standard deviation by {t:g} on top"
        return [
            Finding("note", f"{text}: at {self.own['steps']} steps the spread is {total:.1%} of the latents'")
        ]

    def _shape(self) -> list[Finding]:
        known = self.gaussian.kurtosis[self.gaussian.kurtosis.isfinite()]
        if not len(known) or float(known.abs().max()) < _KURTOSIS:
            return []
        text = (
            f"the latents are not Gaussian: excess kurtosis {float(known.min()):.2g} to {float(known.max()):.2g} along "
            f"principal directions, {self.gaussian.tails:.1%} beyond the Gaussian's 1 % and 99 % quantiles"
        )
        return [
            Finding("note", f"{text}; biases above are of mean and spread, real tails may suffer otherwise")
        ]

    def _guided(self, own: float | Mapping[str, float]) -> Sequence[Row]:
        rows = []
        plain = copy.copy(self.sampler)
        plain.temperature = 1.0
        for name, slope in self.gaussian.slopes.items():
            mine = float(own.get(name, 1.0)) if isinstance(own, Mapping) else float(own)
            for scale in sorted({*_SCALES, mine}):
                shift, along, spread = guided_response(plain, self.schedule, self.gaussian, slope, scale)
                rows.append({
                    "condition": name, "guidance": scale, "shift": shift, "along": along, "spread": spread,
                    "explained": slope.explained,
                })  # fmt: skip
        return rows


def _overall(gaussian: LatentGaussian, ratio: Tensor) -> float:
    return math.sqrt(gaussian.average(gaussian.variances * ratio**2) / gaussian.average(gaussian.variances))


def _extended(sampler: Sampler) -> Sampler | None:
    """The same sampler with its grid continued to low noise; None where grids of its kind have no such setting."""
    if getattr(sampler.grid, "lmbda_max", _LOW_NOISE) >= _LOW_NOISE:
        return None
    other, grid = copy.copy(sampler), copy.copy(sampler.grid)
    setattr(grid, "lmbda_max", _LOW_NOISE)  # noqa: B010 - the base class does not promise it
    other.grid = grid
    return other
