r"""Regression on latents of every noise level: `p(c_k | x_t) = N(mu_k(x_t, lmbda), s_k(x_t, lmbda)^2)`.

A transformer without conditions (`DiT`) reads the noisy latent. Its tokens are pooled twice, as their mean and as their
sum over the largest grid, since some quantities are averages over a latent and others grow with it; two layers more
give mean and logarithm of the standard deviation of every quantity, in units of its own standard deviation.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.nets.dit import DiT

__all__ = ["CLEANEST", "LatentRegressor"]

CLEANEST = 3.0
"""The least noise trained on, as `lmbda`: `sigma / alpha = 0.05`. Clean latents are read as these."""

_LOG_STD = (-6.0, 2.0)


@final
class LatentRegressor(nn.Module):
    """Mean and log standard deviation of several quantities, from noisy latents.

    Args:
        channels: Of the latents.
        shape: Their largest grid.
        quantities: How many.
        width: Of the transformer.
        depth: Its layers.
        heads: Its attention heads.
        features: Pooled numbers of each token; at least `channels`.
    """

    def __init__(
        self,
        channels: int,
        shape: Sequence[int],
        quantities: int,
        *,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
        features: int = 48,
    ) -> None:
        super().__init__()
        self.features = max(features, channels)
        self.cells = 1
        for n in shape:
            self.cells *= n
        self.net = DiT(self.features, shape, width=width, depth=depth, heads=heads)
        nn.init.normal_(
            self.net.head.weight, std=0.02
        )  # at zero, as a denoiser starts, nothing would be pooled
        self.head = nn.Sequential(
            nn.Linear(2 * self.features, 128), nn.SiLU(), nn.Linear(128, 2 * quantities)
        )

    def forward(
        self,
        x: Float[Tensor, "batch channel *shape"],
        lmbda: Float[Tensor, "batch"],
        mask: Bool[Tensor, "batch *shape"] | None = None,
    ) -> tuple[Float[Tensor, "batch quantities"], Float[Tensor, "batch quantities"]]:
        """`(mu, log s)` of standardised quantities.

        Args:
            x: Noisy latents, divided by `sqrt(alpha^2 + sigma^2)`.
            lmbda: Their `log(alpha / sigma)`.
            mask: Cells that exist.
        """
        padding = x.new_zeros(len(x), self.features - x.shape[1], *x.shape[2:])
        tokens = self.net(torch.cat([x, padding], dim=1), lmbda, None, mask).flatten(2).float()
        if mask is None:
            count = tokens.new_full((len(x), 1), tokens.shape[2])
        else:
            there = mask.flatten(1).to(tokens)
            tokens, count = tokens * there[:, None], there.sum(1, keepdim=True).clamp_min(1.0)
        total = tokens.sum(2)
        mean, log_std = (
            self.head(torch.cat([total / count, total / self.cells], dim=1)).float().chunk(2, dim=1)
        )
        return mean, log_std.clamp(*_LOG_STD)
