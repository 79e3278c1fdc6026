r"""Values at points between the grid's nodes: stations, buoys, detectors.

Multilinear interpolation: `y_p = sum_c prod_a w_a(c) x[node_c]` over the `2^d` nodes around a point. Exact for
functions that are linear along each axis.
"""

from collections.abc import Sequence
from itertools import product
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators._axes import Number, per_axis
from sciLDM.operators.base import LinearOperator, check_fields, check_observations

__all__ = ["PointSampling", "grid_coordinates"]


@final
class PointSampling(LinearOperator):
    """Interpolated values at points, `(*lead, point)`: channels and axes in front of the sampled ones stay.

    Args:
        in_shape: `(channel, *grid)`.
        points: Fractional coordinates along the last axes of the grid, one column for each sampled axis; node `i` of an
            axis of `n` is at `i`. A point up to half a cell outside belongs to the outermost node. `grid_coordinates`
            makes such numbers from latitudes, longitudes or millimetres.
        periodic: Whether an axis closes on itself (longitude): one answer, or one for each sampled axis.

    Raises:
        ConfigError: No points, points that are not finite, or points outside the grid.
        ShapeMismatch: More columns than the grid has axes.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        points: Float[Tensor, "point axis"],
        *,
        periodic: bool | Sequence[bool] = False,
    ) -> None:
        if points.ndim != 2 or not 1 <= points.shape[1] < len(in_shape):
            raise ShapeMismatch(
                f"PointSampling: expected points of shape (point, axis) with at most {len(in_shape) - 1} axes, got "
                f"{tuple(points.shape)}"
            )
        if not len(points) or not bool(torch.isfinite(points).all()):
            raise ConfigError("PointSampling: expected at least one point, all with finite coordinates")
        axes = points.shape[1]
        sizes = tuple(in_shape[-axes:])
        super().__init__(in_shape, (*in_shape[:-axes], len(points)))
        self.sizes = sizes
        closed = tuple(bool(c) for c in per_axis(periodic, axes, "PointSampling: periodic"))
        node, weight = _corners(_inside(points.double(), sizes, closed), sizes, closed)
        self.node: Tensor
        self.weight: Tensor
        self.register_buffer("node", node, persistent=False)
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        flat, weight = x.flatten(-len(self.sizes)), self.weight.to(x)
        y = x.new_zeros(*flat.shape[:-1], self.out_shape[-1])
        for node, w in zip(self.node, weight, strict=True):  # all corners at once would be 2^d observations
            y = y + flat[..., node] * w
        return y

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        flat, weight = y.new_zeros(*y.shape[:-1], torch.Size(self.sizes).numel()), self.weight.to(y)
        for node, w in zip(self.node, weight, strict=True):
            flat = flat.index_add(-1, node, y * w)
        return flat.reshape(len(y), *self.in_shape)


def grid_coordinates(
    nodes: Float[Tensor, "node"], values: Float[Tensor, "point"], *, period: Number | None = None
) -> Float[Tensor, "point"]:
    """Fractional positions of coordinate values on an axis: `nodes[i]` gives `i`, linear in between.

    Args:
        nodes: Coordinates of the grid's nodes, rising or falling; the spacing may vary.
        values: Coordinates of the points, in the same unit.
        period: Length of an axis that closes on itself (360 degrees); the values may then be given in any turn.

    Returns:
        Positions for `PointSampling`; outside the nodes in units of the outermost spacing.

    Raises:
        ConfigError: Nodes that do not rise or fall strictly, or that span a whole period or more.
    """
    grid, points = nodes.double(), values.double()
    step = grid.diff()
    if len(grid) < 2 or not (bool((step > 0).all()) or bool((step < 0).all())):
        raise ConfigError("grid_coordinates: expected at least two nodes that rise or fall strictly")
    if bool(step[0] < 0):
        grid, points = -grid, -points
    if period is not None:
        if not float(grid[-1] - grid[0]) < period:
            raise ConfigError(
                f"grid_coordinates: nodes from {float(nodes[0]):g} to {float(nodes[-1]):g} span the period {period:g} "
                "or more; leave out the repeated node"
            )
        points = grid[0] + torch.remainder(points - grid[0], period)
        grid = torch.cat([grid, grid[:1] + period])
    left = (torch.searchsorted(grid, points.contiguous(), right=True) - 1).clamp(0, len(grid) - 2)
    return (left + (points - grid[left]) / (grid[left + 1] - grid[left])).to(values.dtype)


def _inside(points: Tensor, sizes: tuple[int, ...], periodic: tuple[bool, ...]) -> Tensor:
    """Positions between the first and last node, or within one turn."""
    columns: list[Tensor] = []
    for axis, (size, closed) in enumerate(zip(sizes, periodic, strict=True)):
        column = points[:, axis]
        if closed:
            columns.append(torch.remainder(column, size))
            continue
        outside = (column < -0.5) | (column > size - 0.5)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise ConfigError(
                f"PointSampling: {int(outside.sum())} of {len(points)} points lie outside the grid, the first is "
                f"number {first} at {float(column[first]):g} along sampled axis {axis} of {size} nodes; leave them "
                "out, or say that the axis is periodic"
            )
        columns.append(column.clamp(0, size - 1))
    return torch.stack(columns, dim=1)


def _corners(points: Tensor, sizes: tuple[int, ...], periodic: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """Flat node numbers and weights of the nodes around each point, `[corner, point]`."""
    lower = points.floor()
    share = points - lower
    nodes: list[Tensor] = []
    weights: list[Tensor] = []
    for corner in product((0, 1), repeat=len(sizes)):
        node = torch.zeros(len(points), dtype=torch.int64)
        weight = torch.ones(len(points), dtype=torch.float64)
        for axis, (up, size) in enumerate(zip(corner, sizes, strict=True)):
            place = lower[:, axis].long() + up
            # Rounding may put a periodic point at exactly `size`; a clamped one has no share beyond the last node.
            place = place % size if periodic[axis] else place.clamp(max=size - 1)
            node = node * size + place
            weight = weight * (share[:, axis] if up else 1 - share[:, axis])
        nodes.append(node)
        weights.append(weight)
    return torch.stack(nodes), torch.stack(weights)
