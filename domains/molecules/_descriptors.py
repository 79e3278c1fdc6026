"""Descriptors of sets of molecules: physico-chemical properties and BRICS fragments, computed in parallel.

Sources: QED: Bickerton et al., Nat. Chem. 4, 90 (2012). SA: Ertl & Schuffenhauer, J. Cheminform. 1, 8 (2009).
BRICS: Degen et al., ChemMedChem 3, 1503 (2008). Crippen logP: Wildman & Crippen, J. Chem. Inf. Comput. Sci.
39, 868 (1999).
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import BRICS, QED, Crippen, Descriptors
from scipy.stats import wasserstein_distance

from sciLDM.domains.molecules._parallel import CHUNK, Progress, parallel_map
from sciLDM.domains.molecules.scaffolds import cosine_similarity, murcko_scaffold
from sciLDM.errors import DataError

__all__ = [
    "PROPERTIES",
    "Profile",
    "fragment_counts",
    "fragment_similarity",
    "molecule_properties",
    "profile",
    "property_distances",
]

PROPERTIES = ("logP", "SA", "QED", "MW")
"""Crippen logP; synthetic accessibility, 1 (easy) to 10; drug-likeness, 0 to 1; molar mass in g/mol."""


@lru_cache(maxsize=1)
def _sa_score() -> Callable[[Chem.Mol], float]:
    """RDKit ships the SA score as a contributed script beside the package rather than as a module of it."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("_rdkit_sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise DataError(f"Expected RDKit's SA score at {path}, got nothing there; install rdkit from PyPI.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.calculateScore


@final
@dataclass(frozen=True)
class Profile:
    """What the descriptor metrics need of a set; `properties` has a row for each valid molecule."""

    properties: pd.DataFrame
    fragments: Counter[str]
    scaffolds: Counter[str]


def _fragments(mol: Chem.Mol) -> list[str]:
    """BRICS fragments with their attachment points; a molecule without BRICS bonds is its own fragment."""
    return Chem.MolToSmiles(BRICS.BreakBRICSBonds(mol)).split(".")


def _profile_chunk(
    smiles: Sequence[str | None], properties: bool, counts: bool
) -> tuple[np.ndarray, Counter[str], Counter[str]]:
    """Rows of `PROPERTIES` (NaN where invalid), fragments, scaffolds. Runs in worker processes."""
    values = np.full((len(smiles), len(PROPERTIES)), np.nan)
    fragments: Counter[str] = Counter()
    scaffolds: Counter[str] = Counter()
    with rdBase.BlockLogs():
        for i, text in enumerate(smiles):
            mol = Chem.MolFromSmiles(text) if text else None
            if mol is None:
                continue
            if properties:
                values[i] = (
                    Crippen.MolLogP(mol),  # pyright: ignore[reportAttributeAccessIssue] (set when imported)
                    _sa_score()(mol),
                    QED.qed(mol),
                    Descriptors.MolWt(mol),  # pyright: ignore[reportAttributeAccessIssue]
                )
            if counts:
                fragments.update(_fragments(mol))
                scaffold = murcko_scaffold(mol)
                if scaffold is not None:
                    scaffolds[scaffold] += 1
    return values, fragments, scaffolds


def profile(
    smiles: Sequence[str | None],
    n_jobs: int | None,
    progress: Progress | None,
    *,
    properties: bool = True,
    counts: bool = True,
) -> Profile:
    """Properties, fragments and scaffolds of a set in one pass; either half can be left out."""
    chunks = [(smiles[i : i + CHUNK], properties, counts) for i in range(0, len(smiles), CHUNK)]
    values = [np.empty((0, len(PROPERTIES)))]
    fragments: Counter[str] = Counter()
    scaffolds: Counter[str] = Counter()
    for rows, some_fragments, some_scaffolds in parallel_map(
        _profile_chunk, chunks, workers=n_jobs, progress=progress
    ):
        values.append(rows)
        fragments.update(some_fragments)
        scaffolds.update(some_scaffolds)
    return Profile(pd.DataFrame(np.concatenate(values), columns=list(PROPERTIES)), fragments, scaffolds)


def molecule_properties(
    smiles: Sequence[str | None], *, n_jobs: int | None = 1, progress: Progress | None = None
) -> pd.DataFrame:
    """`PROPERTIES` of each molecule, one row each in the order given; NaN where invalid."""
    return profile(smiles, n_jobs, progress, counts=False).properties


def property_distances(
    generated: Sequence[str | None] | pd.DataFrame,
    reference: Sequence[str | None] | pd.DataFrame,
    *,
    n_jobs: int | None = 1,
) -> dict[str, float]:
    """Wasserstein-1 distance between the distributions of each of `PROPERTIES`, in its unit.

    Args:
        generated: molecules, or their `molecule_properties`.
        reference: as `generated`.
        n_jobs: worker processes for properties still to compute; `None` takes every core.

    Raises:
        DataError: a table lacks a property, or a set has no valid molecule.
    """
    frames = [
        f if isinstance(f, pd.DataFrame) else molecule_properties(f, n_jobs=n_jobs)
        for f in (generated, reference)
    ]
    for frame in frames:
        missing = [name for name in PROPERTIES if name not in frame]
        if missing or frame[list(PROPERTIES)].dropna().empty:
            raise DataError(
                f"Expected rows with {', '.join(PROPERTIES)}; missing: {missing or 'any valid molecule'}."
            )
    first, second = (frame[list(PROPERTIES)].dropna() for frame in frames)
    return {name: float(wasserstein_distance(first[name], second[name])) for name in PROPERTIES}


def fragment_counts(
    smiles: Sequence[str | None], *, n_jobs: int | None = 1, progress: Progress | None = None
) -> Counter[str]:
    """Number of occurrences of each BRICS fragment in a set; invalid molecules are left out."""
    return profile(smiles, n_jobs, progress, properties=False).fragments


def fragment_similarity(
    generated: Sequence[str | None] | Mapping[str, int], reference: Sequence[str | None] | Mapping[str, int]
) -> float:
    """Cosine similarity of the BRICS fragment counts of two sets (MOSES's Frag), 0 to 1; NaN if one is empty.

    Args:
        generated: molecules, or their `fragment_counts`.
        reference: as `generated`.
    """
    first, second = (s if isinstance(s, Mapping) else fragment_counts(s) for s in (generated, reference))
    return cosine_similarity(first, second)
