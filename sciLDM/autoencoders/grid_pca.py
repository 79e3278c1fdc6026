r"""Principal components as a grid of latents: `x = mean + B z + ...`, so that an autoencoder starts at PCA's quality.

The leading `k` empirical orthogonal functions `E` of the (weighted) training fields span the best linear approximation.
Their coefficients belong to no place, and a denoiser on a grid wants numbers that do: any `R` with `R R^T = 1` gives
`z = R^T E^T x` and the same approximation `E R z`. `R` is the polar factor of `E^T T`, where column `j` of `T` is a
local pattern in latent cell `j` (projection as for Wannier functions, Marzari & Vanderbilt 1997,
arXiv:cond-mat/9707145): so every latent speaks of its own surroundings. With fewer modes than latents, `z` is a tight
frame of rank `k`.

Fields of no fixed size, or too few of them, have no such functions; but blocks of neighbouring cells do (a block
transform like that of image coders, fitted to the data): `BlockPCA`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.autoencoders.grid_moments import Components, blocks_of
from sciLDM.nets.convolutional import Edge, extend

__all__ = ["BlockPCA", "LinearSkip", "PCASkip"]


class LinearSkip(nn.Module, ABC):
    """The linear part of a grid autoencoder. Until `fit` it says nothing."""

    @abstractmethod
    def fit(self, components: Components) -> None:
        """Take over the principal components of standardised training data."""

    @abstractmethod
    def analyse(
        self, x: Float[Tensor, "batch channel *shape"], known: Bool[Tensor, "batch _ *shape"] | None = None
    ) -> Float[Tensor, "batch latent *coarse"]:
        """Latents, of unit variance over the training data; what is not known counts as the mean."""

    @abstractmethod
    def synthesise(self, z: Float[Tensor, "batch latent *coarse"]) -> Float[Tensor, "batch channel *fine"]:
        """The mean, and what the latents say about the field; perhaps some cells more than the field has."""


@final
class PCASkip(LinearSkip):
    """Principal components of whole fields, turned so that each latent is local to its cell.

    Args:
        channels: Data channels.
        shape: Grid of the data.
        latent_channels: Latents per cell.
        factor: Data cells per latent cell, one number an axis.
    """

    mean: Tensor
    basis: Tensor
    root_weight: Tensor
    scale: Tensor

    def __init__(
        self, channels: int, shape: Sequence[int], latent_channels: int, factor: Sequence[int]
    ) -> None:
        super().__init__()
        self.field, self.factor = (channels, *shape), tuple(factor)
        self.latent = (latent_channels, *(-(-n // f) for n, f in zip(shape, factor, strict=True)))
        self.register_buffer("mean", torch.zeros(self.field))
        self.register_buffer("basis", torch.zeros(prod(self.field), prod(self.latent)))
        self.register_buffer("root_weight", torch.ones(self.field))
        self.register_buffer("scale", torch.ones(latent_channels))

    def fit(self, components: Components) -> None:
        _, root, directions, variance = components
        left, _, right = torch.linalg.svd(self._local(directions, variance), full_matrices=False)
        turn = left @ right  # [modes, latents]
        spread = (turn.square() * variance[:, None]).sum(dim=0).view(self.latent[0], -1).mean(dim=1)
        self.mean.copy_(components.mean)
        self.root_weight.copy_(root)
        self.basis.copy_(directions @ turn)
        self.scale.copy_(spread.clamp_min(1e-12).sqrt())

    def analyse(
        self, x: Float[Tensor, "batch channel *shape"], known: Bool[Tensor, "batch _ *shape"] | None = None
    ) -> Float[Tensor, "batch latent *coarse"]:
        with torch.autocast(x.device.type, enabled=False):
            anomaly = (x.to(self.mean.dtype) - self.mean) * self.root_weight
            if known is not None:
                anomaly = anomaly * known
            z = (anomaly.flatten(1) @ self.basis).unflatten(1, self.latent)
            return z / self.scale.view(-1, *[1] * (z.ndim - 2))

    def synthesise(self, z: Float[Tensor, "batch latent *coarse"]) -> Float[Tensor, "batch channel *shape"]:
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(self.scale.dtype) * self.scale.view(-1, *[1] * (z.ndim - 2))
            anomaly = (z.flatten(1) @ self.basis.T).unflatten(1, self.field)
            known = self.root_weight > 0
            return self.mean + torch.where(known, anomaly / torch.where(known, self.root_weight, 1.0), 0.0)

    def _local(self, directions: Tensor, variance: Tensor) -> Tensor:
        """`E^T T` `[modes, latents]`: how much of each mode is in each cell's patterns (the same in all cells)."""
        fields = directions.T.reshape(-1, *self.field)
        missing = [-n % f for n, f in zip(self.field[1:], self.factor, strict=True)]
        fields = F.pad(fields, [p for short in reversed(missing) for p in (0, short)])
        patches = blocks_of(fields, self.factor)  # [modes, cells, values]
        pooled = torch.einsum("mcp,m,mcq->pq", patches, variance, patches)
        patterns = torch.linalg.eigh(pooled).eigenvectors.flip(1)[:, : self.latent[0]]
        if patterns.shape[1] < self.latent[0]:
            patterns = F.pad(patterns, (0, self.latent[0] - patterns.shape[1]))
        return torch.einsum("mcp,pk->mkc", patches, patterns).flatten(1)


@final
class BlockPCA(LinearSkip):
    """Principal components of blocks of cells: one latent cell a block, for fields of any size.

    Args:
        channels: Data channels.
        latent_channels: Latents per cell; more than a block has values stay zero.
        factor: Cells of a block, one number an axis.
        edges: What lies beyond the ends of each axis, where no whole block is left.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(
        self, channels: int, latent_channels: int, factor: Sequence[int], edges: Sequence[Edge]
    ) -> None:
        super().__init__()
        self.factor, self.edges = tuple(factor), tuple(edges)
        self.register_buffer("mean", torch.zeros(channels, *factor))
        self.register_buffer("basis", torch.zeros(latent_channels, channels, *factor))
        self.register_buffer("scale", torch.ones(latent_channels))

    def fit(self, components: Components) -> None:
        found = min(len(self.basis), len(components.variance))
        self.mean.copy_(components.mean)
        self.basis.zero_()
        self.basis[:found] = (
            components.directions[:, :found].T.reshape(found, *self.mean.shape).to(self.basis)
        )
        self.scale.fill_(1.0)
        self.scale[:found] = components.variance[:found].clamp_min(1e-12).sqrt().to(self.scale)

    def analyse(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            after = [-n % f for n, f in zip(x.shape[2:], self.factor, strict=True)]
            x = extend(x if known is None else x * known, [0] * len(after), after, self.edges)
            kernel = self.basis / self._per_latent(self.basis.ndim - 1)
            offset = (kernel * self.mean).flatten(1).sum(dim=1)
            return (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3](x, kernel, -offset, stride=self.factor)

    def synthesise(self, z: Tensor) -> Tensor:
        # Blocks do not overlap: one matrix product, several times as fast as a transposed convolution.
        with torch.autocast(z.device.type, enabled=False):
            kernel = self.basis * self._per_latent(self.basis.ndim - 1)
            blocks = z.to(kernel.dtype).flatten(2).mT @ kernel.flatten(1)
            cells, block = tuple(z.shape[2:]), tuple(kernel.shape[1:])
            apart = blocks.view(len(z), *cells, *block)
            n = len(cells)
            order = (0, n + 1, *(k for axis in range(n) for k in (1 + axis, n + 2 + axis)))
            fine = [count * size for count, size in zip(cells, block[1:], strict=True)]
            return apart.permute(order).reshape(len(z), block[0], *fine) + self.mean.repeat(1, *cells)

    def _per_latent(self, axes: int) -> Tensor:
        return self.scale.view(-1, *[1] * axes)
