"""Edges against functions that are known beyond them, resampling against averages, and the reach of influence."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.nets.convolutional import EdgeConv, Grow, ResidualConv, Shrink, extend
from sciLDM.nets.grid_coder import GridDecoder, GridEncoder, GridLayout


def jolted(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that start at zero would hide errors."""
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return module.double()


# --- edges ----------------------------------------------------------------------------------------------------


def on_sphere(latitude: Tensor, longitude: Tensor) -> Tensor:
    """A smooth function of the point on the sphere, whatever latitude it is reached by."""
    x = latitude.cos()[:, None] * longitude.cos()
    y = latitude.cos()[:, None] * longitude.sin()
    z = latitude.sin()[:, None].expand_as(x)
    return (x + 2 * y * z + x * y - z**3)[None, None]


def test_beyond_the_pole_lies_the_opposite_meridian() -> None:
    step, columns = torch.pi / 18, 24
    latitude = torch.arange(-8.5, 9) * step  # rows beside the poles, half a step away
    longitude = torch.arange(columns) * 2 * torch.pi / columns
    beyond = torch.arange(-11.5, 12) * step
    around = torch.arange(-2, columns + 2) * 2 * torch.pi / columns
    field = on_sphere(latitude.double(), longitude.double())
    wide = extend(field, [3, 2], [3, 2], ["pole", "circular"])
    torch.testing.assert_close(wide, on_sphere(beyond.double(), around.double()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("edge", "mode"), [("zeros", "constant"), ("replicate", "replicate"), ("circular", "circular")]
)
def test_plain_edges_are_those_of_torch(edge: str, mode: str) -> None:
    x = torch.randn(2, 3, 5, 4, 6)
    ours = extend(x, [1, 2, 0], [3, 1, 2], [edge] * 3)
    torch.testing.assert_close(ours, F.pad(x, (0, 2, 2, 1, 1, 3), mode=mode))


def test_a_short_axis_can_be_extended_by_more_than_its_length() -> None:
    x = torch.arange(3.0).view(1, 1, 3)
    assert extend(x, [4], [5], ["circular"]).flatten().tolist() == [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert extend(x, [2], [2], ["replicate"]).flatten().tolist() == [0, 0, 0, 1, 2, 2, 2]


def test_turning_the_globe_turns_the_result() -> None:
    conv = jolted(EdgeConv(2, 3, ["pole", "circular"]))
    x = torch.randn(1, 2, 6, 8).double()
    torch.testing.assert_close(conv(x.roll(3, -1)), conv(x).roll(3, -1))


# --- resampling -----------------------------------------------------------------------------------------------


@given(
    factor=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    channels=st.integers(1, 3),
    size=st.integers(1, 3),
)
def test_with_room_for_every_value_shrinking_and_growing_lose_nothing(
    factor: list[int], channels: int, size: int
) -> None:
    room = channels * int(torch.tensor(factor).prod())
    x = torch.randn(2, channels, *(size * f for f in factor))
    coarse = Shrink(channels, room, factor, gain=0.0)(x)
    torch.testing.assert_close(Grow(room, channels, factor, gain=0.0)(coarse), x)


def test_a_single_channel_keeps_the_mean_of_each_block() -> None:
    x = torch.randn(2, 1, 6, 8)
    coarse = Shrink(1, 1, (3, 2), gain=0.0)(x)
    torch.testing.assert_close(coarse, F.avg_pool2d(x, (3, 2)))
    again = Grow(1, 1, (3, 2), gain=0.0)(coarse)
    torch.testing.assert_close(again, F.interpolate(coarse, scale_factor=(3, 2), mode="nearest"))


def test_what_the_shortcut_does_not_pass_enters_by_learning_alone() -> None:
    x = torch.randn(2, 3, 4, 4)
    other = torch.cat([x[:, :1], torch.randn(2, 2, 4, 4)], dim=1)
    shrink = Shrink(3, 8, (2, 2), passed=1, gain=0.0)
    torch.testing.assert_close(shrink(x), shrink(other))
    assert shrink(x).abs().sum() > 0


# --- reach ----------------------------------------------------------------------------------------------------


def test_a_residual_block_starts_as_the_identity_and_sees_two_cells_far() -> None:
    x = torch.randn(1, 4, 11).double()
    assert torch.equal(ResidualConv(4, ["zeros"]).double()(x), x)
    block, changed = jolted(ResidualConv(4, ["zeros"])), x.clone()
    changed[..., 5] += 1.0
    affected = (block(x) - block(changed)).abs().amax(dim=(0, 1)) > 0
    assert affected.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_nothing_beyond_the_halo_has_an_influence(part: str) -> None:
    layout = GridLayout((48, 40), ("zeros", "zeros"), ((1, 2), (2, 2)), (4, 6), (1, 1))
    assert layout.factor == (2, 4)
    assert layout.halo == (6, 12)
    net = jolted(GridEncoder(1, 1, 2, layout) if part == "encoder" else GridDecoder(2, 1, layout))
    fine, coarse, centre = (48, 40), (24, 10), (24, 20)
    x = torch.randn(1, 1, *fine).double() if part == "encoder" else torch.randn(1, 2, *coarse).double()
    changed = x.clone()
    spot = centre if part == "encoder" else (12, 5)
    changed[0, 0, spot[0], spot[1]] += 1.0
    moved = (net(x) - net(changed)).abs().amax(dim=(0, 1)) > 0
    for axis, (place, reach) in enumerate(zip(centre, layout.halo, strict=True)):
        cells = moved.any(dim=1 - axis).nonzero().flatten()
        size = layout.factor[axis] if part == "encoder" else 1
        assert cells.min() * size >= place - reach
        assert cells.max() * size <= place + reach + layout.factor[axis]


@pytest.mark.parametrize(
    ("edges", "steps", "message"),
    [
        (("pole", "zeros"), ((2, 2),), "needs one 'circular' axis"),
        (("zeros",), ((2, 2),), "one of them for each of the 2 axes"),
        (("zeros", "zeros"), ((2,),), "one number for all axes or one for each of the 2"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(edges: tuple, steps: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GridLayout((8, 8), edges, steps, (4,), (1,))
