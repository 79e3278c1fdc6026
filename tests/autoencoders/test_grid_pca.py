"""Streaming components against numpy's SVD; the turned basis spans the same space, place by place."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sciLDM.autoencoders.grid import GridFields
from sciLDM.autoencoders.grid_moments import StreamingMoments, StreamingPCA, blocks_of
from sciLDM.autoencoders.grid_pca import BlockPCA, PCASkip
from sciLDM.errors import DataError


def smooth(samples: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random fields `[samples, 1, *shape]` with a red spectrum and a mean that is not zero."""
    x = torch.randn(samples, 1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for dim in range(2, x.ndim):
        for _ in range(4):
            x = (x + x.roll(1, dim) + x.roll(-1, dim)) / 3
    return 5.0 + 3.0 * x + torch.linspace(0, 1, shape[-1], dtype=torch.float64)


def best_error(x: np.ndarray, modes: int) -> float:
    centred = x - x.mean(axis=0)
    return float((np.linalg.svd(centred, compute_uv=False)[modes:] ** 2).sum() / x.size)


@pytest.mark.parametrize("sizes", [[40], [1, 7, 20, 12]])
def test_exact_components_are_those_of_the_svd(sizes: list[int]) -> None:
    x = smooth(40, (6, 5)).flatten(1)
    pca = StreamingPCA(30, 8)
    for part in x.split(sizes):
        pca.update(part)
    basis, variance = pca.components(torch.ones(30))
    centred = (x - x.mean(dim=0)).numpy()
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(pca.mean.numpy(), x.mean(dim=0).numpy(), atol=1e-12)
    np.testing.assert_allclose(variance.numpy(), singular[:8] ** 2 / 40, rtol=1e-9)
    overlap = np.abs(right[:8] @ basis.numpy())
    np.testing.assert_allclose(overlap, np.eye(8), atol=1e-6)


def test_the_truncated_update_loses_little_on_large_fields() -> None:
    x = smooth(60, (48, 50)).flatten(1)
    pca = StreamingPCA(2400, 10)
    assert not pca.exact
    for part in x.split(9):
        pca.update(part)
    basis, _ = pca.components(torch.ones(2400))
    centred = x - x.mean(dim=0)
    error = (centred - centred @ basis @ basis.T).square().mean().item()
    assert error <= 1.02 * best_error(x.numpy(), 10)


def test_components_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="principal components of 1 fields"):
        (lambda pca: (pca.update(torch.ones(1, 3)), pca.components(torch.ones(3))))(StreamingPCA(3, 1))


def fitted(x: torch.Tensor, weight: torch.Tensor | None, skip: PCASkip | BlockPCA, modes: int, block=None):
    fields = GridFields(x, weight)
    moments = StreamingMoments(fields, modes, block=block)
    moments.update(fields)
    offset, scale = moments.channels()
    skip.double().fit(moments.components(offset, scale))
    return (x - offset) / scale


def test_the_turned_basis_is_as_good_as_the_leading_components() -> None:
    skip = PCASkip(1, (6, 9), 2, (3, 4))  # 2 x 2 x 3 latents; the last column of cells hangs over
    x = fitted(smooth(80, (6, 9)), None, skip, 12)
    z = skip.analyse(x)
    error = (skip.synthesise(z) - x).square().mean().item()
    assert error == pytest.approx(best_error(x.flatten(1).numpy(), 12), rel=1e-6)
    torch.testing.assert_close(z.square().mean(dim=(0, 2, 3)), torch.ones(2).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(skip.analyse(skip.synthesise(z)), z)


def test_fewer_modes_than_latents_make_a_tight_frame() -> None:
    skip = PCASkip(1, (6, 9), 2, (3, 4))
    x = fitted(smooth(80, (6, 9)), None, skip, 5)
    error = (skip.synthesise(skip.analyse(x)) - x).square().mean().item()
    assert error == pytest.approx(best_error(x.flatten(1).numpy(), 5), rel=1e-6)


def test_area_weights_are_part_of_the_components_and_missing_cells_stay_out() -> None:
    weight = torch.linspace(0.1, 1.0, 6).double()[:, None].expand(6, 9).clone()
    weight[2, 3:6] = 0.0
    x = smooth(80, (6, 9))
    holes = torch.where(weight > 0, x, 1e6)
    skip = PCASkip(1, (6, 9), 2, (3, 4))
    standard = fitted(holes, weight.expand(80, 1, 6, 9), skip, 12)
    rebuilt = skip.synthesise(skip.analyse(standard, (weight > 0).expand(80, 1, 6, 9)))
    ours = ((rebuilt - standard).square() * weight).mean().item()
    best = (
        best_error((standard * (weight / weight.mean()).sqrt()).flatten(1).numpy(), 12) * weight.mean().item()
    )
    assert ours == pytest.approx(best, rel=1e-6)
    assert rebuilt[..., 2, 3:6].abs().max() < 10


def test_each_latent_speaks_of_its_own_surroundings() -> None:
    skip = PCASkip(1, (24, 24), 1, (4, 4))
    fitted(smooth(400, (24, 24)), None, skip, 36)
    patterns = skip.basis.view(24, 24, 36).square()
    place = torch.arange(24).double()
    for cell in (7, 21, 28):  # inner ones
        row, column = divmod(cell, 6)
        energy = patterns[..., cell] / patterns[..., cell].sum()
        near_row = (place - (4 * row + 1.5)).abs() < 6
        near_column = (place - (4 * column + 1.5)).abs() < 6
        assert energy[near_row][:, near_column].sum() > 0.8  # a quarter of the grid


def test_blocks_are_rebuilt_as_well_as_their_components_allow() -> None:
    x = smooth(20, (8, 12))
    skip = BlockPCA(1, 5, (4, 3), ("replicate", "replicate"))
    standard = fitted(x, None, skip, 5, block=(4, 3))
    z = skip.analyse(standard)
    error = (skip.synthesise(z) - standard).square().mean().item()
    rows = blocks_of(standard, (4, 3)).flatten(0, 1)
    assert z.shape == (20, 5, 2, 4)
    assert error == pytest.approx(best_error(rows.numpy(), 5), rel=1e-6)
    assert skip.analyse(torch.randn(2, 1, 9, 13).double()).shape == (2, 5, 3, 5)


@pytest.mark.parametrize("factor", [(3,), (2, 3), (4, 2, 3)])
def test_blocks_are_put_back_where_a_transposed_convolution_puts_them(factor: tuple[int, ...]) -> None:
    skip = BlockPCA(2, 5, factor, ["replicate"] * len(factor))
    torch.manual_seed(0)
    skip.basis.normal_()
    skip.scale.uniform_(0.5, 2.0)
    skip.mean.normal_()
    z = torch.randn(3, 5, *range(2, 2 + len(factor)))
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(factor) - 1]
    scaled = skip.basis * skip.scale.view(-1, *[1] * (len(factor) + 1))
    expected = transposed(z, scaled, stride=factor) + skip.mean.repeat(1, *z.shape[2:])
    assert torch.allclose(skip.synthesise(z), expected, atol=1e-5)


def test_blocks_with_gaps_are_left_out_while_whole_ones_are_to_be_had() -> None:
    x = smooth(20, (8, 12))
    weight = torch.ones_like(x)
    weight[..., :4, :3] = 0.0
    wild = torch.where(weight > 0, x, 1e4)
    one, other = (BlockPCA(1, 3, (4, 3), ("zeros", "zeros")) for _ in range(2))
    fitted(wild, weight, one, 3, block=(4, 3))
    fitted(torch.where(weight > 0, x, -1e4), weight, other, 3, block=(4, 3))
    torch.testing.assert_close(one.basis, other.basis)
