"""The orthonormal cosine transform over the axes of a grid: coordinates in which neighbouring cells decouple."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cosine_transform"]


def cosine_transform(
    x: Float[Tensor, "batch channel *shape"], *, inverse: bool = False
) -> Float[Tensor, "batch channel *shape"]:
    """Type II of every axis behind the channels, orthonormal; `inverse` gives type III, its transpose.

    By matrix products: exact derivatives, any device, and on grids of tens of cells as fast as by fast transforms.
    """
    for axis in range(2, x.ndim):
        matrix = _matrix(x.shape[axis], x)
        x = (x.movedim(axis, -1) @ (matrix if inverse else matrix.mT)).movedim(-1, axis)
    return x


def _matrix(size: int, like: Tensor) -> Tensor:
    place = torch.arange(size, dtype=torch.float64, device=like.device)
    matrix = torch.cos(math.pi / size * place[:, None] * (place + 0.5)) * math.sqrt(2 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.to(like.dtype)
