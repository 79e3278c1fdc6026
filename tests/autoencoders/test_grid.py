"""The grid autoencoder: tiles equal the whole, training starts at PCA's quality, gaps have no influence."""

import pytest
import torch

from sciLDM.autoencoders.bottleneck import SaturatingBottleneck
from sciLDM.autoencoders.grid import GridAutoencoder, GridFields, GridSettings
from sciLDM.autoencoders.grid_tiles import tiled_decode, tiled_encode
from sciLDM.errors import ConfigError, DataError, ShapeMismatch

SMALL = GridSettings(channels=3, widths=(6, 8), blocks=(1, 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(*shape: int, seed: int = 0, gaps: float = 0.0) -> GridFields:
    """Smooth fields in units of their own, with random gaps."""
    x = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    for dim in range(2, x.ndim):
        for _ in range(3):
            x = (x + x.roll(1, dim) + x.roll(-1, dim)) / 3
    weight = (torch.rand(shape[0], 1, *shape[2:], generator=generator(seed + 1)) >= gaps).double()
    return GridFields(280.0 + 30.0 * x, weight if gaps else None)


def jolted(autoencoder: GridAutoencoder) -> GridAutoencoder:
    """Weights that start at zero would hide errors."""
    for parameter in autoencoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(7))
    return autoencoder.double()


# --- tiles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "edges", "settings"),
    [
        ((41,), "replicate", SMALL),
        ((30, 23), "zeros", GridSettings(channels=2, patch=1, factors=((1, 2), 2), widths=(3, 4, 5), blocks=(1, 0, 1))),
        ((26, 24), ("pole", "circular"), GridSettings(channels=2, widths=(6, 8), blocks=(1, 1), block_pca=True)),
        ((18, 21, 23), "zeros", GridSettings(factors=((1, 2, 2),), widths=(4, 6), blocks=(1, 1), kl_weight=1e-4)),
        ((5, 14, 16), ("replicate", "pole", "circular"), SMALL),
        ((20, 18), "replicate", GridSettings(channels=2, widths=(4, 6), blocks=(1, 1), pca=-1)),
    ],
)  # fmt: skip
def test_tiles_equal_the_whole(shape: tuple, edges: object, settings: GridSettings) -> None:
    data = fields(3, 2, *shape, gaps=0.1)
    data = data._replace(static=torch.randn(2, *shape, generator=generator()).double())
    autoencoder = GridAutoencoder(2, shape, settings, edges=edges, masked=True, static_channels=2).double()  # type: ignore[arg-type]
    autoencoder.prepare([data])
    jolted(autoencoder)
    whole, tiled = autoencoder.encode(data), tiled_encode(autoencoder, data, tile=4)
    torch.testing.assert_close(tiled.mean, whole.mean, rtol=0, atol=1e-10)
    if whole.log_std is not None:
        torch.testing.assert_close(tiled.log_std, whole.log_std, rtol=0, atol=1e-10)
    decoded = autoencoder.decode(whole.mean)
    assert decoded.shape == data.values.shape
    torch.testing.assert_close(tiled_decode(autoencoder, whole.mean, tile=4), decoded, rtol=0, atol=1e-8)


def test_a_halo_that_is_too_small_would_show() -> None:
    """The test above would notice: the outermost cells of the halo do count."""
    autoencoder = jolted(GridAutoencoder(1, (64,), SMALL))
    z = torch.randn(1, 3, 16, generator=generator()).double()
    whole = autoencoder.decode(z)
    near = z.narrow(2, 8 - autoencoder.halo[0] // 4 + 1, 8 + autoencoder.halo[0] // 4 - 1)
    short = autoencoder.decoder(near)[..., autoencoder.halo[0] - 4 :][..., :4]
    assert (short - whole[..., 32:36]).abs().max() > 1e-6


def test_a_volume_of_another_size_is_the_same_function() -> None:
    autoencoder = jolted(GridAutoencoder(1, (16, 16, 16), SMALL))
    large = fields(1, 1, 40, 38, 44)
    z = autoencoder.encode(large).mean
    decoded = autoencoder.decode_to(z, (40, 38, 44))
    assert decoded.shape == large.values.shape
    torch.testing.assert_close(tiled_decode(autoencoder, z, shape=(40, 38, 44), tile=16), decoded)
    inner = GridFields(large.values[..., 8:40, 4:36, 8:40])
    same = autoencoder.encode(inner).mean[..., 3:5, 3:5, 3:5]
    torch.testing.assert_close(same, z[..., 5:7, 4:6, 5:7])


def test_a_map_turned_by_whole_cells_has_turned_latents() -> None:
    autoencoder = jolted(GridAutoencoder(1, (12, 24), SMALL, edges=("pole", "circular")))
    data = fields(2, 1, 12, 24)
    z, turned = autoencoder.code(data)[0], autoencoder.code(GridFields(data.values.roll(8, -1)))[0]
    torch.testing.assert_close(turned, z.roll(2, -1))
    torch.testing.assert_close(autoencoder.decode(turned), autoencoder.decode(z).roll(8, -1))


# --- principal components ---------------------------------------------------------------------------------------


def pca_error(train: torch.Tensor, test: torch.Tensor, modes: int) -> float:
    mean = train.mean(dim=0)
    right = torch.linalg.svd((train - mean).flatten(1), full_matrices=False).Vh[:modes]
    anomaly = (test - mean).flatten(1)
    return (anomaly - anomaly @ right.T @ right).square().mean().item()


@pytest.mark.parametrize("modes", [-1, 5])
def test_training_starts_at_the_quality_of_principal_components(modes: int) -> None:
    train, test = fields(60, 1, 9, 14), fields(20, 1, 9, 14, seed=5)
    settings = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,), pca=modes)
    autoencoder = GridAutoencoder(1, (9, 14), settings).double()
    autoencoder.prepare([GridFields(part) for part in train.values.split(17)])
    scores = autoencoder.metrics(test, autoencoder.decode(autoencoder.code(test)[0]))
    expected = pca_error(train.values, test.values, 24 if modes == -1 else modes)
    assert scores["mse"].mean().item() == pytest.approx(expected, rel=1e-6)
    assert scores["explained"].mean().item() == pytest.approx(
        1 - expected / train.values.var(correction=0).item()
    )


def fronts(samples: int, seed: int) -> GridFields:
    """Steps at random places and angles: a curved family that no linear space holds well."""
    u = torch.rand(3, samples, 1, 1, generator=generator(seed))
    row, column = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    angle, place = 2 * torch.pi * u[0], 1.2 * u[1] - 0.6
    return GridFields(torch.tanh(4 * (angle.cos() * row + angle.sin() * column - place))[:, None])


def test_training_beats_principal_components_of_equal_size() -> None:
    train, test = fronts(512, 0), fronts(128, 1)
    settings = GridSettings(
        channels=2, patch=4, widths=(24, 32), pca=-1, noise=0.01, mse=1.0, l1=0.0, gradient=0.0, blocks=(1, 1)
    )
    autoencoder = GridAutoencoder(1, (16, 16), settings, edges="replicate")
    autoencoder.prepare([train])
    linear = pca_error(train.values, test.values, 8)
    optimiser, noise = torch.optim.AdamW(autoencoder.parameters(), lr=3e-3), generator()
    for _ in range(100):
        rows = torch.randint(512, (64,), generator=noise)
        loss = sum(term.mean() for term in autoencoder.loss(GridFields(train.values[rows]), noise).values())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
    with torch.no_grad():
        error = autoencoder.metrics(test, autoencoder.decode(autoencoder.code(test)[0]))["mse"].mean().item()
    assert error < 0.7 * linear


# --- data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pca": -1}, {"block_pca": True}])
def test_missing_values_have_no_influence(options: dict) -> None:
    data = fields(4, 1, 12, 12, gaps=0.2)
    settings = GridSettings(channels=2, widths=(6, 8), blocks=(1, 1), spectral=0.1, mse=0.5, **options)
    results = []
    for wild in (1e5, float("nan")):
        spoilt = data._replace(values=torch.where(data.weight > 0, data.values, wild))
        autoencoder = GridAutoencoder(1, (12, 12), settings, masked=True).double()
        autoencoder.prepare([spoilt])
        torch.manual_seed(3)
        jolted(autoencoder).load_state_dict(results[0][2] if results else autoencoder.state_dict())
        decoded = autoencoder.decode(autoencoder.code(spoilt)[0])
        terms = {**autoencoder.reconstruction_loss(spoilt, decoded), **autoencoder.metrics(spoilt, decoded)}
        results.append((decoded, terms, autoencoder.state_dict()))
    torch.testing.assert_close(results[1][0], results[0][0])
    for name, values in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], values)
        assert values.isfinite().all()


def test_units_do_not_matter_after_preparation() -> None:
    data = fields(10, 2, 12, 12)
    other = GridFields(data.values * 100 - 27315)
    codes, decoded = [], []
    for batch in (data, other):
        autoencoder = GridAutoencoder(2, (12, 12), SMALL).double()
        autoencoder.prepare([batch])
        torch.manual_seed(0)
        jolted(autoencoder).load_state_dict({**autoencoder.state_dict(), **(codes[0][1] if codes else {})})
        z = autoencoder.code(batch)[0]
        codes.append((z, dict(autoencoder.named_parameters())))
        decoded.append(autoencoder.decode(z))
    torch.testing.assert_close(codes[1][0], codes[0][0])
    torch.testing.assert_close(decoded[1], decoded[0] * 100 - 27315, rtol=1e-9, atol=1e-6)


def test_static_fields_reach_the_decoder_and_are_saved() -> None:
    data = fields(4, 1, 12, 12)._replace(static=torch.randn(1, 12, 12, generator=generator()).double())
    autoencoder = jolted(GridAutoencoder(1, (12, 12), SMALL, static_channels=1))
    z = torch.randn(1, 3, 3, 3, generator=generator()).double()
    before = autoencoder.decode(z)
    autoencoder.prepare([data])
    autoencoder.offset.zero_()
    autoencoder.scale.fill_(1.0)
    after = autoencoder.decode(z)
    assert (after - before).abs().max() > 1e-3
    loaded = GridAutoencoder(1, (12, 12), SMALL, static_channels=1).double()
    loaded.load_state_dict(autoencoder.state_dict())
    assert torch.equal(loaded.decode(z), after)
    with pytest.raises(DataError, match="static fields"):
        loaded.prepare([data._replace(static=None)])


def test_autocast_leaves_the_linear_part_exact() -> None:
    train = fields(60, 1, 8, 12)
    settings = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,), pca=-1)
    autoencoder = GridAutoencoder(1, (8, 12), settings)
    data = GridFields(train.values.float())
    autoencoder.prepare([data])
    exact = autoencoder.decode(autoencoder.code(data)[0])
    with torch.autocast("cpu", torch.bfloat16):
        rough = autoencoder.decode(autoencoder.code(data)[0])
    torch.testing.assert_close(rough, exact, rtol=0, atol=1e-3)


def test_the_decoder_is_linearised_consistently() -> None:
    """Posterior samplers use J v and J^T w; also through the inverse of the saturation."""
    data = fields(10, 1, 12, 12)
    for settings in (SMALL, GridSettings(channels=2, widths=(6, 8), blocks=(1, 1), pca=-1)):
        autoencoder = GridAutoencoder(1, (12, 12), settings).double()
        autoencoder.prepare([data])
        jolted(autoencoder)
        z = autoencoder.code(data)[0].detach()[:2]
        v, w = torch.randn_like(z), torch.randn(2, 1, 12, 12).double()
        along = torch.func.jvp(autoencoder.decode, (z,), (v,))[1]
        back = torch.func.vjp(autoencoder.decode, z)[1](w)[0]
        torch.testing.assert_close((along * w).sum(), (v * back).sum())
        step = (autoencoder.decode(z + 1e-6 * v) - autoencoder.decode(z - 1e-6 * v)) / 2e-6
        torch.testing.assert_close(along, step, rtol=1e-5, atol=1e-5)


# --- bottleneck and refusals ------------------------------------------------------------------------------------


def test_the_saturation_is_inverted_and_spares_extremes() -> None:
    bottleneck = SaturatingBottleneck(0.1, bound=8.0)
    mean = torch.linspace(-15, 15, 201).double().view(1, 1, -1)
    code = bottleneck.code(mean)
    torch.testing.assert_close(bottleneck.invert(code), mean)
    assert code.abs().max() < 8
    assert (code.diff() > 0).all()
    assert (bottleneck.code(torch.tensor(4.0)) / 4.0).item() > 0.89
    assert bottleneck.invert(torch.tensor([8.0, 1e3])).isfinite().all()
    noisy, penalty = bottleneck(torch.zeros(1, 1, 20000), None, None, generator())
    assert penalty is None
    assert noisy.std().item() == pytest.approx(0.1, rel=0.05)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"autoencoder.widths must be 2 numbers"):
        GridSettings(widths=(8,))
    with pytest.raises(ConfigError, match="block_pca must be false with pca"):
        GridSettings(pca=-1, block_pca=True)
    bound = GridAutoencoder(1, (8, 8), GridSettings(channels=2, widths=(4, 4), blocks=(0, 0), pca=-1))
    with pytest.raises(ShapeMismatch, match="bound to its grid"):
        bound.encode(GridFields(torch.randn(1, 1, 12, 8)))
    with pytest.raises(ShapeMismatch, match="expected fields"):
        bound.encode(GridFields(torch.randn(1, 2, 8, 8)))
    with pytest.raises(ShapeMismatch, match="latents of shape"):
        bound.decode(torch.randn(1, 3, 2, 2))
    with pytest.raises(DataError, match="no training data"):
        bound.prepare([])
    with pytest.raises(ConfigError, match="tile"):
        tiled_decode(bound, torch.randn(1, 2, 2, 2), tile=0)
