"""Split-conformal scaling: coverage on exchangeable synthetic cases, whatever the model's own spread."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.posterior.conformal import Conformal, StdBins, quantile
from sciLDM.posterior.conformal_interval import ConformalInterval
from sciLDM.posterior.result import Posterior

GRID = (1, 8, 8)
Z90 = 1.6448536


def cases(
    count: int, seed: int, *, claim: float | Tensor = 1.0, correlated: float = 0.0, members: int = 8
) -> tuple[Posterior, Tensor]:
    """Cases with errors of standard deviation 1 times a case-wise factor, and a model that claims `claim` for it.

    `correlated` is the share of the error's variance that a whole case has in common.
    """
    g = torch.Generator().manual_seed(seed)
    size = torch.exp(0.3 * torch.randn(count, 1, 1, 1, generator=g))
    common, own = torch.randn(count, 1, 1, 1, generator=g), torch.randn(count, *GRID, generator=g)
    truth = size * (math.sqrt(correlated) * common + math.sqrt(1 - correlated) * own)
    std = torch.as_tensor(claim) * torch.ones(count, *GRID)
    unit = torch.randn(count, members, *GRID, generator=g)
    unit = (unit - unit.mean(1, keepdim=True)) / unit.std(1, keepdim=True)
    zero = torch.zeros(count, *GRID)
    return Posterior(zero, std, zero[:, None] + std[:, None] * unit, torch.ones(count), zero), truth


def covered(posterior: Posterior, truth: Tensor, level_z: float = Z90) -> Tensor:
    """Share of a case's voxels within `z` standard deviations."""
    return ((truth - posterior.mean).abs() <= level_z * posterior.std).float().flatten(1).mean(1)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    level=st.sampled_from([0.5, 0.8, 0.9]),
    hierarchical=st.booleans(),
    seed=st.integers(0, 999),
)
def test_quantile_is_that_of_the_definition(
    sizes: list[int], level: float, hierarchical: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = [torch.rand(n, generator=g, dtype=torch.float64) for n in sizes]
    mass = [(float(s), 1 / len(case)) for case in scores for s in case]
    total = len(sizes) + 1 if hierarchical else len(sizes) * (1 + 1 / sum(sizes))
    reached = [s for s, _ in mass if sum(w for other, w in mass if other <= s) >= level * total - 1e-8]
    if reached:
        assert quantile(scores, level, hierarchical, "x") == min(reached)
    else:
        with pytest.raises(DataError, match="needs at least"):
            quantile(scores, level, hierarchical, "x")


def test_one_value_a_case_is_plain_split_conformal() -> None:
    scores = [torch.tensor([float(k)]) for k in torch.randperm(19)]
    for level, rank in ((0.5, 10), (0.9, 18), (0.95, 19)):
        assert {quantile(scores, level, h, "x") for h in (True, False)} == {rank - 1.0}


def test_a_factor_undoes_a_wrong_spread_exactly() -> None:
    narrow, truth = cases(40, 0, claim=0.5)
    right, _ = cases(40, 0, claim=1.0)
    factors = [Conformal.fit([p], [truth], family="mask").factor("mask") for p in (narrow, right)]
    assert factors[0] == pytest.approx(2 * factors[1], rel=1e-6)
    scaled = Conformal.fit([narrow], [truth], family="mask").apply(narrow, "mask")
    assert scaled.calibrated
    assert float(covered(scaled, truth).mean()) == pytest.approx(
        0.9, abs=1e-3
    )  # on the calibration cases themselves
    assert torch.allclose(scaled.samples.std(1), scaled.std, rtol=1e-4)
    assert torch.equal(scaled.mean, narrow.mean)


@pytest.mark.parametrize("correlated", [0.0, 0.9])
def test_hierarchical_coverage_of_new_cases_is_guaranteed(correlated: float) -> None:
    shares = []
    for repeat in range(150):
        posterior, truth = cases(12, 2 * repeat, claim=0.4, correlated=correlated)
        new, new_truth = cases(20, 2 * repeat + 1, claim=0.4, correlated=correlated)
        conformal = Conformal.fit([posterior], [truth], family="f", levels=(0.9,), hierarchical=True)
        shares.append(covered(conformal.apply(new, "f"), new_truth).mean())
    share, error = torch.stack(shares).mean(), torch.stack(shares).std() / math.sqrt(len(shares))
    assert share >= 0.9 - 2 * error
    assert share <= 0.9 + 1 / 13 + 2 * error


def test_plain_coverage_of_new_cases_approaches_the_level() -> None:
    posterior, truth = cases(400, 1, claim=3.0, correlated=0.3)
    new, new_truth = cases(400, 2, claim=3.0, correlated=0.3)
    conformal = Conformal.fit([posterior], [truth], family="f")
    for level, z in ((0.5, 0.67449), (0.8, 1.28155), (0.9, Z90), (0.95, 1.95996)):
        share = covered(conformal.apply(new, "f", level=level), new_truth, z).mean()
        assert float(share) == pytest.approx(level, abs=0.02)


def test_regions_get_their_own_factor() -> None:
    observed = torch.arange(8) < 3
    claim = torch.where(observed, 2.0, 0.25).reshape(1, 1, 1, 8)
    posterior, truth = cases(200, 3, claim=claim)
    new, new_truth = cases(200, 4, claim=claim)
    regions = observed.long()
    conformal = Conformal.fit([posterior], [truth], family="f", regions=regions)
    assert conformal.factor("f", 0) / conformal.factor("f", 1) == pytest.approx(8.0, rel=0.1)
    hit = (new_truth.abs() <= Z90 * conformal.apply(new, "f", regions).std).float()
    assert float(hit[..., observed].mean()) == pytest.approx(0.9, abs=0.02)
    assert float(hit[..., ~observed].mean()) == pytest.approx(0.9, abs=0.02)


def test_negative_regions_are_left_alone() -> None:
    posterior, truth = cases(30, 5, claim=0.5)
    regions = torch.where(torch.arange(8) < 4, -1, 0)
    truth = torch.where(regions < 0, float("nan"), truth)
    scaled = Conformal.fit([posterior], [truth], family="f", regions=regions).apply(posterior, "f", regions)
    assert torch.equal(scaled.std[..., :4], posterior.std[..., :4])
    assert bool((scaled.std[..., 4:] > 1.5 * posterior.std[..., 4:]).all())
    assert scaled.details["calibration"]["share scaled"] == 0.5


def test_bins_of_the_predicted_spread() -> None:
    claim = torch.linspace(0.2, 3.0, 8).reshape(1, 1, 1, 8)  # wrong by another factor in each column
    posterior, truth = cases(300, 6, claim=claim)
    bins = StdBins.of([posterior], 8)
    assert torch.equal(bins(posterior)[0, 0, 0], torch.arange(8))
    scaled = Conformal.fit([posterior], [truth], family="f", regions=bins).apply(posterior, "f", bins)
    assert float(scaled.std.std() / scaled.std.mean()) < 0.05


def test_cases_may_come_in_any_portions() -> None:
    posterior, truth = cases(20, 7)
    parts = [
        Posterior(
            *[getattr(posterior, n)[k : k + 5] for n in ("mean", "std", "samples", "chi2", "null_space")]
        )
        for k in range(0, 20, 5)
    ]
    whole = Conformal.fit([posterior], [truth], family="f")
    assert Conformal.fit(parts, truth.split(5), family="f") == whole
    assert whole.families["f"].cases == 20


def test_state_is_plain_and_comes_back() -> None:
    posterior, truth = cases(20, 8)
    first = Conformal.fit([posterior], [truth], family="ThickSlice")
    both = first.joined(
        Conformal.fit([posterior], [2 * truth], family="Mask", hierarchical=True, levels=(0.5, 0.9))
    )
    assert Conformal.from_state(json.loads(json.dumps(both.state()))) == both
    assert both.factor("Mask", level=0.5) > first.factor("ThickSlice", level=0.5)
    for damaged in ({}, {"format": 2}, {"format": 1}, {"format": 1, "families": {"f": {}}}):
        with pytest.raises(DataError):
            Conformal.from_state(damaged)


def test_an_unknown_family_is_not_called_calibrated() -> None:
    posterior, truth = cases(20, 9)
    conformal = Conformal.fit([posterior], [truth], family="Mask")
    same = conformal.apply(posterior, "Projection")
    assert not same.calibrated
    assert torch.equal(same.std, posterior.std)
    assert "'Projection' was not calibrated" in same.details["calibration"]


@pytest.mark.parametrize(
    ("break_it", "error", "text"),
    [
        (lambda p, x: Conformal.fit([p], [x[:, :, :4]], family="f"), ShapeMismatch, "shape"),
        (lambda p, x: Conformal.fit([p], [], family="f"), ShapeMismatch, "one truth"),
        (lambda p, x: Conformal.fit([p], [x], family="f", levels=(1.0,)), ConfigError, "between 0 and 1"),
        (lambda p, x: Conformal.fit([p], [x * float("nan")], family="f"), DataError, "no value"),
        (lambda p, x: Conformal.fit([p], [x], family="f", regions=torch.zeros(3)), ConfigError, "integer"),
        (
            lambda p, x: Conformal.fit([p], [x], family="f", regions=torch.arange(3)),
            ShapeMismatch,
            "broadcast",
        ),
        (
            lambda p, x: Conformal.fit([p], [x], family="f", hierarchical=True, levels=(0.99,)),
            DataError,
            "99 cases",
        ),
        (lambda p, x: fitted(p, x).apply(fitted(p, x).apply(p, "f"), "f"), ConfigError, "already"),
        (lambda p, x: fitted(p, x).apply(p, "f", torch.arange(8)), ConfigError, "region 1"),
        (lambda p, x: fitted(p, x).apply(p, "f", level=0.7), ConfigError, "level 0.7"),
    ],
)
def test_mistakes_are_named(
    break_it: Callable[[Posterior, Tensor], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        break_it(*cases(20, 10))


def fitted(posterior: Posterior, truth: Tensor) -> Conformal:
    return Conformal.fit([posterior], [truth], family="f")


def test_an_ensemble_without_spread_is_refused() -> None:
    posterior, truth = cases(20, 11, claim=0.0)
    with pytest.raises(DataError, match="no spread"):
        Conformal.fit([posterior], [truth], family="f")


def test_derived_quantities_are_covered_where_voxels_mislead() -> None:
    """The claimed error of a mean over 64 correlated voxels is far too small; its own calibration repairs that."""

    def mean(x: Tensor) -> Tensor:
        return x.flatten(1).mean(1)

    hits, plain = [], []
    for repeat in range(200):
        posterior, truth = cases(19, 2 * repeat, correlated=0.5, members=16)
        new, new_truth = cases(20, 2 * repeat + 1, correlated=0.5, members=16)
        calibrated = ConformalInterval.fit(mean, [posterior], [truth], family="f", levels=(0.9,))
        for found, (lower, upper) in ((hits, calibrated.interval(mean, new)), (plain, new.interval(mean))):
            value = mean(new_truth)
            found.append(((lower <= value) & (value <= upper)).float().mean())
    share, error = torch.stack(hits).mean(), torch.stack(hits).std() / math.sqrt(len(hits))
    assert share >= 0.9 - 2 * error
    assert share <= 0.9 + 1 / 20 + 2 * error
    assert float(torch.stack(plain).mean()) < 0.5


def test_several_values_at_once_and_their_state() -> None:
    def rows(x: Tensor) -> Tensor:
        return x.mean(dim=(1, 3))

    posterior, truth = cases(19, 12)
    interval = ConformalInterval.fit(rows, [posterior], [truth], family="f", levels=(0.9,))
    assert ConformalInterval.from_state(json.loads(json.dumps(interval.state()))) == interval
    lower, upper = interval.interval(rows, posterior)
    slack = 1e-5 * (upper - lower)  # the bound itself is a case's score
    inside = (lower - slack <= rows(truth)) & (rows(truth) <= upper + slack)
    assert inside.sum(0).tolist() == [18] * 8
    with pytest.raises(ConfigError, match="not calibrated at level"):
        interval.interval(rows, posterior, level=0.5)
    with pytest.raises(ShapeMismatch, match="8 were calibrated"):
        interval.interval(lambda x: x.mean(dim=(1, 2, 3)), posterior)
    with pytest.raises(DataError, match="needs at least 19"):
        ConformalInterval.fit(rows, [cases(18, 1)[0]], [truth[:18]], family="f", levels=(0.95,))
