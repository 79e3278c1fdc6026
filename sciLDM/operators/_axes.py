"""Axes of a field, and values given once or once per axis."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from sciLDM.errors import ConfigError

__all__ = ["Number", "along", "field_axis", "grid_of", "per_axis", "positive"]


Number: TypeAlias = float | int
"""What users write for a length; the checks under pytest do not take 2 for a float."""


def field_axis(in_shape: Sequence[int], axis: int, name: str) -> int:
    """`axis` counted from the front of `(channel, *grid)`.

    Raises:
        ConfigError: There is no such axis.
    """
    if not -len(in_shape) <= axis < len(in_shape):
        raise ConfigError(
            f"{name}: a field of shape {tuple(in_shape)} has no axis {axis}; 0 is the channel, -1 the last axis"
        )
    return axis % len(in_shape)


def grid_of(in_shape: Sequence[int], name: str) -> tuple[int, ...]:
    """The grid's part of `(channel, *grid)`.

    Raises:
        ConfigError: There is none.
    """
    if len(in_shape) < 2:
        raise ConfigError(
            f"{name}: expected the shape of a field (channel, *grid), got {tuple(in_shape)}; one channel is a "
            "leading 1"
        )
    return tuple(in_shape[1:])


def per_axis(value: Number | Sequence[Number], count: int, name: str) -> tuple[Number, ...]:
    """One number for each of `count` axes of the grid.

    Raises:
        ConfigError: A sequence of another length, or a number that is not finite.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise ConfigError(f"{name}: expected one finite number, or one for each of {count} axes, got {value}")
    return values


def positive(value: Number, name: str, unit: str) -> float:
    """Raises `ConfigError` unless `value` is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}: expected a positive number in {unit}, got {value}")
    return float(value)


def along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """`matrix @ x` along one axis of a batch (counted with the batch axis)."""
    return torch.movedim(torch.movedim(x, axis, -1) @ matrix.to(x).mT, -1, axis)
