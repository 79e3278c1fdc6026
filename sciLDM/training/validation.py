"""Scores on held-out data: the same samples every time, with the averaged weights."""

import numpy as np
import torch

from sciLDM.errors import ConfigError
from sciLDM.training.data import TrainingData, to_device
from sciLDM.training.stage import Stage

__all__ = ["validate", "validation_indices"]


def validation_indices(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` samples, spread evenly, so that a sorted data set is covered too."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))


def validate(stage: Stage, data: TrainingData) -> dict[str, float]:
    """Mean of `Stage.scores` over held-out samples; on several processes each takes its share.

    Raises:
        ConfigError: No held-out samples.
    """
    if len(data) == 0:
        raise ConfigError("the validation split is empty; set a larger validation share")
    chosen = validation_indices(len(data), stage.settings.validation_samples)
    size = min(stage.settings.batch_size, len(chosen))
    batches = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    world = stage.trainer.world_size
    totals: dict[str, torch.Tensor] = {}
    training = stage.training
    stage.eval()
    try:
        with torch.no_grad(), stage.averaged():
            for k, indices in enumerate(batches):
                mine = k % world == stage.global_rank
                if not mine and k > 0:  # batch 0 is done by all, so that all know the names
                    continue
                fields = to_device(data.fields(indices), stage.device)
                for name, values in stage.scores(fields, indices).items():
                    total = values.double().sum().cpu() if mine else torch.zeros((), dtype=torch.float64)
                    totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + total
    finally:
        stage.train(training)
    names = sorted(totals)
    sums = torch.stack([totals[name] for name in names])
    if world > 1:
        sums = stage.trainer.strategy.reduce(sums.float().to(stage.device), reduce_op="sum").cpu()  # type: ignore
    return {name: float(total) / len(chosen) for name, total in zip(names, sums, strict=True)}
