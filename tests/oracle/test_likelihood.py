"""Log-likelihoods against exact densities."""

import pytest
import torch

from sciLDM.errors import ConfigError
from sciLDM.oracles import GaussianDenoiser, MixtureDenoiser
from sciLDM.rng import NoiseSource
from sciLDM.samplers import log_likelihood
from sciLDM.schedules import CosineSchedule, EDMSchedule, RectifiedSchedule, Schedule, VESchedule, VPSchedule

F64 = torch.float64
SCHEDULES = [VPSchedule(), CosineSchedule(), RectifiedSchedule(), EDMSchedule(), VESchedule()]


def gaussian(schedule: Schedule) -> GaussianDenoiser:
    covariance = torch.tensor([[1.2, 0.5], [0.5, 0.4]], dtype=F64)
    return GaussianDenoiser(torch.tensor([0.5, -1.0], dtype=F64), covariance, schedule)


def mixture(schedule: Schedule) -> MixtureDenoiser:
    means = torch.tensor([[-1.2, 0.4], [0.6, -0.3]])
    return MixtureDenoiser(torch.tensor([0.3, 0.7]), means, torch.tensor([0.2, 0.35]), schedule)


@pytest.mark.parametrize("build", [gaussian, mixture])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_exact_to_a_thousandth_of_a_nat(
    schedule: Schedule, build: type[GaussianDenoiser | MixtureDenoiser]
) -> None:
    denoiser = build(schedule)
    x = denoiser.sample(NoiseSource(2), list(range(24)))
    error = (log_likelihood(denoiser, x) - denoiser.log_prob(x)).abs()
    assert float(error.max()) < 1e-3 * 2  # two dimensions


def test_float32_is_enough() -> None:
    denoiser = gaussian(CosineSchedule())
    x = denoiser.sample(NoiseSource(2), list(range(8)))
    assert torch.allclose(
        log_likelihood(denoiser, x.float()).double(), denoiser.log_prob(x), rtol=0, atol=2e-3
    )


def test_hutchinson_is_unbiased_and_per_sample() -> None:
    denoiser, ids = gaussian(RectifiedSchedule()), list(range(16))
    x = denoiser.sample(NoiseSource(2), ids)
    estimate = log_likelihood(denoiser, x, steps=24, probes=24, noise=NoiseSource(1), ids=ids)
    # The trace's off-diagonal part is what probes add as noise; at 24 probes it averages to some tenths of a nat.
    assert float((estimate - denoiser.log_prob(x)).mean().abs()) < 0.1
    assert float((estimate - denoiser.log_prob(x)).abs().max()) < 0.8
    alone = log_likelihood(denoiser, x[5:6], steps=24, probes=24, noise=NoiseSource(1), ids=[5])
    assert torch.allclose(alone, estimate[5:6], atol=1e-10)


def test_probes_need_a_source() -> None:
    with pytest.raises(ConfigError, match="noise and ids"):
        log_likelihood(gaussian(CosineSchedule()), torch.zeros(1, 2, dtype=F64), probes=3)
