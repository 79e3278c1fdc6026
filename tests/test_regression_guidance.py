"""Guidance by a regression: exact on Gaussians, where `p(c | x_t)` is known."""

import pytest
import torch
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.guidance import RegressionGuidance
from sciLDM.oracles import GaussianDenoiser
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DPMSolverPP2M
from sciLDM.schedules import CosineSchedule, EDMSchedule, Schedule

F64 = torch.float64
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
COVARIANCE = torch.tensor([[1.0, 0.4, 0.1], [0.4, 0.8, -0.2], [0.1, -0.2, 0.6]], dtype=F64)
WEIGHTS = torch.tensor([1.0, -0.5, 2.0], dtype=F64)
ERROR = 0.3
"""Standard deviation of `c` given the clean latent: `c = w x + ERROR eps`."""


def free(schedule: Schedule) -> GaussianDenoiser:
    return GaussianDenoiser(MEAN, COVARIANCE, schedule)


def given(value: float, schedule: Schedule) -> GaussianDenoiser:
    """The exact denoiser of `x | c = value`."""
    pattern = COVARIANCE @ WEIGHTS
    gain = pattern / (WEIGHTS @ pattern + ERROR**2)
    return GaussianDenoiser(
        MEAN + gain * (value - WEIGHTS @ MEAN), COVARIANCE - torch.outer(gain, pattern), schedule
    )


class Regression:
    """The exact `log p(c | x_t)`, up to a constant."""

    def __init__(self, value: float, schedule: Schedule) -> None:
        self.value, self.schedule, self.calls = value, schedule, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        alpha, sigma = (c[:, None, None] for c in self.schedule(t))
        noisy = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=F64)
        left = COVARIANCE - alpha**2 * COVARIANCE @ torch.linalg.solve(noisy, COVARIANCE.expand_as(noisy))
        variance = torch.einsum("i,bij,j->b", WEIGHTS, left, WEIGHTS) + ERROR**2
        mean = free(self.schedule)(x_t, t) @ WEIGHTS
        return -0.5 * (self.value - mean) ** 2 / variance


@pytest.mark.parametrize("schedule", [CosineSchedule(), EDMSchedule()], ids=["cosine", "edm"])
def test_bayes_rule_is_exact_at_every_noise_level(schedule: Schedule) -> None:
    x_t = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=F64)
    guided = RegressionGuidance(free(schedule), Regression(1.4, schedule), rate=1e9)
    assert torch.allclose(guided(x_t, t), given(1.4, schedule)(x_t, t), atol=1e-9)


def test_samples_have_the_conditional_mean() -> None:
    schedule, noise, ids = CosineSchedule(), NoiseSource(0), range(4)
    sampler = DPMSolverPP2M(steps=20)
    guided = RegressionGuidance(free(schedule), Regression(1.4, schedule), rate=1e9)
    made, exact = (sampler(d, (3,), noise=noise, ids=ids, dtype=F64) for d in (guided, given(1.4, schedule)))
    # Not exact at the first call alone: at t = 1, where alpha = 0, the gradient is 0 and its factor infinite.
    assert torch.allclose(made, exact, atol=2e-3)
    twice = RegressionGuidance(free(schedule), Regression(1.4, schedule), scale=2.0, rate=1e9)
    further = sampler(twice, (3,), noise=noise, ids=ids, dtype=F64) @ WEIGHTS
    assert ((further - 1.4).abs().mean() < (made @ WEIGHTS - 1.4).abs().mean()).item()


def test_a_move_is_no_longer_than_the_rate() -> None:
    schedule = CosineSchedule()
    x_t, t = torch.zeros(2, 3, dtype=F64), torch.tensor([0.2, 0.6], dtype=F64)
    move = RegressionGuidance(free(schedule), Regression(1e6, schedule), rate=0.25)(x_t, t) - free(schedule)(
        x_t, t
    )
    alpha, sigma = schedule(t)
    expected = 0.25 * sigma / torch.hypot(alpha, sigma) * 3**0.5
    assert torch.allclose(move.norm(dim=1), expected)


def test_it_costs_nothing_where_it_does_not_act() -> None:
    schedule = CosineSchedule()
    plain: Denoiser = free(schedule)
    x_t, t = torch.ones(2, 3, dtype=F64), torch.tensor([0.2, 0.6], dtype=F64)
    regression = Regression(1.4, schedule)
    assert torch.equal(RegressionGuidance(plain, regression, scale=0.0)(x_t, t), plain(x_t, t))
    late = RegressionGuidance(plain, regression, interval=(0.7, 0.9))
    assert torch.equal(late(x_t, t), plain(x_t, t))
    assert regression.calls == 0
    some = RegressionGuidance(plain, regression, interval=(0.0, 0.4))(x_t, t)
    assert torch.equal(some[1], plain(x_t, t)[1])
    assert not torch.equal(some[0], plain(x_t, t)[0])
    with pytest.raises(ConfigError, match="scale of at least 0"):
        RegressionGuidance(plain, regression, rate=0.0)
