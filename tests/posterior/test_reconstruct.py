"""Whole reconstructions of a domain whose posterior is known, autoencoder's error included."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.posterior.conformal import Conformal
from sciLDM.posterior.noise_level import estimate_noise, robust_guess
from sciLDM.posterior.reconstruct import Settings, reconstruct
from sciLDM.posterior.result import Posterior
from sciLDM.posterior.sampling import default_sampler
from sciLDM.rng import NoiseSource
from tests.posterior.linear import POINTS, Exact, MatrixOperator, picking

NOISE = NoiseSource(11)
SEEN = (0, 3, 4, 9)
DENSE = MatrixOperator(NOISE.normal([0], (40, POINTS), stream="matrix")[0] / 3)


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(error=0.04)


def observe(exact: Exact, operator: MatrixOperator, std: float, scales: list[float]) -> tuple[Tensor, Tensor]:
    """A truth for each scale, and its noisy observation."""
    x = torch.cat([exact.draw([k], scale=s) for k, s in enumerate(scales)])
    return x, operator(x) + std * NOISE.normal(range(len(x)), operator.out_shape)


@pytest.mark.parametrize("std", [0.02, 0.3])
def test_mean_and_spread_are_the_exact_ones(exact: Exact, std: float) -> None:
    scales = [2.0, 0.5]
    operator = picking(*SEEN)
    _, y = observe(exact, operator, std, scales)
    got = reconstruct(
        exact.task(operator, y, std, scales), exact.prior, Settings(samples=1500, batch_size=500)
    )
    for case, scale in enumerate(scales):
        mean, covariance = exact.posterior(operator, y[case], std, scale=scale)
        deviation = covariance.diagonal().sqrt()
        assert float(((got.mean[case, 0] - mean) / deviation).abs().max()) < 0.1
        ratio = got.std[case, 0] / deviation
        assert float((ratio - 1).abs().max()) < 0.08
        assert float(ratio.mean()) == pytest.approx(1.0, abs=0.03)
        prior = exact.moments(scale)[1].diagonal()
        assert torch.allclose(
            got.null_space[case, 0].double(), covariance.diagonal() / prior, rtol=0.15, atol=1e-3
        )
    details = got.details
    assert details["evaluations"]["denoiser"] == details["steps"] == 20
    assert details["noise_std"] == pytest.approx([std, std], rel=1e-5)
    assert not details["warnings"]
    assert not details["noise_estimated"]


def test_without_the_error_model_the_spread_is_too_small_and_this_is_said(exact: Exact) -> None:
    operator = picking(*SEEN)
    _, y = observe(exact, operator, 0.02, [2.0])
    got = reconstruct(
        exact.task(operator, y, 0.02, [2.0]),
        replace(exact.prior, error=None),
        Settings(samples=200, batch_size=200),
    )
    _, covariance = exact.posterior(operator, y[0], 0.02, scale=2.0)
    assert float((got.std[0, 0] / covariance.diagonal().sqrt()).median()) < 0.75
    assert any("autoencoder" in line for line in got.details["warnings"])
    assert bool(got.null_space.isnan().all())


def test_intervals_cover_and_samples_miss_the_data_by_their_noise(exact: Exact) -> None:
    """Sixty truths from the model, a dense operator: chi-square 1, 90 % intervals that cover 90 %."""
    scales = [2.0] * 60
    operator = MatrixOperator(DENSE.matrix[:8])
    x, y = observe(exact, operator, 0.2, scales)
    got = reconstruct(exact.task(operator, y, 0.2, scales), exact.prior, Settings(samples=24, batch_size=480))
    assert float(got.chi2.mean()) == pytest.approx(1.0, abs=0.15)
    inside = (got.mean - x).abs() < 1.645 * got.std
    assert float(inside.float().mean()) == pytest.approx(0.9, abs=0.04)
    lower, upper = got.interval(lambda field: field.flatten(1).sum(1), 0.8)
    total = x.flatten(1).sum(1)
    assert 0.65 < float(((total > lower) & (total < upper)).float().mean()) < 0.95


def test_results_depend_neither_on_the_batch_size_nor_on_other_cases(exact: Exact) -> None:
    scales = [2.0, 0.5]
    _, y = observe(exact, DENSE, 0.1, scales)
    task = exact.task(DENSE, y, 0.1, scales)
    whole = reconstruct(task, exact.prior, Settings(samples=2, seed=3))
    for size in (1, 3):
        other = reconstruct(task, exact.prior, Settings(samples=2, seed=3, batch_size=size))
        # Conjugate gradients stop at a residual, and rounding may let one sample take an iteration more.
        assert torch.allclose(other.samples, whole.samples, atol=2e-3)  # their spread is about 0.05
        assert torch.allclose(other.std, whole.std, atol=2e-3)
        assert torch.allclose(other.mean, whole.mean, atol=1e-3)
        assert torch.allclose(other.chi2, whole.chi2, rtol=1e-2)
    first = reconstruct(exact.task(DENSE, y[:1], 0.1, scales[:1]), exact.prior, Settings(samples=2, seed=3))
    assert torch.allclose(first.samples[0], whole.samples[0], atol=1e-3)
    again = reconstruct(task, exact.prior, Settings(samples=2, seed=4))
    assert float((again.samples - whole.samples).abs().mean()) > 0.02


def test_a_missing_value_is_as_if_it_had_never_been_observed(exact: Exact) -> None:
    _, y = observe(exact, picking(0, 3, 4, 9), 0.1, [2.0])
    y[0, 2] = torch.nan
    settings = Settings(samples=400, batch_size=400)
    gap = reconstruct(exact.task(picking(0, 3, 4, 9), y, 0.1, [2.0]), exact.prior, settings)
    short = reconstruct(exact.task(picking(0, 3, 9), y[:, [0, 1, 3]], 0.1, [2.0]), exact.prior, settings)
    assert torch.allclose(gap.mean, short.mean, atol=2e-3)
    assert torch.allclose(gap.std, short.std, rtol=0.15)
    assert bool(gap.samples.isfinite().all())
    mean, _ = exact.posterior(picking(0, 3, 4, 9), y[0], 0.1, scale=2.0)
    assert torch.allclose(gap.mean[0, 0].double(), mean, atol=0.15)


def test_no_noise_is_raised_to_a_floor_and_the_data_are_met(exact: Exact) -> None:
    operator = picking(*SEEN)
    x, y = observe(exact, operator, 0.0, [2.0])
    got = reconstruct(exact.task(operator, y, 0.0, [2.0]), exact.prior, Settings(samples=300, batch_size=300))
    assert got.details["noise_std"][0] == pytest.approx(1e-4 * float(y.std(correction=0)), rel=1e-3)
    assert float((operator(got.mean) - y).abs().max()) < 3e-3 * float(y.std())
    assert float((operator(x) - y).abs().max()) == 0
    _, covariance = exact.posterior(operator, y[0], 1e-4, scale=2.0)
    hidden = [k for k in range(POINTS) if k not in SEEN]
    ratio = got.std[0, 0, hidden] / covariance.diagonal().sqrt()[hidden]
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.06)


def test_mistakes_are_told(exact: Exact) -> None:
    operator = picking(*SEEN)
    _, y = observe(exact, operator, 0.1, [2.0, 1.0])
    task = exact.task(operator, y, 0.1, [2.0, 1.0])
    with pytest.raises(ShapeMismatch, match="2 observed cases, but 1 rows of 'scale'"):
        reconstruct(replace(task, context={"scale": torch.ones(1)}), exact.prior)
    other = picking(*SEEN)
    other.in_shape = (1, 10)
    with pytest.raises(ShapeMismatch, match=r"acts on fields of shape \(1, 10\)"):
        reconstruct(replace(task, observation=replace(task.observation, operator=other)), exact.prior)
    with pytest.raises(ShapeMismatch, match="built for another grid"):
        exact.task(operator, y[:, :3], 0.1, [2.0, 1.0])
    with pytest.raises(DataError, match="infinite"):
        exact.task(operator, y / 0, 0.1, [2.0, 1.0])
    with pytest.raises(DataError, match="no observed value"):
        exact.task(operator, y * torch.nan, 0.1, [2.0, 1.0])
    with pytest.raises(ConfigError, match="at least 0"):
        exact.task(operator, y, -0.1, [2.0, 1.0])
    with pytest.raises(ConfigError, match="at least 2 samples"):
        Settings(samples=1)


def test_a_wrong_noise_level_is_noticed(exact: Exact) -> None:
    _, y = observe(exact, DENSE, 1.0, [2.0])
    got = reconstruct(exact.task(DENSE, y, 0.05, [2.0]), exact.prior, Settings(samples=8))
    assert float(got.chi2) > 5
    assert any("noise_std may be too small" in line for line in got.details["warnings"])


@pytest.mark.parametrize("std", [0.1, 0.8])
def test_an_unknown_noise_level_is_found(exact: Exact, std: float) -> None:
    scales = [2.0, 2.0, 2.0, 2.0]
    _, y = observe(exact, DENSE, std, scales)
    seen: list[tuple[int, int]] = []
    got = reconstruct(
        exact.task(DENSE, y, None, scales), exact.prior, Settings(samples=4),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    found = torch.tensor(got.details["noise_std"])
    assert float(found.mean()) == pytest.approx(std, rel=0.12)  # 4 x 28 degrees of freedom give 7 %
    assert float((found / std).log().abs().max()) < 0.4
    assert got.details["noise_estimated"]
    assert min(got.details["noise_redundancy"]) > 0.5
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_four_values_do_not_tell_their_noise_and_this_is_said(exact: Exact) -> None:
    _, y = observe(exact, picking(*SEEN), 0.02, [2.0])
    got = reconstruct(exact.task(picking(*SEEN), y, None, [2.0]), exact.prior, Settings(samples=4))
    assert any("too few values" in line for line in got.details["warnings"])


def test_the_noise_estimate_is_the_marginal_likelihoods_with_exact_samples(exact: Exact) -> None:
    """The iteration alone, fed with exact posterior samples: its fixed point is where the likelihood is largest."""
    _, y = observe(exact, DENSE, 0.4, [2.0])
    mean, covariance = exact.moments(2.0)
    a = DENSE.matrix.double()

    def run(std: Tensor) -> Tensor:
        centre, spread = exact.posterior(DENSE, y[0], float(std), scale=2.0)
        white = NOISE.normal(range(400), (POINTS,), dtype=torch.float64, stream="samples")
        samples = centre + white @ torch.linalg.cholesky(spread + 1e-9 * torch.eye(POINTS)).mT
        return (samples @ a.mT).float()[None]

    present = torch.ones_like(y, dtype=torch.bool)
    found = float(estimate_noise(run, y, present, rounds=8).std)
    levels = torch.logspace(-1.5, 0.5, 400, dtype=torch.float64)
    likelihood = [
        torch.distributions.MultivariateNormal(
            a @ mean, a @ covariance @ a.mT + s**2 * torch.eye(40)
        ).log_prob(y[0].double())
        for s in levels
    ]
    best = float(levels[int(torch.stack(likelihood).argmax())])
    assert found == pytest.approx(best, rel=0.04)
    assert float(robust_guess(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool))) > 0


def test_calibration_widens_and_is_named(exact: Exact) -> None:
    operator = picking(*SEEN)
    x, y = observe(exact, operator, 0.1, [2.0] * 4)
    task = exact.task(operator, y, 0.1, [2.0] * 4)
    settings = Settings(samples=8)
    plain = reconstruct(task, exact.prior, settings)
    shrunk = replace(plain, std=plain.std / 2, samples=plain.samples)
    calibration = Conformal.fit([shrunk], [x], family=operator.family)
    factor = calibration.factor(operator.family)
    got = reconstruct(task, exact.prior, settings, calibration=calibration)
    assert got.calibrated
    assert not plain.calibrated
    assert factor > 1.4
    assert torch.allclose(got.std, factor * plain.std)
    assert torch.equal(got.mean, plain.mean)
    assert torch.equal(got.chi2, plain.chi2)
    other = reconstruct(task, exact.prior, settings, calibration=Conformal())
    assert not other.calibrated
    assert isinstance(other, Posterior)


def test_fewer_steps_cost_fewer_calls(exact: Exact) -> None:
    _, y = observe(exact, DENSE, 0.1, [2.0])
    got = reconstruct(
        exact.task(DENSE, y, 0.1, [2.0]), exact.prior, Settings(samples=2, sampler=default_sampler(8))
    )
    assert got.details["evaluations"]["denoiser"] == got.details["steps"] == 8
