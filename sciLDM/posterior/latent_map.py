r"""From the denoiser's latents to fields in the data's units and back, for a trained model.

    z (normalised) --LatentStats^-1--> code --decoder--> decoded --to_units--> x
    x --from_units--> fields --encoder--> code --LatentStats--> z

Solvers see these maps alone; what a grid is and which units it has is the codec's.
"""

from collections.abc import Mapping
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, LatentStats
from sciLDM.domain import FieldCodec
from sciLDM.errors import ShapeMismatch
from sciLDM.guidance.posterior.problem import DataMap

__all__ = ["HasOutline", "LatentMap"]


@runtime_checkable
class HasOutline(Protocol):
    """An autoencoder whose decoder is a correction of something cheap."""

    def outline(self, z: Tensor) -> Tensor:
        """What the cheap part says; the decoder itself where there is none."""
        ...


@final
class LatentMap(DataMap):
    """Autoencoder, latent statistics and units of some rows (the samples of some cases).

    Args:
        autoencoder: Trained.
        stats: Statistics of its latents.
        codec: Knows the units.
        context: What `to_units` needs, one row for each row of the batch.
        mask: Latent cells that exist, one row for each row of the batch.
    """

    def __init__(
        self,
        autoencoder: Autoencoder[Any, Any],
        stats: LatentStats,
        codec: FieldCodec,
        *,
        context: Mapping[str, Tensor] | None = None,
        mask: Bool[Tensor, "batch *shape"] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder, self.stats, self.codec = autoencoder, stats, codec
        self.context, self.mask = dict(context or {}), mask

    def decoded(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *field"]:
        """What the decoder says, in its own normalised units."""
        code = self.stats.denormalise(z)
        if self.mask is not None:
            code = code * self.mask[:, None]
        return self.autoencoder.decode(code, self.mask)

    def units(self, decoded: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *field"]:
        """Decoded fields in the data's units."""
        return self.codec.to_units(decoded, self.context)

    def decode(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *field"]:
        return self.units(self.decoded(z))

    def outline(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *field"]:
        """With the linear part of a grid autoencoder alone, where it has one."""
        if not isinstance(self.autoencoder, HasOutline):
            return self.decode(z)
        code = self.stats.denormalise(z)
        if self.mask is not None:
            code = code * self.mask[:, None]
        return self.units(self.autoencoder.outline(code))

    def encode(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *latent"]:
        code, mask = self.autoencoder.code(self.codec.from_units(x, self.context))
        if self.mask is not None and mask is not None and mask.shape != self.mask.shape:
            raise ShapeMismatch(
                f"encode: the autoencoder gives cells {tuple(mask.shape)}, the request has {tuple(self.mask.shape)}"
            )
        return self.stats.normalise_masked(code, self.mask if mask is None else mask)

    def slope(self, decoded: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *field"]:
        """`d x / d decoded` at each point. Exact where `to_units` acts point by point, affine or not.

        A map that mixes points or channels gives the sum over what each decoded value moves.
        """
        with torch.enable_grad():
            free = decoded.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.units(free).sum(), free)
        return slope.abs()
