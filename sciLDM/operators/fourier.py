r"""Sampled Fourier coefficients: magnetic resonance k-space, interferometer visibilities.

`y_c = P F (S_c x)` with `F` the orthonormal discrete Fourier transform, `P` the choice of sampled frequencies and
`S_c` the sensitivity of coil `c` (Pruessmann et al. 1999, Magn. Reson. Med. 42, 952).
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators.base import LinearOperator, check_fields, check_observations
from sciLDM.operators.masking import scatter

__all__ = ["Fourier"]


@final
class Fourier(LinearOperator):
    """Fourier coefficients of a real field, `(channel, *lead, [coil,] sampled, 2)`; the last axis is real, imaginary.

    Zero frequency and the image's origin are in the middle of their arrays, at index `n // 2`, as scanners store them.
    Fully sampled without coils the operator is unitary: `A^T A x = x`. A phase of the image goes into the coil maps.
    The noise's standard deviation is that of the real and of the imaginary part, each.

    Args:
        in_shape: `(channel, *grid)`.
        mask: Sampled frequencies, broadcasting to the last `axes` axes; all when None.
        axes: How many of the last axes are transformed; axes in front (slices, times) stay.
        coils: Sensitivity maps on the transformed axes, one for each coil.

    Raises:
        ConfigError: Another number of axes than 2 or 3, or nothing sampled.
        ShapeMismatch: A mask or coil maps that do not fit the grid.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        mask: Bool[Tensor, "*grid"] | None = None,
        *,
        axes: int = 2,
        coils: Complex[Tensor, "coil *grid"] | None = None,
    ) -> None:
        if axes not in (2, 3) or len(in_shape) <= axes:
            raise ConfigError(
                f"Fourier: transforms the last 2 or 3 axes of the grid, got axes={axes} for fields of shape "
                f"{tuple(in_shape)} (channel, *grid)"
            )
        grid = tuple(in_shape[-axes:])
        try:
            sampled = (torch.ones(grid, dtype=torch.bool) if mask is None else mask).expand(grid)
        except RuntimeError:
            raise ShapeMismatch(
                f"Fourier: a mask of shape {tuple(mask.shape if mask is not None else ())} does not broadcast to the "
                f"frequencies {grid}"
            ) from None
        if sampled.dtype != torch.bool or not bool(sampled.any()):
            raise ConfigError(
                "Fourier: expected a mask of booleans with at least one True, a sampled frequency; the zero "
                f"frequency is at {tuple(n // 2 for n in grid)}"
            )
        if coils is not None and (not coils.is_complex() or tuple(coils.shape[1:]) != grid or not len(coils)):
            raise ShapeMismatch(
                f"Fourier: expected complex coil maps (coil, {', '.join(map(str, grid))}), got {coils.dtype} of "
                f"shape {tuple(coils.shape)}"
            )
        receivers = () if coils is None else (len(coils),)
        super().__init__(in_shape, (*in_shape[:-axes], *receivers, int(sampled.sum()), 2))
        self._dims = tuple(range(-axes, 0))
        self._grid = grid
        self.index: Tensor
        self.maps: Tensor | None
        self.register_buffer("index", sampled.flatten().nonzero().squeeze(1), persistent=False)
        # As pairs of real numbers: `Module.to(dtype)` would drop the imaginary part of a complex buffer.
        maps = None if coils is None else torch.view_as_real(coils.resolve_conj())
        self.register_buffer("maps", maps, persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation 2"]:
        check_fields(self, x)
        seen = x if self.maps is None else x.unsqueeze(-1 - len(self._grid)) * self._sensitivity(x)
        # Both shifts are rolls, so this is the plain transform up to where the origins lie.
        spectrum = torch.fft.fftn(torch.fft.ifftshift(seen, self._dims), dim=self._dims, norm="ortho")
        spectrum = torch.fft.fftshift(spectrum, self._dims).flatten(-len(self._grid))
        return torch.view_as_real(spectrum[..., self.index])

    def adjoint(self, y: Float[Tensor, "batch *observation 2"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        spectrum = scatter(_complex(y), self.index, self._grid)
        image = torch.fft.ifftn(torch.fft.ifftshift(spectrum, self._dims), dim=self._dims, norm="ortho")
        image = torch.fft.fftshift(image, self._dims)
        if self.maps is not None:
            image = (self._sensitivity(y).conj() * image).sum(dim=-1 - len(self._grid))
        return image.real

    def _sensitivity(self, like: Tensor) -> Tensor:
        assert self.maps is not None
        return _complex(self.maps.to(like))


def _complex(pairs: Tensor) -> Tensor:
    # `view_as_complex` refuses a slice that begins at an odd place, such as a stack's second part.
    return torch.complex(pairs[..., 0], pairs[..., 1])
