"""Calibration against ensembles whose calibration is known, and against the definitions of the scores."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.evaluate.calibration import Calibration, Scores, assess, assess_posteriors, ranks
from sciLDM.evaluate.calibration_figures import calibration_figure, calibration_section, png, sbc_figure
from sciLDM.evaluate.calibration_sbc import simulation_based_calibration
from sciLDM.evaluate.calibration_statistics import bootstrap, flatness
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource

pytest.importorskip("scoringrules")
NOISE = NoiseSource(0)


def ensemble(
    cases: int,
    members: int,
    values: int,
    *,
    seed: int = 0,
    spread: float = 1.0,
    shift: float = 0.0,
    common: float = 0.6,
) -> tuple[Tensor, Tensor]:
    """Truth and samples exchangeable for `spread = 1` and `shift = 0`; values within a case are correlated."""
    g = torch.Generator().manual_seed(seed)

    def errors(count: int) -> Tensor:
        whole = torch.randn(cases, count, 1, generator=g)
        return math.sqrt(common) * whole + math.sqrt(1 - common) * torch.randn(
            cases, count, values, generator=g
        )

    centre = 3 * torch.randn(cases, 1, values, generator=g)
    truth = (centre + errors(1))[:, 0]
    return centre + shift + spread * errors(members), truth


@pytest.mark.parametrize("members", [2, 5, 16, 40])
def test_a_calibrated_ensemble_has_nominal_numbers(members: int) -> None:
    found = assess(*ensemble(600, members, 12, seed=members))
    for level, share in found.coverage.items():
        assert share.value == pytest.approx(level, abs=0.03)
        assert not share.excludes(level)
    assert found.spread_skill.value == pytest.approx(1.0, abs=0.04)
    assert found.flat.p_value > 0.01
    assert sum(found.rank_histogram) == pytest.approx(1.0)
    # With a fair score the expected CRPS of a standard normal forecast of itself is 1 / sqrt(pi) for every size.
    assert found.crps.value == pytest.approx(1 / math.sqrt(math.pi), rel=0.05)
    if members > 30:  # the interval by mean +- z std knows nothing of few members
        assert found.gaussian_coverage[0.9].value == pytest.approx(0.9, abs=0.03)
    assert [p for p in found.problems() if "z std" not in p] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spread": 0.5}, ["too narrow", "less spread", "U-shaped"]),
        ({"spread": 2.0}, ["too wide", "more spread", "dome-shaped"]),
        ({"shift": 1.5}, ["too narrow", "it falls, the samples are too high"]),
        ({"shift": -1.5}, ["too narrow", "it rises, the samples are too low"]),
    ],
)
def test_a_wrong_ensemble_is_flagged_by_its_fault(options: dict[str, float], words: list[str]) -> None:
    said = " / ".join(assess(*ensemble(300, 20, 12, **options)).problems())
    for word in words:
        assert word in said


def test_spread_skill_is_the_ratio_that_was_built_in() -> None:
    found = assess(*ensemble(2000, 10, 4, spread=0.7, common=0.0))
    # Error of the mean: 1 + 0.49 / 10; spread: 0.49.
    assert found.spread_skill.value == pytest.approx(math.sqrt(1.1 * 0.49 / 1.049), rel=0.03)


@given(members=st.integers(2, 9), seed=st.integers(0, 99), fair=st.booleans())
def test_crps_is_that_of_the_definition(members: int, seed: int, fair: bool) -> None:
    samples, truth = ensemble(3, members, 2, seed=seed)
    found = assess(samples, truth, fair=fair).crps.value
    x = samples.double()
    pairs = (x[:, :, None] - x[:, None]).abs().sum((1, 2)) / (members * (members - 1 if fair else members))
    expected = (x - truth.double()[:, None]).abs().mean(1) - pairs / 2
    assert found == pytest.approx(float(expected.mean()), rel=1e-5, abs=1e-6)


@given(members=st.integers(2, 12), levels=st.integers(1, 4), seed=st.integers(0, 50))
def test_ties_are_broken_evenly(members: int, levels: int, seed: int) -> None:
    """Rounded values, up to all equal: the position stays uniform."""
    g = torch.Generator().manual_seed(seed)
    draws = torch.randint(levels, (400, members + 1), generator=g).float()
    u = ranks(draws[:, 1:, None], draws[:, 0, None], NOISE)
    assert kstest(u[:, 0].numpy(), "uniform").pvalue > 1e-4


def test_ranks_without_ties_count_smaller_samples() -> None:
    samples = torch.tensor([[[0.0], [1.0], [2.0]]]).expand(50, 3, 1)
    for value, low, high in ((-1.0, 0.0, 0.25), (0.5, 0.25, 0.5), (9.0, 0.75, 1.0)):
        u = ranks(samples, torch.full((50, 1), value), NOISE)
        assert bool(((u > low) & (u < high)).all())
    assert bool(ranks(samples, torch.full((50, 1), float("nan")), NOISE).isnan().all())


def test_portions_and_order_of_adding_do_not_matter() -> None:
    samples, truth = ensemble(30, 6, 5)
    whole, parts = Scores(), Scores()
    whole.add(samples, truth)
    for k in range(0, 30, 7):
        parts.add(samples[k : k + 7], truth[k : k + 7])
    assert parts.result() == whole.result()


def test_bootstrap_intervals_cover_the_truth_over_cases_not_values() -> None:
    """Strongly correlated values: an interval that counted values would be far too narrow."""
    hits = []
    for seed in range(100):
        found = assess(*ensemble(60, 8, 50, seed=seed, common=0.9), levels=(0.8,)).coverage[0.8]
        hits.append(not found.excludes(0.8))
        assert found.upper - found.lower > 4 * math.sqrt(0.16 / 3000)
    assert 0.86 <= np.mean(hits) <= 1.0


def test_p_values_are_honest_for_correlated_values() -> None:
    p = []
    for seed in range(200):
        samples, truth = ensemble(40, 4, 30, seed=seed, common=0.8)
        counts = np.stack(
            [
                np.bincount(np.floor(u * 5).astype(int), minlength=5)
                for u in ranks(samples, truth, NOISE).numpy()
            ]
        )
        p.append(flatness(counts.astype(float), np.full(40, 30.0)).p_value)
    assert np.mean(np.array(p) < 0.05) < 0.1
    assert np.mean(np.array(p) < 0.5) == pytest.approx(0.5, abs=0.12)


def test_one_value_a_case_is_pearson() -> None:
    g = np.random.default_rng(0)
    index = g.integers(6, size=4000)
    counts = np.eye(6)[index]
    found = flatness(counts, np.ones(4000))
    pearson = ((counts.sum(0) - 4000 / 6) ** 2 / (4000 / 6)).sum()
    assert found.degrees == pytest.approx(5, rel=0.01)
    assert found.statistic == pytest.approx(pearson, rel=0.01)


def test_weights_and_regions_choose_what_is_scored() -> None:
    good, truth = ensemble(300, 10, 6)
    bad, _ = ensemble(300, 10, 6, spread=0.3)
    samples, both = torch.cat([good, bad], 2), torch.cat([truth, truth], 1)
    labels = torch.tensor([0] * 6 + [7] * 6)
    scores = Scores()
    scores.add(samples, both, regions=labels)
    found = scores.result()
    alone = assess(good, truth)
    assert set(found) == {0, 7}
    assert found[0].coverage[0.9].value == pytest.approx(alone.coverage[0.9].value, abs=0.02)
    assert [p for p in found[0].problems() if "z std" not in p] == []
    assert len(found[7].problems()) > 5
    weighted, hidden = Scores(), Scores()
    weighted.add(samples, both, weights=(labels == 0).float())
    hidden.add(samples, torch.where(labels == 0, both, float("nan")))
    left_out = Scores()
    left_out.add(samples, both, regions=torch.where(labels == 0, 0, -1))
    assert weighted.result()[0] == hidden.result()[0] == left_out.result()[0] == found[0]


def test_weights_are_areas() -> None:
    samples, truth = ensemble(50, 5, 2)
    twice = Scores()
    twice.add(samples, truth, weights=torch.tensor([1.0, 3.0]))
    single = [Scores() for _ in range(2)]
    for k, one in enumerate(single):
        one.add(samples[..., [k]], truth[..., [k]])
    parts = [one.result()[0].crps.value for one in single]
    assert twice.result()[0].crps.value == pytest.approx((parts[0] + 3 * parts[1]) / 4, rel=1e-9)


def posterior(samples: Tensor, chi2: float) -> Posterior:
    zero = torch.zeros(len(samples), *samples.shape[2:])
    return Posterior(samples.mean(1), samples.std(1), samples, torch.full((len(samples),), chi2), zero)


def test_posteriors_are_scored_by_region_with_their_chi_square() -> None:
    samples, truth = ensemble(200, 40, 8)
    fields, x = samples.unflatten(2, (2, 4)), truth.unflatten(1, (2, 4))
    found = assess_posteriors(
        (posterior(fields[k : k + 50], 1.02) for k in range(0, 200, 50)),
        x.split(50),
        regions=torch.tensor([0, 0, 1, 1]),
    )
    assert set(found) == {0, 1}
    assert all(
        f.cases == 200 and f.chi2 is not None and f.chi2.value == pytest.approx(1.02) for f in found.values()
    )
    assert found[0].problems() == found[1].problems() == []
    overfitted = assess_posteriors([posterior(fields, 0.3)], [x])[0]
    assert ["more closely than their noise" in p for p in overfitted.problems()] == [True]


@pytest.mark.parametrize(
    ("break_it", "error", "text"),
    [
        (lambda s, x: assess(s, x[:, :2]), ShapeMismatch, r"\[case, sample"),
        (lambda s, x: assess(s[:, :1], x), DataError, "at least 2"),
        (lambda s, x: assess(s * float("nan"), x), DataError, "NaN"),
        (lambda s, x: assess(s, x * float("nan")), DataError, "no values"),
        (lambda s, x: assess(s, x, levels=(0.0,)), ConfigError, "between 0 and 1"),
        (lambda s, x: Scores().add(s, x, weights=torch.tensor(-1.0)), DataError, "negative"),
        (lambda s, x: Scores().result(), DataError, "no case"),
    ],
)
def test_mistakes_are_named(
    break_it: Callable[[Tensor, Tensor], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        break_it(*ensemble(4, 3, 5))


def test_few_cases_have_no_interval() -> None:
    found = bootstrap(np.array([3.0]), np.array([4.0]), NOISE)
    assert found.value == 0.75
    assert math.isnan(found.lower)
    assert not found.excludes(0.0)


def gaussian_machine(inflation: float) -> dict[str, Callable[..., Tensor]]:
    """`x ~ N(0, I)` in 4 dimensions, `y = x + noise / 2`; the exact posterior for `inflation = 1`."""
    noise = NoiseSource(5)

    def posterior(y: Tensor, ids: range) -> Tensor:
        return 0.8 * y[:, None] + inflation * math.sqrt(0.2) * noise.normal(ids, (19, 4), stream="posterior")

    return {
        "prior": lambda ids: noise.normal(ids, (4,), stream="prior"),
        "simulate": lambda x, ids: x + 0.5 * noise.normal(ids, (4,), stream="noise"),
        "posterior": posterior,
    }


def test_simulation_based_calibration_passes_the_exact_posterior_only() -> None:
    right = simulation_based_calibration(**gaussian_machine(1.0), simulations=400)
    assert set(right) == {"mean", "smallest", "largest", "root mean square"}
    assert all(one.flat.p_value > 0.01 for one in right.values())
    wrong = simulation_based_calibration(**gaussian_machine(0.5), simulations=400)
    assert wrong["mean"].flat.p_value < 1e-6
    assert "spread is too small" in wrong["mean"].flat.shape
    again = simulation_based_calibration(**gaussian_machine(1.0), simulations=400, batch_size=7)
    assert np.array_equal(again["mean"].positions, right["mean"].positions)
    with pytest.raises(ConfigError, match="too few"):
        simulation_based_calibration(**gaussian_machine(1.0), simulations=20)
    with pytest.raises(ShapeMismatch, match="one number"):
        simulation_based_calibration(**gaussian_machine(1.0), quantities={"all": lambda x: x})


def test_figures_and_section_say_what_was_found() -> None:
    pytest.importorskip("matplotlib")
    found: Calibration = assess(*ensemble(100, 10, 4, spread=0.5))
    assert png(calibration_figure(found)).startswith(b"\x89PNG")
    section = calibration_section({"observed": found, "gaps": found})
    assert section.html.count("<svg") == 2
    assert "too narrow" in section.html
    assert "coverage 90%" in section.html
    assert png(sbc_figure(simulation_based_calibration(**gaussian_machine(1.0), simulations=50))).startswith(
        b"\x89PNG"
    )
    single = assess(*ensemble(1, 10, 4))  # no interval to draw
    assert png(calibration_figure(single)).startswith(b"\x89PNG")
