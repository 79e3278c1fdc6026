"""The oracles themselves: Tweedie's formula ties the denoiser to the density it claims to come from."""

import pytest
import torch
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.oracles import GaussianDenoiser, MixtureDenoiser
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule, EDMSchedule, Schedule, VPSchedule

F64 = torch.float64
MEAN = torch.tensor([0.5, -1.0], dtype=F64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.4]], dtype=F64)
WEIGHTS, STDS = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([0.2, 0.35], dtype=F64)
MEANS = torch.tensor([[-1.2, 0.4], [0.6, -0.3]], dtype=F64)


def tweedie(log_prob: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    (score,) = torch.autograd.grad(log_prob.sum(), x_t)
    return (x_t + sigma**2 * score) / alpha


@pytest.mark.parametrize(
    "schedule", [VPSchedule(), CosineSchedule(), EDMSchedule()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
def test_denoisers_are_tweedie_of_their_own_noisy_density(schedule: Schedule, time: float) -> None:
    t = torch.full((8,), time, dtype=F64)
    alpha, sigma = (scale[0] for scale in schedule(t))
    x_t = NoiseSource(0).normal(range(8), (2,), dtype=F64).mul(torch.hypot(alpha, sigma)).requires_grad_()

    noisy = torch.distributions.MultivariateNormal(
        alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * torch.eye(2)
    )
    expected = tweedie(noisy.log_prob(x_t), x_t, alpha, sigma)
    assert torch.allclose(GaussianDenoiser(MEAN, COVARIANCE, schedule)(x_t, t), expected, atol=1e-8)

    scale = (alpha**2 * STDS**2 + sigma**2).sqrt()[:, None].expand(2, 2)
    parts = torch.distributions.Independent(torch.distributions.Normal(alpha * MEANS, scale), 1)
    family = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(WEIGHTS), parts)
    expected = tweedie(family.log_prob(x_t), x_t, alpha, sigma)
    assert torch.allclose(MixtureDenoiser(WEIGHTS, MEANS, STDS, schedule)(x_t, t), expected, atol=1e-8)


def test_densities_samples_and_moments_agree() -> None:
    ids = list(range(4000))
    gaussian = GaussianDenoiser(MEAN, COVARIANCE, CosineSchedule())
    mixture = MixtureDenoiser(WEIGHTS, MEANS, STDS, CosineSchedule())
    for oracle, mean, covariance in [(gaussian, MEAN, COVARIANCE), (mixture, *mixture.moments())]:
        x = oracle.sample(NoiseSource(0), ids)
        assert torch.allclose(x.mean(0), mean, atol=0.06)
        assert torch.allclose(x.T.cov(), covariance, atol=0.08)
    reference = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
    x = gaussian.sample(NoiseSource(0), ids[:10])
    assert torch.allclose(gaussian.log_prob(x), reference.log_prob(x))


def test_finite_at_both_ends_and_for_any_latent_shape() -> None:
    schedule, x = CosineSchedule(), torch.randn(2, 1, 2, dtype=F64)
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    for oracle, mean in [
        (GaussianDenoiser(MEAN, COVARIANCE, schedule), MEAN),
        (MixtureDenoiser(WEIGHTS, MEANS, STDS, schedule), WEIGHTS @ MEANS),
    ]:
        x0 = oracle(x, ends)
        assert torch.allclose(x0[0], x[0])  # no noise: the state itself
        assert torch.allclose(x0[1, 0], mean)  # pure noise: the prior's mean


def test_degenerate_distributions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive definite"):
        GaussianDenoiser(MEAN, torch.zeros(2, 2), VPSchedule())
    with pytest.raises(ConfigError, match="positive"):
        MixtureDenoiser(WEIGHTS, MEANS, 0 * STDS, VPSchedule())
