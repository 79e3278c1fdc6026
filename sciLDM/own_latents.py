"""The latents that a finished model was trained on, made again from its data."""

from collections.abc import Callable
from pathlib import Path

from sciLDM.data.cards import cache_root
from sciLDM.data.encode import cached_latents
from sciLDM.data.latents import NormalisedLatents
from sciLDM.domain import Corpus, FieldCodec, Progress
from sciLDM.errors import DataError
from sciLDM.model import LatentDiffusion

__all__ = ["encoding_batch", "training_corpus", "training_latents"]

_BATCH = 1024


def encoding_batch(model: LatentDiffusion) -> int:
    """Samples at once outside training. Fields on grids are large: as many as a training step takes."""
    if isinstance(model.codec, FieldCodec):
        return min(_BATCH, model.experiment.autoencoder_stage.batch_size)
    return _BATCH


def training_corpus(model: LatentDiffusion, *, progress: Progress) -> Corpus:
    """The data named in the model's configuration.

    Args:
        model: Trained.
        progress: Told how far preparation has come.

    Raises:
        DataError: They are others than the model was trained on, or cannot be read.
    """
    corpus = model.experiment.domain.prepare(cache_root() / "features", progress)
    theirs, ours = (state.get("source", {}).get("fingerprint") for state in (model.state, corpus.state))
    if theirs != ours:
        raise DataError(
            f"the data named in the model's configuration ({model.state.get('source', {}).get('name', 'data')}) are "
            f"not those it was trained on: expected fingerprint {str(theirs)[:12]}, got {str(ours)[:12]}; restore the "
            "file, or train a model on the new one"
        )
    return corpus


def training_latents(
    model: LatentDiffusion,
    folder: Path,
    *,
    corpus: Corpus | None = None,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, NormalisedLatents]:
    """Normalised latents of the splits `train` and `validation`, encoded once and kept in a folder.

    Args:
        model: Trained; its own statistics normalise.
        folder: Of the caches.
        corpus: From `training_corpus`; read again when None.
        progress: Told how far it has come.
        say: Receives lines.

    Raises:
        DataError: See `training_corpus`.
    """
    corpus = corpus or training_corpus(model, progress=progress)
    caches = cached_latents(
        model.autoencoder, model.codec, corpus, folder, batch_size=encoding_batch(model), progress=progress, say=say
    )  # fmt: skip
    return {split: NormalisedLatents(cache, model.stats) for split, cache in caches.items()}
