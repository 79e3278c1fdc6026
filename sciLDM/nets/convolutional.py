r"""Convolutional parts whose output at a cell depends on a finite neighbourhood alone, so that tiles equal the whole.

Nothing here takes statistics over the grid. Norms act on the channels of one cell; resampling is a residual
space-to-depth or depth-to-space step (DC-AE, Chen et al. 2024, arXiv:2410.10733), whose shortcut averages or repeats
channels. The shortcut is linear, so it is added to the kernel instead of being computed beside it.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.nets.norms import stacked_rms_norm

__all__ = ["Edge", "EdgeConv", "Grow", "ResidualConv", "Shrink", "as_channels_last", "extend"]

Edge = Literal["zeros", "replicate", "circular", "pole"]
"""What lies beyond the ends of an axis. `circular` is longitude; `pole` is the latitude of a global grid: beyond its
ends lie the same rows on the opposite meridian (the one circular axis, rolled by half its length)."""

_CONV = (F.conv1d, F.conv2d, F.conv3d)


def extend(
    x: Float[Tensor, "batch channel *shape"],
    before: Sequence[int],
    after: Sequence[int],
    edges: Sequence[Edge],
) -> Float[Tensor, "batch channel *larger"]:
    """More cells at the ends of each axis, as its edge says; `pole` axes come first, while longitude is whole."""
    order = sorted(range(len(edges)), key=lambda axis: edges[axis] != "pole")
    for axis in order:
        x = _extend_axis(x, axis + 2, before[axis], after[axis], edges)
    return x


def _extend_axis(x: Tensor, dim: int, before: int, after: int, edges: Sequence[Edge]) -> Tensor:
    edge, n = edges[dim - 2], x.shape[dim]
    if before == after == 0:
        return x
    if edge == "zeros":
        shape = list(x.shape)
        parts = []
        for width in (before, after):
            shape[dim] = width
            parts.append(x.new_zeros(shape))
        return torch.cat([parts[0], x, parts[1]], dim=dim)
    if edge == "replicate":
        low = x.narrow(dim, 0, 1).expand(*x.shape[:dim], before, *x.shape[dim + 1 :])
        high = x.narrow(dim, n - 1, 1).expand(*x.shape[:dim], after, *x.shape[dim + 1 :])
        return torch.cat([low, x, high], dim=dim)
    if edge == "circular":
        position = torch.arange(-before, n + after, device=x.device) % n
        if max(before, after) > n:
            return x.index_select(dim, position)
        return torch.cat([x.narrow(dim, n - before, before), x, x.narrow(dim, 0, after)], dim=dim)
    longitude = edges.index("circular") + 2
    width = min(n, max(before, after))
    turned = [x.narrow(dim, 0, width), x.narrow(dim, n - width, width)]
    turned = [part.roll(x.shape[longitude] // 2, longitude).flip(dim) for part in turned]
    low = turned[0].narrow(dim, width - min(before, width), min(before, width))
    high = turned[1].narrow(dim, 0, min(after, width))
    return torch.cat([low, x, high], dim=dim)


def as_channels_last(x: Float[Tensor, "batch channel *shape"]) -> Float[Tensor, "batch channel *shape"]:
    """The same tensor with its channels beside each other in memory, as convolutions and channel norms like it."""
    if x.ndim == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@final
class EdgeConv(nn.Module):
    """A convolution over three cells an axis, with an edge of its own for each axis.

    Args:
        channels: Channels in.
        out: Channels out.
        edges: One entry an axis.
        zero: Start with weights of zero.
    """

    def __init__(self, channels: int, out: int, edges: Sequence[Edge], *, zero: bool = False) -> None:
        super().__init__()
        self.edges = tuple(edges)
        kernel = torch.zeros(out, channels, *[3] * len(edges))
        if not zero:
            kernel.normal_(std=(channels * 3 ** len(edges)) ** -0.5)
        self.weight, self.bias = nn.Parameter(kernel), nn.Parameter(torch.zeros(out))

    def forward(self, x: Float[Tensor, "batch channel *shape"]) -> Float[Tensor, "batch out *shape"]:
        own = [int(edge != "zeros") for edge in self.edges]
        if any(own):
            x = extend(x, own, own, self.edges)
        return _CONV[len(own) - 1](x, self.weight, self.bias, padding=[1 - mine for mine in own])


@final
class ResidualConv(nn.Module):
    """`x + conv(silu(conv(norm(x))))`, with the root mean square of each cell's channels as norm; starts as identity.

    Args:
        channels: Channels in and out.
        edges: One entry an axis.
    """

    def __init__(self, channels: int, edges: Sequence[Edge]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels))
        self.conv_1 = EdgeConv(channels, channels, edges)
        self.conv_2 = EdgeConv(channels, channels, edges, zero=True)

    def forward(self, x: Float[Tensor, "batch channel *shape"]) -> Float[Tensor, "batch channel *shape"]:
        normed = stacked_rms_norm(x.movedim(1, -1)[None], self.scale, 1e-6)[0].movedim(-1, 1)
        return x + self.conv_2(F.silu(self.conv_1(normed)))


@final
class Shrink(nn.Module):
    """Blocks of `factor` cells become one cell, with averages over neighbouring channels plus a learned map.

    Args:
        channels: Channels in.
        out: Channels out.
        factor: Cells per block, one number an axis.
        passed: How many of the channels the shortcut averages; None for all.
        gain: Size of the learned part at the start; 0 starts with the shortcut alone.
    """

    base: Tensor

    def __init__(
        self, channels: int, out: int, factor: Sequence[int], *, passed: int | None = None, gain: float = 0.5
    ) -> None:
        super().__init__()
        self.factor, passed = tuple(factor), channels if passed is None else passed
        block = prod(factor)
        kernel = torch.randn(out, channels, *factor) * gain / (channels * block) ** 0.5
        self.weight, self.bias = nn.Parameter(kernel), nn.Parameter(torch.zeros(out))
        # Position in the block counts more than the channel, so that few channels still hold a coarser field.
        base = torch.zeros_like(kernel)
        if passed:
            base[:, :passed] = _regroup(block * passed, out).view(out, *factor, passed).movedim(-1, 1)
        self.register_buffer("base", base, persistent=False)

    def forward(self, x: Float[Tensor, "batch channel *fine"]) -> Float[Tensor, "batch out *coarse"]:
        return _CONV[len(self.factor) - 1](x, self.weight + self.base, self.bias, stride=self.factor)


@final
class Grow(nn.Module):
    """The way back: each cell becomes a block of `factor` cells, channels repeated, plus a learned map.

    Args:
        channels: Channels in.
        out: Channels out.
        factor: Cells per block, one number an axis.
        shortcut: Without it the map is learned alone.
        gain: Size of the learned part at the start.
    """

    base: Tensor | None

    def __init__(
        self, channels: int, out: int, factor: Sequence[int], *, shortcut: bool = True, gain: float = 0.5
    ) -> None:
        super().__init__()
        self.factor, self.out = tuple(factor), out
        wide = prod(factor) * out
        self.weight = nn.Parameter(torch.randn(wide, channels) * gain / channels**0.5)
        self.bias = nn.Parameter(torch.zeros(out))
        self.register_buffer("base", _regroup(channels, wide) if shortcut else None, persistent=False)

    def forward(self, x: Float[Tensor, "batch channel *coarse"]) -> Float[Tensor, "batch out *fine"]:
        weight = self.weight if self.base is None else self.weight + self.base
        axes = len(self.factor)
        cells = F.linear(x.movedim(1, -1), weight, self.bias.repeat(prod(self.factor)))
        cells = cells.unflatten(-1, (*self.factor, self.out))
        # [batch, *coarse, *factor, out] -> [batch, coarse_1, factor_1, coarse_2, ..., out]
        pairs = [dim for axis in range(axes) for dim in (1 + axis, 1 + axes + axis)]
        cells = cells.permute(0, *pairs, 1 + 2 * axes)
        fine = [n * f for n, f in zip(x.shape[2:], self.factor, strict=True)]
        return cells.reshape(x.shape[0], *fine, self.out).movedim(-1, 1)


def _regroup(sources: int, targets: int) -> Tensor:
    """`[targets, sources]`: channels as equal pieces of one interval; each target is the mean over what it covers."""
    target, source = torch.arange(targets)[:, None], torch.arange(sources)
    # In units of 1 / (sources * targets), so that all borders are whole numbers.
    left = torch.maximum(target * sources, source * targets)
    right = torch.minimum((target + 1) * sources, (source + 1) * targets)
    return (right - left).clamp_min(0) / sources
