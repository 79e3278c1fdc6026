"""Latents to distil on: those of the training data, or where these are not at hand, samples of the model itself."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sciLDM.data.cards import cache_root
from sciLDM.data.encode import cached_latents
from sciLDM.data.latents import NormalisedLatents
from sciLDM.domain import FieldCodec, Progress
from sciLDM.errors import DataError, SciLDMError
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource
from sciLDM.training import LatentData, TrainingData

__all__ = ["data_latents", "drawn_latents", "latents_for"]

_HELD_OUT = 10
"""One drawn latent in so many is held out."""


def latents_for(
    model: LatentDiffusion,
    folder: Path,
    *,
    samples: int | None,
    enough: int = 20_000,
    seed: int = 0,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[TrainingData, TrainingData]:
    """Training and held-out latents, normalised.

    Args:
        model: Whose latents.
        folder: Of the latent cache; kept, so that a second call finds them.
        samples: Draw so many from the model; None takes the data if they can be had.
        enough: Samples drawn where they cannot.
        seed: Of the samples.
        progress: Told how far it has come.
        say: Receives lines.
    """
    if samples is None:
        try:
            return data_latents(model, folder, progress=progress, say=say)
        except (SciLDMError, OSError) as error:
            say(
                f"the training data are not at hand ({error}); {enough:,} samples of the model take their place"
            )
            samples = enough
    return drawn_latents(model, samples, seed=seed, progress=progress)


def data_latents(
    model: LatentDiffusion, folder: Path, *, progress: Progress, say: Callable[[str], None]
) -> tuple[TrainingData, TrainingData]:
    """Latents of the model's own training and validation splits, encoded once.

    Raises:
        SciLDMError: No data, or others than those the model was trained on.
    """
    corpus = model.experiment.domain.prepare(cache_root() / "features", progress)
    if _plain(corpus.state) != _plain(model.state):
        raise DataError("the data that its configuration names are not those the model was trained on")
    size = model.experiment.autoencoder_stage.batch_size if isinstance(model.codec, FieldCodec) else 1024
    caches = cached_latents(
        model.autoencoder, model.codec, corpus, folder, batch_size=size, progress=progress, say=say
    )
    return tuple(NormalisedLatents(caches[split], model.stats) for split in ("train", "validation"))


@torch.no_grad()
def drawn_latents(
    model: LatentDiffusion, count: int, *, seed: int = 0, progress: Progress
) -> tuple[TrainingData, TrainingData]:
    """Latents that the model draws, asked for nothing: conditions that a user may leave out are then not practised.

    Raises:
        DataError: Too few to hold some out.
    """
    if count < _HELD_OUT:
        raise DataError(f"expected at least {_HELD_OUT} samples to distil on, got {count}")
    noise, ids = NoiseSource(seed).fork("distillation"), range(count)
    request = model.codec.plan(count, {}, noise, ids)
    z = model.sample_latents(
        request, ids, noise, progress=lambda done, total: progress("drawing samples", done, total)
    )
    mask = request.mask
    z = model.stats.normalise_masked(z, None if mask is None else mask.to(z.device)).cpu()
    held_out = torch.arange(count) % _HELD_OUT == 0

    def part(rows: torch.Tensor) -> LatentData:
        cond = {name: label[rows] for name, label in request.cond.items()}
        return LatentData(z[rows], None if mask is None else mask[rows], cond)

    return part(~held_out), part(held_out)


def _plain(state: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(state, default=float))
