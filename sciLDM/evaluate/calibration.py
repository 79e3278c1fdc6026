r"""Whether stated uncertainty is true: truth and posterior samples of held-out cases compared.

If truth `x` and `M` samples are exchangeable (a perfect posterior), the rank of `x` among the samples is uniform on
`0..M`, and `u = (rank + U) / (M + 1)` with `U ~ U(0, 1)` uniform on (0, 1), for every `M`. From `u` follow the rank
histogram (Hamill 2001, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2) and

    coverage(level)  share of values with |u - 1/2| <= level / 2: the central interval of the samples, its ends chosen
                     at random between two samples where the level asks for it, hence unbiased for small M
    Gaussian coverage(level)  share of values within mean +- z std, the interval that `Posterior.std` promises
    CRPS             E|X - x| - E|X - X'| / 2, fair for finite M (Ferro 2014, doi:10.1002/qj.2270)
    spread-skill     sqrt((M + 1) / M) sqrt(mean variance / mean squared error of the mean); 1 when reliable
                     (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1)
    chi-square       |y - A(mean)|^2 / (m sigma^2), handed in; about 1

Values within a case are correlated and are not counted as independent: intervals come from a bootstrap over cases, and
the test of flatness takes its variance between cases.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, DataError, MissingExtra, ShapeMismatch
from sciLDM.evaluate.calibration_statistics import Estimate, Flatness, bootstrap, flatness
from sciLDM.posterior.conformal import Regions
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource

__all__ = ["LEVELS", "Calibration", "Scores", "assess", "assess_posteriors", "ranks"]

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Nominal coverages that are reported."""

_COVERAGE, _SPREAD, _CHI2 = 0.03, 0.1, 0.2
"""Departures that matter: of a coverage, of the spread-skill ratio, of chi-square."""

_SURE = 1.5
"""Intervals are widened by this before something is called wrong: a dozen of them are looked at."""

_AT_ONCE = 2**24
"""Numbers held in memory while cases are summed up."""


def ranks(
    samples: Float[Tensor, "case sample *value"],
    truth: Float[Tensor, "case *value"],
    noise: NoiseSource,
    ids: Sequence[int] | None = None,
) -> Float[Tensor, "case *value"]:
    """`u = (rank + U) / (M + 1)` in (0, 1); among equal values the rank is drawn at random, for each case by its id."""
    below = (samples < truth.unsqueeze(1)).sum(1).double()
    equal = (samples == truth.unsqueeze(1)).sum(1).double()
    shape = tuple(truth.shape[1:])
    # One uniform number does both: `below + (equal + 1) U` lies evenly in the slots that the ties leave open.
    u = noise.uniform(range(len(truth)) if ids is None else ids, shape, "ranks", dtype=torch.float64)
    found = (below + (equal + 1) * u.to(below.device)) / (samples.shape[1] + 1)
    return torch.where(truth.isnan(), float("nan"), found)


@final
@dataclass(frozen=True)
class Calibration:
    """How true the stated uncertainty of a region is.

    Attributes:
        cases: Held-out cases.
        members: Samples a case.
        coverage: By nominal level: share of true values within the samples' central interval.
        gaussian_coverage: By nominal level: share within `mean +- z std`.
        crps: Continuous ranked probability score, in the data's units.
        spread_skill: 1 when the spread is as large as the errors; below 1 too narrow.
        rank_histogram: Share of true values by rank, lowest first; flat when calibrated.
        flat: Test of its flatness.
        chi2: Of the observations, where it was handed in.
    """

    cases: int
    members: int
    coverage: Mapping[float, Estimate]
    gaussian_coverage: Mapping[float, Estimate]
    crps: Estimate
    spread_skill: Estimate
    rank_histogram: tuple[float, ...]
    flat: Flatness
    chi2: Estimate | None = None

    def problems(self) -> list[str]:
        """What is wrong by more than chance and by more than matters; empty when calibrated."""
        found = []
        for name, kind in (("samples", self.coverage), ("mean +- z std", self.gaussian_coverage)):
            for level, share in kind.items():
                if share.excludes(level, widened=_SURE) and abs(share.value - level) > _COVERAGE:
                    way = "narrow" if share.value < level else "wide"
                    found.append(
                        f"intervals by {name} at {level:.0%} are too {way}: they hold {share.percent()}"
                    )
        if self.spread_skill.excludes(1.0, widened=_SURE) and abs(self.spread_skill.value - 1) > _SPREAD:
            way = "less" if self.spread_skill.value < 1 else "more"
            found.append(f"spread-skill ratio {self.spread_skill}: {way} spread than error")
        if self.flat.p_value < 0.01 and self.flat.largest > _SPREAD:
            found.append(f"the rank histogram is not flat (p = {self.flat.p_value:.1g}): {self.flat.shape}")
        if (
            self.chi2 is not None
            and self.chi2.excludes(1.0, widened=_SURE)
            and abs(self.chi2.value - 1) > _CHI2
        ):
            way = (
                "not met to within their noise"
                if self.chi2.value > 1
                else "fitted more closely than their noise"
            )
            found.append(f"chi-square {self.chi2}: the observations are {way}")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A table: `score`, `ideal`, `value`, `lower`, `upper`."""
        entries = [(f"coverage {level:.0%}", level, e) for level, e in self.coverage.items()]
        entries += [
            (f"coverage {level:.0%}, mean ± z std", level, e) for level, e in self.gaussian_coverage.items()
        ]
        entries += [("CRPS", None, self.crps), ("spread-skill ratio", 1.0, self.spread_skill)]
        entries += [] if self.chi2 is None else [("chi-square of the observations", 1.0, self.chi2)]
        return [
            {"score": name, "ideal": ideal, "value": e.value, "lower": e.lower, "upper": e.upper}
            for name, ideal, e in entries
        ]


@final
@dataclass
class Scores:
    """Sums over the values of each case, collected case by case so that no two cases need be in memory.

    Args:
        levels: Nominal coverages.
        bins: Bins of the rank histogram; one a rank, but at most 20, when None.
        fair: Fair CRPS; else that of the finite ensemble as it is.
        noise: Breaks ties.
    """

    levels: Sequence[float] = LEVELS
    bins: int | None = None
    fair: bool = True
    noise: NoiseSource = field(default_factory=lambda: NoiseSource(0))

    def __post_init__(self) -> None:
        if not self.levels or any(not 0 < level < 1 for level in self.levels):
            raise ConfigError(f"levels: expected coverages between 0 and 1, got {list(self.levels)}")
        self._sums: dict[int, list[np.ndarray]] = {}
        self._chi2: list[float] = []
        self._members = 0
        self._cases = 0

    def add(
        self,
        samples: Float[Tensor, "case sample *value"],
        truth: Float[Tensor, "case ..."],
        *,
        mean: Float[Tensor, "case *value"] | None = None,
        std: Float[Tensor, "case *value"] | None = None,
        weights: Float[Tensor, "..."] | None = None,
        regions: Tensor | None = None,
        chi2: Float[Tensor, "case"] | None = None,
    ) -> None:
        """Take in some cases.

        Args:
            samples: Posterior samples; every call with the same number of them.
            truth: NaN where unknown.
            mean: Point estimate; the samples' mean when None.
            std: Stated standard deviation; that of the samples when None.
            weights: Not negative, broadcast to `truth`: cell areas, or zero where nothing is to be scored.
            regions: Integer labels broadcast to `truth`; negative ones are left out. One region when None.
            chi2: Of each case's observations.

        Raises:
            ShapeMismatch: Shapes that do not belong together.
            DataError: Fewer than two samples, or NaN among them.
        """
        self._check(samples, truth)
        mean = samples.mean(1) if mean is None else mean
        std = samples.double().std(1) if std is None else std
        weight = (torch.ones_like(truth) if weights is None else weights.to(truth)).expand_as(truth).double()
        label = (
            torch.zeros_like(truth, dtype=torch.long) if regions is None else regions.long().expand_as(truth)
        )
        if bool((weight < 0).any()):
            raise DataError("weights must not be negative")
        members, size = self._members, max(truth[0].numel(), 1)
        together = max(1, _AT_ONCE // ((members + 2 * len(self.levels) + 23) * size))
        for start in range(0, len(truth), together):
            part = slice(start, start + together)
            ids = range(self._cases + start, self._cases + min(start + together, len(truth)))
            values = self._values(samples[part], truth[part], mean[part], std[part].double(), ids)
            for k, one in enumerate(values.unbind(1), start):
                self._sum(one, ~truth[k].isnan(), weight[k], label[k])
        self._cases += len(truth)
        self._chi2 += [] if chi2 is None else chi2.double().tolist()

    def result(self, *, resamples: int = 1000) -> dict[int, Calibration]:
        """One calibration per region.

        Args:
            resamples: Bootstrap samples of the cases.

        Raises:
            DataError: No case was added, or none has a value in any region.
        """
        if not self._sums:
            raise DataError("no values to assess: no case was added, or no truth is known inside the regions")
        chi2 = (
            bootstrap(np.array(self._chi2), np.ones(len(self._chi2)), self.noise, resamples)
            if self._chi2
            else None
        )
        return {
            region: self._one(np.stack(sums), chi2, resamples) for region, sums in sorted(self._sums.items())
        }

    def _one(self, sums: np.ndarray, chi2: Estimate | None, resamples: int) -> Calibration:
        weight, rest = sums[:, 0], sums[:, 1:]
        count = len(self.levels)

        def mean(k: int) -> Estimate:
            return bootstrap(rest[:, k], weight, self.noise, resamples)

        first = 2 * count
        inflation = (self._members + 1) / self._members
        histogram = rest[:, first + 3 :]
        shares = histogram.sum(0) / weight.sum()
        return Calibration(
            cases=len(sums),
            members=self._members,
            coverage={level: mean(k) for k, level in enumerate(self.levels)},
            gaussian_coverage={level: mean(count + k) for k, level in enumerate(self.levels)},
            crps=mean(first),
            spread_skill=bootstrap(
                inflation * rest[:, first + 1], rest[:, first + 2], self.noise, resamples, root=True
            ),
            rank_histogram=tuple(shares.tolist()),
            flat=flatness(histogram, weight),
            chi2=chi2,
        )

    def _sum(self, values: Tensor, known: Tensor, weight: Tensor, label: Tensor) -> None:
        """Add the weighted sums of one case, `values` being `[quantity, *value]`, to each of its regions."""
        there = known & (weight > 0) & (label >= 0)
        for region in label[there].unique().tolist():
            here = there & (label == region)
            w = weight[here]
            sums = torch.cat([w.sum().reshape(1), (values[:, here] * w).sum(1)])
            self._sums.setdefault(int(region), []).append(sums.cpu().numpy())

    def _values(
        self, samples: Tensor, truth: Tensor, mean: Tensor, std: Tensor, ids: Sequence[int]
    ) -> Float[Tensor, "quantity case *value"]:
        """What is averaged: coverages, CRPS, variance, squared error, histogram."""
        quantile = NormalDist().inv_cdf
        u, error = ranks(samples, truth, self.noise, ids), (truth - mean).double()
        parts = [(u - 0.5).abs() <= level / 2 for level in self.levels]
        parts += [error.abs() <= quantile((1 + level) / 2) * std for level in self.levels]
        parts += [_crps(samples, truth, fair=self.fair), samples.double().var(1), error.square()]
        bins = self.bins or min(self._members + 1, 20)
        index = (u.nan_to_num(0.5) * bins).long().clamp(max=bins - 1)
        parts += [index == k for k in range(bins)]
        return torch.stack([p.double() for p in parts])

    def _check(self, samples: Tensor, truth: Tensor) -> None:
        if samples.shape[:1] + samples.shape[2:] != truth.shape:
            raise ShapeMismatch(
                f"samples {tuple(samples.shape)} must be [case, sample, *value] for a truth {tuple(truth.shape)}"
            )
        if samples.shape[1] < 2 or self._members not in (0, samples.shape[1]):
            raise DataError(
                f"expected {self._members or 'at least 2'} samples a case, got {samples.shape[1]}; all cases need the "
                "same number"
            )
        if bool(samples.isnan().any()):
            raise DataError("posterior samples hold NaN; leave those values out of samples and truth")
        self._members = samples.shape[1]


def assess(
    samples: Float[Tensor, "case sample *value"],
    truth: Float[Tensor, "case ..."],
    *,
    levels: Sequence[float] = LEVELS,
    fair: bool = True,
    seed: int = 0,
) -> Calibration:
    """Calibration of ensembles held in one tensor; use `Scores` for weights, regions and portions.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> assess(torch.randn(200, 16, 8, generator=g), torch.randn(200, 8, generator=g)).problems()
        []
    """
    scores = Scores(levels, fair=fair, noise=NoiseSource(seed))
    scores.add(samples, truth)
    return scores.result()[0]


def assess_posteriors(
    posteriors: Iterable[Posterior],
    truths: Iterable[Float[Tensor, "case channel *grid"]],
    *,
    levels: Sequence[float] = LEVELS,
    weights: Tensor | None = None,
    regions: Regions | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[int, Calibration]:
    """Calibration of reconstructions by region (key 0 when `regions` is None); both arguments may be generators.

    Args:
        posteriors: One or more cases each.
        truths: Theirs, in the same units; NaN where unknown.
        levels: Nominal coverages.
        weights: Broadcast to `[case, channel, *grid]`.
        regions: As for `sciLDM.posterior.conformal.Conformal.fit`.
        resamples: Bootstrap samples of the cases.
        seed: Of tie-breaking and bootstrap.
    """
    scores = Scores(levels, noise=NoiseSource(seed))
    for posterior, truth in zip(posteriors, truths, strict=True):
        labels = regions if regions is None or isinstance(regions, Tensor) else regions(posterior)
        scores.add(
            posterior.samples, truth, mean=posterior.mean, std=posterior.std, weights=weights, regions=labels,
            chi2=posterior.chi2,
        )  # fmt: skip
    return scores.result(resamples=resamples)


def _crps(samples: Tensor, truth: Tensor, *, fair: bool) -> Tensor:
    try:
        import scoringrules
    except ModuleNotFoundError as error:
        raise MissingExtra("the CRPS needs scoringrules: pip install scoringrules") from error
    # Probability-weighted moments are the fair estimator, quantile decomposition the other, both in M log M.
    members = samples.double().movedim(1, -1).cpu().numpy()
    found = scoringrules.crps_ensemble(
        truth.double().cpu().numpy(), members, estimator="pwm" if fair else "qd", backend="numpy"
    )
    return torch.from_numpy(np.asarray(found)).to(truth.device)
