r"""Self-training of a decoder: it learns to say at once what native decoding makes of its outputs.

A domain may read its decoder under constraints (valences of molecules), and where the plain reading breaks them the
result is another one. Here the decoder is trained on latents that the model drew itself, towards those results: expert
iteration (Anthony et al., NeurIPS 2017, arXiv:1705.08439), with noise on the student's input (Xie et al., CVPR 2020,
arXiv:1911.04252). Latents of training data are among them, lest those be rebuilt less well. Encoder, latents and
denoiser stay as they are.
"""

from collections.abc import Mapping
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, LatentStats
from sciLDM.errors import ConfigError, DataError
from sciLDM.training.settings import SelfTraining
from sciLDM.training.stage import Stage
from sciLDM.training.stages import half_precision

__all__ = ["DecoderStage", "SettledLatents", "SettlesOutputs"]

_EACH = 20
"""One latent in so many is held out."""


@runtime_checkable
class SettlesOutputs(Protocol):
    """A codec whose native decoding may depart from the decoder's plain reading. It offers this by the methods."""

    def settle(self, decoded: Any) -> Mapping[str, Tensor]:
        """What native decoding makes of outputs: tensors with one row for each.

        `changed` (bool) says where that is not the plain reading, `usable` (bool) whether the decoder could say it.
        """
        ...

    def settled_loss(self, settled: Mapping[str, Tensor], decoded: Any) -> dict[str, Float[Tensor, "batch"]]:
        """Named loss terms of outputs that should read so."""
        ...


@final
class SettledLatents:
    """Latents with what their decoding should read, as `TrainingData`; each kind comes as often as it is told to.

    Args:
        z: Latents.
        mask: Cells that exist, or None.
        settled: Of `SettlesOutputs.settle`, and `real` (bool): latents of training data.
        hard: Share of drawn latents whose output was changed; 0 for as many as there are.
        replay: Share of real ones; 0 for none.

    Raises:
        DataError: None can be used.
    """

    def __init__(
        self,
        z: Float[Tensor, "batch channel *shape"],
        mask: Bool[Tensor, "batch *shape"] | None,
        settled: Mapping[str, Tensor],
        *,
        hard: float = 0.0,
        replay: float = 0.0,
    ) -> None:
        self.z, self.mask, self.settled = z, mask, settled
        usable, changed, real = (settled[name].numpy() for name in ("usable", "changed", "real"))
        easy, difficult = (np.flatnonzero(usable & ~real & kind) for kind in (~changed, changed))
        if len(easy) + len(difficult) == 0:
            raise DataError("self-training: expected latents that decode to something, got none")
        rows = [easy, _resized(difficult, hard, replay, easy) if hard else difficult]
        if replay:
            rows.append(_resized(np.flatnonzero(usable & ~changed & real), replay, hard, easy))
        self._rows = np.concatenate(rows)

    @staticmethod
    def split(
        z: Tensor, mask: Tensor | None, settled: Mapping[str, Tensor], settings: SelfTraining
    ) -> "tuple[SettledLatents, SettledLatents]":
        """Training latents, and a twentieth held out; of the latter drawn ones alone, as often as they were drawn."""
        held_out = torch.arange(len(z)) % _EACH == 0

        def part(rows: Tensor, hard: float, replay: float) -> SettledLatents:
            chosen = {name: values[rows] for name, values in settled.items()}
            return SettledLatents(
                z[rows], None if mask is None else mask[rows], chosen, hard=hard, replay=replay
            )

        return part(~held_out, settings.hard, settings.replay), part(held_out, 0.0, 0.0)

    def __len__(self) -> int:
        return len(self._rows)

    def fields(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        rows = torch.as_tensor(self._rows[indices])
        mask = None if self.mask is None else self.mask[rows]
        return self.z[rows], mask, {name: values[rows] for name, values in self.settled.items()}


def _resized(rows: np.ndarray, share: float, other: float, easy: np.ndarray) -> np.ndarray:
    """Rows as often as makes them this share, where `easy` has what two kinds leave."""
    wanted = round(share / (1 - share - other) * len(easy))
    return np.resize(rows, wanted) if len(rows) and wanted else rows


@final
class DecoderStage(Stage):
    """The stage: batches are those of `SettledLatents`. Only what `Autoencoder.decode` uses gets gradients.

    Validation reports the loss without noise and `changed`, the share of outputs that native decoding still changes.

    Args:
        autoencoder: Its decoder is trained.
        codec: Says what outputs should read.
        stats: Of the latents.
        settings: Noise.

    Raises:
        ConfigError: Native decoding of this domain takes the plain reading.
    """

    def __init__(
        self, autoencoder: Autoencoder, codec: Any, stats: LatentStats, settings: SelfTraining
    ) -> None:
        super().__init__("self_training", autoencoder)
        if not isinstance(codec, SettlesOutputs):
            raise ConfigError(
                f"self_training: expected a domain that decodes under constraints, {type(codec).__name__} does not; "
                "leave it out"
            )
        self.codec, self.noise = codec, settings.noise
        self._scale = stats.std

    @property
    def autoencoder(self) -> Autoencoder:
        """The network under its own name."""
        assert isinstance(self.network, Autoencoder)
        return self.network

    def loss_terms(self, fields: Any, generator: torch.Generator) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, settled = fields
        eps = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        scale = self.noise * self._scale.to(z).view(1, -1, *[1] * (z.ndim - 2))
        z = z + scale * eps if mask is None else (z + scale * eps) * mask.unsqueeze(1)
        with half_precision(self):
            return self.codec.settled_loss(settled, self.autoencoder.decode(z, mask))

    def scores(self, fields: Any, indices: np.ndarray) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, settled = fields
        with half_precision(self):
            decoded = self.autoencoder.decode(z, mask)
        terms = self.codec.settled_loss(settled, decoded)
        changed = self.codec.settle(decoded)["changed"]
        return {"loss": torch.stack(list(terms.values())).sum(dim=0), "changed": changed.float()}
