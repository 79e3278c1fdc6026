"""Encoding and decoding of fields too large for memory, tile by tile: the same numbers as all at once.

Each tile is computed with a halo as wide as the networks reach, and only its core is kept. Nothing is blended, so there
are no seams to hide. Circular axes are taken whole.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.autoencoders.base import Latent
from sciLDM.autoencoders.grid import GridAutoencoder
from sciLDM.autoencoders.grid_fields import GridFields
from sciLDM.errors import ConfigError

__all__ = ["tiled_decode", "tiled_encode"]


@torch.no_grad()
def tiled_encode(
    autoencoder: GridAutoencoder, fields: GridFields, *, tile: int | Sequence[int] = 64
) -> Latent:
    """`autoencoder.encode(fields)`, at the memory of one tile and its halo.

    Args:
        autoencoder: Any grid autoencoder.
        fields: Fields of any size that it takes.
        tile: Data cells of a tile's core per axis, rounded up to the autoencoder's factor.

    Raises:
        ConfigError: Tiles of no size.
    """
    x, linear = autoencoder.encoder_input(fields)
    factor = autoencoder.layout.factor
    coarse = [n // f for n, f in zip(x.shape[2:], factor, strict=True)]
    out: Tensor | None = None
    for part in _tiles(autoencoder, coarse, tile):
        block = _cut(x, part.wide, factor)
        result = _cut(autoencoder.encoder(block), part.inner)
        if out is None:
            out = result.new_empty(*result.shape[:2], *coarse)
        _cut(out, part.core).copy_(result)
    assert out is not None
    return autoencoder.to_latent(out, linear)


@torch.no_grad()
def tiled_decode(
    autoencoder: GridAutoencoder,
    z: Float[Tensor, "batch latent *coarse"],
    *,
    shape: Sequence[int] | None = None,
    tile: int | Sequence[int] = 64,
) -> Float[Tensor, "batch channel *shape"]:
    """`autoencoder.decode_to(z, shape)`, at the memory of one tile and its halo.

    Args:
        autoencoder: Any grid autoencoder.
        z: Latents.
        shape: Grid of the fields; that of the autoencoder when None.
        tile: Data cells of a tile's core per axis, rounded up to the autoencoder's factor.

    Raises:
        ConfigError: Tiles of no size.
        ShapeMismatch: Latents of another autoencoder or another grid.
    """
    shape = autoencoder.layout.shape if shape is None else tuple(shape)
    autoencoder.check_latents(z, shape)
    factor = autoencoder.layout.factor
    guess, static = autoencoder.first_guess(z), autoencoder.padded_static()
    out: Tensor | None = None
    for part in _tiles(autoencoder, z.shape[2:], tile):
        local_static = None if static is None else _cut(static[None], part.wide, factor)[0]
        local_guess = None if guess is None else _cut(guess, part.wide, factor)
        result = _cut(autoencoder.decoder(_cut(z, part.wide), local_static, local_guess), part.inner, factor)
        if out is None:
            out = result.new_empty(
                *result.shape[:2], *(n * f for n, f in zip(z.shape[2:], factor, strict=True))
            )
        _cut(out, part.core, factor).copy_(result)
    assert out is not None
    return autoencoder.to_fields(out, guess, shape)


class _Tile(NamedTuple):
    """Latent cells `(first, end)` of each axis: the core, core and halo, and the core counted from the halo's start."""

    core: tuple[tuple[int, int], ...]
    wide: tuple[tuple[int, int], ...]
    inner: tuple[tuple[int, int], ...]


def _tiles(autoencoder: GridAutoencoder, coarse: Sequence[int], tile: int | Sequence[int]) -> Iterator[_Tile]:
    layout = autoencoder.layout
    sizes = (tile,) * len(coarse) if isinstance(tile, int) else tuple(tile)
    if len(sizes) != len(coarse) or min(sizes) < 1:
        raise ConfigError(
            f"tile: expected a positive size for all axes or for each of {len(coarse)}, got {tile}"
        )
    axes = []
    for n, size, factor, halo, edge in zip(
        coarse, sizes, layout.factor, layout.halo, layout.edges, strict=True
    ):
        core = n if edge == "circular" else -(-size // factor)
        reach = halo // factor
        spans = [(start, min(start + core, n)) for start in range(0, n, core)]
        axes.append([(span, (max(0, span[0] - reach), min(n, span[1] + reach))) for span in spans])
    for parts in product(*axes):
        core, wide = tuple(part[0] for part in parts), tuple(part[1] for part in parts)
        inner = tuple((c[0] - w[0], c[1] - w[0]) for c, w in zip(core, wide, strict=True))
        yield _Tile(core, wide, inner)


def _cut(x: Tensor, spans: Sequence[tuple[int, int]], factor: Sequence[int] | None = None) -> Tensor:
    """A view of part of the grid; `factor` turns latent cells into data cells."""
    for axis, (first, end) in enumerate(spans):
        scale = 1 if factor is None else factor[axis]
        x = x.narrow(2 + axis, first * scale, (end - first) * scale)
    return x
