"""The optimiser and its learning rate, a function of the stage's progress alone."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from sciLDM.training.settings import StageSettings

__all__ = ["learning_rate_factor", "make_optimiser"]


def make_optimiser(
    parameters: Iterable[nn.Parameter], settings: StageSettings, *, learning_rate: float | None = None
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), with weight decay on matrices alone.

    Args:
        parameters: Trainable ones are taken.
        settings: Rates and decay.
        learning_rate: Replaces that of the settings.
    """
    trained = [p for p in parameters if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # One kernel for all parameters instead of a dozen each; elsewhere torch picks for itself.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained) or None
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings.learning_rate if learning_rate is None else learning_rate,
        betas=settings.betas,
        fused=fused,
    )


def learning_rate_factor(settings: StageSettings, step: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up over steps, then constant, then decay over progress.

    Args:
        step: Step about to be made, from 0.
        progress: Share of the stage done, 0 to 1; the larger of steps and time.
    """
    # A short trial run of a long configuration must not end inside its warm-up.
    warmup_steps = min(settings.warmup_steps, settings.max_steps // 10)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    late = min(1.0, max(0.0, (progress - settings.decay_from) / (1 - settings.decay_from)))
    if settings.decay == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * late))
    return warmup * (1 - late if settings.decay == "linear" else 1.0)
