"""`fit`: both stages in one call, from a configuration to a run folder with a model in it.

    data -> autoencoder -> reconstruction gate -> its error's variance (fields on grids) -> latent statistics
         -> latent cache -> denoiser -> its error's covariance (fields on grids) -> self-training (where asked for)
         -> artefact

A run folder can be continued: what is finished is skipped, what was interrupted resumes where it stopped.

| in the run folder | what |
|---|---|
| `config.yaml` | the complete configuration |
| `reference/` | training and test items, rejected rows |
| `autoencoder/`, `denoiser/` | checkpoints and `metrics.csv` |
| `self_training/` | the model's samples that the decoder learned from |
| `latents/` | cached latents, keyed by the hashes of data and autoencoder |
| `model/` | the artefact: `sciLDM.load(run)` |
| `summary.json` | steps, times, scores, peak memory |
"""

import json
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciLDM.artefact import find_artefact
from sciLDM.data.cards import cache_root
from sciLDM.data.encode import Batches, cached_latents
from sciLDM.data.latents import NormalisedLatents, OneGrid
from sciLDM.data.run_folder import claim, rank, same_data, write_json
from sciLDM.denoiser import Denoiser, NetDenoiser
from sciLDM.domain import Corpus, FieldCodec, Progress, Request
from sciLDM.errors import ConfigError, DataError, GateError, ShapeMismatch
from sciLDM.evaluate.doctor_gaussian import LatentGaussian
from sciLDM.evaluate.doctor_sources import CARD_ENTRY
from sciLDM.experiment import instantiate, read_config
from sciLDM.gaussian_start import GaussianStart
from sciLDM.guidance.posterior import MeasuredCovariance
from sciLDM.model import LatentDiffusion, load
from sciLDM.nets.conditioning import label_key
from sciLDM.own_latents import encoding_batch
from sciLDM.posterior.measure import measure_error
from sciLDM.self_train import check_self_training, self_train
from sciLDM.training import AutoencoderStage, DenoiserStage, SplitData, run_stage
from sciLDM.training.checkpoint import CHECKPOINT
from sciLDM.training.settings import StageSettings

__all__ = ["fit", "measure_denoiser"]

Say = Callable[[str], None]
_DESCRIBED = 20_000
"""Latents that the model's card describes, at most."""
_FEWEST = 16
"""Fewer latents are not worth a description."""
_ERROR_FIELDS = 4096
"""Most held-out fields that the variance of the autoencoder's error is fitted on."""
_FEWEST_ERRORS, _MOST_ERRORS, _ERROR_NUMBERS, _ERROR_BATCH = 32, 128, 2**20, 16
"""Held-out latents that the denoiser's error is measured on: fewer of large ones, whose frequencies are many."""


def fit(
    config: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    say: Say = print,
) -> LatentDiffusion:
    """Train autoencoder and denoiser, and leave a model in `output`.

    Args:
        config: A YAML file, or the same as a mapping.
        output: The run folder; an unfinished run with the same configuration is continued.
        overrides: Dotted options, for instance `{"denoiser_stage.max_steps": 100}`.
        progress: Told how far slow preparation has come; None is silent.
        say: Where one-line messages go.

    Returns:
        The trained model, as `sciLDM.load(output)` gives it.

    Raises:
        ConfigError: An option that cannot work, or a run folder of another configuration.
        DataError: Data that cannot be used.
        GateError: The autoencoder does not rebuild held-out data well enough.
        TrainingDiverged: A loss is no longer finite.
    """
    run = Path(output)
    full = read_config(config, overrides)
    experiment_domain = instantiate(full).domain  # refuses bad values before the folder is touched
    claim(run, full, say, complete=read_config)
    corpus = experiment_domain.prepare(cache_root() / "features", progress or _silent)
    say(f"data: {', '.join(f'{n:,} {split}' for split, n in corpus.sizes.items())}")
    for note in corpus.notes:
        say(f"data: {note}")
    same_data(run, corpus)
    if rank() == 0:
        corpus.write_reference(run / "reference")
    with torch.random.fork_rng(
        devices=[]
    ):  # initial weights are the run's own; the caller's generator stays as it was
        torch.manual_seed(full["seed"])
        model = LatentDiffusion(full, corpus.state, reference=run / "reference")
    check_self_training(model)
    say("parameters: " + ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in model.parameters.items() if n))
    summary: dict[str, Any] = {"data": {**corpus.state.get("source", {}), "sizes": dict(corpus.sizes)}}
    summary["autoencoder"] = _stage_one(model, corpus, run, say)
    _gate(model, summary["autoencoder"]["validation"], full["ignore_gate"], say)
    _measure_error(model, corpus, say)
    latents = _latents(model, corpus, run, progress or _silent, say)
    summary |= _stage_two(model, latents, run, say)
    if (settings := model.experiment.self_training) is not None:
        stage = model.experiment.self_training_stage
        summary["self_training"] = self_train(
            model,
            settings,
            stage,
            latents["train"].cache,
            run / "self_training",
            progress=progress or _silent,
            say=say,
        )
        summary["self_training"]["test"] = reconstruction(model, corpus, "test")
    measure_denoiser(model, latents["validation"], say)
    summary["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (
        20 if sys.platform != "darwin" else 30
    )
    if rank() == 0:
        model.card = {"domain": experiment_domain.name, "training": summary, **_described(latents["train"])}
        model.save(run / "model")
        write_json(run / "summary.json", summary)
    return load(run)


def _stage_one(model: LatentDiffusion, corpus: Corpus, run: Path, say: Say) -> dict[str, Any]:
    """Train the autoencoder, or take it from another run; its test of held-out reconstruction either way."""
    experiment = model.experiment
    if experiment.autoencoder_from is not None:
        return _borrow(model, experiment.autoencoder_from, corpus, say)
    say("stage 1: autoencoder")
    if not (run / "autoencoder" / CHECKPOINT).exists():  # a checkpoint holds what was prepared
        model.autoencoder.prepare(Batches(corpus, "train", encoding_batch(model)))
    stage = AutoencoderStage(model.autoencoder)
    result = run_stage(
        stage,
        SplitData(corpus, "train"),
        SplitData(corpus, "validation"),
        settings=experiment.autoencoder_stage,
        trainer=experiment.trainer,
        folder=run / "autoencoder",
        resume=True,
    )
    stage.finished_network()
    model.autoencoder.finish(Batches(corpus, "train", encoding_batch(model)))
    held_out = reconstruction(model, corpus, "test")
    return {
        "steps": result.steps,
        "seconds": result.seconds,
        "validation": dict(result.validation),
        "test": held_out,
    }


def _borrow(model: LatentDiffusion, source: str, corpus: Corpus, say: Say) -> dict[str, Any]:
    other = load(find_artefact(source))
    theirs, ours = other.state.get("vocabulary"), model.state.get("vocabulary")
    if theirs != ours:
        raise ConfigError(
            f"autoencoder_from={source}: it was trained on another vocabulary ({_shown(theirs)}) than these data have "
            f"({_shown(ours)}); train one on these data (leave autoencoder_from out)"
        )
    mine, given = model.autoencoder.state_dict(), other.autoencoder.state_dict()
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in given.items()}:
        raise ConfigError(
            f"autoencoder_from={source}: it has other settings; copy its `domain` options, or train one here"
        )
    model.autoencoder.load_state_dict(given)
    say(f"stage 1: autoencoder taken from {source}")
    held_out = reconstruction(model, corpus, "test")
    return {"steps": 0, "seconds": 0.0, "from": source, "validation": held_out, "test": held_out}


def _shown(vocabulary: Any) -> str:
    """What two vocabularies differ in, as far as a line can say."""
    text = json.dumps(vocabulary, default=str)
    if isinstance(vocabulary, Mapping):
        text = "; ".join(f"{k} {v}" for k, v in vocabulary.items() if k != "max_valence" or len(str(v)) < 200)
    return text if len(text) <= 300 else f"{text[:300]} ..."


@torch.no_grad()
def reconstruction(
    model: LatentDiffusion, corpus: Corpus, split: str, *, limit: int = 20_000
) -> dict[str, float]:
    """Scores of the noise-free round trip on a split, averaged over its first `limit` samples."""
    totals: dict[str, float] = {}
    count = min(corpus.sizes[split], limit)
    for fields in Batches(corpus, split, encoding_batch(model), limit=limit):
        z, mask = model.autoencoder.code(fields)
        for name, values in model.autoencoder.metrics(fields, model.autoencoder.decode(z, mask)).items():
            totals[name] = totals.get(name, 0.0) + float(values.sum())
    return {**{name: total / count for name, total in totals.items()}, "samples": count}


def _gate(model: LatentDiffusion, scores: Mapping[str, float], ignore: bool, say: Say) -> None:
    for name, least in model.experiment.domain.gate.items():
        if name not in scores:
            raise ConfigError(f"the gate asks for {name!r}, the autoencoder reports {sorted(scores)}")
        if scores[name] < least:
            message = (
                f"the autoencoder reaches {name} = {scores[name]:.4f} on held-out data, the gate asks for {least}; "
                "what it cannot rebuild, the diffusion model cannot generate. Train longer "
                "(autoencoder_stage.max_steps), widen it (domain.init_args.autoencoder), or go on regardless "
                "(ignore_gate: true)"
            )
            if not ignore:
                raise GateError(message)
            say(f"warning: {message}")
        say(f"gate: {name} = {scores[name]:.4f} (at least {least})")


def _measure_error(model: LatentDiffusion, corpus: Corpus, say: Say) -> None:
    """Variance of what the autoencoder loses, on held-out fields; needed by `reconstruct`."""
    if isinstance(model.codec, FieldCodec):
        held_out = Batches(corpus, "validation", encoding_batch(model), limit=_ERROR_FIELDS)
        try:
            known = Batches(corpus, "train", encoding_batch(model), limit=_ERROR_FIELDS)
            model.autoencoder_error = measure_error(model.autoencoder, model.codec, held_out, training=known)
        except (DataError, ShapeMismatch) as problem:
            say(f"warning: {problem}; reconstructions will lack what the autoencoder loses")


@torch.no_grad()
def _latents(
    model: LatentDiffusion, corpus: Corpus, run: Path, progress: Progress, say: Say
) -> dict[str, NormalisedLatents]:
    """Latents of the training and validation splits, encoded once; fits the statistics on the way."""
    caches = cached_latents(
        model.autoencoder, model.codec, corpus, run / "latents", batch_size=encoding_batch(model), progress=progress,
        say=say,
    )  # fmt: skip
    found = {split: NormalisedLatents(cache, model.stats) for split, cache in caches.items()}
    model.stats.fit(found["train"].cache.batches())
    start = model.denoiser.start
    if start is not None:
        say(f"fitting the Gaussian that the denoiser starts from to {len(found['train']):,} latents")
        start.fit(OneGrid(found["train"]))
    if isinstance(start, GaussianStart):
        start.fit_variances(OneGrid(found["train"]).labelled())
    return found


def _described(latents: NormalisedLatents) -> dict[str, Any]:
    """What `scildm doctor` needs to know of the latents when the data are no longer at hand."""
    index = latents.cache.epoch(np.random.default_rng(0))[:_DESCRIBED]
    if len(index) < _FEWEST:
        return {}
    return {CARD_ENTRY: LatentGaussian.fit(*latents.fields(index)).state()}


def _stage_two(
    model: LatentDiffusion, latents: Mapping[str, NormalisedLatents], run: Path, say: Say
) -> dict[str, Any]:
    """Train the denoiser, and its guide where there is one."""
    say("stage 2: denoiser")
    experiment = model.experiment
    if experiment.denoiser_from is not None and not (run / "denoiser" / CHECKPOINT).exists():
        _start_from(model, experiment.denoiser_from, say)
    summary = {
        "denoiser": _train(model, model.denoiser, experiment.denoiser_stage, latents, run / "denoiser")
    }
    if model.guide is not None:
        say("stage 2: guide")
        summary["guide"] = _train(model, model.guide, experiment.guide_stage, latents, run / "guide")
    return summary


def _start_from(model: LatentDiffusion, source: str, say: Say) -> None:
    other = load(find_artefact(source))
    ours, theirs = model.denoiser.state_dict(), other.denoiser.state_dict()
    added = {c.name for c in model.codec.conditions} - {c.name for c in other.codec.conditions}
    # A new condition's null vector is zero: as long as nothing is asked of it, the network is the one it starts from.
    new = tuple(f"net.condition.labels.{label_key(name)}." for name in added)
    if {k: v.shape for k, v in ours.items() if not k.startswith(new)} != {
        k: v.shape for k, v in theirs.items()
    }:
        raise ConfigError(
            f"denoiser_from={source}: it is another network than the one configured; copy its `network` options and "
            "conditions (more may be added), or leave it out"
        )
    model.denoiser.load_state_dict({**ours, **theirs})
    learnt = f", {', '.join(sorted(added))} to be learnt" if added else ""
    say(f"stage 2: denoiser starts from {source}{learnt}")


def _train(
    model: LatentDiffusion,
    denoiser: NetDenoiser,
    settings: StageSettings,
    latents: Mapping[str, NormalisedLatents],
    folder: Path,
) -> dict[str, Any]:
    stage = DenoiserStage(denoiser, model.experiment.objective, model.codec.conditions)
    result = run_stage(
        stage,
        latents["train"],
        latents["validation"],
        settings=settings,
        trainer=model.experiment.trainer,
        folder=folder,
        resume=True,
    )
    stage.finished_network()
    return {"steps": result.steps, "seconds": result.seconds, "validation": dict(result.validation)}


def measure_denoiser(model: LatentDiffusion, latents: NormalisedLatents, say: Say) -> None:
    """How far the denoiser is off on held-out latents, without the conditions that users may leave out."""
    if not isinstance(model.codec, FieldCodec):
        return
    kept = {c.name for c in model.codec.conditions if c.dropout == 0}
    count = min(len(latents), max(_FEWEST_ERRORS, min(_MOST_ERRORS, _ERROR_NUMBERS // latents.size)))

    def parts() -> Iterator[tuple[Tensor, Denoiser]]:
        for start in range(0, count, _ERROR_BATCH):
            z, mask, cond = latents.fields(np.arange(start, min(start + _ERROR_BATCH, count)))
            if mask is not None and not bool(mask.all()):
                raise DataError("the denoiser's error: latents have different cells")
            request = Request(tuple(z.shape[2:]), {name: v for name, v in cond.items() if name in kept})
            yield z, model.guided(request, slice(0, len(z)), guidance=1.0)

    try:
        model.denoiser_error = MeasuredCovariance.measured(parts())
    except DataError as problem:
        say(f"warning: {problem}; reconstructions will trust the denoiser's derivatives")


def _silent(_what: str, _done: int, _total: int) -> None:
    """No progress shown."""
