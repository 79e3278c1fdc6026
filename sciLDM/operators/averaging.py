r"""Means over neighbourhoods: coarse cells and thick slices. Both give a constant field back as that constant."""

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators._axes import Number, along, field_axis, grid_of, positive
from sciLDM.operators.base import LinearOperator, check_fields, check_observations

__all__ = ["BlockMean", "ThickSlice"]

_FWHM = 2 * math.sqrt(2 * math.log(2))  # full width at half maximum of a Gaussian, in standard deviations


@final
class BlockMean(LinearOperator):
    r"""Means over blocks of cells, `y_B = sum_{i in B} w_i x_i / sum_{i in B} w_i`: a coarse grid seen from a fine one.

    Args:
        in_shape: `(channel, *grid)`.
        factors: Cells per block along each axis of the grid, or one number for all axes; 1 leaves an axis as it is.
        weights: Cell areas or volumes, broadcasting to the grid; equal when None.

    Raises:
        ConfigError: Factors that are no positive integers or do not divide the grid; negative weights, or a block
            whose weights are all zero.
        ShapeMismatch: Weights that do not broadcast to the grid.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        factors: int | Sequence[int],
        *,
        weights: Float[Tensor, "*grid"] | None = None,
    ) -> None:
        grid = grid_of(in_shape, "BlockMean")
        blocks = (factors,) * len(grid) if isinstance(factors, int) else tuple(factors)
        if len(blocks) != len(grid) or any(int(b) != b or b < 1 for b in blocks):
            raise ConfigError(
                f"BlockMean: expected a positive integer, or one for each of the {len(grid)} axes of the grid, "
                f"got {factors}"
            )
        if any(n % b for n, b in zip(grid, blocks, strict=True)):
            trimmed = tuple(n - n % b for n, b in zip(grid, blocks, strict=True))
            raise ConfigError(
                f"BlockMean: a grid of {grid} cells has no whole number of blocks of {blocks}; crop it, to "
                f"{trimmed} say, or choose factors that divide it"
            )
        super().__init__(in_shape, (in_shape[0], *(n // b for n, b in zip(grid, blocks, strict=True))))
        self.blocks = blocks
        # The field is viewed as (channel, n_1, b_1, n_2, b_2, ...); the mean goes over the b's.
        self._split = tuple(size for n, b in zip(grid, blocks, strict=True) for size in (n // b, b))
        self._inner = tuple(range(2, 2 + 2 * len(grid), 2))
        self.share: Tensor
        self.register_buffer("share", self._shares(weights, grid), persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        cells = x.reshape(*x.shape[:2], *self._split) * self.share.to(x)
        return cells.sum(dim=tuple(axis + 1 for axis in self._inner))

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        spread = [size for n in self.out_shape[1:] for size in (n, 1)]
        return (y.reshape(*y.shape[:2], *spread) * self.share.to(y)).reshape(len(y), *self.in_shape)

    def _shares(self, weights: Tensor | None, grid: tuple[int, ...]) -> Tensor:
        """What each cell contributes to its block, `[1, n_1, b_1, ...]`."""
        if weights is None:
            return torch.full((1, *self._split), 1 / math.prod(self.blocks))
        try:
            cells = weights.to(torch.float64).expand(grid).reshape(1, *self._split)
        except RuntimeError:
            raise ShapeMismatch(
                f"BlockMean: weights of shape {tuple(weights.shape)} do not broadcast to the grid {grid}"
            ) from None
        total = cells.sum(dim=self._inner, keepdim=True)
        if not bool(torch.isfinite(total).all()) or bool((cells < 0).any()) or bool((total <= 0).any()):
            raise ConfigError(
                "BlockMean: expected weights of at least 0 with a positive sum in every block; leave out blocks "
                "without weight by composing with a Mask"
            )
        return (cells / total).float()


@final
class ThickSlice(LinearOperator):
    r"""Slices thicker than the grid: `y_k = int p(s - c_k) x(s) ds` along one axis, `c_k = offset + t/2 + k (t + gap)`.

    Each voxel is taken as constant over its width, and the profile is integrated over it, so a thickness need not be a
    multiple of the spacing. With a box, no gap and `t` a multiple of the spacing this is a `BlockMean`.

    Args:
        in_shape: `(channel, *grid)`.
        axis: Axis of the field across the slices; -1 is the last.
        spacing: Distance of the grid's voxels along it [mm].
        thickness: Width `t` of the box, or full width at half maximum of the Gaussian [mm].
        gap: From the end of one slice to the beginning of the next [mm].
        profile: Sensitivity across a slice. A Gaussian is cut at the ends of the field of view and kept at sum 1.
        offset: From the first voxel's outer edge to where the first slice begins [mm].

    Attributes:
        centres: Middle of each slice, from the first voxel's outer edge [mm].

    Raises:
        ConfigError: A spacing or thickness that is not positive, a negative gap or offset, slices that do not fit into
            the field of view, or an axis that is the channel.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        *,
        axis: int,
        spacing: Number,
        thickness: Number,
        gap: Number = 0.0,
        profile: Literal["box", "gauss"] = "box",
        offset: Number = 0.0,
    ) -> None:
        axis = field_axis(in_shape, axis, "ThickSlice")
        if axis == 0:
            raise ConfigError("ThickSlice: axis 0 is the channel; slices lie across an axis of the grid")
        spacing = positive(spacing, "ThickSlice: spacing", "mm")
        thickness = positive(thickness, "ThickSlice: thickness", "mm")
        if not (math.isfinite(gap) and gap >= 0 and math.isfinite(offset) and offset >= 0):
            raise ConfigError(
                f"ThickSlice: expected a gap and an offset of at least 0 mm, got {gap} and {offset}; overlapping "
                "slices are a Stack of two sets"
            )
        if profile not in ("box", "gauss"):
            raise ConfigError(f"ThickSlice: profile is 'box' or 'gauss', got {profile!r}")
        extent = in_shape[axis] * spacing
        count = math.floor((extent - offset - thickness) / (thickness + gap) + 1e-6) + 1
        if count < 1:
            raise ConfigError(
                f"ThickSlice: the field of view is {extent:g} mm along axis {axis}, a slice of {thickness:g} mm "
                f"that begins at {offset:g} mm does not fit; are thickness and spacing in the same unit?"
            )
        super().__init__(in_shape, (*in_shape[:axis], count, *in_shape[axis + 1 :]))
        self.axis = axis
        centres = offset + thickness / 2 + (thickness + gap) * torch.arange(count, dtype=torch.float64)
        edges = spacing * torch.arange(in_shape[axis] + 1, dtype=torch.float64)
        away = edges - centres[:, None]
        below = _box(away, thickness) if profile == "box" else _gauss(away, thickness)
        weights = below.diff(dim=1)
        self.centres: Tensor
        self.matrix: Tensor
        self.register_buffer("centres", centres.float(), persistent=False)
        matrix = (weights / weights.sum(dim=1, keepdim=True)).float()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return along(x, self.matrix, self.axis + 1)

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        return along(y, self.matrix.mT, self.axis + 1)


def _box(away: Tensor, thickness: float) -> Tensor:
    """The part of a box that lies below `away` from its middle."""
    return (away / thickness + 0.5).clamp(0, 1)


def _gauss(away: Tensor, thickness: float) -> Tensor:
    """The part of a Gaussian of that full width at half maximum that lies below `away` from its middle."""
    return torch.special.ndtr(away / (thickness / _FWHM))
