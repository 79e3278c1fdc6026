"""Bottlenecks against torch.distributions, latent statistics against two-pass moments, defaults of the base class."""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from sciLDM.autoencoders import Autoencoder, Bottleneck, KLBottleneck, Latent, LatentStats, NoiseBottleneck
from sciLDM.errors import DataError, ShapeMismatch

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- KL -------------------------------------------------------------------------------------------------------


@given(shape=shapes, weight=st.floats(1e-6, 2.0), masked=st.booleans())
def test_the_penalty_is_the_divergence_from_a_unit_normal(
    shape: list[int], weight: float, masked: bool
) -> None:
    mean, log_std = torch.randn(3, 2, *shape), torch.randn(3, 2, *shape)
    mask = torch.rand(3, *shape) > 0.5 if masked else None
    _, penalty = KLBottleneck(weight)(mean, log_std, mask, seeded())
    cells = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0))
    if mask is not None:
        cells = cells * mask[:, None]
    assert penalty is not None
    torch.testing.assert_close(penalty, weight * cells.flatten(1).sum(dim=1), rtol=1e-4, atol=1e-6)


def test_samples_of_the_bottleneck_follow_its_distribution() -> None:
    mean, log_std = torch.tensor([[[1.5]], [[-2.0]]]), torch.tensor([[[-1.0]], [[0.5]]])
    many = [tensor.expand(2, 1, 20000).contiguous() for tensor in (mean, log_std)]
    z, _ = KLBottleneck()(*many, None, seeded())
    torch.testing.assert_close(z.mean(dim=(1, 2)), mean.flatten(), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(dim=(1, 2)), log_std.flatten().exp(), atol=0.05, rtol=0)


def test_the_code_is_the_mean_and_noise_comes_from_the_generator_alone() -> None:
    mean, log_std = torch.randn(2, 3, 4), torch.zeros(2, 3, 4)
    bottleneck = KLBottleneck()
    assert torch.equal(bottleneck.code(mean), mean)
    first, second = (bottleneck(mean, log_std, None, seeded(3))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, bottleneck(mean, log_std, None, seeded(4))[0])


@pytest.mark.parametrize("log_std", [-1e6, 1e6])
def test_a_wild_log_std_stays_finite(log_std: float) -> None:
    z, penalty = KLBottleneck()(torch.zeros(2, 1, 3), torch.full((2, 1, 3), log_std), None, seeded())
    assert penalty is not None
    assert z.isfinite().all()
    assert penalty.isfinite().all()


def test_a_deterministic_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an encoder that returns log_std"):
        KLBottleneck()(torch.zeros(2, 1, 3), None, None, seeded())


# --- noise ----------------------------------------------------------------------------------------------------


@given(bound=st.floats(0.1, 10.0), size=st.floats(0.0, 1e6))
def test_the_code_is_bounded_odd_and_monotone(bound: float, size: float) -> None:
    bottleneck = NoiseBottleneck(bound=bound)
    mean = size * torch.linspace(-1.0, 1.0, 9).reshape(1, 1, 9)
    code = bottleneck.code(mean)
    assert code.abs().max() <= bound * (1 + 1e-6)
    assert (code.diff() >= 0).all()
    torch.testing.assert_close(code, -code.flip(-1))


def test_small_means_pass_the_bound_unchanged() -> None:
    mean = 1e-3 * torch.randn(2, 3, 4)
    torch.testing.assert_close(NoiseBottleneck(bound=2.0).code(mean), mean, atol=0, rtol=1e-5)


def test_the_noise_has_one_level_a_sample_uniform_up_to_the_largest() -> None:
    mean = torch.zeros(2000, 1, 200)
    z, penalty = NoiseBottleneck(0.4)(mean, None, None, seeded())
    levels = z.std(dim=(1, 2))
    assert penalty is None
    assert levels.max() < 0.4 * 1.2
    quarters = torch.quantile(levels, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quarters, torch.tensor([0.1, 0.2, 0.3]), atol=0.02, rtol=0)
    assert torch.equal(NoiseBottleneck(0.0)(mean, None, None, seeded())[0], mean)


# --- statistics -----------------------------------------------------------------------------------------------


@given(
    channels=st.integers(1, 3),
    shape=shapes,
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    offset=st.floats(-50.0, 50.0),
    scale=st.floats(0.1, 20.0),
    masked=st.booleans(),
)
def test_fitted_latents_have_mean_zero_and_variance_one(
    channels: int, shape: list[int], sizes: list[int], offset: float, scale: float, masked: bool
) -> None:
    """However the data are cut into batches; cells outside the mask do not count."""
    z = offset + scale * torch.randn(sum(sizes), channels, *shape)
    mask = (
        torch.rand(sum(sizes), *shape) > 0.4 if masked else torch.ones(sum(sizes), *shape, dtype=torch.bool)
    )
    mask.view(-1)[:2] = True
    z = torch.where(mask[:, None], z, torch.full_like(z, 1e6))
    masks = mask.split(sizes) if masked else [None] * len(sizes)
    stats = LatentStats(channels).fit(zip(z.split(sizes), masks, strict=True))
    cells = z.movedim(1, -1)[mask].double()
    torch.testing.assert_close(stats.mean.double(), cells.mean(dim=0), atol=1e-4, rtol=1e-5)
    variance = cells.var(dim=0, correction=0).clamp_min(1e-4)
    torch.testing.assert_close(stats.std.double(), variance.sqrt(), atol=1e-5, rtol=1e-4)
    unit = stats.normalise_masked(z, mask)
    assert unit.movedim(1, -1)[~mask].abs().sum() == 0
    torch.testing.assert_close(
        unit.movedim(1, -1)[mask].mean(dim=0), torch.zeros(channels), atol=2e-3, rtol=0
    )


@given(channels=st.integers(1, 3), shape=shapes, offset=st.floats(-50.0, 50.0), scale=st.floats(0.1, 20.0))
def test_denormalise_inverts_normalise(channels: int, shape: list[int], offset: float, scale: float) -> None:
    stats = LatentStats(channels)
    stats.mean.copy_(offset * torch.randn(channels))
    stats.std.copy_(scale * (0.5 + torch.rand(channels)))
    z = 10 * torch.randn(4, channels, *shape)
    torch.testing.assert_close(stats.denormalise(stats.normalise(z)), z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stats.normalise(stats.denormalise(z)), z, atol=1e-3, rtol=1e-3)
    assert torch.equal(stats.normalise_masked(z, None), stats.normalise(z))


def test_a_dead_channel_is_not_blown_up() -> None:
    z = torch.randn(50, 2, 4)
    z[:, 1] = 3.0 + 1e-6 * torch.randn(50, 4)
    unit = LatentStats(2).fit([(z, None)]).normalise(z)
    assert unit[:, 0].std() == pytest.approx(1.0, abs=0.01)
    assert unit[:, 1].abs().max() < 1e-2


def test_a_channel_far_from_zero_keeps_its_variance() -> None:
    """Two moments in float64: what one pass in float32 would lose."""
    z = (1e4 + torch.randn(4000, 1, 1).double()).float()
    stats = LatentStats(1).fit([(z, None)])
    assert stats.std.item() == pytest.approx(z.double().std().item(), rel=1e-3)


def test_statistics_travel_with_the_weights() -> None:
    stats = LatentStats(2).fit([(torch.randn(9, 2, 3), None)])
    other = LatentStats(2)
    other.load_state_dict(stats.state_dict())
    assert torch.equal(other.mean, stats.mean)
    assert torch.equal(other.std, stats.std)
    assert not list(stats.parameters())


def test_statistics_refuse_what_cannot_be_fitted() -> None:
    empty = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(DataError, match="0 cells"):
        LatentStats(2).fit([])
    with pytest.raises(DataError, match="0 cells"):
        LatentStats(2).fit([(torch.randn(2, 2, 3), empty)])
    with pytest.raises(DataError, match="finite=False"):
        LatentStats(2).fit([(torch.full((2, 2, 3), float("nan")), None)])
    with pytest.raises(ShapeMismatch, match="latent has 3 channels, these statistics have 2"):
        LatentStats(2).normalise(torch.randn(2, 3, 4))
    with pytest.raises(ShapeMismatch, match="3 channels"):
        LatentStats(2).denormalise(torch.randn(2, 3, 4))


# --- base class -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Toy:
    x: Tensor
    mask: Tensor | None


class _Linear(Autoencoder[_Toy, Tensor]):
    latent_channels = 2

    def __init__(self, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.encoder, self.decoder = nn.Conv1d(1, 2, 1), nn.Conv1d(2, 1, 1)

    def encode(self, fields: _Toy) -> Latent:
        mean = self.encoder(fields.x)
        return Latent(mean, torch.full_like(mean, -3.0), fields.mask)

    def decode(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return self.decoder(z)

    def reconstruction_loss(self, fields: _Toy, decoded: Tensor) -> dict[str, Tensor]:
        return {"square": (decoded - fields.x).square().flatten(1).sum(dim=1)}


@pytest.mark.parametrize("masked", [False, True])
def test_the_code_goes_through_the_bottleneck_and_is_zero_outside_the_mask(masked: bool) -> None:
    x, mask = 5 * torch.randn(3, 1, 4), torch.rand(3, 4) > 0.5
    model = _Linear(NoiseBottleneck(bound=0.5))
    z, got = model.code(_Toy(x, mask if masked else None))
    expected = 0.5 * torch.tanh(model.encoder(x) / 0.5)
    assert (got is mask) == masked
    torch.testing.assert_close(z, expected * mask[:, None] if masked else expected)


def test_the_loss_is_reconstruction_plus_the_bottlenecks_own_penalty() -> None:
    fields = _Toy(torch.randn(3, 1, 4), None)
    plain = _Linear(NoiseBottleneck(0.0)).loss(fields, seeded())
    assert set(plain) == {"square"}
    model = _Linear(KLBottleneck(0.5))
    terms = model.loss(fields, seeded(1))
    latent = model.encode(fields)
    z, penalty = model.bottleneck(latent.mean, latent.log_std, None, seeded(1))
    assert set(terms) == {"square", "bottleneck"}
    torch.testing.assert_close(terms["bottleneck"], penalty)
    torch.testing.assert_close(
        terms["square"], (model.decode(z, None) - fields.x).square().flatten(1).sum(dim=1)
    )
