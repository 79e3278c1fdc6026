"""Small problems with known answers, and every solver on them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciLDM.denoiser import Denoiser
from sciLDM.guidance.posterior import (
    DPS,
    PSLD,
    DataMap,
    DecodeEncode,
    GaussNewton,
    Hybrid,
    IdentityMap,
    Isotropic,
    PosteriorDenoiser,
    Problem,
)
from sciLDM.operators import LinearOperator, Operator
from sciLDM.oracles import GaussianDenoiser
from sciLDM.schedules import CosineSchedule

F64 = torch.float64
SCHEDULE = CosineSchedule()


class Matrix(LinearOperator):
    """`x -> A x` on fields `[1, n]`."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((1, matrix.shape[1]), (1, matrix.shape[0]))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


class Squares(Operator):
    """`x -> x^2 + x`, point by point."""

    def __init__(self, size: int) -> None:
        super().__init__((1, size), (1, size))

    def forward(self, x: Tensor) -> Tensor:
        return x**2 + x


class Sinh(DataMap):
    """A decoder that bends; exactly invertible."""

    def decode(self, z: Tensor) -> Tensor:
        return torch.sinh(z)

    def encode(self, x: Tensor) -> Tensor:
        return torch.asinh(x)


class Attention(DataMap):
    """A decoder with fused attention, which has no forward-mode derivative of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12)

    def decode(self, z: Tensor) -> Tensor:
        q, k, v = (part[:, None] for part in self.project(z.mT).chunk(3, dim=-1))
        return z + 0.3 * F.scaled_dot_product_attention(q, k, v)[:, 0].mT

    def encode(self, x: Tensor) -> Tensor:
        return x


class Pointwise(Operator):
    """Every second point of a field `[4, 6]`."""

    def __init__(self) -> None:
        super().__init__((4, 6), (4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def prior(dim: int, seed: int = 5) -> GaussianDenoiser:
    factor = normal(dim, dim, seed=seed) / math.sqrt(dim)
    return GaussianDenoiser(
        normal(dim, seed=seed + 1), factor @ factor.mT + 0.2 * torch.eye(dim, dtype=F64), SCHEDULE
    )


def problem(
    dim: int = 6, observed: int = 4, *, rows: int = 3, data: DataMap | None = None, std: float = 0.2
) -> Problem:
    values = normal(rows, 1, observed, seed=3)
    return Problem(
        data or IdentityMap(), Matrix(normal(observed, dim, seed=4)), values, torch.full_like(values, 1 / std)
    )


def times(*lmbda: float, dtype: torch.dtype = F64) -> Tensor:
    return SCHEDULE.t_of_lmbda(torch.tensor(lmbda, dtype=dtype))


def every(denoiser: Denoiser, given: Problem) -> list[PosteriorDenoiser]:
    return [
        GaussNewton(denoiser, given),
        GaussNewton(denoiser, given, covariance=Isotropic(), steps=2),
        DecodeEncode(denoiser, given),
        Hybrid(denoiser, given, switch=1.0),
        DPS(denoiser, given, zeta=0.3),
        PSLD(denoiser, given, zeta=0.3),
    ]
