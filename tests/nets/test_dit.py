"""The DiT's own parts: patches, rotary positions, learned tables."""

import math
from itertools import product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.nets import DiT
from sciLDM.nets.conditioning import FourierFeatures
from sciLDM.nets.dit import _patchify, _prefix_rotary, _unpatchify
from sciLDM.nets.positions import LearnedPositions, RotaryPositions, rotate

grids = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def stirred(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


# --- patches --------------------------------------------------------------------------------------------------


@given(cells=grids, patch=st.integers(1, 3), channels=st.integers(1, 3))
def test_unpatchify_inverts_patchify(cells: list[int], patch: int, channels: int) -> None:
    grid = [n * patch for n in cells]
    x = torch.randn(2, channels, *grid)
    tokens = _patchify(x, patch)
    assert tokens.shape == (2, math.prod(cells), channels * patch ** len(grid))
    assert torch.equal(_unpatchify(tokens, patch, channels, grid), x)


def test_a_token_is_a_patch() -> None:
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    tokens = _patchify(x, 2)
    for k, (i, j) in enumerate((i, j) for i in range(2) for j in range(3)):
        patch = x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert sorted(tokens[0, k].tolist()) == sorted(patch.flatten().tolist())


# --- positions ------------------------------------------------------------------------------------------------


@given(shape=grids, head_width=st.sampled_from([6, 8, 12]), shift=st.integers(0, 40), data=st.data())
def test_rotated_products_depend_on_the_distance_alone(
    shape: list[int], head_width: int, shift: int, data: st.DataObject
) -> None:
    """`<R(p) q, R(p') k>` is a function of `p - p'`: the equation that rotary codes are made from."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    larger = [n + shift * (a == axis) for a, n in enumerate(shape)]
    q, k = torch.randn(2, head_width).double()
    rotary = RotaryPositions(len(shape), head_width)

    def products(window: tuple[slice, ...]) -> torch.Tensor:
        cos, sin = (
            part.reshape(*larger, -1)[window].flatten(0, -2)[None, :, None]
            for part in rotary(larger, q.device)
        )
        count = cos.shape[1]
        rotated_q, rotated_k = (rotate(v.expand(1, count, 1, -1), cos[0], sin[0])[0, :, 0] for v in (q, k))
        return rotated_q @ rotated_k.T

    first = products(tuple(slice(0, n) for n in shape))
    moved = products(tuple(slice(shift * (a == axis), n + shift * (a == axis)) for a, n in enumerate(shape)))
    torch.testing.assert_close(moved, first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_rotary_network_does_not_care_where_the_latent_lies(axis: int) -> None:
    """A latent moved through a larger masked grid gives the moved answer; a learned table does not allow that."""
    small, larger = (3, 2), (7, 6)
    x, level = torch.randn(1, 2, *small), torch.rand(1)

    def answer(net: nn.Module, shift: int) -> torch.Tensor:
        starts = [shift if a == axis else 1 for a in range(2)]
        window = (..., *(slice(s, s + n) for s, n in zip(starts, small, strict=True)))
        grid, mask = torch.randn(1, 2, *larger), torch.zeros(1, *larger, dtype=torch.bool)
        grid[window], mask[window] = x, True
        return net(grid, level, None, mask)[window]

    for positions, moves in (("rotary", True), ("learned", False)):
        net = stirred(DiT(2, larger, width=24, depth=2, heads=2, positions=positions))
        difference = (answer(net, 0) - answer(net, 3)).abs().max()
        assert (difference < 1e-4) == moves


def test_condition_tokens_have_no_place_on_the_grid() -> None:
    shape, extra = (2, 3), 4
    plain = RotaryPositions(2, 8)(shape, torch.device("cpu"))
    x = torch.randn(1, extra + 6, 1, 8)
    got = rotate(x, *_prefix_rotary(plain, extra))
    torch.testing.assert_close(got[:, :extra], x[:, :extra])
    torch.testing.assert_close(got[:, extra:], rotate(x[:, extra:], *plain))


@given(shape=grids)
def test_all_places_of_a_rotary_grid_differ(shape: list[int]) -> None:
    cos, sin = RotaryPositions(len(shape), 12)(shape, torch.device("cpu"))
    codes = torch.cat([cos, sin], dim=-1)[:, 0]
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))
    distances = torch.cdist(codes, codes) + torch.eye(len(codes))
    assert distances.min() > 1e-2


@given(shape=grids)
def test_learned_positions_sum_over_the_axes_in_the_order_of_patches(shape: list[int]) -> None:
    positions = LearnedPositions([n + 1 for n in shape], 4)
    code = positions(shape).reshape(*shape, 4)
    for place in product(*map(range, shape)):
        expected = sum(table[i] for table, i in zip(positions.tables, place, strict=True))
        torch.testing.assert_close(code[place], expected)


def test_rotary_extrapolates_and_learned_refuses() -> None:
    x = torch.randn(1, 2, 9)
    assert DiT(2, (6,), width=8, depth=1, heads=2, positions="rotary")(x, torch.rand(1)).shape == x.shape
    with pytest.raises(ShapeMismatch, match=r"grid \(9,\) is larger than the trained \(6,\); use rotary"):
        DiT(2, (6,), width=8, depth=1, heads=2)(x, torch.rand(1))


def test_without_positions_tokens_would_be_a_set() -> None:
    """Positions are the only thing that tells cells apart: this is what makes the tests above say something."""
    net = stirred(DiT(2, (6,), width=8, depth=1, heads=2))
    assert net.learned is not None
    nn.init.zeros_(net.learned.tables[0])
    x, level, order = torch.randn(1, 2, 6), torch.rand(1), torch.randperm(6)
    torch.testing.assert_close(net(x[..., order], level), net(x, level)[..., order], atol=1e-5, rtol=1e-5)


# --- the rest -------------------------------------------------------------------------------------------------


def test_a_row_of_the_modulation_acts_on_its_own_block() -> None:
    """adaLN-Zero: with a zero gate a block is the identity, whatever its other weights are."""
    net = stirred(DiT(2, (6,), width=8, depth=2, heads=2))
    x, level = torch.randn(1, 2, 6), torch.rand(1)
    nn.init.zeros_(net.shared.weight)
    nn.init.zeros_(net.shared.bias)
    before = net(x, level)
    nn.init.zeros_(net.blocks[1].modulation)
    changed = net(x, level)
    assert (changed - before).abs().max() > 1e-3
    for parameter in net.blocks[1].mlp.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(net(x, level), changed)


def test_fourier_features_are_the_number_and_its_waves() -> None:
    features = FourierFeatures(3, low=0.1, high=10.0)
    value = torch.tensor([0.3, -1.7])
    got = features(value)
    for row, v in zip(got, value.tolist(), strict=True):
        angles = [2 * math.pi * f * v for f in (0.1, 1.0, 10.0)]
        expected = [v, *map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(row, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads times an even number, got width=10, heads=4"):
        DiT(1, (4,), width=10, heads=4)
    with pytest.raises(ConfigError, match="multiple of patch=2; pad the latent"):
        DiT(1, (4, 5), patch=2)
    with pytest.raises(ConfigError, match="at least 6 channels a head for 3 axes"):
        DiT(1, (4, 4, 4), width=16, heads=4, positions="rotary")
    with pytest.raises(ShapeMismatch, match=r"grid \(3,\) must be a multiple of patch=2"):
        DiT(1, (4,), width=8, heads=2, patch=2)(torch.randn(1, 1, 3), torch.rand(1))
