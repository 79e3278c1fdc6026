"""Where asked for, `fit` ends so: the decoder learns from the model's samples (`sciLDM.training.self_training`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sciLDM.data.latent_cache import LatentCache
from sciLDM.data.run_folder import rank
from sciLDM.domain import Progress
from sciLDM.errors import ArtefactError
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource
from sciLDM.training import DecoderStage, SelfTraining, SettledLatents, StageSettings, run_stage
from sciLDM.training.self_training import SettlesOutputs

__all__ = ["check_self_training", "self_train"]

_BATCH = 512
_SAMPLES = "samples.safetensors"


def check_self_training(model: LatentDiffusion) -> None:
    """Refuse it before any work.

    Raises:
        ConfigError: Asked for, though native decoding of this domain takes the plain reading.
    """
    settings = model.experiment.self_training
    if settings is not None:
        DecoderStage(model.autoencoder, model.codec, model.stats, settings)


def self_train(
    model: LatentDiffusion,
    settings: SelfTraining,
    stage_settings: StageSettings,
    latents: LatentCache,
    folder: Path,
    *,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train the decoder of a model on latents that it draws; encoder and denoiser stay as they are.

    Args:
        model: Complete; its decoder changes.
        settings: How many latents, and the noise on them.
        stage_settings: Of the training.
        latents: Of the training data.
        folder: Where latents and checkpoints go; an interrupted training is continued there.
        progress: Told how far drawing has come.
        say: Receives lines.

    Returns:
        Steps, seconds, scores on held-out latents, and the share of latents whose plain reading was changed before.
    """
    stage = DecoderStage(model.autoencoder, model.codec, model.stats, settings)
    drawn = _drawn(model, settings, stage_settings, latents, folder, progress, say)
    changed = float(drawn["changed"][~drawn["real"]].float().mean())
    say(f"self-training: constrained decoding changed {changed:.1%} of {settings.samples:,} samples")
    settled = {name: x for name, x in drawn.items() if name not in ("z", "mask")}
    train, held_out = SettledLatents.split(drawn["z"], drawn.get("mask"), settled, settings)
    trainer = model.experiment.trainer
    result = run_stage(stage, train, held_out, stage_settings, trainer, folder, resume=True)
    stage.finished_network()
    say(f"self-training: {result.validation['changed']:.1%} of held-out samples are still changed")
    return {
        "steps": result.steps,
        "seconds": result.seconds,
        "samples": settings.samples,
        "changed_before": changed,
        "validation": dict(result.validation),
    }


def _drawn(
    model: LatentDiffusion,
    settings: SelfTraining,
    stage_settings: StageSettings,
    latents: LatentCache,
    folder: Path,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """Latents and what their decoding reads; kept, since the decoder has changed when a training is continued."""
    path = folder / _SAMPLES
    if path.exists():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ArtefactError(f"{path} is damaged ({error}); remove {folder}") from error
    seed = stage_settings.seed
    say(f"self-training: drawing {settings.samples:,} samples")
    noise, ids = NoiseSource(seed).fork("self-training"), range(settings.samples)
    request = model.codec.plan(settings.samples, {}, noise, ids)
    own = model.experiment.sampler
    model.to(model.device, dtype=torch.bfloat16 if stage_settings.precision == "bf16" else None)
    z = model.sample_latents(
        request, ids, noise, sampler=own if settings.steps is None else own.with_steps(settings.steps),
        batch_size=_BATCH, progress=lambda done, total: progress("drawing samples", done, total),
    )  # fmt: skip
    model.to(model.device)
    drawn = _settled(model, z.cpu(), request.mask) | {"real": torch.zeros(len(z), dtype=torch.bool)}
    if settings.replay:
        rows = latents.epoch(np.random.default_rng(seed))[: settings.samples]
        known = _settled(model, *latents.fields(rows)[:2]) | {"real": torch.ones(len(rows), dtype=torch.bool)}
        drawn = {name: torch.cat([values, known[name]]) for name, values in drawn.items()}
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(drawn, partial)
        partial.replace(path)
    return drawn


@torch.no_grad()
def _settled(model: LatentDiffusion, z: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Latents, mask, and what native decoding makes of them."""
    assert isinstance(model.codec, SettlesOutputs), "checked when the stage was made"
    given = {"z": z} | ({} if mask is None else {"mask": mask})
    parts = []
    for start in range(0, len(z), _BATCH):
        here = {name: values[start : start + _BATCH].to(model.device) for name, values in given.items()}
        parts.append(model.codec.settle(model.autoencoder.decode(here["z"], here.get("mask"))))
    return given | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
