"""Scores against what is known exactly: Gaussian ensembles, constants, waves of one length."""

import numpy as np
import pytest
import scoringrules
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sciLDM.domains.climate.scores import (
    acc,
    area_weights,
    bias,
    coverage,
    energy_score,
    fair_crps,
    fss,
    quantile_maps,
    rank_histogram,
    rmse,
    spread_skill,
)
from sciLDM.domains.climate.scores_spectra import isotropic_spectrum, spectral_ratio, zonal_spectrum
from sciLDM.errors import ConfigError, DataError, ShapeMismatch

LAT = np.linspace(-85.0, 85.0, 18)
LON = np.arange(0.0, 360.0, 10.0)


def maps(values: np.ndarray, *lead: str) -> xr.DataArray:
    return xr.DataArray(
        values,
        dims=(*lead, "lat", "lon"),
        coords={
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": ("lon", LON, {"units": "degrees_east"}),
        },
        name="x",
    )


def ensemble(
    members: int, times: int = 40, spread: float = 1.0, seed: int = 0
) -> tuple[xr.DataArray, xr.DataArray]:
    """Members and truth that are exchangeable when `spread` is 1."""
    rng = np.random.default_rng(seed)
    shape = (times, len(LAT), len(LON))
    signal = rng.normal(size=shape)
    drawn = signal + spread * rng.normal(size=(members, *shape))
    return maps(drawn, "number", "time"), maps(signal + rng.normal(size=shape), "time")


W = area_weights(maps(np.zeros((len(LAT), len(LON)))))


def test_weights_are_areas() -> None:
    assert float(W.mean()) == pytest.approx(1.0)
    # Bands of equal area in sine: the ratio of two rows is that of their sine differences.
    edges = np.concatenate([[-90], (LAT[1:] + LAT[:-1]) / 2, [90]])
    area = np.diff(np.sin(np.deg2rad(edges)))
    np.testing.assert_allclose(W.values[:, 0] / W.values[8, 0], area / area[8])


def test_the_root_is_taken_after_the_mean_over_time() -> None:
    truth = maps(np.zeros((2, len(LAT), len(LON))), "time")
    wrong = truth + xr.DataArray([3.0, 4.0], dims="time")
    assert float(rmse(wrong, truth, W)) == pytest.approx(np.sqrt(12.5))
    np.testing.assert_allclose(rmse(wrong, truth, W, over=()).values, [3.0, 4.0])
    assert float(bias(wrong, truth, W)) == pytest.approx(3.5)


def test_missing_values_count_nowhere() -> None:
    truth = maps(np.zeros((1, len(LAT), len(LON))), "time")
    wrong = truth + 2.0
    wrong[0, :9] = 99.0
    holes = truth.copy()
    holes[0, :9] = np.nan
    assert float(rmse(wrong, holes, W)) == pytest.approx(2.0)
    assert float(rmse(wrong, truth, W)) > 50


def test_anomaly_correlation() -> None:
    rng = np.random.default_rng(0)
    climate = maps(rng.normal(size=(len(LAT), len(LON))))
    truth = climate + maps(rng.normal(size=(5, len(LAT), len(LON))), "time")
    assert float(acc(climate + 3 * (truth - climate), truth, climate, W)) == pytest.approx(1.0)
    assert float(acc(climate - (truth - climate), truth, climate, W)) == pytest.approx(-1.0)


def test_crps_of_a_gaussian_and_fair_in_the_number_of_members() -> None:
    expected = float(
        np.mean(
            scoringrules.crps_normal(np.random.default_rng(9).normal(size=200_000), 0.0, 1.0, backend="numpy")
        )
    )
    for members in (2, 4, 16):
        drawn, truth = ensemble(members, times=60, seed=members)
        # Truth minus signal is N(0, 1), as the members are.
        assert float(fair_crps(drawn, truth, W)) == pytest.approx(expected, rel=0.02)
        assert float(spread_skill(drawn, truth, W)) == pytest.approx(1.0, abs=0.02)
    one = drawn.isel(number=[0, 0, 0])
    assert float(fair_crps(one, truth, W)) == pytest.approx(float(_mae(one.isel(number=0), truth)))


def _mae(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    return (abs(a - b) * W).mean()


def test_spread_skill_sees_narrow_ensembles() -> None:
    drawn, truth = ensemble(16, spread=0.5)
    # Variance of the members 0.25, error of the mean 1 + 0.25 / 16.
    expected = np.sqrt(17 / 16 * 0.25 / (1 + 0.25 / 16))
    assert float(spread_skill(drawn, truth, W)) == pytest.approx(expected, rel=0.02)


def test_ranks_are_uniform_when_exchangeable_and_u_shaped_when_not() -> None:
    drawn, truth = ensemble(9)
    flat = rank_histogram(drawn, truth)
    assert flat.shape == (10,)
    assert flat.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(flat, 0.1, atol=0.01)
    narrow, truth = ensemble(9, spread=0.3)
    shape = rank_histogram(narrow, truth)
    assert shape[0] > 0.2
    assert shape[5] < 0.1


def test_coverage_of_the_right_distribution() -> None:
    drawn, truth = ensemble(100, times=2)
    assert float(coverage(drawn, truth, W)) == pytest.approx(0.9, abs=0.03)
    assert float(coverage(drawn, truth, W, level=0.5)) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ConfigError, match="level"):
        coverage(drawn, truth, W, level=1.0)


def test_energy_score_is_that_of_the_definition() -> None:
    drawn, truth = ensemble(5, times=3)
    x, y, w = drawn.values, truth.values, W.values
    norm = lambda d: np.sqrt((d**2 * w).sum((-2, -1)) / w.sum())  # noqa: E731
    first = norm(x - y).mean(0)
    second = sum(norm(x[i] - x[j]) for i in range(5) for j in range(5)) / (5 * 4)
    assert float(energy_score(drawn, truth, W)) == pytest.approx(float((first - second / 2).mean()))


def test_quantile_maps_pool_dates_and_members() -> None:
    values = np.arange(1000.0).reshape(10, 100, 1, 1) + np.zeros((1, 1, len(LAT), len(LON)))
    found = quantile_maps(maps(values, "number", "time"))
    np.testing.assert_allclose(found.isel(lat=0, lon=0).values, [9.99, 989.01])


def test_fss_of_a_displaced_event_rises_with_the_window() -> None:
    truth = maps(np.zeros((1, len(LAT), len(LON))), "time")
    truth[0, 8, 10] = 1.0
    moved = truth.roll(lon=2, roll_coords=False)
    space = ("lat", "lon")
    assert fss(truth, truth, 0.5, 1, space=space) == 1.0
    assert fss(moved, truth, 0.5, 1, space=space) == 0.0
    scores = [fss(moved, truth, 0.5, n, space=space) for n in (1, 3, 5, 9)]
    assert scores == sorted(scores)
    # Of two 5 x 5 boxes of fractions 1/25, two columns of five differ on each side.
    assert scores[2] == pytest.approx(1 - 2 * 2 * 5 / (2 * 25))
    assert np.isnan(fss(truth, truth, 9.0, 3, space=space))


def test_an_ensemble_needs_its_dimension() -> None:
    drawn, truth = ensemble(3, times=2)
    with pytest.raises(DataError, match="name the ensemble"):
        fair_crps(drawn.rename(number="realization"), truth, W)
    assert float(fair_crps(drawn.rename(number="realization"), truth, W, number="realization")) > 0


@given(st.integers(1, 17), st.floats(0.5, 4.0))
def test_a_zonal_wave_has_its_power_at_its_wavenumber(k: int, amplitude: float) -> None:
    x = amplitude * np.cos(k * np.deg2rad(LON) + 0.3) * np.ones((len(LAT), 1))
    found = zonal_spectrum(x, LAT)
    cosine = np.cos(np.deg2rad(LAT))
    length = 2 * np.pi * 6.371e6 * (cosine**2).sum() / cosine.sum()
    assert found.power[k] == pytest.approx(length * amplitude**2 / 2, rel=1e-9)
    assert np.delete(found.power, k).max() < 1e-12 * found.power[k]


def test_zonal_spectrum_is_parseval() -> None:
    x = np.random.default_rng(0).normal(size=(3, 1, 36))
    found = zonal_spectrum(x, np.array([0.0]))
    assert found.power.sum() == pytest.approx(2 * np.pi * 6.371e6 * (x**2).mean())


@given(st.integers(1, 11))
def test_half_waves_of_a_box(k: int) -> None:
    rows, columns = 12, 20
    along = np.cos(np.pi * k * (np.arange(rows) + 0.5) / rows)[:, None] * np.ones(columns)
    found = isotropic_spectrum(along)
    assert int(found.wavenumber[found.power.argmax()]) == k
    assert found.power.max() == pytest.approx((along**2).mean())


def test_a_trend_across_a_box_does_not_fill_the_spectrum() -> None:
    ramp = np.arange(32.0)[None] * np.ones((32, 1))
    plain = np.abs(np.fft.rfft2(ramp - ramp.mean())) ** 2
    leaked = plain[0, 8:].sum() / plain[0].sum()
    found = isotropic_spectrum(ramp)
    assert found.power[16:].sum() / found.power.sum() < 0.01 * leaked
    tapered = zonal_spectrum(ramp + np.cos(2 * np.pi * 5 * np.arange(32) / 32), np.zeros(32), periodic=False)
    assert int(tapered.power.argmax()) == 5
    assert tapered.power[9:].sum() < 1e-3 * tapered.power.sum()


def test_spectral_ratio_sees_smoothing() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 16, 24))
    same = rng.normal(size=(50, 16, 24))
    smooth = (real + np.roll(real, 1, 1) + np.roll(real, 1, 2)) / 3
    np.testing.assert_allclose(spectral_ratio(same, real).power, 1.0, atol=0.25)
    ratio = spectral_ratio(smooth, real)
    assert ratio.power[-1] < 0.5 < ratio.power[0]
    assert ratio.wavenumber[-1] <= 0.7 * 15


def test_spectra_refuse_gaps() -> None:
    with pytest.raises(DataError, match="missing values"):
        isotropic_spectrum(np.full((4, 4), np.nan))
    with pytest.raises(ShapeMismatch, match="4 latitudes"):
        zonal_spectrum(np.zeros((4, 8)), np.zeros(3))
