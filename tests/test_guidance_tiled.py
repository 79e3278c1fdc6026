"""Tiles: they cover the grid, blend to what the whole gives where that can be known, and leave no seams."""

from collections.abc import Callable, Sequence
from typing import final

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sciLDM.denoiser import Denoiser, NetDenoiser
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.guidance import Conditioned
from sciLDM.guidance.tiled import Tile, Tiled, TileLayout
from sciLDM.parametrisation import X0, expand
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DPMSolverPP2M, DPMSolverPP2MSDE
from sciLDM.schedules import CosineSchedule

NOISE, SCHEDULE = NoiseSource(1), CosineSchedule()
Apply = Callable[[Tensor, Tensor], Tensor]


@final
class Plain(Denoiser):
    """Any function of state and time, told which tiles it is given."""

    def __init__(self, apply: Callable[..., Tensor], *places: object) -> None:
        super().__init__(SCHEDULE)
        self.apply_, self.places = apply, places

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.apply_(x_t, t, *self.places)


def pointwise(x_t: Tensor, t: Tensor, *_places: object) -> Tensor:
    """What acts on each cell alone is the same for tiles and whole."""
    alpha, sigma = SCHEDULE(t)
    return torch.tanh(expand(alpha / (alpha**2 + sigma**2), x_t) * x_t)


def bordered(x_t: Tensor, t: Tensor, *_places: object) -> Tensor:
    """A smoothing that takes what lies beyond the tile for 3: as wrong at borders as can be."""
    shown = F.pad(x_t, (2, 2) * (x_t.ndim - 2), value=3.0)
    for dim in range(2, x_t.ndim):
        n = x_t.shape[dim]
        shown = sum((shown.narrow(dim, k, n) for k in range(5)), start=torch.zeros(())) / 5
    return pointwise(x_t, t) + torch.sin(shown)


def tiled(apply: Callable[..., Tensor], layout: TileLayout, batch_size: int = 7) -> Tiled:
    return Tiled(SCHEDULE, lambda rows, origins: Plain(apply, rows, origins), layout, batch_size=batch_size)


def state(*shape: int, seed: int = 0) -> Tensor:
    return NOISE.normal([seed], shape)[0]


@given(
    st.lists(st.integers(1, 23), min_size=1, max_size=3),
    st.integers(1, 9),
    st.floats(0, 0.9),
    st.booleans(),
    st.floats(0, 1),
)
def test_tiles_cover_the_grid_with_weight_one(
    shape: list[int], size: int, overlap: float, shift: bool, t: float
) -> None:
    layout = TileLayout((size, *[size + 1] * (len(shape) - 1)), overlap, shift)
    total = torch.zeros(shape)
    for tile in layout.tiles(shape, t):
        assert all(
            o >= 0 and o + m <= n and m == min(n, most)
            for o, m, n, most in zip(tile.origin, tile.weight.shape, shape, layout.size, strict=True)
        )
        total[tuple(slice(*span) for span in tile.box)] += tile.weight
    assert torch.allclose(total, torch.ones(shape), atol=1e-5)


def test_flanks_are_smooth_and_borders_weigh_least() -> None:
    """Across the overlap of two tiles the weight goes from one to the other in a Hann window's steps."""
    first, second = (tile.shares[0] for tile in TileLayout((8,), 0.5, False).tiles((12,), 0.3))
    assert bool((first[:4] == 1).all())
    assert bool((first[4:].diff() < 0).all())
    assert torch.allclose(first[4:] + second[:4], torch.ones(4), atol=1e-6)
    assert float(first[-1]) < 0.15
    assert float(first.diff().abs().max()) < 0.4


def test_tiles_move_with_the_noise_level_and_with_nothing_else() -> None:
    layout = TileLayout((6, 6), 0.5)
    origins = [{tile.origin for tile in layout.tiles((32, 32), t)} for t in (0.9, 0.8, 0.9)]
    assert origins[0] == origins[2]
    assert len(origins[0] & origins[1]) < 0.5 * len(origins[0])
    still = TileLayout((6, 6), 0.5, shift=False)
    assert [t.origin for t in still.tiles((32, 32), 0.9)] == [t.origin for t in still.tiles((32, 32), 0.1)]


@pytest.mark.parametrize("shape", [(23,), (17, 9), (9, 12, 11), (4, 3)])
def test_what_acts_on_cells_alone_is_not_changed(shape: tuple[int, ...]) -> None:
    x_t, t = state(3, 2, *shape), torch.tensor([0.9, 0.9, 0.2])
    got = tiled(pointwise, TileLayout((5,) * len(shape), 0.4))(x_t, t)
    assert torch.allclose(got, pointwise(x_t, t), atol=1e-6)


def test_neither_batches_nor_order_of_tiles_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x_t, t = state(2, 3, 19, 14), torch.full((2,), 0.6)
    layout = TileLayout((6, 5), 0.5)
    whole = tiled(bordered, layout, 1000)(x_t, t)
    assert torch.equal(whole, tiled(bordered, layout, 1000)(x_t, t))
    for size in (1, 3, 8):
        assert torch.allclose(tiled(bordered, layout, size)(x_t, t), whole, atol=1e-5)
    assert torch.allclose(tiled(bordered, layout)(x_t[1:], t[1:]), whole[1:], atol=1e-5)
    in_order = TileLayout.tiles

    def reversed_tiles(self: TileLayout, shape: Sequence[int], t: float) -> list[Tile]:
        return in_order(self, shape, t)[::-1]

    monkeypatch.setattr(TileLayout, "tiles", reversed_tiles)
    assert torch.allclose(tiled(bordered, layout, 3)(x_t, t), whole, atol=1e-5)


def test_each_tile_is_told_its_row_and_place() -> None:
    """Tiles that return their own coordinates blend to the coordinates of the grid."""
    grid = (13, 10)

    def coordinates(
        x_t: Tensor, t: Tensor, rows: Sequence[int], origins: Sequence[tuple[int, ...]]
    ) -> Tensor:
        said = torch.zeros_like(x_t)
        for k, (row, origin) in enumerate(zip(rows, origins, strict=True)):
            for axis in (0, 1):
                view = [-1 if a == axis else 1 for a in (0, 1)]
                said[k, axis] = (torch.arange(x_t.shape[2 + axis]) + origin[axis]).view(view) + 100 * row
        return said

    got = tiled(coordinates, TileLayout((5, 4), 0.5))(state(3, 2, *grid), torch.full((3,), 0.5))
    for row in range(3):
        wanted = torch.stack(torch.meshgrid(*[torch.arange(n) for n in grid], indexing="ij")) + 100.0 * row
        assert torch.allclose(got[row], wanted, atol=1e-3)


def test_derivatives_are_those_of_the_blend() -> None:
    layout, t = TileLayout((5, 5), 0.5), torch.full((2,), 0.5)
    x_t, v, u = (state(2, 2, 12, 9, seed=k).double() for k in range(3))

    def by_hand(x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for tile in layout.tiles((12, 9), 0.5):
            place = (..., *[slice(*span) for span in tile.box])
            part = torch.zeros_like(x)
            part[place] = tile.weight * bordered(x[place], t)
            total = total + part
        return total

    denoiser = tiled(bordered, layout, 3)
    wanted, pullback = torch.func.vjp(by_hand, x_t)[:2]
    got, pull = torch.func.vjp(lambda x: denoiser(x, t), x_t)[:2]
    assert torch.allclose(got, wanted, atol=1e-6)
    assert torch.allclose(pull(u)[0], pullback(u)[0], atol=1e-6)
    pushed = torch.func.jvp(lambda x: denoiser(x, t), (x_t,), (v,))[1]
    assert torch.allclose(pushed, torch.func.jvp(by_hand, (x_t,), (v,))[1], atol=1e-6)
    free = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser(free, t), free, u)
    assert torch.allclose(gradient, pullback(u)[0], atol=1e-6)
    mixed = tiled(bordered, layout)
    free = x_t.clone().requires_grad_()
    mixed(free, torch.tensor([0.5, 0.3]))[0].sum().backward()
    assert free.grad is not None
    assert float(free.grad[0].abs().sum()) > 0 == float(free.grad[1].abs().sum())


def test_self_conditioning_shows_each_tile_its_part_of_the_last_blend() -> None:
    shown: list[Tensor | None] = []

    class Net(torch.nn.Module):
        def forward(
            self, x: Tensor, noise: Tensor, cond: object, mask: object, previous: Tensor | None
        ) -> Tensor:
            shown.append(previous)
            return x

    net = NetDenoiser(Net(), SCHEDULE, X0())
    layout, t = TileLayout((4,), 0.5, shift=False), torch.full((2,), 0.5)
    denoiser = Tiled(
        SCHEDULE, lambda rows, origins: Conditioned(net, self_condition=True), layout, batch_size=1000
    )
    x_t = state(2, 1, 10)
    first = denoiser(x_t, t)
    denoiser(x_t, t)
    denoiser.reset()
    denoiser(x_t, t)
    assert shown[0] is None
    assert shown[2] is None
    boxes = [tile.box[0] for tile in layout.tiles((10,), 0.5)]
    assert shown[1] is not None
    assert torch.equal(shown[1], torch.cat([first[..., a:b] for a, b in boxes]))


def test_a_sample_is_one_field_whatever_the_batch() -> None:
    """Noise is drawn for the whole latent: fields of tiles that do nothing wrong are those of no tiles."""
    layout = TileLayout((6, 6), 0.5)
    for sampler in (DPMSolverPP2M(steps=4), DPMSolverPP2MSDE(steps=4)):
        options = {"noise": NOISE, "ids": [0, 5]}
        whole = sampler(Plain(pointwise), (2, 15, 13), **options)
        assert torch.allclose(sampler(tiled(pointwise, layout), (2, 15, 13), **options), whole, atol=1e-5)
        alone = sampler(tiled(bordered, layout), (2, 15, 13), noise=NOISE, ids=[5])
        both = sampler(tiled(bordered, layout, 5), (2, 15, 13), **options)
        assert torch.allclose(alone[0], both[1], atol=1e-5)


def step_ratio(fields: Tensor, borders: set[int]) -> float:
    """Mean size of steps across these borders over that elsewhere, along the last axis."""
    steps = fields.diff(dim=-1).abs().flatten(0, -2).mean(0)
    at = torch.tensor([k + 1 in borders for k in range(len(steps))])
    return float(steps[at].mean() / steps[~at].mean())


def test_no_seams() -> None:
    """A network that is wrong at its borders: visible where tiles only touch, not where they are blended."""
    shape, t = (40, 12, 60), torch.tensor([0.7])
    sampler = DPMSolverPP2M(steps=6)
    ratios = {}
    for name, layout in {
        "touching": TileLayout((12, 12), 0.0, shift=False),
        "blended": TileLayout((12, 12), 0.5, shift=False),
        "moving": TileLayout((12, 12), 0.5),
    }.items():
        fields = sampler(tiled(bordered, layout, 200), shape, noise=NOISE, ids=range(8))
        still = TileLayout(layout.size, layout.overlap, shift=False).tiles(shape[1:], float(t))
        ratios[name] = step_ratio(fields, {edge for tile in still for edge in tile.box[1]} - {0, 60})
    assert not 0.7 < ratios["touching"] < 1.3
    assert 0.95 < ratios["blended"] < 1.05
    assert 0.95 < ratios["moving"] < 1.05


def test_mistakes_are_told() -> None:
    for size, overlap in (((0,), 0.5), ((), 0.5), ((4,), -0.1), ((4,), 0.95)):
        with pytest.raises(ConfigError, match="tiles: expected"):
            TileLayout(size, overlap)
    with pytest.raises(ConfigError, match="batch_size"):
        tiled(pointwise, TileLayout((4,)), 0)
    with pytest.raises(ShapeMismatch, match="cannot cover"):
        tiled(pointwise, TileLayout((4,)))(state(1, 1, 8, 8), torch.ones(1))
