"""Linear maps given as a matrix: over whole fields, or along one axis."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators._axes import along, field_axis
from sciLDM.operators._linear import linear_map
from sciLDM.operators.base import LinearOperator, check_fields, check_observations

__all__ = ["AxisMap", "LinearMap"]


@final
class LinearMap(LinearOperator):
    """`y = M x` over flattened fields; regridding weights, say.

    Args:
        matrix: `M`, dense or sparse (coordinate or compressed), one row an observed value.
        in_shape: `(channel, *grid)`; a column for each of its values in row-major order.
        out_shape: Shape of one observation; a vector when None.

    Raises:
        ConfigError: Entries that are not finite real numbers.
        ShapeMismatch: Columns or rows that do not fit `in_shape` or `out_shape`.
    """

    def __init__(
        self, matrix: Tensor, in_shape: Sequence[int], *, out_shape: Sequence[int] | None = None
    ) -> None:
        shape = tuple(matrix.shape[:1]) if out_shape is None else tuple(out_shape)
        if tuple(matrix.shape) != (math.prod(shape), math.prod(in_shape)):
            raise ShapeMismatch(
                f"LinearMap: expected a matrix ({math.prod(shape)}, {math.prod(in_shape)}) from fields "
                f"{tuple(in_shape)} to observations {shape}, got {tuple(matrix.shape)}"
            )
        # Coordinates: the one sparse layout whose transpose torch multiplies as well.
        matrix = matrix if matrix.layout == torch.strided else matrix.to_sparse_coo().coalesce()
        entries = matrix.values() if matrix.is_sparse else matrix
        if not matrix.is_floating_point() or not bool(torch.isfinite(entries).all()):
            raise ConfigError(
                f"LinearMap: expected finite real entries, got {matrix.dtype} or NaN or infinite ones"
            )
        super().__init__(in_shape, shape)
        self.matrix: Tensor
        self.register_buffer("matrix", matrix.detach(), persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return linear_map(x.flatten(1), self._multiply, self._multiply_transposed).reshape(
            -1, *self.out_shape
        )

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        rows = y.reshape(len(y), len(self.matrix))
        return linear_map(rows, self._multiply_transposed, self._multiply).reshape(-1, *self.in_shape)

    def _multiply(self, rows: Tensor) -> Tensor:
        return torch.mm(self.matrix.to(rows.dtype), rows.t()).t()

    def _multiply_transposed(self, rows: Tensor) -> Tensor:
        return torch.mm(self.matrix.to(rows.dtype).t(), rows.t()).t()


@final
class AxisMap(LinearOperator):
    """The same matrix along one axis: a time mean, a vertical integral, a combination of channels.

    Args:
        matrix: One row for each observed entry, one column for each entry of the axis.
        in_shape: `(channel, *grid)`.
        axis: Axis of the field; 0 is the channel.

    Raises:
        ConfigError: Entries that are not finite, or an axis that the field does not have.
        ShapeMismatch: Another number of columns than the axis has entries.
    """

    def __init__(self, matrix: Float[Tensor, "out in"], in_shape: Sequence[int], *, axis: int) -> None:
        axis = field_axis(in_shape, axis, "AxisMap")
        if matrix.ndim != 2 or matrix.shape[1] != in_shape[axis]:
            raise ShapeMismatch(
                f"AxisMap: expected a matrix with {in_shape[axis]} columns for axis {axis}, got "
                f"{tuple(matrix.shape)}"
            )
        if not bool(torch.isfinite(matrix).all()):
            raise ConfigError("AxisMap: the matrix holds NaN or infinite entries")
        super().__init__(in_shape, (*in_shape[:axis], len(matrix), *in_shape[axis + 1 :]))
        self.axis = axis
        self.matrix: Tensor
        self.register_buffer("matrix", matrix.detach(), persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return along(x, self.matrix, self.axis + 1)

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        return along(y, self.matrix.mT, self.axis + 1)
