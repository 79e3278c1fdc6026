"""Training, validation and test parts, decided by each molecule itself.

A molecule's part depends on its canonical SMILES alone,

    u = SHA-256(salt ":" SMILES) / 2^256 in [0, 1),

training for u < f_train, then validation, then test. So the same molecule falls in the same part whatever the
file, its order, or what else it holds; copies never leak; and a data set that grows keeps its test set.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int64

from sciLDM.errors import ConfigError, DataError

__all__ = ["Split", "split_by_smiles"]


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Rows of each part, ascending."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]


def split_by_smiles(
    smiles: Iterable[str], *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), salt: int = 0
) -> Split:
    """Divide molecules by a hash of their canonical SMILES.

    In a set so small that a part would stay empty, the molecule whose hash lies nearest to that part's
    interval moves into it; that alone depends on the rest of the data.

    Args:
        smiles: canonical SMILES (``Featurised.smiles``); equal strings stay together.
        fractions: expected shares of training, validation and test; a part of share 0 stays empty.
        salt: another number gives another, independent division.

    Raises:
        ConfigError: the fractions are negative, do not sum to 1, or leave no training data.
        DataError: fewer different molecules than parts.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise ConfigError(
            "expected three fractions (training, validation, test) that sum to 1, the first above 0, "
            f"got {fractions}"
        )
    distinct, molecule = np.unique(np.asarray(list(smiles), dtype=object), return_inverse=True)
    wanted = [part for part in range(3) if fractions[part] > 0]
    if len(distinct) < len(wanted):
        raise DataError(
            f"expected at least {len(wanted)} different molecules, one for each part of {fractions}, "
            f"got {len(distinct)}; add molecules, or set the fraction of a part to 0"
        )
    position = np.asarray([_unit_hash(text, salt) for text in distinct])
    bounds = np.concatenate([[0.0], np.cumsum(fractions)])
    bounds[wanted[-1] + 1 :] = 1.0  # rounding must not open a gap at the end
    part = np.searchsorted(bounds[1:-1], position, side="right")
    for empty in (k for k in wanted if not (part == k).any()):
        distance = np.maximum(bounds[empty] - position, position - bounds[empty + 1])
        spare = np.bincount(part, minlength=3)[part] > 1  # never empty one part to fill another
        part[np.argmin(np.where(spare, distance, np.inf))] = empty
    rows = part[molecule.reshape(-1)]
    return Split(*(np.flatnonzero(rows == k).astype(np.int64) for k in range(3)))


def _unit_hash(text: str, salt: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:6], "big") / 2**48
