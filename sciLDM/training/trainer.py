"""Runs one stage: devices, loader, loggers, checkpoints, resume."""

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console

from sciLDM.errors import ConfigError
from sciLDM.training.callbacks import ProgressBar, Recorder, StopSignals, Throughput
from sciLDM.training.checkpoint import CHECKPOINT, restore_checkpoint
from sciLDM.training.data import OrdersEpochs, TrainingData, make_loader
from sciLDM.training.loggers import make_loggers
from sciLDM.training.plan import BatchPlan, StepSampler
from sciLDM.training.settings import StageSettings, TrainerSettings
from sciLDM.training.stage import Stage

__all__ = ["StageResult", "run_stage"]


@dataclass(frozen=True)
class StageResult:
    """What a finished stage reports.

    Attributes:
        steps: Optimiser steps, over resumed runs too.
        seconds: Wall-clock time, over resumed runs too.
        validation: Scores of the last validation (averaged weights, if an average is kept), named as in
            `metrics.csv` without `val/`.
        throughput: The line about loader and model speed; empty when there were too few steps to tell.
    """

    steps: int
    seconds: float
    validation: dict[str, float] = field(default_factory=dict)
    throughput: str = ""


def run_stage(
    stage: Stage,
    train: TrainingData,
    validation: TrainingData,
    settings: StageSettings,
    trainer: TrainerSettings,
    folder: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[pl.Callback] = (),
) -> StageResult:
    """Train a stage to its end, in `folder` (`last.ckpt`, `metrics.csv`).

    A run interrupted at any time and resumed from its checkpoint ends with the same weights, bit for bit, as one
    that was left alone (same machine, same devices, no `max_minutes`). With resume, a finished stage is only loaded.
    The stage keeps the weights under training; `stage.finished_network()` gives those to export.

    Args:
        stage: What to train; holds the result.
        train: Training samples.
        validation: Held-out samples.
        settings: Optimisation.
        trainer: Devices and loggers.
        folder: The stage's own folder, decided by the caller; only process 0 writes to it.
        resume: Continue from `last.ckpt` if there is one.
        callbacks: Further Lightning callbacks; `pl_module.step` counts the steps.

    Raises:
        ConfigError: Nothing to train on, a batch that the devices cannot share, or a folder already in use.
        ArtefactError: A checkpoint that does not fit.
        TrainingDiverged: A loss or gradient is no longer finite.
        KeyboardInterrupt: Ctrl-C; the checkpoint has been written.
        SystemExit: SIGTERM; the checkpoint has been written.
    """
    checkpoint, world = folder / CHECKPOINT, trainer.devices * trainer.num_nodes
    plan = _plan(train, settings, world)
    stage.settings = settings
    if checkpoint.exists():
        if not resume:
            raise ConfigError(f"{folder} already holds a training; resume it, or choose another folder")
        restore_checkpoint(checkpoint, stage, settings, samples=len(train))
        if stage.progress >= 1.0:
            return StageResult(stage.step, stage.seconds, dict(stage.validation))
    console = Console(stderr=True)
    signals = StopSignals()
    throughput = Throughput(train, plan, lambda line: _say(console, lightning, line))
    own: list[pl.Callback] = [signals, throughput, Recorder(validation, checkpoint, samples=len(train))]
    if trainer.progress_bar:
        own.append(ProgressBar(console))
    with _quiet():
        lightning = pl.Trainer(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            # Conditions may be absent from one process's batch and present in another's.
            strategy=DDPStrategy(find_unused_parameters=True) if world > 1 else "auto",
            logger=make_loggers(trainer, folder, stage.step),
            callbacks=[*own, *callbacks],
            max_epochs=1,  # one endless epoch: the sampler ends after max_steps
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=folder,
        )
        sampler = StepSampler(
            plan, stage.step, settings.max_steps, rank=lightning.global_rank, world=lightning.world_size
        )
        on_gpu = lightning.strategy.root_device.type == "cuda"
        stage.train()
        lightning.fit(stage, make_loader(train, sampler, workers=settings.workers, pin=on_gpu))
    if signals.received == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    if stage.progress < 1.0:  # this process or another one was told to stop
        raise KeyboardInterrupt
    return StageResult(stage.step, stage.seconds, dict(stage.validation), throughput.message)


def _plan(train: TrainingData, settings: StageSettings, world: int) -> BatchPlan:
    if len(train) == 0:
        raise ConfigError("the training split is empty; were all samples rejected, or is the path wrong?")
    if settings.batch_size % world or len(train) < world:
        raise ConfigError(
            f"batch_size={settings.batch_size} of {len(train)} samples cannot be shared evenly by {world} devices"
        )
    # A small data set caps the batch; what is left must still be shared evenly.
    size = min(settings.batch_size, len(train) // world * world)
    order = train.epoch if isinstance(train, OrdersEpochs) else None
    return BatchPlan(settings.seed, len(train), size, order)


def _say(console: Console, trainer: pl.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        console.print(line, highlight=False)


@contextmanager
def _quiet() -> Iterator[None]:
    # Lightning's hints (devices found, tips, idle processors, worker counts) drown what matters; errors still raise.
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", module=r"torch\.distributed.*")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
