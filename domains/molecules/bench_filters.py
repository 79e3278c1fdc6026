"""The metric "Filters" of MOSES: the share of molecules that a medicinal chemist would not discard at sight.

A molecule passes when it has no ring of eight atoms or more, no formal charge, no element besides C, N, S, O, F, Cl, Br
and H, and, hydrogens explicit, none of the 22 substructures of the benchmark's medicinal chemistry filters (MCF) nor of
the 480 of PAINS (Baell & Holloway 2010). The ring limit is that of the benchmark's code, which made the published
numbers; the paper's text says "longer than 8 atoms".
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from jaxtyping import Bool
from rdkit import Chem, rdBase

from sciLDM.data.cards import locate
from sciLDM.domains.molecules._parallel import CHUNK, Progress, parallel_map
from sciLDM.errors import DataError

__all__ = ["ELEMENTS", "LARGEST_RING", "MosesFilters"]

ELEMENTS = frozenset({"C", "N", "S", "O", "F", "Cl", "Br", "H"})
"""Elements of the benchmark."""

LARGEST_RING = 7
"""Most atoms in a ring."""


@final
class MosesFilters:
    """The rules, as SMARTS.

    Args:
        smarts: Substructures that a molecule must not have, hydrogens explicit.

    Raises:
        DataError: A pattern that RDKit cannot read.
    """

    def __init__(self, smarts: Sequence[str]) -> None:
        self.smarts = tuple(smarts)
        _patterns(self.smarts)

    @staticmethod
    def load() -> "MosesFilters":
        """The 22 + 480 rules of the benchmark.

        Raises:
            DataError: Its files are not on this machine; the message says how to get them.
        """
        files = {path.name: path for path in locate("moses_metrics")}
        return MosesFilters([*_column(files["mcf.csv"], None), *_column(files["wehi_pains.csv"], 0)])

    def passes(
        self, smiles: Sequence[str | None], *, n_jobs: int | None = 1, progress: Progress | None = None
    ) -> Bool[np.ndarray, " molecules"]:
        """Which molecules pass; an invalid one does not.

        Args:
            smiles: Molecules.
            n_jobs: Worker processes; None takes every core.
            progress: Called with (molecules done, molecules in all).
        """
        chunks = [(smiles[i : i + CHUNK], self.smarts) for i in range(0, len(smiles), CHUNK)]
        parts = list(parallel_map(_passes_chunk, chunks, workers=n_jobs, progress=progress))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def _column(path: Path, at: int | None) -> list[str]:
    """Patterns of a file: of its column `smarts`, or of the column `at` where there is no header."""
    table = pd.read_csv(path) if at is None else pd.read_csv(path, header=None)
    return table["smarts" if at is None else at].astype(str).str.strip().tolist()


@lru_cache(maxsize=4)
def _patterns(smarts: tuple[str, ...]) -> tuple[Chem.Mol, ...]:
    """Compiled once a process."""
    found = []
    for text in smarts:
        pattern = Chem.MolFromSmarts(text)
        if pattern is None:
            raise DataError(f"expected SMARTS that RDKit can read, got {text!r}")
        found.append(pattern)
    return tuple(found)


def _passes_chunk(smiles: Sequence[str | None], smarts: tuple[str, ...]) -> np.ndarray:
    """Runs in worker processes."""
    patterns = _patterns(smarts)
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(s) if s else None for s in smiles]
        return np.array([m is not None and _passes(m, patterns) for m in mols], dtype=bool)


def _passes(mol: Chem.Mol, patterns: Sequence[Chem.Mol]) -> bool:
    if any(len(ring) > LARGEST_RING for ring in mol.GetRingInfo().AtomRings()):
        return False
    if any(atom.GetFormalCharge() or atom.GetSymbol() not in ELEMENTS for atom in mol.GetAtoms()):
        return False
    whole = Chem.AddHs(mol)
    return not any(whole.HasSubstructMatch(pattern) for pattern in patterns)
