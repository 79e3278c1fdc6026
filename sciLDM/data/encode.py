"""A prepared data set as latents: encoded once, batch by batch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciLDM.autoencoders import Autoencoder
from sciLDM.data.latent_cache import LatentCache, cache_key, module_hash
from sciLDM.domain import Codec, Corpus, Progress

__all__ = ["Batches", "cached_latents"]


@final
class Batches:
    """A split's fields, batch by batch and in order; can be gone through several times."""

    def __init__(self, corpus: Corpus, split: str, size: int, *, limit: int | None = None) -> None:
        self.corpus, self.split, self.size = corpus, split, size
        self.count = min(corpus.sizes[split], limit or corpus.sizes[split])

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.count, self.size):
            yield self.corpus.fields(self.split, np.arange(start, min(start + self.size, self.count)))


@torch.no_grad()
def cached_latents(
    autoencoder: Autoencoder[Any, Any],
    codec: Codec,
    corpus: Corpus,
    folder: Path,
    *,
    batch_size: int,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, LatentCache]:
    """Latents of the training and validation splits: those in the folder, if they are of these data and this encoder.

    Args:
        autoencoder: Trained.
        codec: Says how large a latent may be.
        corpus: The data.
        folder: Of the caches.
        batch_size: Samples at once.
        progress: Told how far it has come.
        say: Receives lines.
    """
    weights = module_hash(autoencoder)
    found: dict[str, LatentCache] = {}
    for split in ("train", "validation"):
        key = cache_key(corpus.fingerprint, weights, split)
        cache = LatentCache.open(folder, key)
        if cache is None:
            say(f"encoding {corpus.sizes[split]:,} {split} samples")
            batches = _encoded(autoencoder, codec, corpus, split, batch_size)
            cache = LatentCache.write(folder, key, batches, corpus.sizes[split], progress=progress)
        found[split] = cache
    return found


def _encoded(
    autoencoder: Autoencoder[Any, Any], codec: Codec, corpus: Corpus, split: str, step: int
) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Any]]]:
    labels = corpus.labels(split)
    size = codec.shape
    for start in range(0, corpus.sizes[split], step):
        indices = np.arange(start, min(start + step, corpus.sizes[split]))
        z, mask = autoencoder.code(corpus.fields(split, indices))
        short = [n - have for n, have in zip(reversed(size), reversed(z.shape[2:]), strict=True)]
        padding = [p for missing in short for p in (0, missing)]
        z = torch.nn.functional.pad(z, padding)
        mask = None if mask is None else torch.nn.functional.pad(mask, padding)
        yield z, mask, {name: values[indices] for name, values in labels.items()}
