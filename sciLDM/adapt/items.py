"""Items of one's own as the denoiser's training data, and what a codec learns from them beside."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from torch import Tensor

from sciLDM.domain import Codec, Request
from sciLDM.explore.native import Encoded
from sciLDM.training import LatentData

__all__ = ["LearnsFromItems", "Repeated", "adapted_state", "digest", "latent_data", "split"]

_EPOCH = 4096
"""Rows that an epoch has, whatever the number of items: batches need not be as small as those."""


@runtime_checkable
class LearnsFromItems(Protocol):
    """A codec that itself has something to learn from items. It offers this by having the methods."""

    def adapted(self, request: Request) -> dict[str, Any]:
        """The codec's state with what it learns from the labels of the items: molecules, their sizes."""
        ...

    def write_items(self, folder: Path, objects: Any, reference: Path | None) -> None:
        """Leave in `folder` what `decode` compares samples with: the items beside those of `reference`."""
        ...


@final
class Repeated:
    """Items in turns, as many as an epoch should have."""

    def __init__(self, data: LatentData) -> None:
        self.data = data

    def __len__(self) -> int:
        return max(_EPOCH, len(self.data))

    def fields(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        return self.data.fields(np.asarray(indices) % len(self.data))


def split(encoded: Encoded, held_out: float, seed: int) -> tuple[Encoded, Encoded]:
    """Items to train on, and those to validate on: the same ones where none are held out."""
    order = np.random.default_rng(seed).permutation(len(encoded)).tolist()
    held = max(1, round(held_out * len(encoded))) if held_out else 0
    return encoded.rows(order[held:]), encoded.rows(order[:held] if held else order)


def latent_data(encoded: Encoded) -> LatentData:
    """Encoded items in memory."""
    mask = None if encoded.mask is None else encoded.mask.cpu()
    cond = {name: label.cpu() for name, label in encoded.request.cond.items()}
    return LatentData(encoded.z.cpu(), mask, cond)


def adapted_state(codec: Codec, state: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """The codec's state after these items; the old one for a codec that learns nothing from them."""
    return codec.adapted(request) if isinstance(codec, LearnsFromItems) else dict(state)


def digest(encoded: Encoded) -> str:
    """Tells one set of items and labels from another."""
    parts = [encoded.z, *(encoded.request.cond[name] for name in sorted(encoded.request.cond))]
    joined = b"".join(part.detach().cpu().contiguous().numpy().tobytes() for part in parts)
    return hashlib.sha256(joined).hexdigest()[:16]
