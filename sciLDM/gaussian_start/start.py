r"""The exact denoiser of `x ~ N(m, C)`, and its posterior covariance, from one linear map.

    T = I + sigma^2 (C - I) (alpha^2 C + sigma^2 I)^-1

    E[x | x_t]   = m + alpha / (alpha^2 + sigma^2) T (x_t - alpha m)
    Cov[x | x_t] = sigma^2 / (alpha^2 + sigma^2) T

`T - I` is what `C` adds to white latents of unit variance. It vanishes where noise has gone, so that neither rounding
nor a basis stored in half precision shows in the digits that are decided there.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ShapeMismatch
from sciLDM.types import Cond

__all__ = ["LatentStart"]


class LatentStart(nn.Module, ABC):
    """A Gaussian model of normalised latents that all have the same cells. Each sample is treated on its own.

    Args:
        size: Numbers in one latent.
    """

    mean: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))

    @abstractmethod
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Mean and covariance from batches of normalised latents, which may be gone through several times."""

    @abstractmethod
    def correction(
        self,
        v: Float[Tensor, "batch size"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch size"]:
        """`(T - I) v`, where `C` may depend on the conditions of a row."""

    @abstractmethod
    def forward(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """The estimate of `x`; `sigma` must not be 0."""

    def estimate(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """`E[x | x_t]`.

        Raises:
            ShapeMismatch: Latents of another size than was fitted.
        """
        if x_t[0].numel() != len(self.mean):
            raise ShapeMismatch(
                f"this denoiser starts from a Gaussian of {len(self.mean):,} numbers a latent, got latents of shape "
                f"{tuple(x_t.shape[1:])}; use the grid it was trained on, or train one with gaussian_start: false"
            )
        mean, a = self.mean.to(x_t), alpha[:, None]
        offset = x_t.flatten(1) - a * mean
        found = offset + self.correction(offset, alpha, sigma, cond)
        return (mean + a / (a**2 + sigma[:, None] ** 2) * found).view(x_t.shape)

    def posterior_covariance(
        self,
        v: Float[Tensor, "batch channel *shape"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """`Cov[x | x_t] v`, which is `(C^-1 + alpha^2 / sigma^2 I)^-1 v`."""
        flat, s = v.flatten(1), sigma[:, None] ** 2
        return (s / (alpha[:, None] ** 2 + s) * (flat + self.correction(flat, alpha, sigma, cond))).view(
            v.shape
        )
