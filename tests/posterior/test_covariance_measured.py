"""Covariances measured on a denoiser: the exact ones where it is exact, and honest ones where it errs."""

import math

import pytest
import torch
from torch import Tensor

from sciLDM.cosine import cosine_transform
from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError, DataError
from sciLDM.guidance.posterior import HybridSolver, IdentityMap, MeasuredCovariance, Problem
from sciLDM.guidance.posterior.solver import Evaluations
from sciLDM.operators import GaussianNoise, Mask, Observation
from sciLDM.posterior.sampling import default_sampler
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule

SHAPE = (3, 6, 5)
LEVELS = (20.0, 5.0, 1.0, 0.2, 0.02)


def spectrum(shape: tuple[int, ...]) -> Tensor:
    """Variances of a smooth random field, by channel and frequency; those of a wave do not depend on the grid."""
    waves = [torch.arange(n) / n for n in shape[1:]]
    k2 = sum(w.square() for w in torch.meshgrid(*waves, indexing="ij"))
    return torch.stack([(1 + 2 * c) / (1 + 40 * k2) for c in range(shape[0])])


class Stationary(Denoiser):
    """Exact for fields of that spectrum, plus `ripple`: small errors with a steep derivative."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, ripple: float = 0.0) -> None:
        super().__init__(CosineSchedule())
        self.variances, self.ripple = spectrum(shape), ripple

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c.to(x_t).view(-1, 1, 1, 1) for c in self.schedule(t))
        gain = alpha * self.variances.to(x_t) / (alpha**2 * self.variances.to(x_t) + sigma**2)
        exact = cosine_transform(gain * cosine_transform(x_t), inverse=True)
        return exact + self.ripple * (30 * x_t).sin()


def fields(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> Tensor:
    white = NoiseSource(seed).normal(range(count), shape)
    return cosine_transform(spectrum(shape).sqrt() * white, inverse=True)


def test_the_transform_is_orthonormal_and_inverts_itself() -> None:
    x = NoiseSource(0).normal(range(2), (3, 6, 5, 4), dtype=torch.float64)
    c = cosine_transform(x)
    assert torch.allclose(cosine_transform(c, inverse=True), x)
    assert torch.allclose(c.square().sum(), x.square().sum())
    assert float(cosine_transform(torch.ones(1, 1, 4))[0, 0, 1:].abs().max()) < 1e-6


def test_an_exact_denoiser_gives_the_exact_covariance() -> None:
    denoiser, n = Stationary(), 2000
    found = MeasuredCovariance.measured([(fields(n), denoiser)], ratios=LEVELS)
    variances = spectrum(SHAPE)
    for ratio in LEVELS:
        exact = variances * ratio**2 / (variances + ratio**2)
        ours = found.variance(torch.tensor([-math.log(ratio)], dtype=torch.float64), SHAPE[1:])[0]
        assert float((ours / exact - 1).abs().max()) < 5 * math.sqrt(2 / n)
        assert float((ours / exact - 1).square().mean().sqrt()) < 1.2 * math.sqrt(2 / n)


def test_between_levels_below_the_least_and_on_other_grids() -> None:
    found = MeasuredCovariance.measured([(fields(500), Stationary())])
    variances = spectrum(SHAPE)
    for ratio, within in ((1.7, 0.25), (0.11, 0.25), (1e-3, 0.25)):
        exact = variances * ratio**2 / (variances + ratio**2)
        ours = found.variance(torch.tensor([-math.log(ratio)], dtype=torch.float64), SHAPE[1:])[0]
        assert float((ours / exact - 1).abs().max()) < within
    larger = (12, 10)
    exact = spectrum((3, *larger)) / (spectrum((3, *larger)) + 1)
    ours = found.variance(torch.zeros(1, dtype=torch.float64), larger)[0]
    seen = (slice(None), slice(0, 10), slice(0, 8))  # beyond lie waves shorter than the measured grid holds
    assert float((ours / exact - 1)[seen].abs().max()) < 0.3


def test_batches_do_not_matter() -> None:
    z, denoiser = fields(8), Stationary()
    whole = MeasuredCovariance.measured([(z, denoiser)], ratios=LEVELS)
    parts = MeasuredCovariance.measured([(z[:3], denoiser), (z[3:], denoiser)], ratios=LEVELS)
    assert torch.allclose(whole.log_variance, parts.log_variance, atol=1e-4)
    v, t = fields(2, seed=4), torch.tensor([0.3, 0.9])
    _, both = whole.estimate(denoiser, v, t, Evaluations())
    _, second = whole.estimate(denoiser, v[1:], t[1:], Evaluations())
    assert torch.allclose(both(v)[1:], second(v[1:]), atol=1e-5)


@pytest.mark.parametrize("ripple", [0.0, 0.05])
def test_reconstruction_survives_errors_with_steep_derivatives(ripple: float) -> None:
    # The errors hardly show in the estimate (0.05 of a deviation), yet rule its Jacobian (1.5 in each component).
    truth, denoiser = fields(6, seed=7), Stationary(ripple=ripple)
    there = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.4
    operator, std = Mask(there), 0.1
    noise = NoiseSource(2).normal(range(6), tuple(operator(truth).shape[1:]))
    observation = Observation(operator(truth) + std * noise, operator, GaussianNoise(std))
    problem = Problem.from_observation(observation, IdentityMap(), repeat=8)
    covariance = MeasuredCovariance.measured([(fields(200, seed=3), denoiser)])

    def error(solver: HybridSolver) -> float:
        guided = solver.guide(denoiser, problem)
        z = default_sampler(20)(guided, SHAPE, noise=NoiseSource(0), ids=range(48))
        return float((z.reshape(6, 8, *SHAPE).mean(1) - truth).square().mean().sqrt())

    ours = error(HybridSolver.measured(covariance))
    best = _exact_error(truth, observation, there, std)
    assert ours < (1.15 if ripple == 0 else 1.4) * best
    if ripple:
        assert error(HybridSolver()) > 1.5 * ours


def _exact_error(truth: Tensor, observation: Observation, there: Tensor, std: float) -> float:
    """Root mean square error of the exact posterior mean."""
    size = truth[0].numel()
    basis = cosine_transform(torch.eye(size).reshape(size, *SHAPE), inverse=True).reshape(size, size)
    prior = (basis.mT * spectrum(SHAPE).flatten()) @ basis
    seen = there.flatten()
    gain = prior[:, seen] @ torch.linalg.inv(prior[seen][:, seen] + std**2 * torch.eye(int(seen.sum())))
    values = observation.operator.adjoint(observation.values).flatten(1)[:, seen]
    return float((values @ gain.mT - truth.flatten(1)).square().mean().sqrt())


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="decreasing"):
        MeasuredCovariance.measured([(fields(2), Stationary())], ratios=(1.0, 2.0))
    with pytest.raises(DataError, match="no held-out"):
        MeasuredCovariance.measured([])
    with pytest.raises(DataError, match="finite"):
        MeasuredCovariance.measured([(fields(2) * math.nan, Stationary())])
    with pytest.raises(ConfigError, match="2 axes"):
        MeasuredCovariance(1, 3, (4, 4)).variance(torch.zeros(1, dtype=torch.float64), (4,))
