"""Baselines against processes whose answer is known exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sciLDM.domains.climate.baselines import (
    Climatology,
    ClimatologyForecast,
    DampedPersistence,
    EOFs,
    GaussianEOF,
    History,
    Initial,
    Persistence,
)
from sciLDM.domains.climate.baselines_downscaling import QuantileMapping, RegressionDownscaling, bicubic
from sciLDM.domains.climate.baselines_dynamics import Analogs, LinearInverseModel
from sciLDM.domains.climate.baselines_interpolation import (
    ConditionalGaussian,
    distances,
    ensemble_covariance,
    eof_covariance,
    fit_length,
    gaspari_cohn,
    isotropic_covariance,
)
from sciLDM.domains.climate.calendar import Times
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.rng import NoiseSource

NOISE = NoiseSource(0)


def autoregressive(count: int, matrix: np.ndarray, seed: int = 0) -> np.ndarray:
    """`x_{t+1} = G x_t + e` with unit stationary variance where `G` is a scaled rotation."""
    rng = np.random.default_rng(seed)
    size = len(matrix)
    covariance = np.eye(size) - matrix @ matrix.T
    steps = rng.multivariate_normal(np.zeros(size), covariance, count)
    x = np.zeros((count, size))
    for t in range(1, count):
        x[t] = matrix @ x[t - 1] + steps[t]
    return x[50:]


def history(x: np.ndarray, phase: np.ndarray | None = None) -> History:
    follows = np.ones(len(x), dtype=bool)
    follows[0] = False
    return History(x, np.arange(len(x)) / 365 % 1 if phase is None else phase, follows, np.ones(x.shape[1]))


TURN = 0.8 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])


def test_lim_recovers_a_known_process() -> None:
    model = LinearInverseModel(history(autoregressive(40_000, TURN)), modes=2)
    p = model.eofs.patterns
    np.testing.assert_allclose(p.T @ model.propagator @ p, TURN, atol=0.02)
    np.testing.assert_allclose(p.T @ model.noise_covariance @ p, (1 - 0.64) * np.eye(2), atol=0.02)
    start = Initial(np.array([[2.0, -1.0], [0.0, 1.5]]), np.zeros(2))
    made = model.forecast(start, 3, 4000, NOISE)
    for lead in (1, 2, 3):
        power = np.linalg.matrix_power(TURN, lead)
        np.testing.assert_allclose(made[:, :, lead - 1].mean(1), start.states @ power.T, atol=0.1)
        np.testing.assert_allclose(made[:, :, lead - 1].var(1), 1 - 0.64**lead, atol=0.06)
    np.testing.assert_allclose(
        model.mean(start, 3)[:, 2], start.states @ np.linalg.matrix_power(TURN, 3).T, atol=0.08
    )


def test_lim_keeps_the_variance_of_whole_fields() -> None:
    rng = np.random.default_rng(1)
    slow = autoregressive(4050, TURN, seed=2) @ rng.normal(size=(2, 12)) * 3
    x = slow + rng.normal(size=slow.shape)
    made = LinearInverseModel(history(x), modes=2).forecast(Initial(x[:20], np.zeros(20)), 30, 60, NOISE)
    np.testing.assert_allclose(made[:, :, -1].var((0, 1)), x.var(0), rtol=0.15)


def test_a_case_does_not_depend_on_the_others() -> None:
    x = autoregressive(500, TURN)
    for kind in (
        LinearInverseModel(history(x), modes=2),
        ClimatologyForecast(history(x)),
        DampedPersistence(history(x)),
    ):
        both = kind.forecast(Initial(x[:2], np.array([0.1, 0.2])), 2, 5, NOISE)
        one = kind.forecast(Initial(x[:1], np.array([0.1])), 2, 5, NOISE)
        np.testing.assert_allclose(both[:1], one)


def test_damped_persistence_of_a_red_process() -> None:
    x = autoregressive(20_000, np.array([[0.7]]))
    made = DampedPersistence(history(x)).forecast(Initial(np.array([[2.0]]), np.zeros(1)), 3, 8000, NOISE)
    for lead in (1, 2, 3):
        assert made[0, :, lead - 1].mean() == pytest.approx(2 * 0.7**lead, abs=0.06)
        assert made[0, :, lead - 1].var() == pytest.approx(1 - 0.49**lead, abs=0.05)


def test_persistence_and_climatology() -> None:
    x = autoregressive(4000, TURN)
    start = Initial(x[:3], np.array([0.0, 0.5, 0.9]))
    assert (Persistence().forecast(start, 2, 4, NOISE) == x[:3, None, None]).all()
    season = np.cos(2 * np.pi * np.arange(3650) / 365)[:, None]
    warm = history(season + 0.1 * x[:3650, :1])
    made = ClimatologyForecast(warm).forecast(Initial(np.zeros((2, 1)), np.array([0.0, 0.5])), 1, 50, NOISE)
    assert made[0].mean() == pytest.approx(1.0, abs=0.1)
    assert made[1].mean() == pytest.approx(-1.0, abs=0.1)


def test_analogs_of_a_periodic_process_are_perfect() -> None:
    angle = 2 * np.pi * np.arange(400) / 20
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    made = Analogs(history(x, np.zeros(400)), modes=2).forecast(Initial(x[7:9], np.zeros(2)), 3, 5, NOISE)
    for lead in (1, 2, 3):
        np.testing.assert_allclose(
            made[:, :, lead - 1], np.repeat(x[7 + lead : 9 + lead, None], 5, 1), atol=1e-9
        )
    with pytest.raises(ConfigError, match="analogs asked for"):
        Analogs(history(x)).forecast(Initial(x[:1], np.zeros(1)), 3, 500, NOISE)


@pytest.mark.parametrize("calendar", ["proleptic_gregorian", "noleap", "360_day"])
def test_climatology_recovers_harmonics_in_any_calendar(calendar: str) -> None:
    times = Times(86400.0 * np.arange(0, 1500, 7), calendar)
    angle = 2 * np.pi * times.phase
    values = 3 + 2 * np.cos(angle) - np.sin(2 * angle)
    values = np.stack([values, values], 1)
    values[5, 1] = np.nan
    later = Times(86400.0 * np.arange(4000, 4100, 9), calendar)
    expected = 3 + 2 * np.cos(2 * np.pi * later.phase) - np.sin(4 * np.pi * later.phase)
    np.testing.assert_allclose(Climatology.fit(values, times)(later), np.stack([expected] * 2, 1), atol=1e-9)


def test_eofs_are_weighted_and_complete() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), rng.uniform(0.2, 2, 8)
    full = EOFs.fit(x, w, 8)
    np.testing.assert_allclose(full.reconstruct(x), x, atol=1e-8)
    np.testing.assert_allclose((full.patterns * w) @ full.patterns.T, np.eye(8), atol=1e-9)
    part = full.components(x)
    np.testing.assert_allclose(np.cov(part.T), np.diag(full.variance), atol=1e-8)
    wide = EOFs.fit(x[:5], w, 4)  # fewer states than values: the other square matrix
    np.testing.assert_allclose(wide.reconstruct(x[:5]), x[:5], atol=1e-8)
    errors = [((x - EOFs.fit(x, w, k).reconstruct(x)) ** 2 * w).sum() for k in (1, 3, 6)]
    assert errors == sorted(errors, reverse=True)


def test_gaussian_eofs_have_the_covariance_of_the_data() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5))
    model = GaussianEOF(EOFs.fit(x, np.ones(5), 5))
    made = model.sample(range(20_000), NOISE)
    np.testing.assert_allclose(np.cov(made.T), np.cov(x.T), atol=0.06 * np.abs(np.cov(x.T)).max())
    np.testing.assert_allclose(model.sample([3, 9], NOISE)[1], model.sample([9], NOISE)[0], rtol=1e-12)


@given(st.floats(10, 5000))
def test_gaspari_cohn_is_a_correlation_of_finite_reach(radius: float) -> None:
    d = np.linspace(0, 2 * radius, 200)
    c = gaspari_cohn(d, radius)
    assert c[0] == pytest.approx(1)
    assert (c[d >= radius] == 0).all()
    assert (np.diff(c) <= 1e-12).all()
    # Both polynomials meet at half the radius: 5/24.
    assert gaspari_cohn(np.array([radius / 2]), radius)[0] == pytest.approx(5 / 24)
    line = np.abs(d[::5, None] - d[None, ::5])
    assert np.linalg.eigvalsh(gaspari_cohn(line, radius)).min() > -1e-9


def test_enoi_without_localisation_is_the_exact_conditional_gaussian() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    truth = root @ root.T
    b = ensemble_covariance(rng.normal(size=(200_000, 6)) @ root.T)
    np.testing.assert_allclose(b, truth, atol=0.03 * np.abs(truth).max())
    y = np.array([np.nan, 1.0, np.nan, -0.5, np.nan, np.nan])
    error = np.full(6, 0.3)
    mean, std = ConditionalGaussian(truth).condition(y, error)
    seen, hidden = [1, 3], [0, 2, 4, 5]
    s = truth[np.ix_(seen, seen)] + 0.09 * np.eye(2)
    gain = truth[:, seen] @ np.linalg.inv(s)
    expected = truth - gain @ truth[seen]
    np.testing.assert_allclose(mean, gain @ y[seen], atol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(np.diag(expected)), atol=1e-6)
    near = ConditionalGaussian(b).posterior(y[None], error, 20_000, NOISE)
    np.testing.assert_allclose(near.mean[0, hidden], mean[hidden], atol=0.05)
    np.testing.assert_allclose(np.cov(near.members[0].T), expected, atol=0.06 * np.abs(truth).max())
    np.testing.assert_allclose(near.members[0].mean(0), near.mean[0], atol=0.05)


def test_localisation_helps_a_small_ensemble() -> None:
    rng = np.random.default_rng(1)
    place = np.linspace(0, 4000, 60)
    d = np.abs(place[:, None] - place)
    truth = isotropic_covariance(np.ones(60), d, 200.0)
    root = np.linalg.cholesky(truth + 1e-9 * np.eye(60))
    few, fields = rng.normal(size=(25, 60)) @ root.T, rng.normal(size=(40, 60)) @ root.T
    y = np.where(np.arange(60) % 6 == 0, fields, np.nan)

    def error(b: np.ndarray) -> float:
        made = ConditionalGaussian(b).posterior(y, np.full(60, 0.05), 2, NOISE)
        return float(np.sqrt(((made.mean - fields) ** 2).mean()))

    raw = error(ensemble_covariance(few))
    localised = error(ensemble_covariance(few, gaspari_cohn(d, 1200.0)))
    best = error(truth)
    assert best < localised < 0.8 * raw
    assert fit_length(fields, d) == pytest.approx(200, rel=0.3)


def test_distances_and_blocks() -> None:
    d = distances(np.array([0.0, 0.0, 90.0]), np.array([0.0, 180.0, 77.0]))
    np.testing.assert_allclose(
        d, np.pi * 6371 * np.array([[0, 1, 0.5], [1, 0, 0.5], [0.5, 0.5, 0]]), atol=1e-3
    )
    x = np.random.default_rng(0).normal(size=(50, 6))
    taper = gaspari_cohn(d, 12_000.0)
    np.testing.assert_allclose(ensemble_covariance(x, taper)[3:, :3], ensemble_covariance(x)[3:, :3] * taper)
    with pytest.raises(ShapeMismatch, match="no multiple"):
        ensemble_covariance(x[:, :5], taper)
    with pytest.raises(DataError, match="too large"):
        ensemble_covariance(np.zeros((2, 9000)))


def test_eof_regression_keeps_every_variance() -> None:
    x = np.random.default_rng(0).normal(size=(300, 7)) @ np.random.default_rng(1).normal(size=(7, 7))
    b = eof_covariance(EOFs.fit(x, np.ones(7), 3), x.std(0))
    np.testing.assert_allclose(np.diag(b), x.var(0), rtol=1e-2)


def test_bicubic_is_exact_for_cubics_and_holds_the_edge() -> None:
    lat, lon = np.linspace(30, 50, 8), np.linspace(-10, 10, 9)
    f = lambda a, b: (a - 40) ** 3 / 100 + (b * (a - 40)) / 10 + b**2  # noqa: E731
    coarse = f(lat[:, None], lon[None])[None]
    a, b = np.meshgrid(np.linspace(31, 49, 17), np.linspace(-9, 9, 13), indexing="ij")
    np.testing.assert_allclose(bicubic(coarse, lat, lon, a, b)[0], f(a, b), atol=1e-8)
    outside = bicubic(coarse, lat, lon, np.array([[60.0]]), np.array([[0.0]]))
    assert outside[0, 0, 0] == pytest.approx(f(50, 0.0))
    with pytest.raises(DataError, match="ascend"):
        bicubic(coarse[:, ::-1], lat[::-1], lon, a, b)


def test_quantile_mapping_corrects_mean_and_spread() -> None:
    rng = np.random.default_rng(0)
    observed, model = rng.normal(5, 2, size=(20_000, 3)), rng.normal(1, 1, size=(20_000, 3))
    mapping = QuantileMapping.fit(model, observed)
    x = np.linspace(-1, 3, 9)[:, None] * np.ones(3)
    np.testing.assert_allclose(mapping(x), 5 + 2 * (x - 1), atol=0.15)
    far = mapping(np.full((1, 3), 20.0))
    np.testing.assert_allclose(far - 20, observed.max() * 0 + (mapping.observed - mapping.model)[-1][None])


def test_quantile_mapping_of_amounts_stays_positive() -> None:
    rng = np.random.default_rng(0)
    model, observed = rng.gamma(1, 2, size=(5000, 1)), np.maximum(rng.gamma(1, 4, size=(5000, 1)) - 2, 0)
    mapped = QuantileMapping.fit(model, observed, amounts=True)(model)
    assert mapped.min() >= 0
    assert (mapped == 0).mean() == pytest.approx((observed == 0).mean(), abs=0.02)
    assert mapped.mean() == pytest.approx(observed.mean(), rel=0.03)
    assert mapped.max() > np.quantile(observed, 0.995)


def test_regression_finds_a_linear_relation_and_its_spread() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 4))
    y = x @ rng.normal(size=(4, 10)) + 0.5 * rng.normal(size=(3000, 10))
    model = RegressionDownscaling(x[:2000], y[:2000], modes=10, ridge=1e-6)
    made = model.predict(x[2000:], 50, NOISE)
    error = made.mean - y[2000:]
    assert error.std() == pytest.approx(0.5, rel=0.05)
    assert made.members.std(1).mean() == pytest.approx(0.5, rel=0.05)


def test_histories_must_be_complete() -> None:
    x = np.zeros((4, 2))
    with pytest.raises(ShapeMismatch, match="4 anomalies, 3 phases"):
        history(x, np.zeros(3))
    x[0, 0] = np.nan
    with pytest.raises(DataError, match="climatology"):
        history(x)
    broken = History(
        np.arange(6.0)[:, None], np.zeros(6), np.array([0, 1, 1, 0, 1, 1], dtype=bool), np.ones(1)
    )
    np.testing.assert_array_equal(broken.pairs(2)[0], [0, 3])
