r"""Projections: line integrals of a field, as a tomograph measures them.

    y[angle, detector] = integral of x along the ray from source to detector pixel

With `x` an attenuation in 1/mm and lengths in mm, `y` has no unit. Rays are thin: they run through pixel centres. The
adjoint is the exact transpose (Joseph's weights, `sciLDM.operators.projection_rays`), not an approximate
back-projector, so that least-squares solvers converge to the solution of the problem that was stated.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators._axes import Number, per_axis, positive
from sciLDM.operators.base import LinearOperator, check_fields
from sciLDM.operators.projection_matrix import RayMatrix
from sciLDM.operators.projection_rays import cone_rays, fan_rays, parallel_rays

__all__ = ["ConeBeam", "FanBeam", "ParallelBeam"]

Spacing = Number | Sequence[Number]
Angles = Sequence[Number] | Float[Tensor, "angle"]


@final
class ParallelBeam(LinearOperator):
    """Parallel rays in a plane; every plane of a volume is projected alike.

    Observations have the field's shape with the plane's axes replaced by `(angle, detector)` at the end.

    Args:
        in_shape: `(channel, row, column)` or `(channel, slice, row, column)`.
        angles: Degrees, as in `skimage.transform.radon`: at 0 the projection is the sum over rows.
        detectors: Detector pixels; by default enough for the grid's diagonal.
        pixel: Their spacing in mm; by default the smaller voxel size.
        spacing: Voxel size in the plane in mm: one number, or (row, column).
        axes: Which axes of `in_shape` are the plane's rows and columns.

    Raises:
        ConfigError: A geometry that cannot be.

    Example:
        >>> views = ParallelBeam((1, 24, 64, 64), angles=[0, 30, 60, 90, 120, 150], spacing=0.8)
        >>> views.out_shape
        (1, 24, 6, 91)
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        angles: Angles,
        *,
        detectors: int | None = None,
        pixel: Number | None = None,
        spacing: Spacing = 1.0,
        axes: tuple[int, int] = (-2, -1),
    ) -> None:
        plane = _axes(in_shape, axes, 2)
        size = _spacing(spacing, 2)
        grid = (in_shape[plane[0]], in_shape[plane[1]])
        pixel = min(size) if pixel is None else positive(pixel, "pixel", "mm")
        count = _count(detectors, 2 * _radius(grid, size), pixel)
        views = _angles(angles)
        rest = tuple(n for k, n in enumerate(in_shape) if k not in plane)
        super().__init__(in_shape, (*rest, len(views), count))
        self.axes, self.spacing, self.pixel = plane, size, pixel
        self.register_buffer("angles", views, persistent=False)
        self.matrix = RayMatrix(parallel_rays(views, count, pixel), grid, size)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return _project(self.matrix, x, self.axes, self.out_shape[-2:])

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        _check_observations(self, y)
        return _back_project(self.matrix, y, self.axes, self.in_shape, 2)


@final
class FanBeam(LinearOperator):
    """Rays in a plane from a source on a circle to a straight detector opposite; every plane of a volume alike.

    Args:
        in_shape: `(channel, row, column)` or `(channel, slice, row, column)`.
        angles: Degrees; the central ray points as the rays of `ParallelBeam` do.
        source_to_axis: Distance from the source to the centre of rotation, in mm.
        source_to_detector: Distance from the source to the detector, in mm.
        detectors: Detector pixels; by default enough for the whole grid.
        pixel: Their spacing in mm, at the detector; by default a voxel, magnified.
        spacing: Voxel size in the plane in mm: one number, or (row, column).
        axes: Which axes of `in_shape` are the plane's rows and columns.

    Raises:
        ConfigError: A geometry that cannot be, such as a source inside the grid.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        angles: Angles,
        *,
        source_to_axis: Number,
        source_to_detector: Number,
        detectors: int | None = None,
        pixel: Number | None = None,
        spacing: Spacing = 1.0,
        axes: tuple[int, int] = (-2, -1),
    ) -> None:
        plane = _axes(in_shape, axes, 2)
        size = _spacing(spacing, 2)
        grid = (in_shape[plane[0]], in_shape[plane[1]])
        zoom = _magnification(source_to_axis, source_to_detector, _radius(grid, size))
        pixel = zoom * min(size) if pixel is None else positive(pixel, "pixel", "mm")
        width = _shadow(_radius(grid, size), source_to_axis, source_to_detector)
        count = _count(detectors, width, pixel)
        views = _angles(angles)
        rest = tuple(n for k, n in enumerate(in_shape) if k not in plane)
        super().__init__(in_shape, (*rest, len(views), count))
        self.axes, self.spacing, self.pixel = plane, size, pixel
        self.source_to_axis, self.source_to_detector = source_to_axis, source_to_detector
        self.register_buffer("angles", views, persistent=False)
        rays = fan_rays(views, count, pixel, source_to_axis, source_to_detector)
        self.matrix = RayMatrix(rays, grid, size)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return _project(self.matrix, x, self.axes, self.out_shape[-2:])

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        _check_observations(self, y)
        return _back_project(self.matrix, y, self.axes, self.in_shape, 2)


@final
class ConeBeam(LinearOperator):
    """Rays from a source on a circle to a flat detector opposite: `(channel, angle, detector row, detector column)`.

    A matrix of up to 2^25 entries (say 32 views of 32^3 voxels on 48 x 48 pixels) is kept; larger ones are computed in
    every product, which is slower and needs next to no memory.

    Args:
        in_shape: `(channel, depth, height, width)`.
        angles: Degrees; the central ray points as the rays of `ParallelBeam` do, in the plane of rotation.
        source_to_axis: Distance from the source to the axis of rotation, in mm.
        source_to_detector: Distance from the source to the detector, in mm.
        detectors: Detector rows (along the axis of rotation) and columns; by default enough for the whole grid.
        pixel: Their spacing in mm, at the detector: one number, or (row, column); by default a voxel, magnified.
        spacing: Voxel size in mm: one number, or one for each axis of the grid.
        axis: Which axis of `in_shape` the source turns about.

    Raises:
        ConfigError: A geometry that cannot be, such as a source inside the grid.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        angles: Angles,
        *,
        source_to_axis: Number,
        source_to_detector: Number,
        detectors: tuple[int, int] | None = None,
        pixel: Spacing | None = None,
        spacing: Spacing = 1.0,
        axis: int = -3,
    ) -> None:
        if len(in_shape) != 4:
            raise ConfigError(f"cone beam: expected (channel, depth, height, width), got {tuple(in_shape)}")
        (turn,) = _axes(in_shape, (axis,), 1)
        order = (turn, *[k for k in (1, 2, 3) if k != turn])
        size = tuple(_spacing(spacing, 3)[k - 1] for k in order)
        grid = tuple(in_shape[k] for k in order)
        radius = _radius(grid[1:], size[1:])
        zoom = _magnification(source_to_axis, source_to_detector, radius)
        pixels = (zoom * size[0], zoom * min(size[1:])) if pixel is None else _spacing(pixel, 2, "pixel")
        if detectors is None:
            # The grid's end faces look largest where they come closest to the source.
            height = grid[0] * size[0] * source_to_detector / (source_to_axis - radius)
            width = _shadow(radius, source_to_axis, source_to_detector)
            detectors = (_count(None, height, pixels[0]), _count(None, width, pixels[1]))
        if min(detectors) < 1:
            raise ConfigError(f"detectors: expected at least 1 row and 1 column, got {detectors}")
        views = _angles(angles)
        super().__init__(in_shape, (in_shape[0], len(views), *detectors))
        self.axes, self.spacing, self.pixel = order, size, pixels
        self.source_to_axis, self.source_to_detector = source_to_axis, source_to_detector
        self.register_buffer("angles", views, persistent=False)
        rays = cone_rays(views, detectors, pixels, source_to_axis, source_to_detector)
        self.matrix = RayMatrix(rays, grid, size)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return _project(self.matrix, x, self.axes, self.out_shape[1:])

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        _check_observations(self, y)
        return _back_project(self.matrix, y, self.axes, self.in_shape, 3)


def _project(matrix: RayMatrix, x: Tensor, axes: tuple[int, ...], view: tuple[int, ...]) -> Tensor:
    moved = x.movedim([k + 1 for k in axes], list(range(-len(axes), 0)))
    kept = moved.shape[: -len(axes)]
    return matrix.project(moved.reshape(-1, matrix.voxels)).reshape(*kept, *view)


def _back_project(
    matrix: RayMatrix, y: Tensor, axes: tuple[int, ...], shape: tuple[int, ...], grid: int
) -> Tensor:
    kept = y.shape[: len(shape) + 1 - grid]
    x = matrix.back_project(y.reshape(-1, matrix.rays)).reshape(*kept, *matrix.shape)
    return x.movedim(list(range(-grid, 0)), [k + 1 for k in axes])


def _check_observations(operator: LinearOperator, y: Tensor) -> None:
    if tuple(y.shape[1:]) != operator.out_shape:
        raise ShapeMismatch(
            f"{type(operator).__name__} gives observations of shape {operator.out_shape}, got {tuple(y.shape[1:])}"
        )


def _axes(in_shape: Sequence[int], axes: tuple[int, ...], count: int) -> tuple[int, ...]:
    found = tuple(k + len(in_shape) if k < 0 else k for k in axes)
    if len(set(found)) != count or any(not 1 <= k < len(in_shape) for k in found):
        raise ConfigError(
            f"projection axes: expected {count} different axes of the grid in {tuple(in_shape)} "
            f"(axis 0 is the channel), got {axes}"
        )
    return found


def _angles(angles: Angles) -> Tensor:
    views = torch.as_tensor(angles, dtype=torch.float64).flatten()
    if not len(views) or not bool(torch.isfinite(views).all()):
        raise ConfigError("angles: expected at least one finite number of degrees")
    return views


def _spacing(spacing: Spacing, count: int, what: str = "spacing") -> tuple[float, ...]:
    return tuple(positive(value, what, "mm") for value in per_axis(spacing, count, what))


def _count(detectors: int | None, width: float, pixel: float) -> int:
    count = math.ceil(width / pixel - 1e-9) if detectors is None else detectors
    if count < 1:
        raise ConfigError(f"detectors: expected at least 1, got {count}")
    return count


def _radius(grid: Sequence[int], size: Sequence[float]) -> float:
    """Half the grid's diagonal: what lies inside is seen from all sides."""
    return math.hypot(*[n * h for n, h in zip(grid, size, strict=True)]) / 2


def _magnification(source_to_axis: Number, source_to_detector: Number, radius: float) -> float:
    if not source_to_axis > radius:
        raise ConfigError(
            f"source_to_axis: expected more than {radius:.4g} mm, half the grid's diagonal, got {source_to_axis}; "
            "the source would touch the object"
        )
    if not source_to_detector >= source_to_axis:
        raise ConfigError(
            f"source_to_detector: expected at least source_to_axis = {source_to_axis} mm, got {source_to_detector}"
        )
    return source_to_detector / source_to_axis


def _shadow(radius: float, source_to_axis: Number, source_to_detector: Number) -> float:
    """Width of a disk's shadow on the detector."""
    return 2 * source_to_detector * radius / math.sqrt(source_to_axis**2 - radius**2)
