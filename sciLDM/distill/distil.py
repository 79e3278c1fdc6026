"""`distil`: from a finished model to one of few steps, in a folder of its own.

| in the folder | what |
|---|---|
| `asked.json` | teacher, method and settings; another call with others is refused |
| `latents/` | cached latents, unless the teacher's run has them |
| `denoiser/` | checkpoint and `metrics.csv` of the student's training |
| `reference/` | the teacher's training and test items, where its run has them |
| `model/` | the student: `sciLDM.load(folder)` |
| `summary.json` | method, steps, seconds, scores |
"""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sciLDM.data.latent_cache import module_hash
from sciLDM.data.own_folder import own_folder
from sciLDM.data.run_folder import rank, write_json
from sciLDM.denoiser import NetDenoiser
from sciLDM.distill.latents import latents_for
from sciLDM.distill.methods import Method, MomentMatching
from sciLDM.domain import Progress
from sciLDM.errors import ConfigError
from sciLDM.model import LatentDiffusion, load
from sciLDM.training import StageSettings, TrainerSettings, run_stage

__all__ = ["distil", "student_of"]

_TAUGHT = ("autoencoder", "denoiser", "guide")


def distil(
    model: LatentDiffusion,
    output: str | Path,
    *,
    method: Method | None = None,
    settings: StageSettings | None = None,
    trainer: TrainerSettings | None = None,
    samples: int | None = None,
    latents: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> LatentDiffusion:
    """Train a few-step student of a model and leave it in `output`; an interrupted training is continued there.

    Args:
        model: The teacher, on the device to train on; it is not changed. Guidance and guide are taught with it.
        output: Folder of the student.
        method: How; moment matching for four steps unless said otherwise.
        settings: Optimisation; the method's own unless said otherwise.
        trainer: Devices and loggers; the teacher's device unless said otherwise.
        samples: Distil on so many samples of the model; None takes the training data where they can be had.
        latents: Folder with cached latents of the data, or to put them.
        progress: Told how far slow preparation has come.
        say: Where one-line messages go.

    Returns:
        The student, as `sciLDM.load(output)` gives it.

    Raises:
        ConfigError: A student as teacher, or a folder of something else.
        TrainingDiverged: A loss is no longer finite.
    """
    method = method or MomentMatching()
    settings, folder = settings or method.training, Path(output)
    if "distilled" in model.card:
        raise ConfigError("this model was distilled itself: expected one of many steps; distil its teacher")
    asked = {
        "teacher": [module_hash(part) for name, part in model.parts.items() if name in _TAUGHT],
        "method": method.name, **asdict(method), "samples": samples, "settings": asdict(settings),
    }  # fmt: skip
    own_folder(folder, asked, say)
    train, held_out = latents_for(
        model, latents or folder / "latents", samples=samples, seed=settings.seed, progress=progress or _silent,
        say=say,
    )  # fmt: skip
    say(f"distilling on {len(train):,} latents: {method.name}, {_list(method.steps)} steps")
    stage = method.stage(model, settings)
    with _arithmetic(model, settings):
        result = run_stage(
            stage, train, held_out, settings, trainer or _trainer(model), folder / "denoiser", resume=True
        )  # fmt: skip
    stage.finished_network()
    summary = {
        "method": method.name,
        "options": asdict(method),
        "teacher": model.card.get("files", {}).get("model.safetensors", {}).get("sha256"),
        "guide_scale": model.experiment.guide_scale if model.guide is not None else None,
        "latents": len(train),
        "steps": result.steps,
        "seconds": result.seconds,
        "validation": dict(result.validation),
    }
    student = student_of(model, stage.student.cpu(), method, summary)
    if rank() == 0:
        if model.reference is not None and model.reference.is_dir():
            shutil.copytree(model.reference, folder / "reference", dirs_exist_ok=True)
        student.save(folder / "model")
        write_json(folder / "summary.json", {"distillation": summary})
    return load(folder)


def student_of(
    model: LatentDiffusion, denoiser: NetDenoiser, method: Method, summary: Mapping[str, Any]
) -> LatentDiffusion:
    """A model around a trained student: the teacher's autoencoder, no guide, a sampler of few steps.

    What serves reconstruction (errors of autoencoder and denoiser, calibrations) is left out.
    """
    config = copy.deepcopy(model.config)
    config["sampler"] = method.sampler_config(model.experiment.sampler.temperature)
    config["guide"], config["guidance"] = None, 1.0
    config["objective"] = {**config["objective"], "self_condition": 0.0}
    card = {**model.card, "distilled": dict(summary)}
    if "made by" in card:
        card["made by"] = f"distilled to {_list(method.steps)} steps; its teacher: {card['made by']}"
    with torch.random.fork_rng(devices=[]):
        student = LatentDiffusion(config, model.state, card=card, reference=model.reference)
    for part in ("autoencoder", "stats"):
        student.parts[part].load_state_dict(model.parts[part].state_dict())
    student.denoiser.load_state_dict(denoiser.state_dict())
    return student


@contextmanager
def _arithmetic(model: LatentDiffusion, settings: StageSettings) -> Iterator[None]:
    """Inside this block the teacher's networks run in the stage's arithmetic."""
    networks = [network for network in (model.denoiser, model.guide) if network is not None]
    before = [network.autocast_dtype for network in networks]
    for network in networks:
        network.autocast_dtype = torch.bfloat16 if settings.precision == "bf16" else None
    try:
        yield
    finally:
        for network, dtype in zip(networks, before, strict=True):
            network.autocast_dtype = dtype


def _trainer(model: LatentDiffusion) -> TrainerSettings:
    """One device, the teacher's: it is called at every step."""
    accelerator = {"cuda": "gpu"}.get(model.device.type, model.device.type)
    return replace(model.experiment.trainer, accelerator=accelerator, devices=1, num_nodes=1, strategy="auto")


def _list(numbers: tuple[int, ...]) -> str:
    return " and ".join(map(str, numbers))


def _silent(_what: str, _done: int, _total: int) -> None:
    """No progress shown."""
