"""The U-Net's own parts against plain PyTorch, its edges, and its options."""

from collections.abc import Sequence
from itertools import product

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from sciLDM.conditions import Tokens
from sciLDM.errors import ConfigError
from sciLDM.nets import UNet
from sciLDM.nets.masked import Boundary, MaskedConv, MaskedGroupNorm
from sciLDM.nets.unet import _check_options

MODES: list[Boundary] = ["zeros", "reflect", "replicate", "circular"]


def small(
    shape: Sequence[int], *, boundary: Boundary | Sequence[Boundary] = "zeros", levels: int = 2
) -> UNet:
    net = UNet(2, shape, widths=(8, 16, 16)[:levels], blocks_per_level=1, heads=2, boundary=boundary)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


# --- convolution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_edges_are_those_of_torch(mode: Boundary, axes: int, stride: int) -> None:
    conv = MaskedConv(2, 3, [mode] * axes, stride=stride)
    x = torch.randn(2, 2, *(3, 4, 5)[:axes])
    padded = F.pad(x, [1, 1] * axes, mode="constant" if mode == "zeros" else mode)
    plain = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    expected = plain(padded, conv.conv.weight, conv.conv.bias, stride=stride)
    torch.testing.assert_close(conv(x, None), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("modes", list(product(MODES, MODES)))
def test_each_axis_has_its_own_edge(modes: tuple[Boundary, Boundary]) -> None:
    conv = MaskedConv(1, 1, modes)
    x = torch.randn(1, 1, 4, 5)
    padded = x
    for pad, mode in (([0, 0, 1, 1], modes[0]), ([1, 1, 0, 0], modes[1])):
        padded = F.pad(padded, pad, mode="constant" if mode == "zeros" else mode)
    expected = F.conv2d(padded, conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(conv(x, None), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_single_cell_repeats_itself(mode: Boundary) -> None:
    conv = MaskedConv(1, 1, [mode])
    x = torch.full((1, 1, 1), 3.0)
    torch.testing.assert_close(conv(x, None), conv(x.expand(1, 1, 3), None)[..., 1:2])


@given(n=st.integers(1, 9), data=st.data())
def test_a_masked_convolution_sees_zeros(n: int, data: st.DataObject) -> None:
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))[None, None]
    conv, x = MaskedConv(2, 2, ["zeros"]), torch.randn(1, 2, n)
    torch.testing.assert_close(conv(x, mask), conv(torch.where(mask, x, torch.zeros(())), None))


# --- group norm -----------------------------------------------------------------------------------------------


@given(channels=st.sampled_from([1, 3, 8, 12, 16, 64]), n=st.integers(2, 9), data=st.data())
def test_a_masked_norm_is_the_norm_of_the_cells_inside(channels: int, n: int, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda k: sum(k) >= 2))
    mask = torch.tensor(keep)
    norm = MaskedGroupNorm(channels, affine=True)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, n)
    x[..., ~mask] = 1e4
    expected = F.group_norm(x[..., mask], norm.groups, norm.weight, norm.bias, eps=1e-6)
    got = norm(x, mask.expand(2, 1, n))
    torch.testing.assert_close(got[..., mask], expected, atol=1e-4, rtol=1e-4)


def test_an_empty_mask_gives_numbers() -> None:
    norm = MaskedGroupNorm(8, affine=False)
    assert norm(torch.randn(2, 8, 4), torch.zeros(2, 1, 4, dtype=torch.bool)).isfinite().all()


# --- the whole network ----------------------------------------------------------------------------------------


@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=3), mode=st.sampled_from(MODES))
def test_any_grid_will_do(shape: list[int], mode: Boundary) -> None:
    """Odd and single-cell axes, at all edges: the shape comes back, and every input cell reaches the output."""
    net = small(shape, boundary=mode, levels=3)
    x = torch.randn(2, 2, *shape, requires_grad=True)
    y = net(x, torch.rand(2))
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert (gradient.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("boundary", ["circular", ("zeros", "circular")])
def test_a_periodic_axis_has_no_seam(boundary: Boundary | tuple[Boundary, ...]) -> None:
    """Two levels below the first: turning the globe by four cells turns the answer by four cells."""
    net = small((5, 8), boundary=boundary, levels=3)
    x, level = torch.randn(2, 2, 5, 8), torch.rand(2)
    torch.testing.assert_close(net(x.roll(4, -1), level), net(x, level).roll(4, -1), atol=1e-5, rtol=1e-5)
    seam = small((5, 8), boundary="zeros", levels=3)
    assert (seam(x.roll(4, -1), level) - seam(x, level).roll(4, -1)).abs().max() > 1e-3


@pytest.mark.parametrize("levels", [(), (0,), (1,), (-1,), (0, 2), (-3, -1)])
def test_attention_stands_at_the_levels_asked_for_and_acts(levels: tuple[int, ...]) -> None:
    net = UNet(1, (9,), widths=(8, 8, 8), blocks_per_level=1, heads=2, attention_levels=levels)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    expected = [level in {k % 3 for k in levels} for level in range(3)]
    assert [len(stage.attention) > 0 for stage in net.down] == expected
    assert [len(stage.attention) > 0 for stage in net.up] == expected
    assert (len(net.middle.attention) > 0) == expected[-1]
    x = torch.randn(1, 1, 9)
    before = net(x, torch.zeros(1))
    for stage in (*net.down, net.middle, *net.up):
        for attention in stage.attention:
            nn.init.zeros_(attention.attention.out.weight)
            nn.init.zeros_(attention.attention.out.bias)
            changed = net(x, torch.zeros(1))
            assert (changed - before).abs().max() > 1e-4
            before = changed


@pytest.mark.parametrize("masked", [False, True])
def test_channels_last_changes_nothing(masked: bool) -> None:
    net = small((4, 5, 3))
    x, level = torch.randn(2, 2, 4, 5, 3), torch.rand(2)
    mask = torch.rand(2, 4, 5, 3) > 0.3 if masked else None
    expected = net(x, level, None, mask)
    last = torch.channels_last_3d
    got = net.to(memory_format=last)(x.to(memory_format=last), level, None, mask)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 to 3 grid axes, got 4; use a DiT"):
        UNet(1, (2, 2, 2, 2))
    with pytest.raises(ConfigError, match=r"for each of the 2 axes, got \('zeros',\)"):
        UNet(1, (4, 4), boundary=["zeros"])
    with pytest.raises(ConfigError, match=r"boundary must be one of zeros, reflect, replicate, circular"):
        _check_options(
            1, (8,), 1, (), 2, ["mirror"], tokens=False
        )  # what runs when annotations are not checked
    with pytest.raises(
        ConfigError, match=r"attention_levels must lie in 0 to 2, or -1 for the last; got \(3,\)"
    ):
        UNet(1, (4,), attention_levels=(3,))
    with pytest.raises(ConfigError, match=r"multiples of heads=3, got \[64\]"):
        UNet(1, (4,), widths=(64, 96), heads=3, attention_levels=(0, 1))
    with pytest.raises(ConfigError, match="name a level"):
        UNet(1, (4,), attention_levels=(), conditions=[Tokens("t", size=2)])
    with pytest.raises(ConfigError, match="positive widths"):
        UNet(1, (4,), widths=())
