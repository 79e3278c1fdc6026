r"""What every autoencoder is: fields to a grid of latent vectors, and back.

Encoder: `q(z | x)` with mean and log standard deviation on a grid `[batch, channel, *shape]`; a `Bottleneck` turns it
into the code the decoder is trained on. A domain's autoencoder implements `encode`, `decode` and `reconstruction_loss`
and nothing else: training, statistics, caching and sampling are the core's.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.autoencoders.bottleneck import Bottleneck

__all__ = ["Autoencoder", "Latent"]

Fields = TypeVar("Fields")
Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Latent:
    """Encoder output.

    Attributes:
        mean: What the encoder says, before the bottleneck.
        log_std: Log standard deviation, or None for a deterministic encoder.
        mask: Cells that exist, or None when all do.
    """

    mean: Float[Tensor, "batch channel *shape"]
    log_std: Float[Tensor, "batch channel *shape"] | None = None
    mask: Bool[Tensor, "batch *shape"] | None = None


class Autoencoder(nn.Module, ABC, Generic[Fields, Decoded]):
    """Base class. `Fields` is what the domain's collate function returns, `Decoded` what the decoder says.

    Attributes:
        bottleneck: What lies between encoder and decoder.
        latent_channels: Channels of the latent grid.
    """

    bottleneck: Bottleneck
    latent_channels: int

    @abstractmethod
    def encode(self, fields: Fields) -> Latent:
        """Distribution of the latent given the data."""

    @abstractmethod
    def decode(
        self, z: Float[Tensor, "batch channel *shape"], mask: Bool[Tensor, "batch *shape"] | None
    ) -> Decoded:
        """Data (or its logits) given a latent."""

    @abstractmethod
    def reconstruction_loss(self, fields: Fields, decoded: Decoded) -> dict[str, Float[Tensor, "batch"]]:
        """Named terms to be summed, one value a sample; names starting with `_` are reported only."""

    def prepare(self, batches: Iterable[Fields]) -> None:
        """Fit what gradients do not: buffers that depend on the data (say, principal components), before stage 1.

        Called once by `fit`, never on resume: what is fitted must lie in buffers of fixed shape, which travel in
        checkpoints and in the artefact. It must not draw from global random generators.

        Args:
            batches: The training split, in order; can be gone through several times.
        """

    def finish(self, batches: Iterable[Fields]) -> None:
        """Fit what needs the trained networks (say, gains of the decoder), after stage 1; as `prepare` otherwise.

        Called again when a finished run is continued, with the same result.
        """

    def estimator(self) -> "Autoencoder[Fields, Decoded]":
        """The same networks, with the decoder whose square errors are least.

        For what is an estimate of given data (reconstruction, forecasts that add what the autoencoder loses). Itself,
        unless samples are decoded in another way.
        """
        return self

    def code(self, fields: Fields) -> tuple[Tensor, Tensor | None]:
        """The noise-free latent that the diffusion model learns, with its mask."""
        latent = self.encode(fields)
        z = self.bottleneck.code(latent.mean)
        return (z if latent.mask is None else z * latent.mask[:, None]), latent.mask

    def loss(self, fields: Fields, generator: torch.Generator) -> dict[str, Float[Tensor, "batch"]]:
        """Reconstruction through the bottleneck, and the bottleneck's own penalty."""
        latent = self.encode(fields)
        z, penalty = self.bottleneck(latent.mean, latent.log_std, latent.mask, generator)
        terms = self.reconstruction_loss(fields, self.decode(z, latent.mask))
        return terms if penalty is None else {**terms, "bottleneck": penalty}

    def metrics(self, fields: Fields, decoded: Decoded) -> dict[str, Any]:
        """Reconstruction quality per sample, for the gate between the stages; names are the domain's."""
        return {}
