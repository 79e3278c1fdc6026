"""Scaffold classes that QM9 lacks, made by decorating a ring: what fine-tuning is measured on.

QM9 enumerates small molecules under rules that leave some common rings out (cyclic enol ethers, nitrogen bonded to
nitrogen or oxygen outside aromatic rings). A class is one such ring, bare or with one or two side chains of the list
below on any of its free places, of at most nine heavy atoms; geminal heteroatoms (hemiaminals and the like) are left
out.
"""

from collections.abc import Iterator

import numpy as np
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

__all__ = ["CLASSES", "members", "scaffold_of", "split_class"]

CLASSES = {
    "2-pyrazoline": "C1=NNCC1",
    "2-isoxazoline": "C1=NOCC1",
    "2,3-dihydrofuran": "C1=COCC1",
    "3,4-dihydro-2H-pyran": "C1=COCCC1",
}
"""Ring of each class by its name. The first is what settings are chosen on."""

_SIDE_CHAINS = (
    "C", "CC", "CCC", "C(C)C", "C=C", "C#C", "CO", "COC", "CN", "CF", "C(F)F", "C#N", "C=O", "C(C)=O", "C(N)=O",
    "C(=O)O", "CC#N", "CCO", "F", "O", "OC", "OCC", "N", "NC", "N(C)C", "NC=O",
)  # fmt: skip
"""Bonded by their first atom; those that start with a heteroatom go on carbon alone."""
_UNLIKELY = Chem.MolFromSmarts("[CX4;R]([N,O,F;!R])[N,O,F]")
_MOST_ATOMS = 9


def members(ring: str) -> list[str]:
    """Canonical SMILES of the class of a ring, sorted."""
    bare = Chem.MolFromSmiles(ring)
    once = {text for chain in _SIDE_CHAINS for text in _decorated(bare, chain)}
    twice = {
        text
        for first in once
        for chain in _SIDE_CHAINS
        for text in _decorated(Chem.MolFromSmiles(first), chain)
    }
    return sorted(text for text in {Chem.MolToSmiles(bare)} | once | twice if scaffold_of(text) == ring)


def scaffold_of(smiles: str) -> str:
    """Murcko scaffold without stereo; empty for chains."""
    mol = Chem.MolFromSmiles(smiles)
    return Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(mol), isomericSmiles=False)


def split_class(ring: str, train: int = 100, seed: int = 0) -> tuple[list[str], list[str]]:
    """Members to fine-tune on, and the others."""
    all_of_it = members(ring)
    order = np.random.default_rng(seed).permutation(len(all_of_it)).tolist()
    return [all_of_it[k] for k in order[:train]], [all_of_it[k] for k in order[train:]]


def _decorated(mol: Chem.Mol, chain: str) -> Iterator[str]:
    """The molecule with a side chain on each ring atom that has a hydrogen."""
    side = Chem.MolFromSmiles(chain)
    size = mol.GetNumAtoms()
    if size + side.GetNumAtoms() > _MOST_ATOMS:
        return
    for atom in mol.GetAtoms():
        if not atom.IsInRing() or atom.GetTotalNumHs() == 0:
            continue
        if atom.GetAtomicNum() != 6 and side.GetAtomWithIdx(0).GetAtomicNum() != 6:
            continue
        both = Chem.RWMol(Chem.CombineMols(mol, side))
        both.AddBond(atom.GetIdx(), size, Chem.BondType.SINGLE)
        made = both.GetMol()
        Chem.SanitizeMol(made)
        if not made.HasSubstructMatch(_UNLIKELY):
            yield Chem.MolToSmiles(made)
