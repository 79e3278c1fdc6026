"""Bemis-Murcko scaffolds: counts, cosine similarity and novelty.

The scaffold of a molecule is its rings and the chains between them. With counts `c_s(G)` of scaffold `s` in a
set,

    Scaf(G, R) = sum_s c_s(G) c_s(R) / ( |c(G)| |c(R)| ),

the definition of MOSES, which counts scaffolds of two or more rings only.

Sources: Bemis & Murcko, J. Med. Chem. 39, 2887 (1996); Polykovskiy et al., "Molecular Sets (MOSES)", Front.
Pharmacol. 11, 565644 (2020).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Set

from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

__all__ = [
    "cosine_similarity",
    "murcko_scaffold",
    "scaffold_counts",
    "scaffold_novelty",
    "scaffold_similarity",
]


def murcko_scaffold(mol: Chem.Mol, *, min_rings: int = 2) -> str | None:
    """Canonical SMILES of the Murcko scaffold, or `None` when it has fewer than `min_rings` rings."""
    try:
        scaffold = MurckoScaffold.GetScaffoldForMol(mol)
    except (ValueError, RuntimeError):  # RDKit cannot kekulise some fragments of unusual molecules
        return None
    if scaffold.GetNumAtoms() == 0 or scaffold.GetRingInfo().NumRings() < min_rings:
        return None
    return Chem.MolToSmiles(scaffold)


def scaffold_counts(smiles: Iterable[str | None], *, min_rings: int = 2) -> Counter[str]:
    """Number of molecules by scaffold; invalid SMILES and molecules without a scaffold are skipped.

    Args:
        smiles: SMILES strings; `None` and `""` mark invalid molecules.
        min_rings: smallest number of rings a scaffold must have (MOSES: 2; 1 suits sets of small molecules).
    """
    counts: Counter[str] = Counter()
    with rdBase.BlockLogs():
        for text in smiles:
            mol = Chem.MolFromSmiles(text) if text else None
            scaffold = None if mol is None else murcko_scaffold(mol, min_rings=min_rings)
            if scaffold is not None:
                counts[scaffold] += 1
    return counts


def cosine_similarity(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """Cosine of the angle between two count vectors; NaN when either is empty."""
    if not first or not second:
        return math.nan
    small, large = (first, second) if len(first) <= len(second) else (second, first)
    # Python integers are exact: int64 products overflow on counts of large sets.
    dot = sum(count * large.get(key, 0) for key, count in small.items())
    squared = sum(c * c for c in first.values()) * sum(c * c for c in second.values())
    return dot / math.sqrt(squared)


def scaffold_similarity(
    generated: Iterable[str | None], reference: Iterable[str | None], *, min_rings: int = 2
) -> float:
    """Cosine similarity of the scaffold counts of two sets, in [0, 1]; NaN when a set has no scaffold."""
    return cosine_similarity(
        scaffold_counts(generated, min_rings=min_rings), scaffold_counts(reference, min_rings=min_rings)
    )


def scaffold_novelty(generated: Mapping[str, int] | Set[str], train: Mapping[str, int] | Set[str]) -> float:
    """Share of the distinct generated scaffolds that do not occur in the training set; NaN without scaffolds.

    Args:
        generated: scaffolds (or their counts, as `scaffold_counts` returns them) of the generated set.
        train: scaffolds of the training set.
    """
    if not generated:
        return math.nan
    return sum(scaffold not in train for scaffold in generated) / len(generated)
