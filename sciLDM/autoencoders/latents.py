r"""`LatentStats`: the affine map between an autoencoder's latents and the unit-variance ones that diffusion expects.

It replaces the hand-typed "scaling factor": fitted on the training split, stored with the weights, inverted exactly.
"""

from collections.abc import Iterable
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.errors import DataError, ShapeMismatch

__all__ = ["LatentStats"]


@final
class LatentStats(nn.Module):
    """Per-channel mean and standard deviation over the cells that exist.

    Args:
        channels: Latent channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def fit(self, latents: Iterable[tuple[Tensor, Tensor | None]]) -> "LatentStats":
        """Fit from batches of `(z, mask)`; two moments in float64, one pass.

        Raises:
            DataError: No cells, or values that are not finite.
        """
        count, total, square = 0.0, torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        for z, mask in latents:
            cells = z.double().movedim(1, -1).reshape(-1, z.shape[1])
            if mask is not None:
                cells = cells[mask.reshape(-1)]
            count += len(cells)
            total += cells.sum(dim=0)
            square += cells.square().sum(dim=0)
        if count < 2 or not torch.isfinite(square).all():
            raise DataError(
                f"cannot fit latent statistics: {int(count)} cells, finite={bool(torch.isfinite(square).all())}"
            )
        mean = total / count
        self.mean.copy_(mean)
        # A dead channel must not be blown up to unit variance: its rounding noise would then be learned.
        self.std.copy_((square / count - mean.square()).clamp_min(1e-4).sqrt())
        return self

    def normalise(self, z: Float[Tensor, "batch channel *shape"]) -> Float[Tensor, "batch channel *shape"]:
        """`(z - mean) / std`."""
        mean, std = self._shaped(z)
        return (z - mean) / std

    def denormalise(self, z: Float[Tensor, "batch channel *shape"]) -> Float[Tensor, "batch channel *shape"]:
        """`z * std + mean`."""
        mean, std = self._shaped(z)
        return z * std + mean

    def normalise_masked(
        self, z: Float[Tensor, "batch channel *shape"], mask: Bool[Tensor, "batch *shape"] | None
    ) -> Float[Tensor, "batch channel *shape"]:
        """As `normalise`, with zeros where no cell exists."""
        z = self.normalise(z)
        return z if mask is None else z * mask[:, None]

    def _shaped(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.shape[1] != len(self.mean):
            raise ShapeMismatch(f"latent has {z.shape[1]} channels, these statistics have {len(self.mean)}")
        view = (1, -1, *[1] * (z.ndim - 2))
        return self.mean.to(z).view(view), self.std.to(z).view(view)
