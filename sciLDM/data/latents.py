"""Cached latents as training and fitting read them."""

import math
from collections.abc import Iterator, Mapping
from typing import final

import numpy as np
from torch import Tensor

from sciLDM.autoencoders import LatentStats
from sciLDM.data.latent_cache import LatentCache
from sciLDM.errors import ConfigError

__all__ = ["NormalisedLatents", "OneGrid"]

_START_NUMBERS = 2**23
"""Numbers in the latents that the Gaussian start is fitted on at a time."""


@final
class NormalisedLatents:
    """A latent cache as the denoiser trains on it: unit variance, zero where no cell exists."""

    def __init__(self, cache: LatentCache, stats: LatentStats) -> None:
        self.cache, self.stats = cache, stats

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def size(self) -> int:
        """Numbers in one latent."""
        return self.cache.channels * math.prod(self.cache.shape)

    def fields(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        """Latents, mask and labels of these samples."""
        z, mask, cond = self.cache.fields(indices)
        return self.stats.normalise_masked(z, mask), mask, cond


@final
class OneGrid:
    """Normalised latents that must all have the same cells, batch by batch; can be gone through several times."""

    def __init__(self, latents: NormalisedLatents) -> None:
        self.latents, self.step = latents, max(1, _START_NUMBERS // latents.size)

    def __iter__(self) -> Iterator[Tensor]:
        return (z for z, _ in self.labelled())

    def labelled(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """With the labels of each batch."""
        for start in range(0, len(self.latents), self.step):
            z, mask, cond = self.latents.fields(np.arange(start, min(start + self.step, len(self.latents))))
            if mask is not None and not bool(mask.all()):
                raise ConfigError(
                    "gaussian_start: latents have different cells, expected one grid for all; set it to false"
                )
            yield z, cond
