r"""Gaussian blur as diffusion on the grid: exact variance at any width, symmetric, semigroup.

Along each axis `B = exp(tau/2 L)` with `L` the grid's second difference and `tau = (std / spacing)^2`: the discrete
analogue of the Gaussian kernel (Lindeberg 1990, doi:10.1109/34.49051). A sampled Gaussian would lose its width below
about one cell. `L` with reflecting ends has the cosine transform as eigenvectors, a periodic one the Fourier transform.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.operators._axes import Number, along, grid_of, per_axis, positive
from sciLDM.operators.base import LinearOperator, check_fields, check_observations

__all__ = ["Blur"]


@final
class Blur(LinearOperator):
    """Convolution with a Gaussian along the axes of the grid. Its own adjoint; keeps constants and sums.

    Args:
        in_shape: `(channel, *grid)`.
        std: Standard deviation of the Gaussian, in the unit of `spacing`: one number, or one for each axis; 0 leaves
            an axis as it is. A full width at half maximum is 2.355 times as much.
        spacing: Distance of the grid's cells: one number, or one for each axis.
        periodic: Whether an axis closes on itself (longitude): one answer, or one for each axis. Others reflect.

    Raises:
        ConfigError: A negative width, a spacing that is not positive, or as many values as there are no axes.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        std: Number | Sequence[Number],
        *,
        spacing: Number | Sequence[Number] = 1.0,
        periodic: bool | Sequence[bool] = False,
    ) -> None:
        super().__init__(in_shape, in_shape)
        grid = grid_of(self.in_shape, "Blur")
        widths = per_axis(std, len(grid), "Blur: std")
        if min(widths) < 0:
            raise ConfigError(f"Blur: expected standard deviations of at least 0, got {std}")
        steps = [
            positive(step, "Blur: spacing", "the unit of std")
            for step in per_axis(spacing, len(grid), "Blur: spacing")
        ]
        closed = per_axis(periodic, len(grid), "Blur: periodic")
        self._axes: list[int] = []
        for axis, (size, width, step, close) in enumerate(zip(grid, widths, steps, closed, strict=True)):
            if width > 0:
                tau = (width / step) ** 2
                matrix = _periodic(size, tau) if close else _reflecting(size, tau)
                self.register_buffer(f"matrix{axis}", matrix.float(), persistent=False)
                self._axes.append(axis)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *field"]:
        check_fields(self, x)
        return self._blur(x, self._axes)

    def adjoint(self, y: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        return self._blur(y, self._axes[::-1])

    def _blur(self, x: Tensor, axes: list[int]) -> Tensor:
        for axis in axes:
            x = along(x, self.get_buffer(f"matrix{axis}"), axis + 2)
        return x


def _reflecting(size: int, tau: float) -> Tensor:
    angle = math.pi / size * torch.arange(size, dtype=torch.float64)
    basis = torch.cos(angle * (torch.arange(size, dtype=torch.float64)[:, None] + 0.5))
    basis = basis / basis.norm(dim=0)
    return _symmetric((basis * torch.exp(tau * (torch.cos(angle) - 1))) @ basis.mT)


def _periodic(size: int, tau: float) -> Tensor:
    angle = 2 * math.pi / size * torch.arange(size // 2 + 1, dtype=torch.float64)
    kernel = torch.fft.irfft(torch.exp(tau * (torch.cos(angle) - 1)).to(torch.complex128), n=size)
    place = torch.arange(size)
    return _symmetric(kernel[(place - place[:, None]) % size])


def _symmetric(matrix: Tensor) -> Tensor:
    # To the last bit, so that the operator is its own adjoint in float32 too.
    return (matrix + matrix.mT) / 2
