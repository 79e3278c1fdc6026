"""Adapting a trained model to some tens or hundreds of items of one's own.

Two things learn; the encoder and its latents are left as they are. First the decoder, by a few small steps on the items
(`sciLDM.adapt.decoder`): items of a new kind may be rebuilt wrongly. Then the denoiser, by low-rank terms that are
merged at the end (`sciLDM.adapt.low_rank`), or with all its weights. So few items are soon known by heart: what keeps
samples new are the low rank and few steps.

A guide (`sciLDM.guidance.Autoguidance`) stays that of the old model: samples keep away from it, and so from what the
old model made. A codec may learn from the items too (`sciLDM.adapt.items`): molecules, how many atoms samples should
have.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sciLDM.adapt.decoder import adapt_decoder, rebuilt
from sciLDM.adapt.items import LearnsFromItems, Repeated, adapted_state, digest, latent_data, split
from sciLDM.adapt.low_rank import add_low_rank, merge_low_rank
from sciLDM.data.ensemble import model_hash
from sciLDM.data.own_folder import own_folder
from sciLDM.data.run_folder import write_json
from sciLDM.domain import FieldCodec
from sciLDM.errors import ConfigError, DataError
from sciLDM.explore.native import Encoded, FromNative, encode, encode_fields
from sciLDM.model import LatentDiffusion, load
from sciLDM.training import DenoiserStage, StageResult, StageSettings, TrainerSettings, run_stage

__all__ = ["FineTune", "finetune"]

_FEWEST = 10
"""Fewer items tell too little."""


def _short() -> StageSettings:
    return StageSettings(
        max_steps=100, batch_size=128, learning_rate=1e-3, warmup_steps=10, weight_decay=0.0, ema_decay=0.99,
        validate_every=50, checkpoint_every=50,
    )  # fmt: skip


@dataclass(frozen=True)
class FineTune:
    """How a model is adapted.

    Raises:
        ConfigError: A value out of range.
    """

    rank: int | None = 8
    """Rank of the terms added to the denoiser's matrices; null trains all weights, for which the learning rate of
    `stage` should be a tenth."""

    decoder_steps: int = 40
    """Steps of the decoder on the items; 0 leaves it as it is. Decoders of fields on a grid always stay: what they lose
    is part of the model's error budget, and was measured."""

    held_out: float = 0.1
    """Share of the items that the denoiser is not trained on: validation scores them."""

    stage: StageSettings = field(default_factory=_short)
    """The denoiser's training."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank must be at least 1, or null for all weights, got {self.rank}")
        if self.decoder_steps < 0:
            raise ConfigError(f"decoder_steps must be 0 or more, got {self.decoder_steps}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must be in [0, 1), got {self.held_out}")


def finetune(
    model: LatentDiffusion,
    items: Any,
    folder: str | Path,
    settings: FineTune = FineTune(),
    *,
    cond: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> LatentDiffusion:
    """Adapt a model to items of one's own, and leave the new one in `folder`.

    Args:
        model: Not changed: the new model starts as a copy. Training runs on its kind of device.
        items: Native objects, as `sciLDM.explore.encode` takes them. From objects encoded before, the decoder learns
            nothing.
        folder: Where the new model and its training go; an interrupted training is continued there.
        settings: How.
        cond: Labels that replace the items' own, as in `sciLDM.explore.encode`.
        say: Receives lines.

    Returns:
        The new model, as `sciLDM.load(folder)` gives it.

    Raises:
        ConfigError: A folder of something else, settings out of range, or a model whose codec reads no native objects.
        DataError: Items that the model cannot represent, or too few.
        TrainingDiverged: A loss is no longer finite.
    """
    folder = Path(folder)
    fields, encoded = _encoded(model, items, cond)
    if len(encoded) < _FEWEST:
        raise DataError(f"expected at least {_FEWEST} items to adapt to, got {len(encoded)}; add more")
    asked = {"finetune": {**asdict(settings), "items": digest(encoded)}, "model": model_hash(model)[:16]}
    own_folder(folder, asked, say)
    new = _copied(model, adapted_state(model.codec, model.state, encoded.request))
    trainer = _where(model)
    summary: dict[str, Any] = {"items": len(encoded), "settings": asdict(settings)}
    if fields is not None and settings.decoder_steps and not isinstance(model.codec, FieldCodec):
        summary["rebuilt_before"] = rebuilt(new.autoencoder, fields)
        adapt_decoder(
            new.autoencoder, fields, len(encoded), settings.decoder_steps, folder / "decoder", trainer,
            seed=settings.stage.seed,
        )  # fmt: skip
    if fields is not None:
        summary["rebuilt"] = rebuilt(new.autoencoder, fields)
        _say_rebuilt(model, summary, say)
    trained, result = _adapt_denoiser(new, encoded, settings, folder / "denoiser", trainer, say)
    summary |= {
        "trained": trained, "steps": result.steps, "seconds": result.seconds, "validation": dict(result.validation)
    }  # fmt: skip
    new.card = {**{k: model.card[k] for k in ("domain", "training") if k in model.card}, "finetuned": summary}
    new.save(folder / "model")
    if fields is not None and isinstance(model.codec, LearnsFromItems):
        model.codec.write_items(folder / "reference", items, model.reference)
    write_json(folder / "summary.json", summary)
    return load(folder)


def _encoded(
    model: LatentDiffusion, items: Any, cond: Mapping[str, Any] | None
) -> tuple[Any | None, Encoded]:
    """The autoencoder's inputs on the processor (None of what is encoded already), and latents of them."""
    if isinstance(items, Encoded) or not isinstance(model.codec, FromNative):
        return None, encode(model, items, cond=cond)
    fields, request = model.codec.from_native(items, cond)
    encoded = encode_fields(model, fields, request)
    return (fields.to("cpu") if hasattr(fields, "to") else fields), encoded


def _adapt_denoiser(
    model: LatentDiffusion,
    encoded: Encoded,
    settings: FineTune,
    folder: Path,
    trainer: TrainerSettings,
    say: Callable[[str], None],
) -> tuple[int, StageResult]:
    """Number of parameters trained, and how it went."""
    net = model.denoiser.net
    if settings.rank is None:
        trained = sum(p.numel() for p in net.parameters())
    else:
        trained = add_low_rank(net, settings.rank, seed=settings.stage.seed)
    train, validation = split(encoded, settings.held_out, settings.stage.seed)
    say(f"adapting {trained:,} parameters of the denoiser to {len(train)} items; {len(validation)} validate")
    stage = DenoiserStage(model.denoiser, model.experiment.objective, model.codec.conditions)
    result = run_stage(
        stage, Repeated(latent_data(train)), latent_data(validation), settings.stage, trainer, folder, resume=True
    )  # fmt: skip
    stage.finished_network()
    if settings.rank is not None:
        merge_low_rank(net)
    return trained, result


def _copied(model: LatentDiffusion, state: Mapping[str, Any]) -> LatentDiffusion:
    """The same model with weights and a codec's state of its own, without what was measured of its denoiser."""
    with torch.random.fork_rng(devices=[]):
        new = LatentDiffusion(model.config, state)
    new.autoencoder_error = model.autoencoder_error
    for name, part in new.parts.items():
        part.load_state_dict(model.parts[name].state_dict())
    return new


def _where(model: LatentDiffusion) -> TrainerSettings:
    kind = {"cuda": "gpu"}.get(model.device.type, model.device.type)
    return replace(
        model.experiment.trainer,
        accelerator=kind,
        devices=1,
        num_nodes=1,
        strategy="auto",
        progress_bar=False,
    )


def _say_rebuilt(model: LatentDiffusion, summary: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """What the autoencoder makes of the items, beside the gate that it had to pass on its own data."""
    for name, least in model.experiment.domain.gate.items():
        value = summary["rebuilt"].get(name)
        if value is None:
            continue
        before = summary.get("rebuilt_before", {}).get(name)
        line = f"the autoencoder rebuilds the items with {name} = {value:.3f}"
        line += "" if before is None else f" ({before:.3f} before it learned them)"
        if value < least:
            line += f"; its gate is {least}, and what it cannot rebuild, no sample can be"
        say(line)
