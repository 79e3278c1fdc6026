"""What a user sets about training. Plain frozen dataclasses: their attribute docstrings become `--help`."""

import math
from dataclasses import dataclass
from typing import Literal

from sciLDM.errors import ConfigError

__all__ = ["SelfTraining", "StageSettings", "TrainerSettings"]


@dataclass(frozen=True)
class StageSettings:
    """How one stage (autoencoder or denoiser) is optimised.

    Raises:
        ConfigError: A value out of range.
    """

    max_steps: int = 10_000
    """Optimiser steps of the whole stage."""

    max_minutes: float | None = None
    """Wall-clock limit, summed over resumed runs. The learning rate then follows whichever is further, steps or time,
    so the stage ends annealed in either case; such a run depends on the machine's speed and cannot be repeated bit by
    bit."""

    batch_size: int = 256
    """Samples a step, over all devices together."""

    optimiser: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: orthogonalised momentum (Jordan et al. 2024) for linear layers inside blocks, AdamW for all else;
    fewer steps to the same loss. Same learning rates; needs torch 2.9."""

    learning_rate: float = 1e-3
    """Peak learning rate."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0; at most a tenth of max_steps."""

    decay: Literal["cosine", "linear", "none"] = "cosine"
    """Shape of the final decay to 0."""

    decay_from: float = 0.0
    """Progress (0 to 1) up to which the learning rate stays at its peak; 0.8 anneals in the last fifth."""

    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; vectors (biases, norms) are never decayed."""

    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's averaging constants."""

    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; null switches clipping off."""

    ema_decay: float | None = None
    """Decay of the running average of the weights that is validated and exported (0.999 or so); null for none.
    The n-th update uses min(ema_decay, (1 + n) / (10 + n)), so early weights are forgotten quickly."""

    validate_every: int = 500
    """Steps between validations; one more is always made at the end."""

    checkpoint_every: int = 500
    """Steps between checkpoints; one more is always written at the end and on Ctrl-C or SIGTERM."""

    validation_samples: int = 1024
    """Largest number of held-out samples per validation, the same ones every time."""

    precision: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of the networks; weights, losses, schedules and averages are always float32."""

    seed: int = 0
    """Seed of batches and noise. Initial weights are made before training starts and are not affected."""

    workers: int = 0
    """Loader processes; 0 loads in the training process, right for data in memory."""

    log_every: int = 50
    """Steps between lines in metrics.csv; each holds the mean since the line before."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "validate_every",
            "checkpoint_every",
            "validation_samples",
            "log_every",
        ):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "workers", "weight_decay"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        rate = self.learning_rate
        _check("learning_rate", rate, rate > 0 and math.isfinite(rate), "a positive number")
        _check(
            "max_minutes",
            self.max_minutes,
            self.max_minutes is None or self.max_minutes > 0,
            "positive, or null",
        )
        _check("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "positive, or null")
        _check(
            "ema_decay",
            self.ema_decay,
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "in (0, 1), or null",
        )
        _check("decay_from", self.decay_from, 0 <= self.decay_from < 1, "in [0, 1)")
        _check(
            "betas",
            self.betas,
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "two numbers in [0, 1)",
        )
        _check("optimiser", self.optimiser, self.optimiser in ("adamw", "muon"), "adamw or muon")
        _check("decay", self.decay, self.decay in ("cosine", "linear", "none"), "cosine, linear or none")
        _check("precision", self.precision, self.precision in ("bf16", "fp32"), "bf16 or fp32")


@dataclass(frozen=True)
class SelfTraining:
    """What the decoder learns from the model's own samples (`sciLDM.training.self_training`).

    Raises:
        ConfigError: A value out of range.
    """

    samples: int = 20_000
    """Latents that the model draws; the more, the better."""

    steps: int | None = 20
    """Denoiser calls for each; null for the model's own number."""

    noise: float = 0.15
    """Standard deviation of noise on them in training, in units of the latents'."""

    hard: float = 0.4
    """Share of those whose output was changed."""

    replay: float = 0.3
    """Share of latents of real training data, which must still be rebuilt."""

    def __post_init__(self) -> None:
        _check("samples", self.samples, self.samples >= 100, "at least 100")
        _check("steps", self.steps, self.steps is None or self.steps >= 1, "at least 1, or null")
        _check("noise", self.noise, self.noise >= 0 and math.isfinite(self.noise), "0 or more")
        _check("hard", self.hard, 0 <= self.hard < 1, "in [0, 1)")
        _check("replay", self.replay, 0 <= self.replay < 1 - self.hard, "in [0, 1 - hard)")


@dataclass(frozen=True)
class TrainerSettings:
    """Where training runs and who is told about it.

    Raises:
        ConfigError: A value out of range.
    """

    accelerator: str = "auto"
    """auto, cpu, gpu, mps, ... as Lightning names them."""

    devices: int = 1
    """Devices per machine; each gets batch_size / devices of every batch."""

    num_nodes: int = 1
    """Machines."""

    strategy: Literal["auto", "ddp"] = "auto"
    """Several devices always train by data parallelism (ddp): each holds the whole model."""

    progress_bar: bool = True
    """Show a progress bar in a terminal, or a line now and then in a log file."""

    wandb: bool = False
    """Also log to Weights & Biases (metrics.csv is always written)."""

    wandb_mode: Literal["offline", "online"] = "offline"
    """offline writes a local folder that can be uploaded later by `wandb sync`."""

    wandb_project: str = "sciLDM"
    """Project name in Weights & Biases."""

    def __post_init__(self) -> None:
        _check("devices", self.devices, self.devices >= 1, "at least 1")
        _check("num_nodes", self.num_nodes, self.num_nodes >= 1, "at least 1")
        _check("strategy", self.strategy, self.strategy in ("auto", "ddp"), "auto or ddp")
        _check("wandb_mode", self.wandb_mode, self.wandb_mode in ("offline", "online"), "offline or online")


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} must be {expected}, got {value!r}")
