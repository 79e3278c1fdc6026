r"""A matrix of ray weights and its exact transpose, applied to many planes or volumes at once.

A small matrix is kept, once by rays and once by voxels, so that both products are gathers. A large one is computed
anew, a block of rays at a time, in every product; projection and back-projection then scatter and gather with the same
numbers. Either way the pair is matched to rounding, and differentiable to any order in both modes.
"""

from collections.abc import Iterator, Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.operators._linear import linear_map
from sciLDM.operators.projection_rays import Rays, joseph_weights

__all__ = ["RayMatrix"]

_KEPT = 2**25  # entries: with 4 + 4 bytes each, twice, half a gigabyte
_BLOCK = 2**21  # entries computed at a time


@final
class RayMatrix(nn.Module):
    """`A[ray, voxel]` in mm, by Joseph's method.

    Args:
        rays: The rays.
        shape: Voxels along each axis.
        spacing: Voxel size along each, in mm.
        kept: Whether the matrix is stored; by default, if it has less than 2^25 entries (about half a gigabyte).
    """

    def __init__(
        self, rays: Rays, shape: Sequence[int], spacing: Sequence[float], *, kept: bool | None = None
    ) -> None:
        super().__init__()
        self.shape, self.spacing = tuple(shape), tuple(spacing)
        self.voxels = 1
        for n in self.shape:
            self.voxels *= n
        self.rays = len(rays.origin)
        per_ray = max(self.shape) * 2 ** (len(self.shape) - 1)
        self.block = max(1, _BLOCK // per_ray)
        self.kept = self.rays * per_ray <= _KEPT if kept is None else kept
        self.register_buffer("origin", rays.origin, persistent=False)
        self.register_buffer("direction", rays.direction, persistent=False)
        if self.kept:
            self._keep()

    def project(self, x: Float[Tensor, "row voxel"]) -> Float[Tensor, "row ray"]:
        """`A x` for every row."""
        return linear_map(x, self._project, self._back_project)

    def back_project(self, y: Float[Tensor, "row ray"]) -> Float[Tensor, "row voxel"]:
        """`A^T y` for every row."""
        return linear_map(y, self._back_project, self._project)

    def _keep(self) -> None:
        parts = [(ray, *_filled(index, weight)) for ray, index, weight in self._blocks()]
        counts = torch.cat([count for _, count, _, _ in parts])
        index = torch.cat([voxel for _, _, voxel, _ in parts])
        weight = torch.cat([value for _, _, _, value in parts]).float()
        # Sorted by voxel, the same entries are the rows of the transpose.
        order = torch.argsort(index, stable=True)
        ray = torch.repeat_interleave(torch.arange(self.rays, dtype=torch.int32), counts)
        per_voxel = torch.bincount(index, minlength=self.voxels)
        for name, value in {
            "by_ray": index,
            "by_ray_start": _starts(counts),
            "by_ray_weight": weight,
            "by_voxel": ray[order],
            "by_voxel_start": _starts(per_voxel),
            "by_voxel_weight": weight[order],
        }.items():
            self.register_buffer(name, value, persistent=False)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for start in range(0, self.rays, self.block):
            part = slice(start, min(start + self.block, self.rays))
            # Geometry needs float64 whatever type the module was cast to.
            rays = Rays(self.origin[part].double(), self.direction[part].double())
            yield part, *joseph_weights(rays, self.shape, self.spacing)

    def _project(self, x: Tensor) -> Tensor:
        work = _working(x)
        table = work.mT.contiguous()
        if self.kept:
            y = _gather(self.by_ray, self.by_ray_start, self.by_ray_weight, table)
        else:
            y = table.new_empty(self.rays, len(x))
            for part, index, weight in self._blocks():
                start = torch.arange(0, index.numel(), index.shape[1], device=x.device, dtype=torch.int32)
                y[part] = _gather(index.flatten(), start, weight.flatten(), table)
        return y.mT.to(x.dtype)

    def _back_project(self, y: Tensor) -> Tensor:
        work = _working(y)
        if self.kept:
            table = work.mT.contiguous()
            x = _gather(self.by_voxel, self.by_voxel_start, self.by_voxel_weight, table).mT
        else:
            x = work.new_zeros(len(y), self.voxels)
            for part, index, weight in self._blocks():
                where, values = index.flatten().long(), weight.to(work)
                for row, of in zip(x, work, strict=True):
                    row.index_add_(0, where, (of[part, None] * values).flatten())
        return x.to(y.dtype)


def _working(x: Tensor) -> Tensor:
    """Sums over hundreds of voxels are not taken in 16 bits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _gather(index: Tensor, start: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Weighted sums of rows of `table`: a sparse product, several times faster here than `torch.sparse`."""
    return F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight.to(table))


def _filled(index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of each ray, and the indices and weights of those that are not zero."""
    used = weight > 0
    return used.sum(dim=1), index[used], weight[used]


def _starts(counts: Tensor) -> Tensor:
    return (counts.cumsum(0) - counts).to(torch.int32)
