"""A model whose weights are stored as 8-bit integers (`sciLDM.data.eight_bit`)."""

import os
from pathlib import Path

import torch

from sciLDM.model import LatentDiffusion

__all__ = ["quantise"]


def quantise(model: LatentDiffusion, folder: str | os.PathLike[str]) -> Path:
    """Save a model with 8-bit weights; it is loaded like any other, into floating-point numbers.

    Args:
        model: Trained.
        folder: Model folder to write.
    """
    return model.save(folder, dtype=torch.int8)
