"""Block means, thick slices and blur against direct sums, finer grids and scipy; constants stay constants."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators import BlockMean, Blur, LinearOperator, ThickSlice, compose

F64 = torch.float64


def keeps_constants(operator: LinearOperator) -> bool:
    value = operator(torch.full((1, *operator.in_shape), 273.15, dtype=F64))
    return torch.allclose(value, torch.full_like(value, 273.15), rtol=1e-6)


# --- block means --------------------------------------------------------------------------------------------
@given(
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 3),
    weighted=st.booleans(),
)
def test_block_means_are_weighted_means_of_their_cells(
    blocks: tuple[int, int], counts: tuple[int, int], channels: int, weighted: bool
) -> None:
    grid = tuple(b * n for b, n in zip(blocks, counts, strict=True))
    area = torch.rand(grid) + 0.1 if weighted else None
    operator = BlockMean((channels, *grid), blocks, weights=area)
    x = torch.randn(2, channels, *grid, dtype=F64)
    y = operator(x)
    assert keeps_constants(operator)
    share = torch.ones(grid, dtype=F64) if area is None else area.double()
    for i in range(counts[0]):
        for j in range(counts[1]):
            rows = slice(i * blocks[0], (i + 1) * blocks[0]), slice(j * blocks[1], (j + 1) * blocks[1])
            part, w = x[:, :, rows[0], rows[1]], share[rows]
            assert torch.allclose(y[:, :, i, j], (part * w).sum((-2, -1)) / w.sum(), rtol=1e-5, atol=1e-6)


def test_cell_areas_of_latitudes_give_the_mean_of_the_sphere() -> None:
    """One block over a globe: `mean of sin^2(latitude) = 1/3`."""
    latitude = torch.deg2rad(torch.arange(-89.5, 90.0))
    mean = BlockMean((1, 180, 4), (180, 4), weights=latitude.cos()[:, None])
    value = mean(latitude.sin().square()[:, None].expand(1, 1, 180, 4).contiguous())
    assert float(value) == pytest.approx(1 / 3, rel=1e-3)


def test_block_mean_errors() -> None:
    with pytest.raises(ConfigError, match=r"no whole number of blocks.*crop it, to \(8, 9\)"):
        BlockMean((1, 10, 9), (4, 3))
    for factors in (0, -2, (2,), (2, 2, 2)):
        with pytest.raises(ConfigError, match="positive integer"):
            BlockMean((1, 8, 8), factors)
    with pytest.raises(ConfigError, match="positive sum in every block"):
        BlockMean((1, 4, 4), 2, weights=torch.zeros(4, 4))
    with pytest.raises(ConfigError, match="positive sum in every block"):
        BlockMean((1, 4, 4), 2, weights=-torch.ones(4, 4))
    with pytest.raises(ShapeMismatch, match="do not broadcast"):
        BlockMean((1, 4, 4), 2, weights=torch.ones(3, 4))
    with pytest.raises(ConfigError, match="one channel is a leading 1"):
        BlockMean((4,), 2)


# --- thick slices -------------------------------------------------------------------------------------------
@given(
    size=st.integers(6, 20),
    spacing=st.floats(0.3, 3.0),
    thickness=st.floats(0.2, 4.0),
    gap=st.floats(0.0, 1.5),
    offset=st.floats(0.0, 0.5),
    profile=st.sampled_from(["box", "gauss"]),
)
def test_slices_are_means_of_a_much_finer_field(
    size: int, spacing: float, thickness: float, gap: float, offset: float, profile: str
) -> None:
    """A thickness or a gap may be any number of millimetres; voxels are constant over their width."""
    thickness *= spacing  # between a fifth of a voxel and four
    operator = ThickSlice(
        (1, 2, size), axis=-1, spacing=spacing, thickness=thickness, gap=gap, offset=offset, profile=profile
    )
    assert keeps_constants(operator)
    x = torch.randn(1, 1, 2, size, dtype=F64)
    finer = 2000
    place = (torch.arange(size * finer, dtype=F64) + 0.5) * spacing / finer
    fine = x.repeat_interleave(finer, dim=-1)
    y = operator(x)
    for k, centre in enumerate(operator.centres.double()):
        away = (place - centre) / thickness
        weight = (away.abs() <= 0.5).double() if profile == "box" else torch.exp(-4 * math.log(2) * away**2)
        assert torch.allclose(y[..., k], (fine * weight).sum(-1) / weight.sum(), rtol=0, atol=2e-2)
    last = float(operator.centres[-1]) + thickness / 2
    assert last <= size * spacing * (1 + 1e-5)
    assert last + gap + thickness > size * spacing * (1 - 1e-5)  # and no further slice would fit


def test_a_box_of_whole_voxels_is_a_block_mean() -> None:
    thick = ThickSlice((2, 5, 12, 4), axis=2, spacing=0.7, thickness=4 * 0.7)
    block = BlockMean((2, 5, 12, 4), (1, 4, 1))
    x = torch.randn(3, 2, 5, 12, 4, dtype=F64)
    assert torch.allclose(thick(x), block(x), rtol=1e-5, atol=1e-6)


def test_a_gap_leaves_voxels_unseen() -> None:
    operator = ThickSlice((1, 12, 1), axis=1, spacing=1.0, thickness=2.0, gap=1.0)
    seen = operator.adjoint(torch.ones(1, 1, 4, 1))
    assert seen.flatten().tolist() == [0.5, 0.5, 0.0] * 4
    assert operator.centres.tolist() == [1.0, 4.0, 7.0, 10.0]


def test_the_gaussian_has_the_stated_width_at_half_its_maximum() -> None:
    only = ThickSlice(
        (1, 4001, 1), axis=1, spacing=0.01, thickness=5.0, gap=90.0, offset=17.5, profile="gauss"
    )
    profile = only.adjoint(torch.ones(1, 1, 1, 1)).flatten()
    assert int((profile > profile.max() / 2).sum()) * 0.01 == pytest.approx(5.0, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": 0.0}, "spacing: expected a positive number in mm, got 0.0"),
        ({"spacing": -1.0}, "spacing"),
        ({"thickness": -3.0}, "thickness: expected a positive number in mm, got -3.0"),
        ({"thickness": 0.0}, "thickness"),
        ({"thickness": math.nan}, "thickness"),
        ({"gap": -0.5}, "gap and an offset of at least 0 mm, got -0.5"),
        ({"thickness": 5000.0}, "are thickness and spacing in the same unit"),
        ({"axis": 0}, "axis 0 is the channel"),
        ({"axis": 7}, "has no axis 7"),
    ],
)
def test_units_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    settings = {"axis": -1, "spacing": 1.0, "thickness": 5.0, **options}
    with pytest.raises(ConfigError, match=message):
        ThickSlice((1, 8, 8, 40), **settings)


# --- blur ---------------------------------------------------------------------------------------------------
@given(std=st.floats(0.05, 4.0), spacing=st.floats(0.5, 2.0), periodic=st.booleans())
def test_blur_has_exactly_the_variance_it_is_given(std: float, spacing: float, periodic: bool) -> None:
    """At any width, also below a cell, where a sampled Gaussian would not blur at all."""
    operator = Blur((1, 121), std * spacing, spacing=spacing, periodic=periodic)
    point = torch.zeros(1, 1, 121, dtype=F64)
    point[..., 60] = 1.0
    response = operator(point).flatten()
    place = spacing * (torch.arange(121, dtype=F64) - 60)
    assert float(response.sum()) == pytest.approx(1.0, rel=1e-6)
    variance = float((response * place.square()).sum())
    assert variance == pytest.approx((std * spacing) ** 2, rel=1e-3, abs=1e-4)


@given(std=st.floats(0.1, 6.0), size=st.integers(1, 17), periodic=st.booleans())
def test_blur_keeps_constants_sums_and_the_bounds(std: float, size: int, periodic: bool) -> None:
    operator = Blur((2, size, 3), std, periodic=periodic)
    assert keeps_constants(operator)
    x = torch.rand(2, 2, size, 3, dtype=F64)
    y = operator(x)
    assert torch.allclose(y.sum((-2, -1)), x.sum((-2, -1)), rtol=1e-5)
    assert float(y.min()) >= float(x.min()) - 1e-6
    assert float(y.max()) <= float(x.max()) + 1e-6


@pytest.mark.parametrize("periodic", [False, True])
def test_two_blurs_are_one_wider_blur(periodic: bool) -> None:
    shape, x = (1, 9, 14), torch.randn(2, 1, 9, 14, dtype=F64)
    twice = compose(Blur(shape, 3.0, periodic=periodic), Blur(shape, 4.0, periodic=periodic))
    assert torch.allclose(twice(x), Blur(shape, 5.0, periodic=periodic)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("periodic", "mode"), [(False, "reflect"), (True, "wrap")])
def test_a_wide_blur_is_the_gaussian_of_scipy(periodic: bool, mode: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = torch.randn(1, 1, 30, 41, dtype=F64)
    y = Blur((1, 30, 41), (6.0, 5.0), spacing=(2.0, 1.0), periodic=periodic)(x)
    expected = torch.from_numpy(ndimage.gaussian_filter(x[0, 0].numpy(), (3.0, 5.0), mode=mode, truncate=8.0))
    assert float((y[0, 0] - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_a_periodic_blur_commutes_with_rotation() -> None:
    operator = Blur((1, 5, 16), (1.0, 2.0), periodic=(False, True))
    x = torch.randn(1, 1, 5, 16, dtype=F64)
    assert torch.allclose(operator(x.roll(7, -1)), operator(x).roll(7, -1), rtol=0, atol=1e-6)


def test_blur_errors() -> None:
    with pytest.raises(ConfigError, match="standard deviations of at least 0"):
        Blur((1, 4, 4), -1.0)
    with pytest.raises(ConfigError, match="spacing: expected a positive number"):
        Blur((1, 4, 4), 1.0, spacing=(1.0, 0.0))
    with pytest.raises(ConfigError, match="one for each of 2 axes"):
        Blur((1, 4, 4), (1.0, 1.0, 1.0))
    x = torch.randn(1, 1, 4, 4)
    assert torch.equal(Blur((1, 4, 4), 0.0)(x), x)
