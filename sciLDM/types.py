"""Names for the few types that travel between layers."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

__all__ = ["Cond"]

Cond: TypeAlias = Mapping[str, Tensor]
"""Conditions by name. A missing label is NaN (numbers) or -1 (categories); an absent key is missing for all samples."""
