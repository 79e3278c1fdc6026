"""Latents to distil on: those of the training data, or where these are not at hand, samples of the model itself."""

from collections.abc import Callable
from pathlib import Path

import torch

from sciLDM.domain import Progress
from sciLDM.errors import DataError, SciLDMError
from sciLDM.model import LatentDiffusion
from sciLDM.own_latents import training_latents
from sciLDM.rng import NoiseSource
from sciLDM.training import LatentData, TrainingData

__all__ = ["drawn_latents", "latents_for"]

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
            found = training_latents(model, folder, progress=progress, say=say)
            return found["train"], found["validation"]
        except (SciLDMError, OSError) as error:
            say(
                f"the training data are not at hand ({error}); {enough:,} samples of the model take their place"
            )
            samples = enough
    return drawn_latents(model, samples, seed=seed, progress=progress)


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
