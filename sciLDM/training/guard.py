"""Stops a training whose numbers are no longer finite, and says where it went wrong."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sciLDM.errors import TrainingDiverged

__all__ = ["diverged"]


@torch.no_grad()
def diverged(
    module: nn.Module, terms: Mapping[str, Tensor], *, step: int, indices: np.ndarray, learning_rate: float
) -> TrainingDiverged:
    """The error for a step whose loss or gradient is not finite; no weight has been touched by that step.

    Args:
        module: The trained network, its gradients of this step still in place.
        terms: Loss terms, one value a sample.
        step: The step that failed, from 0.
        indices: Samples of this batch in the training split.
        learning_rate: The rate the step would have used.
    """
    cause = _weights(module) or _terms(terms, indices) or _gradients(module)
    shown = ", ".join(str(int(i)) for i in indices[:8]) + (", ..." if len(indices) > 8 else "")
    return TrainingDiverged(
        f"training diverged at step {step}: {cause}. Learning rate {learning_rate:.3g}, batch of training samples "
        f"[{shown}]. The last checkpoint is untouched. Try a lower learning_rate or a longer warmup_steps, "
        "precision: fp32, a smaller clip_norm; if it is always the same samples, look at their data"
    )


def _weights(module: nn.Module) -> str:
    # Bad weights make every later number bad, so they are the first cause.
    for name, p in module.named_parameters():
        if not torch.isfinite(p).all():
            return f"the weights of {name!r} are no longer finite"
    return ""


def _terms(terms: Mapping[str, Tensor], indices: np.ndarray) -> str:
    bad = {name: ~torch.isfinite(values.detach()).cpu() for name, values in terms.items()}
    for name, rows in bad.items():
        if rows.any():
            samples = [int(i) for i in indices[rows.numpy()][:8]] if len(rows) == len(indices) else []
            where = f" for training samples {samples}" if samples else ""
            return f"loss term {name!r} is not finite in {int(rows.sum())} of {len(rows)} samples{where}"
    return ""


def _gradients(module: nn.Module) -> str:
    for name, p in module.named_parameters():
        if p.grad is not None and not torch.isfinite(p.grad).all():
            return f"the loss is finite, but the gradient of {name!r} is not"
    return "the loss is finite, but the gradient's norm overflows"
