"""Samples in pairs of opposite noise: each is a posterior sample, and their mean is the posterior's sooner."""

import pytest
import torch

from sciLDM.errors import ConfigError
from sciLDM.guidance.posterior import IdentityMap, Problem
from sciLDM.operators import Identity
from sciLDM.posterior._totals import Totals
from sciLDM.posterior.reconstruct import Settings
from sciLDM.rng import NoiseSource


def test_odd_identifiers_turn_the_noise_of_the_even_ones_before_them() -> None:
    plain, paired = NoiseSource(3), NoiseSource(3, paired=True)
    ids = [4, 5, 9, 8]
    found = paired.normal(ids, (2, 3), stream="x")
    even = plain.normal([4, 8], (2, 3), stream="x")
    assert torch.equal(found, torch.stack([even[0], -even[0], -even[1], even[1]]))
    assert torch.equal(paired.uniform(ids, (2,)), plain.uniform(ids, (2,)))
    assert paired.fork("a").paired
    assert paired.fork("a").seed == plain.fork("a").seed


@pytest.mark.parametrize("paired", [True, False])
def test_the_spread_is_unbiased_with_pairs_and_without(paired: bool) -> None:
    count, size = 4, 20_000
    samples = NoiseSource(0, paired=paired).normal(range(count), (1, size))
    totals = Totals(1, count, paired=paired)
    totals.perturbed, totals.plain = samples[None], samples.mean(dim=0, keepdim=True)
    totals.evaluations.append({"denoiser": 1})
    operator = Identity((1, size))
    problem = Problem(IdentityMap(), operator, torch.zeros(1, 1, size), torch.ones(1, 1, size))
    found = totals.posterior(problem, operator, None)
    assert float(found.std.square().mean()) == pytest.approx(1.0, rel=0.03)
    assert float(found.mean.abs().max()) < 1e-6 if paired else float(found.mean.std()) > 0.4


def test_pairs_need_even_numbers() -> None:
    with pytest.raises(ConfigError, match="even number"):
        Settings(samples=5, paired=True)
