r"""Filtered back-projection: the textbook inverse of `ParallelBeam`, good when views are many and noise is low.

    x(r) = sum_a w_a (h * y_a)(s_a(r)),    s_a(r) = the detector coordinate of r at angle a

with `h` the band-limited ramp in its spatial form, whose mean is right (Kak & Slaney 1988, eq. 3.61), and `w_a` the
arc, modulo 180 degrees, that a view stands for.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ShapeMismatch
from sciLDM.operators.projection import ParallelBeam

__all__ = ["filtered_back_projection"]


def filtered_back_projection(
    operator: ParallelBeam, y: Float[Tensor, "batch *observation"], *, hann: bool = False
) -> Float[Tensor, "batch *field"]:
    """An image of every projected plane, in the field's units (1/mm for an attenuation).

    Args:
        operator: The geometry; views may be unevenly spaced and cover more than half a turn.
        y: Its observations; missing rays must have been filled in.
        hann: Damp high frequencies by a Hann window, down to nothing at the detector's Nyquist frequency.

    Raises:
        ShapeMismatch: `y` are no observations of this operator.
    """
    if tuple(y.shape[1:]) != operator.out_shape:
        raise ShapeMismatch(
            f"filtered back-projection: expected sinograms of shape {operator.out_shape}, got {tuple(y.shape[1:])}"
        )
    rows = y.reshape(-1, *operator.out_shape[-2:])
    filtered = _ramp(rows, operator.pixel, hann)
    grid = tuple(operator.in_shape[k] for k in operator.axes)
    image = torch.zeros(len(rows), math.prod(grid), dtype=y.dtype, device=y.device)
    down, right = (
        (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * h
        for n, h in zip(grid, operator.spacing, strict=True)
    )
    angles = operator.angles.double().cpu()
    for view, (angle, arc) in enumerate(zip(torch.deg2rad(angles), _arcs(angles), strict=True)):
        across = (-angle.sin() * down[:, None] + angle.cos() * right).flatten()
        image += float(arc) * _interpolate(filtered[:, view], across / operator.pixel)
    image = image.reshape(*y.shape[:-2], *grid)
    return image.movedim((-2, -1), [k + 1 for k in operator.axes])


def _ramp(rows: Tensor, pixel: float, hann: bool) -> Tensor:
    """Convolution with the ramp along the last axis, padded so that it does not wrap around."""
    count = rows.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * count))
    n = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64)  # 0, 1, ..., -1: offsets in pixels
    kernel = torch.where(n % 2 == 1, -1 / (math.pi * n * pixel).square().clamp(min=1e-30), 0.0)
    kernel[0] = 1 / (4 * pixel**2)
    response = torch.fft.rfft(kernel).real * pixel
    if hann:
        response = response * (0.5 + 0.5 * torch.cos(math.pi * torch.linspace(0, 1, len(response))))
    spectrum = torch.fft.rfft(rows, n=length) * response.to(rows)
    return torch.fft.irfft(spectrum, n=length)[..., :count]


def _arcs(angles: Tensor) -> Tensor:
    """Half the gaps to both neighbours on the half-circle, in radians: they sum to pi."""
    folded, order = torch.sort(angles % 180.0)
    gaps = torch.diff(folded, append=folded[:1] + 180.0)
    arcs = torch.empty_like(folded)
    arcs[order] = (gaps + gaps.roll(1)) / 2
    return torch.deg2rad(arcs)


def _interpolate(rows: Tensor, offset: Tensor) -> Tensor:
    """Linear interpolation at `offset` pixels from the middle; zero beyond the detector."""
    position = offset + (rows.shape[-1] - 1) / 2
    lower = position.floor()
    share = (position - lower).to(rows)
    total = torch.zeros(len(rows), len(offset), dtype=rows.dtype, device=rows.device)
    for bit, weight in ((0, 1 - share), (1, share)):
        at = lower.long() + bit
        inside = (at >= 0) & (at < rows.shape[-1])
        total += rows[:, at.clamp(0, rows.shape[-1] - 1).to(rows.device)] * (weight * inside.to(weight))
    return total
