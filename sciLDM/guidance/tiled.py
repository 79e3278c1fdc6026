r"""Denoising of latents larger than the network was trained on: overlapping tiles, one noise field, blended estimates.

The state is one latent of the whole grid, noise included. At each call the network sees it through tiles of the
trained size, and what it says of each is blended,

    D(x_t) = sum_k w_k D_k(x_t[tile k]) / sum_k w_k,

with `w_k` products of Hann-shaped flanks (as in MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113, there for one
step's samples). Estimates are blended and never samples: overlapping tiles are cut from the same noise, so they agree
on it, and the sampler draws as if there were one network. The tiles lie elsewhere at each noise level, by an offset
that depends on the level alone, so that no border is met twice.

What is exact: the noise, the sampler, and the independence from order and batching of the tiles (to rounding). What is
approximate: the estimate itself, `E[x | x_t]` of the whole being replaced by that of tiles that do not see each other.
Structure wider than a tile is tied together only by the overlap, level after level, and by conditions that say where a
tile lies.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, pi
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.guidance.pieces import Box, Piece, piecewise, take
from sciLDM.guidance.self_conditioning import SelfConditioning
from sciLDM.rng import NoiseSource
from sciLDM.schedules import Schedule

__all__ = ["Tile", "TileDenoiser", "TileLayout", "Tiled"]

TileDenoiser: TypeAlias = Callable[[Sequence[int], Sequence[tuple[int, ...]]], Denoiser]
"""`(rows, origins)` to the denoiser of these tiles: of which row of the batch each is, and its first cell."""

_SHIFTS = NoiseSource(0).fork("tiles")


@final
@dataclass(frozen=True)
class Tile:
    """One tile: where it lies, and its share of the blend.

    Attributes:
        origin: First cell along each axis.
        shares: Weight along each axis; the product is what the tile contributes to each of its cells. Over all tiles
            of a layout the products sum to 1 everywhere.
    """

    origin: tuple[int, ...]
    shares: tuple[Float[Tensor, "_"], ...]

    @property
    def box(self) -> Box:
        """The cells it covers."""
        return tuple((o, o + len(s)) for o, s in zip(self.origin, self.shares, strict=True))

    @property
    def weight(self) -> Float[Tensor, "..."]:
        """The product of the shares."""
        weight = torch.ones(())
        for share in self.shares:
            weight = weight[..., None] * share
        return weight


@final
@dataclass(frozen=True)
class TileLayout:
    """How a grid is covered by tiles.

    Attributes:
        size: Cells of a tile along each axis; an axis of the grid that is no longer is taken whole.
        overlap: Share of a tile that its neighbour covers too, at least.
        shift: Whether the tiles lie elsewhere at each noise level; costs one more tile an axis.

    Raises:
        ConfigError: Tiles of no size, or an overlap outside 0 to 0.9.
    """

    size: tuple[int, ...]
    overlap: float = 0.5
    shift: bool = True

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise ConfigError(f"tiles: expected at least one cell along each axis, got {self.size}")
        if not 0 <= self.overlap <= 0.9:
            raise ConfigError(f"tiles: expected an overlap between 0 and 0.9, got {self.overlap}")

    def tiles(self, shape: Sequence[int], t: float) -> list[Tile]:
        """Tiles that cover a grid at time `t`, the last axis running fastest.

        Raises:
            ShapeMismatch: A grid of another number of axes.
        """
        if len(shape) != len(self.size):
            raise ShapeMismatch(f"tiles of size {self.size} cannot cover a grid of shape {tuple(shape)}")
        stream = f"{t:.7g}" if self.shift else "unshifted"
        drawn = _SHIFTS.uniform([0], (len(shape),), stream)[0].tolist()
        axes = []
        for n, size, u in zip(shape, self.size, drawn, strict=True):
            shared = min(round(self.overlap * size), size - 1)
            origins = _origins(n, min(size, n), size - shared, u if self.shift else None)
            axes.append(list(zip(origins, _shares(n, min(size, n), shared, origins), strict=True)))
        return [
            Tile(tuple(o for o, _ in parts), tuple(share for _, share in parts)) for parts in product(*axes)
        ]


@final
class Tiled(Denoiser):
    """A denoiser of grids of any size, made of one for tiles.

    Differentiable in reverse and forward mode at the memory of one batch of tiles, which are then computed again. A
    network with self-conditioning is shown its tile of the last blended estimate (without amplification: guided
    branches share it).

    Args:
        schedule: That of the tiles' denoiser.
        denoiser: Makes the denoiser of some tiles, with their conditions.
        layout: Where tiles lie.
        batch_size: Tiles computed at once.

    Raises:
        ConfigError: A batch of no tiles.
    """

    def __init__(
        self, schedule: Schedule, denoiser: TileDenoiser, layout: TileLayout, *, batch_size: int = 32
    ) -> None:
        super().__init__(schedule)
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1 tile, got {batch_size}")
        self.denoiser, self.layout, self.batch_size = denoiser, layout, batch_size
        self.memory = SelfConditioning(enabled=True)

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """The blended `x0_hat`."""
        previous = self.memory.recall(len(x_t), 1)
        x0 = torch.empty_like(x_t)
        for time in t.unique().tolist():
            rows = [k for k, own in enumerate(t.tolist()) if own == time]
            whole = len(rows) == len(x_t)
            part = x_t if whole else x_t[rows]
            seen = previous if previous is None or whole else previous[rows]
            blended = piecewise(part, list(self._pieces(part, t[rows[0]], rows, seen)), x_t.shape[1:])
            x0 = blended if whole else x0.index_copy(0, torch.tensor(rows, device=x_t.device), blended)
        self.memory.remember(x0)
        return x0

    def reset(self) -> None:
        """Forget the last estimate: a new trajectory begins."""
        self.memory.reset()

    def _pieces(self, x_t: Tensor, t: Tensor, rows: list[int], previous: Tensor | None) -> Iterator[Piece]:
        tiles = self.layout.tiles(x_t.shape[2:], float(t))
        count = max(1, self.batch_size // len(rows))
        for start in range(0, len(tiles), count):
            chosen = tiles[start : start + count]
            boxes = [tile.box for tile in chosen]
            estimate = _Estimate(
                self.denoiser,
                t,
                [row for _ in chosen for row in rows],
                [tile.origin for tile in chosen for _ in rows],
                torch.stack([tile.weight for tile in chosen])
                .repeat_interleave(len(rows), 0)[:, None]
                .to(x_t),
                None if previous is None else take(previous, boxes),
            )
            yield Piece(boxes, boxes, estimate)


@final
@dataclass(frozen=True)
class _Estimate:
    """What some tiles contribute."""

    denoiser: TileDenoiser
    t: Tensor
    rows: list[int]
    origins: list[tuple[int, ...]]
    weight: Tensor
    previous: Tensor | None

    def __call__(self, x_t: Tensor) -> Tensor:
        denoiser = self.denoiser(self.rows, self.origins)
        if self.previous is not None:
            for module in denoiser.modules():
                if isinstance(module, SelfConditioning):
                    module.remember(self.previous)
        return self.weight * denoiser(x_t, self.t.expand(len(x_t)))


def _origins(n: int, size: int, step: int, shift: float | None) -> list[int]:
    """First cells of tiles that cover `n` cells, at most `step` apart: evenly, or from an offset in the first step."""
    if n <= size:
        return [0]
    if shift is None:
        count = 1 + ceil((n - size) / step)
        return [round(k * (n - size) / (count - 1)) for k in range(count)]
    first = int(shift * step)
    inside = range(first, n - size, step)
    return sorted({0, *inside, n - size})


def _shares(n: int, size: int, shared: int, origins: Sequence[int]) -> list[Tensor]:
    """Hann flanks over the shared cells of each tile, divided by their sum over all tiles."""
    place = torch.arange(size, dtype=torch.float64) + 0.5
    inward = torch.minimum(place, size - place) / max(shared, 0.5)
    window = torch.sin(0.5 * pi * inward.clamp(max=1.0)).square()
    total = torch.zeros(n, dtype=torch.float64)
    for origin in origins:
        total[origin : origin + size] += window
    return [(window / total[origin : origin + size]).float() for origin in origins]
