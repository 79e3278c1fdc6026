"""Sharpening gives decoded fields their power back, at the error that the formula says, and nothing else."""

import pytest
import torch
from scipy.fft import dctn

from sciLDM.autoencoders.grid import GridAutoencoder, GridFields, GridSettings
from sciLDM.autoencoders.spectral_gain import SpectralGain
from sciLDM.cosine import cosine_transform
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.rng import NoiseSource

NOISE = NoiseSource(5)
SHARP = GridSettings(channels=2, patch=2, factors=(), widths=(6,), blocks=(0,), pca=-1, sharpen=0.9)


def power(x: torch.Tensor) -> torch.Tensor:
    """Mean power of the bands of a box, by another transform."""
    rows, columns = x.shape[-2:]
    c = torch.from_numpy(dctn(x.double().numpy(), axes=(-2, -1), norm="ortho")).square().mean(dim=(0, 1))
    m, n = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    band = (min(rows, columns) * torch.hypot(m, n) + 1e-6).long()
    return torch.bincount(band.flatten(), c.flatten())


@pytest.mark.parametrize("shape", [(9,), (6, 10), (4, 5, 6)])
def test_the_transform_is_orthogonal_and_gains_of_one_do_nothing(shape: tuple[int, ...]) -> None:
    gain = SpectralGain(2, shape, 0.9)
    x = NOISE.normal(range(3), (2, *shape))
    axes = tuple(range(2, 2 + len(shape)))
    expected = torch.from_numpy(dctn(x.numpy(), axes=axes, norm="ortho"))
    torch.testing.assert_close(cosine_transform(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gain(x), x)
    gain.gain.fill_(1.5)
    torch.testing.assert_close(gain(x), 1.5 * x)


def test_power_comes_back_and_the_error_is_what_the_formula_says() -> None:
    shape, explained = (8, 12), 0.4
    known, rest = (NOISE.normal(range(6000), (1, *shape), stream=s) for s in ("known", "rest"))
    truth, made = explained**0.5 * known + (1 - explained) ** 0.5 * rest, explained**0.5 * known
    gain = SpectralGain(1, shape, 0.9)
    gain.fit(zip(truth.split(1000), made.split(1000), strict=True))
    found = gain(made)
    ratio = power(found) / power(truth)
    resolved = slice(1, 5)  # up to 0.7 x 7 half waves
    torch.testing.assert_close(ratio[resolved], torch.full((4,), 0.9).double(), atol=0.01, rtol=0)
    error = (power(found - truth) / power(truth))[resolved]
    expected = 1 - explained + (0.9**0.5 - explained**0.5) ** 2
    assert torch.allclose(error, torch.full_like(error, expected), atol=0.03)
    # The mean, waves that are not resolved, and what has its power already, stay.
    torch.testing.assert_close(power(found)[5:], power(made)[5:], rtol=1e-4, atol=0)
    assert float(power(found)[0]) == pytest.approx(float(power(made)[0]), rel=1e-4)
    again = SpectralGain(1, shape, 0.9)
    again.fit([(truth, truth)])
    assert torch.equal(again.gain, torch.ones_like(again.gain))


def data() -> GridFields:
    x = NOISE.normal(range(300), (1, 10, 12), stream="fields")
    return GridFields(280 + 20 * (x + 2 * x.mean(dim=(2, 3), keepdim=True)), torch.ones(300, 1, 10, 12))


def test_an_autoencoder_is_sharpened_after_its_training_alone() -> None:
    fields = data()
    plain, sharp = (
        GridAutoencoder(
            1, (10, 12), GridSettings(channels=2, patch=2, factors=(), widths=(6,), blocks=(0,), pca=-1)
        ),
        GridAutoencoder(1, (10, 12), SHARP),
    )
    for autoencoder in (plain, sharp):
        autoencoder.prepare([fields])
        autoencoder.finish([fields])
    sharp.finish([fields])  # again, with the same result
    sharp.load_state_dict({**sharp.state_dict(), **plain.state_dict()})
    z = plain.eval().code(fields)[0]
    torch.testing.assert_close(sharp.eval().code(fields)[0], z)
    before, after = plain.decode(z).detach(), sharp.decode(z).detach()
    ratio = [(power(x - 280) / power(fields.values - 280))[1:7] for x in (before, after)]
    assert float(ratio[0].min()) < 0.8
    assert float(ratio[1].min()) > 0.88
    assert float((after - fields.values).square().mean()) < 1.2 * float(
        (before - fields.values).square().mean()
    )
    torch.testing.assert_close(sharp.train().decode(z), before)


def test_estimates_are_decoded_without_sharpening() -> None:
    fields = data()
    sharp = GridAutoencoder(1, (10, 12), SHARP)
    sharp.prepare([fields])
    sharp.finish([fields])
    plain = sharp.eval().estimator()
    z = sharp.code(fields)[0].detach()
    assert all(a is b for a, b in zip(plain.parameters(), sharp.parameters(), strict=True))
    errors = [float((a.decode(z).detach() - fields.values).square().mean()) for a in (plain, sharp)]
    assert errors[0] < 0.99 * errors[1]
    assert sharp.sharpen is not None
    without = GridAutoencoder(1, (10, 12), GridSettings(channels=2, widths=(6, 8), blocks=(0, 0)))
    assert without.estimator() is without


def test_what_cannot_be_sharpened_is_refused() -> None:
    with pytest.raises(ConfigError, match="sharpen needs complete fields"):
        GridAutoencoder(1, (10, 12), SHARP, masked=True)
    with pytest.raises(ConfigError, match="sharpen needs complete fields"):
        GridAutoencoder(1, (10, 12), SHARP, edges=("zeros", "circular"))
    with pytest.raises(ConfigError, match=r"autoencoder.sharpen must be in \[0, 1\]"):
        GridSettings(sharpen=1.5)
    bound = GridAutoencoder(1, (10, 12), GridSettings(channels=2, widths=(6, 8), blocks=(0, 0), sharpen=0.9))
    with pytest.raises(ShapeMismatch, match="sharpening is bound to its grid"):
        bound.decode_to(torch.zeros(1, 2, 4, 4), (16, 16))
