r"""An optional adversarial term for the decoder (patch GAN style; Goodfellow et al. 2014, arXiv:1406.2661).

With discriminator scores `D`, the hinge form (Lim & Ye 2017, arXiv:1705.02894) trains

    decoder: -D(fake)          discriminator: max(0, 1 - D(real)) + max(0, 1 + D(fake))

and the non-saturating form `softplus(-D(fake))` against `softplus(-D(real)) + softplus(D(fake))`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ConfigError

__all__ = ["AdversarialSettings", "Adversary", "Opponent"]


@dataclass(frozen=True)
class AdversarialSettings:
    """What the discriminator is and sees.

    Raises:
        ConfigError: A value out of range.
    """

    discriminator: nn.Module
    """Maps a tensor `[batch, ...]` to scores `[batch, ...]`."""

    real: Callable[[Any], Tensor]
    """From the autoencoder's fields to the discriminator's input."""

    fake: Callable[[Any], Tensor]
    """From what the decoder returned to the discriminator's input."""

    kind: Literal["hinge", "non_saturating"] = "hinge"
    """Form of the loss."""

    weight: float = 0.1
    """Weight of the term in the decoder's loss."""

    start_step: int = 0
    """Step at which it sets in; the reconstruction should be decent by then."""

    learning_rate: float | None = None
    """The discriminator's peak learning rate; the stage's own when None."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.start_step < 0:
            raise ConfigError(
                f"weight and start_step must be 0 or more, got {self.weight} and {self.start_step}"
            )
        if self.kind not in ("hinge", "non_saturating"):
            raise ConfigError(f"kind must be hinge or non_saturating, got {self.kind!r}")


class Opponent(nn.Module, ABC):
    """A second network of a stage, which makes its own step on every batch, after that of the first.

    Attributes:
        name: Of its loss in the logs.
        learning_rate: Its peak learning rate; the stage's own when None.
    """

    name: str
    learning_rate: float | None = None

    def active(self, step: int) -> bool:
        """Whether it takes part yet."""
        return True

    @abstractmethod
    def own_loss(self) -> Float[Tensor, "batch"]:
        """Its loss on the batch that the first network's loss saw last."""


@final
class Adversary(Opponent):
    """The discriminator with both losses. It keeps the last batch until its own update."""

    name = "discriminator"

    def __init__(self, settings: AdversarialSettings) -> None:
        super().__init__()
        self.learning_rate = settings.learning_rate
        self.settings, self.discriminator = settings, settings.discriminator
        self._pair: tuple[Tensor, Tensor] | None = None

    def decoder_loss(self, fields: Any, decoded: Any) -> Float[Tensor, "batch"]:
        """The weighted term of the decoder; no gradient reaches the discriminator's weights."""
        real, fake = self.settings.real(fields), self.settings.fake(decoded)
        self._pair = (real.detach(), fake.detach())
        trained = [p for p in self.discriminator.parameters() if p.requires_grad]
        for p in trained:
            p.requires_grad_(False)
        scores = self.discriminator(fake).float().flatten(1).mean(dim=1)
        for p in trained:
            p.requires_grad_(True)
        loss = -scores if self.settings.kind == "hinge" else F.softplus(-scores)
        return self.settings.weight * loss

    def discriminator_loss(self) -> Float[Tensor, "batch"]:
        """The discriminator's loss on the batch that `decoder_loss` saw last."""
        assert self._pair is not None
        real, fake = (self.discriminator(part).float().flatten(1) for part in self._pair)
        self._pair = None
        if self.settings.kind == "hinge":
            return (F.relu(1 - real) + F.relu(1 + fake)).mean(dim=1)
        return (F.softplus(-real) + F.softplus(fake)).mean(dim=1)

    def own_loss(self) -> Float[Tensor, "batch"]:
        return self.discriminator_loss()

    def active(self, step: int) -> bool:
        """Whether the term has set in."""
        return step >= self.settings.start_step
