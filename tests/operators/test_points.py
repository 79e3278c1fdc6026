"""Interpolation at points: exact for linear fields, periodic across the seam, and the same as scipy's."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators import PointSampling, grid_coordinates

F64 = torch.float64


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    lead=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_exact_for_functions_that_are_linear_along_each_axis(sizes: list[int], lead: int, seed: int) -> None:
    """`x = prod_a (c_a + d_a i_a)`: products too, as interpolation is multilinear."""
    offset, slope = rand(lead, len(sizes), seed=seed), rand(lead, len(sizes), seed=seed + 1) - 0.5
    points = rand(11, len(sizes), seed=seed + 2) * (torch.tensor(sizes) - 1)

    def value(place: Tensor) -> Tensor:
        return (offset[:, None] + slope[:, None] * place).prod(dim=-1)

    nodes = torch.cartesian_prod(*[torch.arange(n, dtype=F64) for n in sizes]).reshape(-1, len(sizes))
    x = value(nodes).reshape(1, lead, *sizes)
    y = PointSampling((lead, *sizes), points)(x)
    assert torch.allclose(y[0], value(points), rtol=1e-5, atol=1e-6)


def test_at_the_nodes_it_is_the_field_itself() -> None:
    x = rand(2, 3, 4, 5)
    nodes = torch.cartesian_prod(torch.arange(4.0), torch.arange(5.0))
    assert torch.equal(PointSampling((3, 4, 5), nodes)(x), x.flatten(2))


@given(shift=st.integers(0, 7), seed=st.integers(0, 999), turns=st.integers(-2, 2))
def test_periodic_across_the_seam(shift: int, seed: int, turns: int) -> None:
    """Turning globe and stations together changes nothing, wherever the seam is then."""
    x = rand(2, 1, 5, 8, seed=seed)
    points = torch.stack([4 * rand(20, seed=seed), 8 * rand(20, seed=seed + 1)], dim=1)
    moved = points + torch.tensor([0.0, shift + 8.0 * turns], dtype=F64)
    before = PointSampling((1, 5, 8), points, periodic=(False, True))(x)
    after = PointSampling((1, 5, 8), moved, periodic=(False, True))(x.roll(shift, -1))
    assert torch.allclose(before, after, rtol=0, atol=1e-6)


def test_between_the_last_and_the_first_meridian() -> None:
    x = torch.arange(8, dtype=F64).expand(1, 1, 2, 8)
    sampler = PointSampling((1, 2, 8), torch.tensor([[0.0, 7.25], [1.0, -0.25]]), periodic=(False, True))
    assert torch.allclose(sampler(x).flatten(), torch.tensor([7 * 0.75, 7 * 0.25], dtype=F64))


@pytest.mark.parametrize(("periodic", "mode"), [(False, "nearest"), (True, "grid-wrap")])
def test_as_scipy_interpolates(periodic: bool, mode: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = rand(6, 7, 5)
    points = rand(40, 3, seed=1) * torch.tensor([6, 7, 5]) - (0.0 if periodic else 0.5)
    y = PointSampling((1, 6, 7, 5), points, periodic=periodic)(x[None, None])
    expected = ndimage.map_coordinates(x.numpy(), points.mT.numpy(), order=1, mode=mode)
    assert torch.allclose(y.flatten(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_only_the_last_axes_are_sampled() -> None:
    """Stations of every time of a field (channel, time, latitude, longitude)."""
    x = rand(2, 3, 4, 5, 6)
    sampler = PointSampling((3, 4, 5, 6), torch.tensor([[1.5, 2.0]]))
    assert sampler.out_shape == (3, 4, 1)
    assert torch.allclose(sampler(x)[..., 0], (x[..., 1, 2] + x[..., 2, 2]) / 2, rtol=0, atol=1e-6)


@given(seed=st.integers(0, 999), falling=st.booleans())
def test_grid_coordinates_invert_an_irregular_axis(seed: int, falling: bool) -> None:
    nodes = (0.1 + rand(9, seed=seed)).cumsum(0)
    nodes = nodes.flip(0) if falling else nodes
    place = 8 * rand(30, seed=seed + 1)
    low = place.floor().long().clamp(max=7)
    values = nodes[low] + (place - low) * (nodes[low + 1] - nodes[low])
    assert torch.allclose(grid_coordinates(nodes, values), place, rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [0.0, -180.0, 1.25])
def test_longitudes_in_either_convention_are_the_same_place(start: float) -> None:
    nodes = start + 30 * torch.arange(12, dtype=F64)
    longitude = torch.tensor([-170.0, -15.0, 0.0, 14.0, 179.0, 359.0], dtype=F64)
    place = grid_coordinates(nodes, longitude, period=360)
    assert torch.allclose(place, grid_coordinates(nodes, longitude + 720, period=360.0), atol=1e-9)
    # An angle through sine and cosine: linear interpolation of them is good to (15 degrees)^2 / 2.
    x = torch.stack([torch.deg2rad(nodes).sin(), torch.deg2rad(nodes).cos()])[None]
    y = PointSampling((2, 12), place[:, None], periodic=True)(x)[0]
    assert torch.allclose(torch.rad2deg(torch.atan2(y[0], y[1])) % 360, longitude % 360, rtol=0, atol=0.5)


def test_errors() -> None:
    with pytest.raises(
        ConfigError, match=r"1 of 2 points lie outside the grid, the first is number 1 at 4\.6"
    ):
        PointSampling((1, 5, 8), torch.tensor([[4.4, 0.0], [4.6, 0.0]]))
    with pytest.raises(ConfigError, match="finite coordinates"):
        PointSampling((1, 5, 8), torch.tensor([[torch.nan, 0.0]]))
    with pytest.raises(ConfigError, match="at least one point"):
        PointSampling((1, 5, 8), torch.zeros(0, 2))
    with pytest.raises(ShapeMismatch, match="at most 2 axes"):
        PointSampling((1, 5, 8), torch.zeros(4, 3))
    with pytest.raises(ConfigError, match="rise or fall strictly"):
        grid_coordinates(torch.tensor([0.0, 1.0, 1.0]), torch.zeros(1))
    with pytest.raises(ConfigError, match="span the period"):
        grid_coordinates(torch.arange(0.0, 361.0, 30.0), torch.zeros(1), period=360.0)
