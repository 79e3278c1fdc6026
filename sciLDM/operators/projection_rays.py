r"""Rays of a tomograph, and the weights of Joseph's method along them.

Positions are in mm from the centre of the grid, in the order of the grid's axes; the first axis points down the rows,
the last along the columns. At angle `a` the beam's central ray and the detector point along

    ray = (cos a, sin a),    detector = (-sin a, cos a)        (row, column),

which is scikit-image's convention: at 0 degrees a projection is the sum over rows. A ray's integral is a sum over the
planes of voxels that it crosses most steeply, interpolated within each plane (Joseph 1982,
doi:10.1109/TMI.1982.4307572); outside the grid the field is zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Rays", "cone_rays", "fan_rays", "joseph_weights", "parallel_rays"]

_F64 = torch.float64


@final
@dataclass(frozen=True)
class Rays:
    """A point on each ray and its direction, of length one.

    Attributes:
        origin: In mm; the source, where there is one.
        direction: Away from it.
    """

    origin: Float[Tensor, "ray axis"]
    direction: Float[Tensor, "ray axis"]


def parallel_rays(angles: Float[Tensor, "angle"], count: int, pixel: float) -> Rays:
    """`angle x detector` rays in a plane; angles in degrees, `pixel` in mm."""
    along, across = _frame(angles)
    origin = _offsets(count, pixel)[:, None] * across[:, None]
    return Rays(origin.flatten(0, 1), along[:, None].expand_as(origin).flatten(0, 1))


def fan_rays(
    angles: Float[Tensor, "angle"],
    count: int,
    pixel: float,
    source_to_axis: float | int,
    source_to_detector: float | int,
) -> Rays:
    """`angle x detector` rays from a source that circles the centre, to a straight detector opposite."""
    along, across = _frame(angles)
    source = (-source_to_axis * along)[:, None].expand(-1, count, -1)
    direction = source_to_detector * along[:, None] + _offsets(count, pixel)[:, None] * across[:, None]
    return Rays(source.flatten(0, 1), _unit(direction).flatten(0, 1))


def cone_rays(
    angles: Float[Tensor, "angle"],
    count: tuple[int, int],
    pixel: tuple[float, ...],
    source_to_axis: float | int,
    source_to_detector: float | int,
) -> Rays:
    """`angle x row x column` rays; the first grid axis is the axis of rotation, detector rows lie along it."""
    along, across = _frame(angles)
    lift = torch.zeros(len(along), 1, dtype=_F64)
    along, across = torch.cat([lift, along], dim=1), torch.cat([lift, across], dim=1)
    axis = torch.tensor([1.0, 0.0, 0.0], dtype=_F64)
    rows, columns = (_offsets(n, size) for n, size in zip(count, pixel, strict=True))
    direction = (source_to_detector * along)[:, None, None] + rows[:, None, None] * axis
    direction = direction + columns[:, None] * across[:, None, None]
    source = (-source_to_axis * along)[:, None, None].expand_as(direction)
    return Rays(source.flatten(0, 2), _unit(direction).flatten(0, 2))


def joseph_weights(
    rays: Rays, shape: Sequence[int], spacing: Sequence[float]
) -> tuple[Int[Tensor, "ray entry"], Float[Tensor, "ray entry"]]:
    """Flat voxel indices and weights in mm of every ray; entries beyond the grid have index 0 and weight 0.

    Args:
        rays: Rays that come from outside the grid.
        shape: Voxels along each of the 2 or 3 axes.
        spacing: Voxel size along each, in mm.
    """
    size = torch.tensor(spacing, dtype=_F64, device=rays.origin.device)
    steepest = (rays.direction.abs() / size).argmax(dim=1)
    width = max(shape) * 2 ** (len(shape) - 1)
    index = torch.zeros(len(steepest), width, dtype=torch.int32, device=size.device)
    weight = torch.zeros(len(steepest), width, dtype=_F64, device=size.device)
    for main in range(len(shape)):
        chosen = (steepest == main).nonzero()[:, 0]
        if len(chosen):
            part = Rays(rays.origin[chosen], rays.direction[chosen])
            columns, values = _through_planes(part, shape, spacing, main)
            index[chosen, : columns.shape[1]] = columns.to(torch.int32)
            weight[chosen, : columns.shape[1]] = values
    return index, weight


def _through_planes(
    rays: Rays, shape: Sequence[int], spacing: Sequence[float], main: int
) -> tuple[Tensor, Tensor]:
    """Joseph's weights of rays that all cross the planes along axis `main`."""
    planes = torch.arange(shape[main], device=rays.origin.device)
    depth = (planes - (shape[main] - 1) / 2) * spacing[main]
    time = (depth - rays.origin[:, main, None]) / rays.direction[:, main, None]  # mm along the ray
    strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    others = [k for k in range(len(shape)) if k != main]
    lower, share = [], []
    for k in others:
        position = (rays.origin[:, k, None] + time * rays.direction[:, k, None]) / spacing[k] + (
            shape[k] - 1
        ) / 2
        lower.append(position.floor())
        share.append(position - position.floor())
    step = (spacing[main] / rays.direction[:, main].abs())[:, None]
    columns, values = [], []
    for corner in product((0, 1), repeat=len(others)):
        index, weight = (planes * strides[main]).expand_as(time), step.expand_as(time)
        for k, bit, low, fraction in zip(others, corner, lower, share, strict=True):
            at = low.long() + bit
            inside = (at >= 0) & (at < shape[k])
            weight = weight * (fraction if bit else 1 - fraction) * inside
            index = index + at.clamp(0, shape[k] - 1) * strides[k]
        columns.append(index)
        values.append(weight)
    return torch.cat(columns, dim=1), torch.cat(values, dim=1)


def _frame(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of the central ray and of the detector at every angle, as (row, column)."""
    radians = torch.deg2rad(angles.to(_F64))
    cos, sin = radians.cos(), radians.sin()
    return torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)


def _offsets(count: int, pixel: float) -> Tensor:
    """Centres of the detector's pixels, in mm from its middle."""
    return (torch.arange(count, dtype=_F64) - (count - 1) / 2) * pixel


def _unit(direction: Tensor) -> Tensor:
    return direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
