"""A sample's noise is a function of (seed, id, stream) and of nothing else."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

IDS = st.integers(0, 2**64 - 1)
GOLDEN = [-0.4834710458512704, 0.5162019543754629, -0.2508707846733976]


@given(
    seed=st.integers(), ids=st.lists(IDS, min_size=1, max_size=8), stream=st.one_of(st.integers(), st.text())
)
def test_batch_and_order_do_not_matter(seed: int, ids: list[int], stream: int | str) -> None:
    noise = NoiseSource(seed)
    together, uniforms = noise.normal(ids, (3, 2), stream=stream), noise.uniform(ids, (3, 2), stream)
    for row, i in enumerate(ids):
        assert torch.equal(NoiseSource(seed).normal([i], (3, 2), stream=stream)[0], together[row])
        assert torch.equal(NoiseSource(seed).uniform([i], (3, 2), stream)[0], uniforms[row])
    assert torch.equal(noise.normal(ids[::-1], (3, 2), stream=stream).flip(0), together)


def test_batch_of_64_is_bit_identical_to_64_batches_of_one() -> None:
    noise = NoiseSource(11)
    together = noise.normal(range(64), (4, 5))
    assert torch.equal(together, torch.cat([noise.normal([i], (4, 5)) for i in range(64)]))


def test_double_and_single_precision_see_the_same_noise() -> None:
    noise = NoiseSource(0)
    wide = noise.normal(range(4), (100,), dtype=torch.float64)
    assert torch.equal(wide.float(), noise.normal(range(4), (100,)))


def test_everything_in_the_key_matters() -> None:
    draws = [
        NoiseSource(seed).normal([i], (4,), stream=stream)
        for seed in (0, 1, -1)
        for i in (0, 1, 2**63)
        for stream in (0, 1, "0", "1", "step 1")
    ] + [NoiseSource(0).fork(name).normal([0], (4,)) for name in (0, "0", "data")]
    assert len({tuple(draw[0].tolist()) for draw in draws}) == len(draws)
    assert NoiseSource(3).fork("a") == NoiseSource(3).fork("a") != NoiseSource(3).fork("a").fork("a")


def test_numbers_are_normal_and_independent_across_samples_and_streams() -> None:
    noise = NoiseSource(5)
    a, b = (noise.normal(range(200), (500,), stream=s, dtype=torch.float64) for s in ("a", "b"))
    flat = a.flatten()
    quantiles = torch.special.ndtr(flat.sort().values)
    ranks = (torch.arange(len(flat)) + 0.5) / len(flat)
    assert float((quantiles - ranks).abs().max()) < 1.63 / len(flat) ** 0.5  # Kolmogorov-Smirnov at 1 %
    assert abs(float((a * b).mean())) < 3 / len(flat) ** 0.5
    assert abs(float((a[:-1] * a[1:]).mean())) < 3 / len(flat) ** 0.5


def test_uniforms_are_strictly_inside_and_even() -> None:
    u = NoiseSource(5).uniform(range(50), (2000,))
    assert 0 < float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    ranks = (torch.arange(u.numel()) + 0.5) / u.numel()
    assert float((u.flatten().sort().values - ranks).abs().max()) < 1.63 / u.numel() ** 0.5
    assert NoiseSource(5).uniform([4]).shape == (1,)


def test_the_stream_of_numbers_is_pinned() -> None:
    # A golden value: published samples name their seed, so a new numpy must not silently change the noise.
    draw = NoiseSource(2024).normal([7], (3,), stream="start", dtype=torch.float64)[0]
    assert torch.allclose(draw, torch.tensor(GOLDEN, dtype=torch.float64), rtol=0, atol=1e-12)


def test_ids_out_of_range_are_refused() -> None:
    for wrong in (-1, 2**64):
        with pytest.raises(ConfigError, match="sample ids"):
            NoiseSource(0).normal([wrong], (1,))
    assert NoiseSource(0).normal([], (2, 3)).shape == (0, 2, 3)
