"""Variance of the autoencoder's error: what is fitted is what was put in, and `C` is one covariance throughout."""

import pytest
import torch
from torch import Tensor

from sciLDM.errors import DataError, ShapeMismatch
from sciLDM.posterior.error_model import AutoencoderError, ErrorCovariance, squared_gradient
from sciLDM.rng import NoiseSource
from tests.posterior.linear import Exact

NOISE = NoiseSource(0)


def fields(count: int, *shape: int, stream: str = "fields") -> Tensor:
    """Smooth random fields, so that some places are flat and others steep."""
    x = NOISE.normal(range(count), shape, stream=stream)
    for axis in range(2, x.ndim):
        x = (x + x.roll(1, axis) + x.roll(2, axis)) / 3**0.5
    return x


def fitted(a: Tensor, b: Tensor, *, batches: int = 4) -> tuple[AutoencoderError, list[tuple[Tensor, Tensor]]]:
    pairs = []
    for k in range(batches):
        decoded = fields(16, 2, 16, 20, stream=f"fields {k}")
        variance = a.view(1, 2, 1, 1) + b.view(1, 2, 1, 1) * squared_gradient(decoded)
        noise = NOISE.normal(range(16), (2, 16, 20), stream=f"errors {k}")
        pairs.append((decoded + variance.sqrt() * noise, decoded))
    return AutoencoderError.fitted(pairs), pairs


def test_floor_and_slope_of_each_channel_are_recovered() -> None:
    a, b = torch.tensor([0.01, 0.5]), torch.tensor([0.3, 0.02])
    error, pairs = fitted(a, b)
    assert torch.allclose(error.floor, a, rtol=0.05, atol=0.002)
    assert torch.allclose(error.slope, b, rtol=0.05, atol=0.005)
    square = torch.cat([(x - d).square() for x, d in pairs])
    assert torch.allclose(error.typical, square.mean((0, 2, 3)), rtol=1e-5)
    variance = torch.cat([error.variance(d) for _, d in pairs])
    assert (square / variance).mean() == pytest.approx(1.0, abs=0.02)  # whitened errors have unit variance


def test_both_stay_non_negative() -> None:
    """Errors that sit where the field is flat have no place in the model: a constant is all that is left."""
    decoded = fields(32, 1, 24, 24)
    variance = 1 / (1 + 20 * squared_gradient(decoded))
    truth = decoded + variance.sqrt() * NOISE.normal(range(32), (1, 24, 24), stream="errors")
    error = AutoencoderError.fitted([(truth, decoded)])
    assert float(error.slope) == 0
    assert float(error.floor) == pytest.approx(float((truth - decoded).square().mean()), rel=1e-4)


def test_a_lossless_autoencoder_has_no_error() -> None:
    decoded = fields(4, 1, 8)
    error = AutoencoderError.fitted([(decoded, decoded)])
    assert float(error.variance(decoded).max()) == 0
    assert torch.isfinite(error.prior).all()


def test_unknown_truth_is_left_out() -> None:
    decoded = fields(64, 1, 30)
    truth = decoded + 0.5 * NOISE.normal(range(64), (1, 30), stream="errors")
    gaps = NOISE.uniform(range(64), (1, 30), "gaps") < 0.3
    spoilt = torch.where(gaps, torch.nan, truth)
    whole, partial = AutoencoderError.fitted([(truth, decoded)]), AutoencoderError.fitted([(spoilt, decoded)])
    assert float(partial.typical) == pytest.approx(float(whole.typical), rel=0.05)
    assert torch.allclose(partial.prior, whole.prior, rtol=0.7)
    with pytest.raises(DataError, match="no held-out value is known"):
        AutoencoderError.fitted([(torch.full_like(truth, torch.nan), decoded)])


def test_prior_variance_is_that_of_the_data_on_any_grid() -> None:
    width = torch.linspace(0.1, 2.0, 70)
    truth = width * NOISE.normal(range(400), (1, 70))
    error = AutoencoderError.fitted([(truth[:200], truth[:200]), (truth[200:], truth[200:])])
    assert tuple(error.prior.shape) == (1, 32)
    got = error.prior_variance(truth[:1])
    assert torch.allclose(got[0, 0], width.square(), rtol=0.3, atol=0.03)
    assert float(got.mean()) == pytest.approx(float(truth.var(dim=0).mean()), rel=0.02)


@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_gradient_of_a_ramp(slope: float) -> None:
    place = torch.arange(9.0)
    ramp = (slope * place[:, None] + 2 * slope * place).view(1, 1, 9, 9)
    assert torch.allclose(squared_gradient(ramp), torch.full_like(ramp, 5 * slope**2), atol=1e-5)
    assert float(squared_gradient(torch.ones(1, 1, 1, 4)).max()) == 0


def test_smoothness_of_errors_is_measured_and_given_back() -> None:
    decoded = torch.zeros(32, 1, 24, 24)
    made = ErrorCovariance(torch.full_like(decoded, 0.3), torch.tensor([0.9, 0.0]))
    truth = made.draw(NOISE.normal(range(32), (1, 24, 24)))
    error = AutoencoderError.fitted([(truth, decoded)])
    assert float(error.reach[0]) == pytest.approx(0.9, abs=0.05)
    assert float(error.reach[1]) == 0
    assert float(truth.var()) == pytest.approx(
        0.09, rel=0.03
    )  # smoothing keeps the variance, also at the borders
    assert float(truth[:, :, 0].var()) == pytest.approx(0.09, rel=0.15)


@pytest.mark.parametrize("reach", [None, torch.tensor([0.0, 1.3])])
def test_product_and_draw_belong_to_one_covariance(reach: Tensor | None) -> None:
    std = NOISE.uniform([0], (2, 3, 4))
    covariance = ErrorCovariance(std.expand(24, 2, 3, 4), reach)
    unit = torch.eye(24).reshape(24, 2, 3, 4)
    product, root = covariance(unit).flatten(1), covariance.draw(unit).flatten(1).mT
    assert torch.allclose(product, root @ root.mT, atol=1e-6)
    assert torch.allclose(product.diagonal(), std.flatten().square(), atol=1e-6)


def test_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ShapeMismatch, match="target"):
        AutoencoderError.fitted([(torch.zeros(2, 1, 4), torch.zeros(2, 1, 5))])
    with pytest.raises(ShapeMismatch, match="several shapes"):
        AutoencoderError.fitted([(torch.zeros(2, 1, n), torch.zeros(2, 1, n)) for n in (4, 5)])
    with pytest.raises(ShapeMismatch, match="has 1 channels, the field 2"):
        AutoencoderError(1, (4,)).variance(torch.zeros(1, 2, 4))
    with pytest.raises(DataError, match="no held-out fields"):
        AutoencoderError.fitted([])


def test_the_latent_map_is_the_models_and_knows_its_slope() -> None:
    from sciLDM.posterior.latent_map import LatentMap

    exact = Exact()
    scales = torch.tensor([2.0, 0.5])
    data = LatentMap(exact.autoencoder, exact.stats, exact.codec, context={"scale": scales})
    z = NOISE.normal([0, 1], (2, 3))
    x = data.decode(z)
    assert torch.allclose(data.encode(x), z, atol=1e-5)
    assert torch.allclose(data.slope(data.decoded(z)), scales.view(2, 1, 1).expand_as(x))
    step = 1e-3 * torch.ones_like(x)
    change = data.units(data.decoded(z) + step) - data.units(data.decoded(z) - step)
    assert torch.allclose(change / 2e-3, data.slope(data.decoded(z)), rtol=1e-3)
