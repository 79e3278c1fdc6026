"""Convolution and group norm on grids of which only some cells exist."""

from collections.abc import Sequence
from math import gcd
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Boundary", "MaskedConv", "MaskedGroupNorm"]

Boundary = Literal["zeros", "reflect", "replicate", "circular"]
"""What a convolution sees beyond the edge of the grid; `circular` for a periodic axis such as longitude."""


@final
class MaskedConv(nn.Module):
    """A convolution over three cells an axis that sees zeros outside the mask.

    Args:
        channels: Channels in.
        out: Channels out.
        boundary: What lies beyond the grid's edge, one entry an axis; its length sets the number of axes.
        stride: 2 halves every axis; `n` cells become `ceil(n / 2)`.
        zero: Start with weights of zero.
    """

    def __init__(
        self, channels: int, out: int, boundary: Sequence[Boundary], *, stride: int = 1, zero: bool = False
    ) -> None:
        super().__init__()
        self.boundary = tuple(boundary)
        self.zeros = all(mode == "zeros" for mode in boundary)
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(boundary) - 1]
        self.conv = kind(channels, out, 3, stride=stride, padding=1 if self.zeros else 0)
        if zero:
            nn.init.zeros_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "batch channel *shape"], present: Bool[Tensor, "batch 1 *shape"] | None
    ) -> Float[Tensor, "batch out *coarse"]:
        if present is not None:
            x = x.masked_fill(~present, 0.0)
        if not self.zeros:
            for axis, mode in enumerate(self.boundary):
                x = _extend(x, 2 + axis, mode)
        return self.conv(x)


def _extend(x: Tensor, axis: int, mode: Boundary) -> Tensor:
    """One more cell at either end of `axis`; a grid of one cell reflects to itself."""
    n = x.shape[axis]
    if mode == "zeros":
        edge = torch.zeros_like(x.narrow(axis, 0, 1))
        return torch.cat([edge, x, edge], dim=axis)
    inner = min(1, n - 1)
    before, after = {"replicate": (0, n - 1), "reflect": (inner, n - 1 - inner), "circular": (n - 1, 0)}[mode]
    return torch.cat([x.narrow(axis, before, 1), x, x.narrow(axis, after, 1)], dim=axis)


@final
class MaskedGroupNorm(nn.Module):
    """Group norm (Wu & He 2018, arXiv:1803.08494) with the statistics of the cells inside the mask.

    Args:
        channels: Channels in and out; up to 8 groups of at least 4.
        affine: Whether a learned scale and offset per channel follow.
    """

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.groups = gcd(channels, max(1, min(8, channels // 4)))
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(
        self, x: Float[Tensor, "batch channel *shape"], present: Bool[Tensor, "batch 1 *shape"] | None
    ) -> Float[Tensor, "batch channel *shape"]:
        if present is None:
            return F.group_norm(x, self.groups, self.weight, self.bias, eps=1e-6)
        grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (self.groups, -1))
        known = present[:, None].to(grouped.dtype)
        axes = tuple(range(2, grouped.ndim))
        count = known.sum(dim=axes, keepdim=True).clamp_min(1.0) * grouped.shape[2]
        mean = (grouped * known).sum(dim=axes, keepdim=True) / count
        variance = ((grouped - mean) * known).square().sum(dim=axes, keepdim=True) / count
        normed = ((grouped - mean) * (variance + 1e-6).rsqrt()).flatten(1, 2)
        if self.weight is not None and self.bias is not None:
            view = (-1, *[1] * (x.ndim - 2))
            normed = normed * self.weight.view(view) + self.bias.view(view)
        return normed.to(x.dtype)
