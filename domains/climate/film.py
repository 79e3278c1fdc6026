"""Trajectories through an autoencoder of single states: time becomes the first axis of the latent grid.

    [batch, channel, T, H, W] -> [batch * T, channel, H, W] -> latents [batch * T, c, h, w] -> [batch, c, T, h, w]

Each state is coded on its own; how states follow each other is the denoiser's to learn.
"""

from collections.abc import Iterable
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, Latent
from sciLDM.autoencoders.grid import GridAutoencoder, GridFields

__all__ = ["FilmAutoencoder"]


@final
class FilmAutoencoder(Autoencoder[GridFields, Tensor]):
    """An autoencoder of trajectories.

    Args:
        states: What codes a single state.
        frames: States of a trajectory.
    """

    def __init__(self, states: GridAutoencoder, frames: int) -> None:
        super().__init__()
        self.states, self.frames = states, frames
        self.latent_channels, self.bottleneck = states.latent_channels, states.bottleneck

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Grid of the latents, time first."""
        return (self.frames, *self.states.latent_shape)

    @property
    def compression(self) -> float:
        """Numbers per field over numbers per latent."""
        return self.states.compression

    def prepare(self, batches: Iterable[GridFields]) -> None:
        self.states.prepare(_apart(fields) for fields in batches)

    def finish(self, batches: Iterable[GridFields]) -> None:
        self.states.finish(_apart(fields) for fields in batches)

    def estimator(self) -> "FilmAutoencoder":
        return FilmAutoencoder(self.states.estimator(), self.frames).train(self.training)

    def encode(self, fields: GridFields) -> Latent:
        latent = self.states.encode(_apart(fields))
        log_std = None if latent.log_std is None else self._together(latent.log_std)
        return Latent(self._together(latent.mean), log_std)

    def decode(
        self,
        z: Float[Tensor, "batch latent time *coarse"],
        mask: Bool[Tensor, "batch time *coarse"] | None = None,
    ) -> Float[Tensor, "batch channel time *shape"]:
        decoded = self.states.decode(z.transpose(1, 2).flatten(0, 1), None)
        return decoded.unflatten(0, z.shape[:1] + z.shape[2:3]).transpose(1, 2)

    def reconstruction_loss(
        self, fields: GridFields, decoded: Float[Tensor, "batch channel time *shape"]
    ) -> dict[str, Float[Tensor, "batch"]]:
        return self._means(self.states.reconstruction_loss(_apart(fields), _flat(decoded)))

    def metrics(
        self, fields: GridFields, decoded: Float[Tensor, "batch channel time *shape"]
    ) -> dict[str, Any]:
        """Those of the states, averaged over each trajectory."""
        return self._means(self.states.metrics(_apart(fields), _flat(decoded)))

    def _together(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.frames)).transpose(1, 2)

    def _means(self, scores: dict[str, Any]) -> dict[str, Any]:
        return {
            name: torch.as_tensor(values).unflatten(0, (-1, self.frames)).mean(dim=1)
            for name, values in scores.items()
        }


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _apart(fields: GridFields) -> GridFields:
    """Every state a sample of its own."""
    weight = None if fields.weight is None else _flat(fields.weight)
    return GridFields(_flat(fields.values), weight, fields.static)
