"""A dense covariance, for latents of up to a few thousand numbers."""

from collections.abc import Iterable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import DataError
from sciLDM.gaussian_start.start import LatentStart
from sciLDM.types import Cond

__all__ = ["GaussianStart"]

_KNOWN = 1e3
"""Deviation of a known cell, inverted: what is given counts as measured to a thousandth of a standard deviation."""


@final
class GaussianStart(LatentStart):
    r"""`E[x | x_t, known cells]` if latents were Gaussian, with any covariance.

    With few training samples the network need not find the covariance of the data by itself. For `x ~ N(m, C)`,

        E = m + C S (S C S + I)^-1 S (y - m),

    where a cell of `x_t` is a measurement of `x` with `S = alpha / sigma`, and a cell that the context gives has a
    large `S` instead. Without context this is diagonal in the eigenbasis of `C`.

    Args:
        size: Numbers in one latent; memory and time grow with its square (its cube with a context).
        context: The field condition whose cells are known where they are not NaN; None for none.
    """

    basis: Tensor
    variances: Tensor

    def __init__(self, size: int, context: str | None = None) -> None:
        super().__init__(size)
        self.context = context
        self.register_buffer("basis", torch.eye(size))
        self.register_buffer("variances", torch.ones(size))

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Mean and covariance, shrunk towards a multiple of the identity.

        Oracle-approximating shrinkage (Chen et al. 2010, doi:10.1109/TSP.2010.2053029, eq. 23).

        Raises:
            DataError: No latents.
        """
        size, options = len(self.mean), {"dtype": torch.float64, "device": self.mean.device}
        n, total, square = 0, torch.zeros(size, **options), torch.zeros(size, size, **options)
        for z in latents:
            x = z.flatten(1).to(total)
            n, total = n + len(x), total + x.sum(dim=0)
            square.addmm_(x.mT, x)
        if n == 0:
            raise DataError("gaussian_start: expected training latents, got none")
        mean = total / n
        covariance = square / n - torch.outer(mean, mean)
        trace, squared = covariance.trace(), covariance.square().sum()
        rho = ((1 - 2 / size) * squared + trace**2) / (
            (n + 1 - 2 / size) * (squared - trace**2 / size).clamp(min=1e-12)
        )
        rho = rho.clamp(0.0, 1.0)
        identity = torch.eye(size, **options)
        variances, basis = torch.linalg.eigh((1 - rho) * covariance + rho * trace / size * identity)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.variances.copy_(variances.clamp(min=1e-8))

    @property
    def covariance(self) -> Float[Tensor, "size size"]:
        """`C`, symmetric to the last bit."""
        half = self.basis * self.variances.sqrt()
        return half @ half.T

    def correction(
        self, v: Float[Tensor, "batch size"], alpha: Float[Tensor, "batch"], sigma: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch size"]:
        a, s, variances, basis = (
            alpha[:, None] ** 2,
            sigma[:, None] ** 2,
            self.variances.to(v),
            self.basis.to(v),
        )
        return (v @ basis * (s * (variances - 1) / (a * variances + s))) @ basis.T

    def forward(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None,
    ) -> Float[Tensor, "batch channel *shape"]:
        known = None if self.context is None or cond is None else cond.get(self.context)
        if known is None or not bool(known.isfinite().any()):
            return self.estimate(x_t, alpha, sigma)
        flat = x_t.flatten(1)
        rate, offset = (alpha / sigma)[:, None], (flat - alpha[:, None] * self.mean) / sigma[:, None]
        given = known.flatten(1).to(flat)
        there = given.isfinite()
        scale = torch.where(there, _KNOWN, rate)
        offset = torch.where(there, _KNOWN * (given.nan_to_num() - self.mean), offset)
        covariance = self.covariance
        system = scale[:, :, None] * covariance * scale[:, None, :]
        system = system + torch.eye(len(self.mean), dtype=flat.dtype, device=flat.device)
        found = torch.linalg.solve(system.double(), offset.double()).to(flat)
        return (self.mean + (scale * found) @ covariance).view_as(x_t)
