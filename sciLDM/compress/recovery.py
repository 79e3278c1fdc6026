"""Pruning of a trained model from start to end: score, remove, train again towards the unpruned network.

    latents of the training data -> importance of units -> removal -> distillation -> an ordinary run folder

Units are scored once: scoring again after each quarter of the removal changed the error before recovery by 0.1 %.
Recovery is knowledge distillation (Hinton et al. 2015, arXiv:1503.02531; for pruned diffusion models Kim et al. 2023,
arXiv:2305.15798): the smaller network learns the unpruned one's estimates at training's noise levels. Autoencoder,
guide and Gaussian start stay as they are. An interrupted call is continued by the same one.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from sciLDM.compress.importance import Latents, unit_importance
from sciLDM.compress.pruning import Kept, choose_units, count_parameters, pruned_recipe, pruned_weights
from sciLDM.data.ensemble import model_hash
from sciLDM.data.latents import NormalisedLatents
from sciLDM.data.run_folder import rank, write_json
from sciLDM.domain import Progress
from sciLDM.errors import ArtefactError, ConfigError
from sciLDM.experiment import read_config
from sciLDM.fitting import measure_denoiser
from sciLDM.model import LatentDiffusion, load
from sciLDM.nets import DiT, DiTNetwork
from sciLDM.own_latents import training_corpus, training_latents
from sciLDM.training import DenoiserStage, StageSettings, run_stage

__all__ = ["prune", "prune_units", "recovery_settings", "with_network"]

_PLAN = "pruning.json"
_BATCH = 256


def prune(
    model: LatentDiffusion,
    folder: str | Path,
    *,
    keep: float = 0.5,
    settings: StageSettings | None = None,
    samples: int = 4096,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> LatentDiffusion:
    """A model whose denoiser has a share of the parameters, and nearly the same samples.

    Args:
        model: Trained, with a `DiT`; stays as it is.
        folder: Becomes a run folder: `model/`, curves, latents.
        keep: Share of the denoiser's parameters to be left, above 0 and up to 1.
        settings: Of the recovery; `recovery_settings(model)` when None.
        samples: Training latents that units are scored on, at most.
        progress: Told how far slow preparation has come; None is silent.
        say: Where one-line messages go.

    Raises:
        ConfigError: Another network than a DiT, settings out of range, or a folder of another run.
        DataError: The training data are not at hand, or not those that the model knows.
    """
    settings = settings or recovery_settings(model)
    net = _check(model, keep, samples)
    target = int(keep * sum(p.numel() for p in net.parameters()))
    run, silent = Path(folder), progress or (lambda _what, _done, _total: None)
    given = {"model": model_hash(model), "keep": keep, "samples": samples}
    before = _plan(run, given)
    if run.is_file():
        raise ConfigError(f"{run} is a file, expected a folder for the run; choose another --output")
    if before is None and run.exists() and any(p.name not in ("latents", "reference") for p in run.iterdir()):
        raise ConfigError(f"{run} exists and is no unfinished pruning; choose another --output")
    corpus = training_corpus(model, progress=silent)
    latents = training_latents(model, run / "latents", corpus=corpus, progress=silent, say=say)
    if before is None:
        kept = prune_units(model, latents["train"], target, samples=samples, say=say)
        before = {**given, "kept": kept.state()}
    smaller = with_network(model, Kept.from_state(before["kept"]), settings)
    if rank() == 0:
        write_json(run / _PLAN, before)
        (run / "config.yaml").write_text(yaml.safe_dump(smaller.config, sort_keys=False), encoding="utf-8")
        corpus.write_reference(run / "reference")
    left, whole = (m.parameters["denoiser"] for m in (smaller, model))
    say(f"parameters: {left / 1e6:.2f} M of {whole / 1e6:.2f} M are left; recovery by distillation")
    trained = _recover(smaller, model, latents, settings, run / "denoiser")
    measure_denoiser(smaller, latents["validation"], say)
    pruned = {"parameters": left, "parameters_before": whole, "model_before": given["model"]}
    summary = {**model.card.get("training", {}), "denoiser": trained, "pruning": pruned}
    if rank() == 0:
        smaller.card = {**_own_card(model), "training": summary}
        smaller.save(run / "model")
        write_json(run / "summary.json", summary)
    return load(run)


def _recover(
    smaller: LatentDiffusion,
    model: LatentDiffusion,
    latents: Mapping[str, NormalisedLatents],
    settings: StageSettings,
    folder: Path,
) -> dict[str, Any]:
    """Train the smaller denoiser towards the whole one's estimates; a line of the summary."""
    stage = DenoiserStage(
        smaller.denoiser, model.experiment.objective, model.codec.conditions, teacher=_frozen(model)
    )
    result = run_stage(
        stage, latents["train"], latents["validation"], settings, model.experiment.trainer, folder,
        resume=True,
    )  # fmt: skip
    stage.finished_network()
    return {"steps": result.steps, "seconds": result.seconds, "validation": dict(result.validation)}


def recovery_settings(model: LatentDiffusion) -> StageSettings:
    """The denoiser's own stage, shorter, decaying from the start: 2,000 steps at half the learning rate."""
    own = model.experiment.denoiser_stage
    return replace(
        own, max_steps=2000, max_minutes=None, learning_rate=own.learning_rate / 2, warmup_steps=50,
        decay="cosine", decay_from=0.0, ema_decay=0.99,
    )  # fmt: skip


def prune_units(
    model: LatentDiffusion,
    latents: NormalisedLatents,
    parameters: int,
    *,
    samples: int = 4096,
    say: Callable[[str], None] = print,
) -> Kept:
    """Which units to keep, so that no more than so many parameters of the network are left.

    Args:
        model: Trained, with a `DiT`.
        latents: Of training data.
        parameters: Of the network, to be left at most.
        samples: Latents to look at, at most.
        say: Where one-line messages go.

    Raises:
        ConfigError: Fewer than lie outside the network's blocks.
    """
    denoiser = _frozen(model)
    rows = np.random.default_rng(0).permutation(len(latents))[:samples]
    scores = unit_importance(
        denoiser, _batches(latents, rows), model.experiment.objective, model.codec.conditions
    )
    kept = choose_units(denoiser.net, scores, parameters)
    heads, hidden = ([len(part[k]) for k in kept.blocks] for part in (kept.heads, kept.hidden))
    say(f"kept: {len(kept.blocks)} blocks with {heads} heads and {hidden} hidden units")
    return kept


def with_network(model: LatentDiffusion, kept: Kept, settings: StageSettings) -> LatentDiffusion:
    """A model like this one whose denoiser has nothing but these units.

    Args:
        model: Whose other parts are copied.
        kept: What is left.
        settings: Of its recovery, for its configuration.
    """
    recipe, net = model.experiment.network, model.denoiser.net
    assert isinstance(recipe, DiTNetwork)
    assert isinstance(net, DiT)
    config = copy.deepcopy(model.config)
    options = asdict(pruned_recipe(recipe, kept))
    config["network"]["init_args"] = {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()}
    config["denoiser_stage"] = {
        n: list(v) if isinstance(v, tuple) else v for n, v in asdict(settings).items()
    }
    with torch.random.fork_rng(devices=[]):
        other = LatentDiffusion(read_config(config), model.state, card=model.card, reference=model.reference)
    other.autoencoder_error = model.autoencoder_error
    for name, part in other.parts.items():
        weights = model.parts[name].state_dict()
        if name == "denoiser":
            weights = {n: x for n, x in weights.items() if not n.startswith("net.")}
            weights |= {f"net.{n}": x for n, x in pruned_weights(net, kept).items()}
        part.load_state_dict(weights)
    return other


def _check(model: LatentDiffusion, keep: float, samples: int) -> DiT:
    net = model.denoiser.net
    if not isinstance(net, DiT) or not isinstance(model.experiment.network, DiTNetwork):
        raise ConfigError(
            f"prune: expected a transformer (DiTNetwork), got {type(model.experiment.network).__name__}; train a "
            "smaller one instead (network.init_args.widths, with autoencoder_from: this run)"
        )
    if not 0 < keep <= 1:
        raise ConfigError(f"keep: expected a share above 0 and up to 1, got {keep}")
    if samples < 1:
        raise ConfigError(f"samples: expected at least 1, got {samples}")
    whole = Kept.all_of(net)
    least = count_parameters(net, Kept(((),) * len(whole.heads), ((),) * len(whole.hidden)))
    total = count_parameters(net, whole)
    if int(keep * total) <= least:
        raise ConfigError(
            f"keep={keep}: expected more than {least / total:.2f} (embeddings and modulation, {least:,} of "
            f"{total:,} parameters, are not pruned); keep more"
        )
    return net


def _plan(run: Path, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an interrupted call has decided."""
    path = run / _PLAN
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name, value in given.items() if plan[name] != value]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is damaged ({error}); remove {run}") from error
    if different:
        raise ConfigError(
            f"{run} holds a pruning with another {different[0]}; choose another --output, or remove that folder"
        )
    return plan


def _frozen(model: LatentDiffusion) -> Any:
    denoiser = copy.deepcopy(model.denoiser).cpu().requires_grad_(False)
    half = model.experiment.denoiser_stage.precision == "bf16"
    denoiser.autocast_dtype = torch.bfloat16 if half else None
    return denoiser.eval()


def _batches(latents: NormalisedLatents, rows: np.ndarray) -> Iterator[Latents]:
    for start in range(0, len(rows), _BATCH):
        z, mask, cond = latents.fields(rows[start : start + _BATCH])
        yield z, mask, cond


def _own_card(model: LatentDiffusion) -> dict[str, Any]:
    """What remains true of the smaller model; scores and how it was made are the other one's."""
    kept = ("domain", "data", "limits", "latents")
    return {name: value for name, value in model.card.items() if name in kept}
