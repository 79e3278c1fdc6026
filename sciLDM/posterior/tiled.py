r"""Reconstruction of fields larger than the grid that a model was trained on, in bounded memory.

Two things are done in parts, one is not; every sample is still one latent, drawn from one noise field:

* The prior's estimate, by overlapping tiles of the trained size, blended (`sciLDM.guidance.tiled`). This is the only
  approximation: a tile does not see beyond its borders.
* Decoder and encoder, by boxes with a halo as wide as they reach. Exact: the same numbers as all at once, and the same
  derivatives, each box being computed again when they are asked for.
* The observation is never taken apart. Operators act on the whole field, so whatever they observe, near or far (gaps,
  thick slices, coarse cells, blur, projections), and also the last step in data space, is as without tiles, for a few
  fields of memory.

One sample is computed at a time. Memory, in fields of the data (64 MB for 256^3 voxels, float32): about 25 for the
work on one sample, one for each sample, more when quantiles are taken of them; and one batch of tiles and one box of
the autoencoder. Results do not depend on the number of tiles computed at once.

`default_solver` is Gauss-Newton without derivatives of the denoiser, whose every call means all tiles. Those of the
decoder compute each box twice; `DecodeEncodeSolver` needs none and takes a quarter of the time, but where whole slices
are missing it left three to four times the error (synthetic volumes, three of four slices lost).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, Latent
from sciLDM.autoencoders.grid import GridAutoencoder
from sciLDM.autoencoders.grid_fields import GridFields
from sciLDM.denoiser import Denoiser
from sciLDM.domain import Codec, Request, Task
from sciLDM.errors import ConfigError
from sciLDM.guidance.pieces import Box, Piece, piecewise
from sciLDM.guidance.posterior.covariance import Isotropic
from sciLDM.guidance.posterior.covariance_measured import MeasuredCovariance
from sciLDM.guidance.posterior.gauss_newton import GaussNewtonSolver
from sciLDM.guidance.posterior.solver import PosteriorSolver
from sciLDM.guidance.tiled import Tiled, TileLayout
from sciLDM.posterior.conformal import Conformal
from sciLDM.posterior.reconstruct import Prior, Settings, reconstruct
from sciLDM.posterior.result import Posterior

__all__ = [
    "PlacesTiles",
    "TiledAutoencoder",
    "Tiling",
    "default_solver",
    "needs_tiles",
    "reconstruct_tiled",
    "tile_request",
    "tiled_prior",
]


@runtime_checkable
class PlacesTiles(Protocol):
    """A codec with conditions that say where on the grid a latent lies."""

    def tile_conditions(
        self, cond: Mapping[str, Tensor], origins: Sequence[tuple[int, ...]], shape: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        """Conditions of tiles.

        Args:
            cond: Those of the whole, one row a tile; fields are cut to the tile already.
            origins: First latent cell of each tile.
            shape: Latent grid of the whole.
        """
        ...


@final
@dataclass(frozen=True)
class Tiling:
    """How large fields are taken apart.

    Args:
        overlap: Share of a tile that its neighbour covers too, at least. Half of it blends best; a quarter needs about
            a third of the calls in three dimensions.
        shift: Whether the tiles lie elsewhere at each noise level.
        box: Data cells along each axis that decoder and encoder are given at once, and their halo.

    Raises:
        ConfigError: Boxes of no size (tiles are checked where they are laid out).
    """

    overlap: float = 0.5
    shift: bool = True
    box: int = 128

    def __post_init__(self) -> None:
        if self.box < 1:
            raise ConfigError(f"box: expected at least one cell, got {self.box}")


def default_solver(error: MeasuredCovariance | None = None) -> PosteriorSolver:
    """What pays for large fields: one call of the denoiser a step, no derivatives of the decoder's network.

    Args:
        error: The denoiser's errors, where they were measured; read at the frequencies of the larger grid.
    """
    if error is None:
        return GaussNewtonSolver(covariance=Isotropic(), tolerance=0.05, max_iterations=4, rank=0)
    return GaussNewtonSolver(covariance=error, tolerance=0.02, max_iterations=12, rank=0, outline=True)


def needs_tiles(codec: Codec, autoencoder: Autoencoder[Any, Any], request: Request) -> bool:
    """Whether a request is for more than the trained grid, of a model that can be taken apart."""
    larger = any(n > most for n, most in zip(request.shape, codec.shape, strict=False))
    return larger and len(request.shape) == len(codec.shape) and isinstance(autoencoder, GridAutoencoder)


def reconstruct_tiled(
    task: Task,
    prior: Prior,
    settings: Settings | None = None,
    *,
    tiling: Tiling | None = None,
    calibration: Conformal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """As `reconstruct`, for fields of any size.

    Args:
        task: Observations, grid and conditions.
        prior: The trained model; its autoencoder must be a `GridAutoencoder`.
        settings: As for `reconstruct`, with `default_solver()` when None; `batch_size` is the number of tiles computed
            at once.
        tiling: Overlap of tiles, size of the autoencoder's boxes.
        calibration: Applied when it knows the operator's family.
        progress: `progress(done, total)` in steps of the sampler.

    Raises:
        ConfigError: Settings out of range, or another kind of autoencoder.
        ShapeMismatch: Operator, request, context and decoder do not belong together.
    """
    settings, tiling = settings or Settings(solver=default_solver()), tiling or Tiling()
    parts = tiled_prior(prior, tiling, batch_size=settings.batch_size)
    posterior = reconstruct(
        task, parts, replace(settings, batch_size=1), calibration=calibration, progress=progress
    )
    tiles = {"size": list(prior.codec.shape), "overlap": tiling.overlap, "grid": list(task.request.shape)}
    return replace(posterior, details={**posterior.details, "tiles": tiles})


def tiled_prior(prior: Prior, tiling: Tiling, *, batch_size: int = 32) -> Prior:
    """The same model, working in parts.

    Args:
        prior: The trained model.
        tiling: How fields are taken apart.
        batch_size: Tiles computed at once.

    Raises:
        ConfigError: An autoencoder that is no `GridAutoencoder`.
    """
    codec, layout = prior.codec, TileLayout(tuple(prior.codec.shape), tiling.overlap, tiling.shift)

    def denoiser(request: Request, rows: slice) -> Denoiser:
        index = range(rows.start, rows.stop)

        def of_tiles(which: Sequence[int], origins: Sequence[tuple[int, ...]]) -> Denoiser:
            cut = tile_request(codec, request, [index[k] for k in which], origins)
            return prior.denoiser(cut, slice(0, len(which)))

        schedule = of_tiles([0], [(0,) * len(request.shape)]).schedule
        return Tiled(schedule, of_tiles, layout, batch_size=batch_size)

    return replace(prior, autoencoder=TiledAutoencoder(prior.autoencoder, box=tiling.box), denoiser=denoiser)


def tile_request(
    codec: Codec, request: Request, rows: Sequence[int], origins: Sequence[tuple[int, ...]]
) -> Request:
    """What is asked of tiles, one row a tile: fields and masks cut to them, places filled in by the codec.

    Args:
        codec: Knows the trained grid and which conditions are fields.
        request: What is asked of the whole.
        rows: The row of the request that each tile belongs to.
        origins: First cell of each tile.
    """
    size = tuple(min(n, most) for n, most in zip(request.shape, codec.shape, strict=True))
    index = torch.tensor(list(rows))
    boxes = [tuple(slice(o, o + n) for o, n in zip(origin, size, strict=True)) for origin in origins]

    def cut(value: Tensor) -> Tensor:
        return torch.stack([value[row][(..., *box)] for row, box in zip(rows, boxes, strict=True)])

    fields = {c.name for c in codec.conditions if c.trailing < 0}
    cond: Mapping[str, Tensor] = {
        name: cut(label) if name in fields else label[index.to(label.device)]
        for name, label in request.cond.items()
    }
    if isinstance(codec, PlacesTiles):
        cond = codec.tile_conditions(cond, origins, request.shape)
    return Request(size, cond, None if request.mask is None else cut(request.mask), request.always)


@final
class TiledAutoencoder(Autoencoder[GridFields, Tensor]):
    """A grid autoencoder that works box by box: the same numbers, at the memory of one box and its halo.

    Differentiable like the whole, which `tiled_encode` and `tiled_decode` are not. Circular axes are taken whole.

    Args:
        whole: The autoencoder.
        box: Data cells of a box along each axis, without the halo; rounded up to whole latent cells.

    Raises:
        ConfigError: Another kind of autoencoder, which may need to see all at once.
    """

    def __init__(self, whole: Autoencoder[Any, Any], *, box: int = 128) -> None:
        super().__init__()
        if not isinstance(whole, GridAutoencoder):
            raise ConfigError(
                f"{type(whole).__name__} cannot work in parts: expected a GridAutoencoder, whose reach is known; "
                "crop the field to the model's grid"
            )
        self.whole, self.box = whole, box
        self.bottleneck, self.latent_channels = whole.bottleneck, whole.latent_channels

    def encode(self, fields: GridFields) -> Latent:
        """The mean alone; a standard deviation is of no use after training."""
        values, weight = fields.values, fields.weight
        shape = tuple(values.shape[2:])
        pieces = [
            Piece([spans.fine(shape)], [spans.core], _Encode(self.whole, weight, spans, shape))
            for spans in self._boxes(self.whole.layout.coarse(shape))
        ]
        return Latent(piecewise(values, pieces, (self.latent_channels, *self.whole.layout.coarse(shape))))

    def decode(
        self, z: Float[Tensor, "batch latent *coarse"], mask: Bool[Tensor, "batch *coarse"] | None = None
    ) -> Float[Tensor, "batch channel *shape"]:
        whole, coarse = self.whole, tuple(z.shape[2:])
        shape = tuple(n * f for n, f in zip(coarse, whole.layout.factor, strict=True))
        if coarse == whole.latent_shape:
            shape = whole.layout.shape
        whole.check_latents(z, shape)
        pieces = [
            Piece([spans.wide], [spans.fine_core(shape)], _Decode(whole, spans, shape))
            for spans in self._boxes(coarse)
        ]
        return piecewise(z, pieces, (whole.data_channels, *shape))

    def outline(self, z: Float[Tensor, "batch latent *coarse"]) -> Float[Tensor, "batch channel *shape"]:
        """The linear part at once: it takes the memory of a few fields. Box by box where there is none."""
        return self.decode(z) if self.whole.pca is None else self.whole.outline(z)

    def reconstruction_loss(self, fields: GridFields, decoded: Tensor) -> dict[str, Tensor]:
        return self.whole.reconstruction_loss(fields, decoded)

    def _boxes(self, coarse: Sequence[int]) -> Iterator["_Spans"]:
        layout, axes = self.whole.layout, []
        for n, factor, halo, edge in zip(coarse, layout.factor, layout.halo, layout.edges, strict=True):
            core, reach = n if edge == "circular" else ceil(self.box / factor), halo // factor
            # Even boxes: a sliver at the end would cost a halo of its own.
            core = ceil(n / ceil(n / core))
            axes.append(
                [
                    ((first, min(first + core, n)), (max(0, first - reach), min(n, first + core + reach)))
                    for first in range(0, n, core)
                ]
            )
        for parts in product(*axes):
            yield _Spans(tuple(core for core, _ in parts), tuple(wide for _, wide in parts), layout.factor)


@final
@dataclass(frozen=True)
class _Spans:
    """A box in latent cells, without and with its halo."""

    core: Box
    wide: Box
    factor: tuple[int, ...]

    def fine(self, shape: Sequence[int]) -> Box:
        """Data cells of the box and its halo; the last block of a grid may be cut off."""
        return _refined(self.wide, self.factor, shape)

    def fine_core(self, shape: Sequence[int]) -> Box:
        """Data cells of the box."""
        return _refined(self.core, self.factor, shape)

    def inner(self, x: Tensor) -> Tensor:
        """The box's part of latents with the halo."""
        for axis, ((first, end), (start, _)) in enumerate(zip(self.core, self.wide, strict=True)):
            x = x.narrow(2 + axis, first - start, end - first)
        return x

    def fine_inner(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The box's part of fields with the halo."""
        for axis, ((first, end), (start, _)) in enumerate(
            zip(self.fine_core(shape), self.fine(shape), strict=True)
        ):
            x = x.narrow(2 + axis, first - start, end - first)
        return x


@final
@dataclass(frozen=True)
class _Encode:
    """Fields of a box with its halo to the latents of the box."""

    whole: GridAutoencoder
    weight: Tensor | None
    spans: _Spans
    shape: tuple[int, ...]

    def __call__(self, values: Tensor) -> Tensor:
        weight = self.weight
        if weight is not None:
            for axis, (first, end) in enumerate(self.spans.fine(self.shape)):
                weight = weight.narrow(2 + axis, first, end - first)
        return self.spans.inner(self.whole.encode(GridFields(values, weight)).mean)


@final
@dataclass(frozen=True)
class _Decode:
    """Latents of a box with its halo to the fields of the box."""

    whole: GridAutoencoder
    spans: _Spans
    shape: tuple[int, ...]

    def __call__(self, z: Tensor) -> Tensor:
        size = [end - first for first, end in self.spans.fine(self.shape)]
        return self.spans.fine_inner(self.whole.decode_to(z, size), self.shape)


def _refined(box: Box, factor: Sequence[int], shape: Sequence[int]) -> Box:
    return tuple((first * f, min(end * f, n)) for (first, end), f, n in zip(box, factor, shape, strict=True))
