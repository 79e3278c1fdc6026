"""Where the doctor gets latents from: the run's cache, the model's card, the adapter, or else the model itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sciLDM.autoencoders import LatentStats
from sciLDM.conditions import Scalar
from sciLDM.data.latent_cache import LatentCache, cache_key, module_hash
from sciLDM.domain import Progress
from sciLDM.evaluate.doctor_gaussian import LatentGaussian
from sciLDM.evaluate.doctor_run import read_json
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DPMSolverPP2M

__all__ = ["CARD_ENTRY", "DoctorModel", "EncodesReference", "Source", "find_cache", "find_source"]

CARD_ENTRY = "latents"
"""Where a card may keep `LatentGaussian.state()`, so that a model without its data can be examined."""

_BYTES = 2**29
_BATCH = 256


@runtime_checkable
class DoctorModel(Protocol):
    """What the doctor needs of `sciLDM.model.LatentDiffusion`."""

    experiment: Any
    codec: Any
    card: Any
    reference: Path | None
    autoencoder: Any
    stats: LatentStats
    sample_latents: Any


@runtime_checkable
class EncodesReference(Protocol):
    """A codec that can encode the training items in its reference folder; optional."""

    def encode_reference(
        self, autoencoder: Any, reference: Path, count: int
    ) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        """Latents (not normalised), mask and labels of up to `count` training items."""
        ...


@final
@dataclass(frozen=True)
class Source:
    """A fitted Gaussian and where it is from.

    Attributes:
        gaussian: Of normalised latents.
        text: Where they come from, for a strict reader.
        of_model: They are the model's own samples: they show the solver's bias, not the network's.
    """

    gaussian: LatentGaussian
    text: str
    of_model: bool = False


def find_cache(run: Path | None, model: DoctorModel | None) -> tuple[LatentCache, bool] | None:
    """The training split's latents in a run folder, and whether data and autoencoder vouch for them.

    The key names data and autoencoder. Where they cannot be told, the cache with most latents is taken.
    """
    folder = None if run is None else run / "latents"
    if run is None or folder is None or not folder.is_dir():
        return None
    fingerprint = read_json(run / "data.json").get("fingerprint")
    if model is not None and isinstance(fingerprint, str):
        cache = _open(folder, cache_key(fingerprint, module_hash(model.autoencoder), "train"))
        if cache is not None:
            return cache, True
    keys = [path.name.removesuffix(".zarr") for path in sorted(folder.glob("*.zarr"))]
    found = [cache for key in keys if (cache := _open(folder, key)) is not None]
    return (max(found, key=len), False) if found else None


def find_source(
    model: DoctorModel | None,
    cache: tuple[LatentCache, bool] | None,
    *,
    count: int,
    own: int,
    seed: int,
    progress: Progress,
) -> Source | None:
    """The best source there is: cached latents, the card, the adapter's reference, the model's own samples.

    Args:
        model: None for a run without a finished model.
        cache: From `find_cache`.
        count: Most latents to read or encode.
        own: Samples to draw where there is nothing else; 0 draws none.
        seed: Of choice and samples.
        progress: Told about sampling.
    """
    if cache is not None:
        return _cached(*cache, model, count, seed)
    if model is None:
        return None
    if isinstance(stored := model.card.get(CARD_ENTRY), Mapping):
        gaussian = LatentGaussian.from_state(stored)
        return Source(gaussian, f"{gaussian.count:,} training latents, as described in the model's card")
    if model.reference is not None and isinstance(model.codec, EncodesReference):
        z, mask, labels = model.codec.encode_reference(model.autoencoder, model.reference, count)
        gaussian = LatentGaussian.fit(model.stats.normalise_masked(z, mask), mask, labels)
        return Source(gaussian, f"{len(z):,} training items, encoded anew from {model.reference}")
    return _own(model, own, seed, progress) if own else None


def _open(folder: Path, key: str) -> LatentCache | None:
    return LatentCache.open(folder, key, memory_limit_bytes=_BYTES)


def _cached(cache: LatentCache, sure: bool, model: DoctorModel | None, count: int, seed: int) -> Source:
    row = 4 * cache.channels * int(np.prod(cache.shape))
    count = max(16, min(count, _BYTES // row))
    # The first of a shuffled epoch: random samples, but whole chunks where the cache is on disk.
    index = cache.epoch(np.random.default_rng(seed))[:count]
    z, mask, labels = cache.fields(index)
    stats = LatentStats(cache.channels).fit([(z, mask)]) if model is None else model.stats
    text = f"{len(z):,} of {len(cache):,} training latents in the run's cache"
    if not sure:
        text += " (the largest one there; that it belongs to these weights could not be checked)"
    return Source(LatentGaussian.fit(stats.normalise_masked(z, mask), mask, labels), text)


def _own(model: DoctorModel, count: int, seed: int, progress: Progress) -> Source:
    """Samples at temperature 1 by a deterministic solver that goes on to low noise; half of them with a condition."""
    noise, ids = NoiseSource(seed).fork("doctor"), range(count)
    scalars = [c for c in getattr(model.codec, "conditions", ()) if isinstance(c, Scalar) and c.dropout > 0]
    unit = noise.normal(ids, (), stream="conditions")
    labels = {c.name: torch.full((count,), float("nan")) for c in scalars}
    for k, scalar in enumerate(scalars):
        asked = slice(count // 2 + k, None, len(scalars))
        labels[scalar.name][asked] = scalar.mean + scalar.std * unit[asked]
    request = model.codec.plan(count, labels, noise, ids)
    solver = DPMSolverPP2M()
    z = model.sample_latents(
        request, ids, noise, guidance=1.0, sampler=solver, batch_size=_BATCH,
        progress=lambda done, total: progress("samples for the doctor", done, total),
    ).cpu()  # fmt: skip
    mask = None if request.mask is None else request.mask.cpu()
    normal = model.stats.normalise(z.to(model.stats.mean.device)).cpu()
    normal = normal if mask is None else normal * mask[:, None]
    text = (
        f"{count:,} samples of the model itself ({type(solver).__name__}, {solver.steps} steps, temperature 1), since "
        "neither training latents nor their description came with it: what follows says what the sampler does to "
        "latents like the model's, not whether the model's are like the data's"
    )
    return Source(LatentGaussian.fit(normal, mask, labels), text, of_model=True)
