"""Where a volume lies on the model's grid: pad what is smaller, cut patches out of what is larger, and undo it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import DataError, ShapeMismatch
from sciLDM.operators import LinearOperator, Operator

__all__ = ["OnGrid", "OnGridNonlinear", "Placement", "centred", "patches", "task_grid"]

Triple = tuple[int, int, int]


@final
@dataclass(frozen=True)
class Placement:
    """A box of a volume in a box of the grid.

    Attributes:
        grid: The model's grid.
        at: First cell of the grid that the volume fills.
        start: First voxel of the volume that is used.
        size: Voxels used along each axis.
    """

    grid: Triple
    at: Triple
    start: Triple
    size: Triple

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """The filled part of the grid."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.at, self.size, strict=True))
        return x, y, z

    @property
    def taken(self) -> tuple[slice, slice, slice]:
        """The used part of the volume."""
        x, y, z = (slice(s, s + n) for s, n in zip(self.start, self.size, strict=True))
        return x, y, z

    def put(self, data: np.ndarray, *, fill: float | None = None) -> np.ndarray:
        """Values on the grid; outside the volume its edge is repeated, or `fill` stands there."""
        part = data[self.taken]
        if part.shape != self.size:
            raise ShapeMismatch(f"expected at least {self.size} voxels from {self.start}, got {data.shape}")
        padding = [(a, g - a - n) for a, n, g in zip(self.at, self.size, self.grid, strict=True)]
        if fill is None:
            return np.pad(part, padding, mode="edge")
        return np.pad(part, padding, constant_values=fill)

    def cut(self, values: Tensor) -> Tensor:
        """The filled part of values whose last three axes are the grid."""
        return values[(..., *self.inside)]


def centred(shape: Sequence[int], grid: Triple) -> Placement:
    """The whole volume in the middle of the grid.

    Raises:
        ShapeMismatch: The volume is larger than the grid.
    """
    if any(n > g for n, g in zip(shape, grid, strict=True)):
        raise ShapeMismatch(f"a volume of {tuple(shape)} voxels does not fit on a grid of {grid}")
    at = [(g - n) // 2 for n, g in zip(shape, grid, strict=True)]
    return Placement(grid, _triple(at), (0, 0, 0), _triple(shape))


def patches(shape: Sequence[int], grid: Triple, *, overlap: float = 0.25) -> list[Placement]:
    """Boxes of at most the grid's size that cover the volume, evenly spread, overlapping at least by `overlap`.

    A volume no larger than the grid gives one, centred; an axis that is shorter is padded.
    """
    starts = []
    for n, g in zip(shape, grid, strict=True):
        step = max(1, int(g * (1 - overlap)))
        count = 1 if n <= g else 1 + math.ceil((n - g) / step)
        starts.append(np.linspace(0, max(n - g, 0), count).round().astype(int).tolist())
    size = _triple([min(n, g) for n, g in zip(shape, grid, strict=True)])
    at = _triple([max(g - n, 0) // 2 for n, g in zip(shape, grid, strict=True)])
    return [Placement(grid, at, _triple(start), size) for start in itertools.product(*starts)]


def task_grid(shape: Sequence[int], grid: Triple, stride: Triple, *, halvings: int = 2) -> Triple:
    """The grid for a whole volume: the model's own, longer where the volume is.

    Longer axes are rounded up to whole latent cells that a network can halve `halvings` times.
    """
    return _triple(
        [
            g if n <= g else -(-n // (s * 2**halvings)) * s * 2**halvings
            for n, g, s in zip(shape, grid, stride, strict=True)
        ]
    )


@final
@dataclass(frozen=True)
class _Turn:
    """From RAS+ axes on the grid to the file's own array, and back."""

    placement: Placement
    axes: tuple[int, ...]
    flips: tuple[int, ...]

    @staticmethod
    def build(placement: Placement, orientation: np.ndarray) -> "_Turn":
        # Axis k on disk is RAS+ axis axes[k], reversed where its flip is -1.
        flips = tuple(2 + k for k, flip in enumerate(orientation[:, 1]) if flip < 0)
        return _Turn(placement, tuple(int(a) for a in orientation[:, 0]), flips)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *(self.placement.size[a] for a in self.axes))

    def array(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (1, *self.placement.grid):
            raise ShapeMismatch(f"expected fields {(1, *self.placement.grid)}, got {tuple(x.shape[1:])}")
        turned = self.placement.cut(x).permute(0, 1, *[2 + a for a in self.axes])
        return turned.flip(self.flips) if self.flips else turned

    def field(self, array: Tensor) -> Tensor:
        array = array.flip(self.flips) if self.flips else array
        part = array.permute(0, 1, *[2 + self.axes.index(k) for k in range(3)])
        place = self.placement
        after = [g - a - n for g, a, n in zip(place.grid, place.at, place.size, strict=True)]
        return torch.nn.functional.pad(part, [p for k in (2, 1, 0) for p in (place.at[k], after[k])])

    def check(self, operator: Operator) -> None:
        if operator.in_shape != self.shape:
            raise ShapeMismatch(
                f"{type(operator).__name__} acts on fields of shape {operator.in_shape}, the volume's array is "
                f"{self.shape} (channel, *shape on disk); build it for this volume"
            )


@final
class OnGrid(LinearOperator):
    """The model's grid as a linear operator made for the file's own array observes it.

        y = A(turn(cut(x)))

    Args:
        placement: Where the volume lies on the grid.
        orientation: From the axes on disk to RAS+ axes, as `nibabel.orientations` writes it.
        operator: Acts on `(1, *shape on disk)`.

    Raises:
        ShapeMismatch: The operator is for another array.
    """

    def __init__(self, placement: Placement, orientation: np.ndarray, operator: LinearOperator) -> None:
        turn = _Turn.build(placement, orientation)
        turn.check(operator)
        super().__init__((1, *placement.grid), operator.out_shape, family=operator.family)
        self.turn, self.operator = turn, operator

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        return self.operator(self.turn.array(x))

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        return self.turn.field(self.operator.adjoint(y))


@final
class OnGridNonlinear(Operator):
    """As `OnGrid`, for an operator that need not be linear."""

    def __init__(self, placement: Placement, orientation: np.ndarray, operator: Operator) -> None:
        turn = _Turn.build(placement, orientation)
        turn.check(operator)
        super().__init__((1, *placement.grid), operator.out_shape, family=operator.family)
        self.turn, self.operator = turn, operator

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        return self.operator(self.turn.array(x))


def check_grid(grid: Sequence[int], stride: Triple) -> Triple:
    """Raises `DataError` unless the grid is a whole number of latent cells."""
    if len(grid) != 3 or any(g < s or g % s for g, s in zip(grid, stride, strict=True)):
        raise DataError(
            f"grid: expected three multiples of {stride} (voxels per latent cell), got {list(grid)}"
        )
    return _triple(grid)


def _triple(values: Sequence[int]) -> Triple:
    x, y, z = (int(v) for v in values)
    return x, y, z
