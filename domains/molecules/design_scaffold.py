r"""A scaffold to decorate, and where its atoms may stand in the sequence that a model writes.

A model numbers atoms along the canonical SMILES of the *whole* molecule, which is not known before it is made. So a
template is drawn for each sample: the scaffold with a random tree of carbons on its open atoms, of the size asked for.
Its canonical SMILES says where the scaffold's atoms stand, and its Kekule form which orders their bonds have. Only that
is kept of a template; elements, bonds and rings of the decoration are the model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int
from rdkit import Chem, rdBase

from sciLDM.domains.molecules.featurise import featurise
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import DataError

__all__ = ["Placement", "Scaffold", "draw_placements"]

_TRIES = 20


@final
@dataclass(frozen=True, eq=False)
class Placement:
    """Where a scaffold stands in a molecule of `atoms` atoms.

    Attributes:
        atoms: Heavy atoms of the molecule.
        positions: Of the scaffold's atoms, `[scaffold]`, ascending.
        types: Atom type of each, as the vocabulary numbers them.
        order: Bond orders between them, upper triangle, `[scaffold, scaffold]`.
        open: Which of them may be bonded to other atoms.
    """

    atoms: int
    positions: Int[np.ndarray, " scaffold"]
    types: Int[np.ndarray, " scaffold"]
    order: Int[np.ndarray, "scaffold scaffold"]
    open: np.ndarray


@final
class Scaffold:
    """A connected substructure that must be in every molecule.

    Args:
        smiles: SMILES; each `*` marks an atom where something may be attached. Without any, every atom with a hydrogen
            is open.

    Raises:
        DataError: No SMILES, several pieces, or no atom where anything could be attached.
    """

    def __init__(self, smiles: str) -> None:
        self.smiles = smiles
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise DataError(f"scaffold: expected SMILES, got {smiles!r}, which RDKit cannot read")
        marked = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 0]
        for index in marked:
            for neighbour in mol.GetAtomWithIdx(index).GetNeighbors():
                neighbour.SetBoolProp("open", True)
        self.mol = _without(mol, marked)
        if self.mol.GetNumAtoms() == 0 or len(Chem.GetMolFrags(self.mol)) != 1:
            raise DataError(
                f"scaffold: expected one connected piece, got {smiles!r}; decorate the pieces one by one"
            )
        free = [a.GetTotalNumHs() > 0 for a in self.mol.GetAtoms()]
        named = [a.HasProp("open") for a in self.mol.GetAtoms()]
        self.open = tuple(bool(f and (n or not marked)) for f, n in zip(free, named, strict=True))
        if not any(self.open):
            raise DataError(f"scaffold: nothing can be attached to {smiles!r}; give an atom with a hydrogen")
        self._query = _query(self.mol, self.open)

    def __len__(self) -> int:
        return self.mol.GetNumAtoms()

    def is_in(self, mol: Chem.Mol | None) -> bool:
        """Whether a molecule contains the scaffold, with nothing attached to its closed atoms."""
        return mol is not None and mol.HasSubstructMatch(self._query)

    def matches(self, mol: Chem.Mol) -> list[tuple[int, ...]]:
        """Atoms of a molecule that stand for the scaffold's, in its order."""
        return [tuple(m) for m in mol.GetSubstructMatches(self._query, uniquify=False, maxMatches=100)]


def _without(mol: Chem.Mol, marked: Sequence[int]) -> Chem.Mol:
    """The molecule without its attachment points; a hydrogen takes the place of each."""
    edited = Chem.RWMol(mol)
    for index in sorted(marked, reverse=True):
        for neighbour in edited.GetAtomWithIdx(index).GetNeighbors():
            # Implicit hydrogens fill the gap by themselves; bracket atoms and a pyrrole's nitrogen must be told.
            if neighbour.GetNoImplicit() or (neighbour.GetIsAromatic() and neighbour.GetAtomicNum() != 6):
                neighbour.SetNumExplicitHs(neighbour.GetNumExplicitHs() + 1)
        edited.RemoveAtom(index)
    bare = edited.GetMol()
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(bare)
    except ValueError as error:
        raise DataError(
            f"scaffold: {Chem.MolToSmiles(mol)!r} is no molecule without its * ({error})"
        ) from error
    return bare


def _query(mol: Chem.Mol, is_open: Sequence[bool]) -> Chem.Mol:
    """Elements, charges and bonds of the scaffold; closed atoms with no more neighbours than it gives them."""
    parameters = Chem.AdjustQueryParameters.NoAdjustments()
    query = Chem.RWMol(Chem.AdjustQueryProperties(mol, parameters))
    for atom, free in zip(mol.GetAtoms(), is_open, strict=True):
        degree = "" if free else f";D{atom.GetDegree()}"
        charge = f"{atom.GetFormalCharge():+d}"
        query.ReplaceAtom(atom.GetIdx(), Chem.AtomFromSmarts(f"[#{atom.GetAtomicNum()};{charge}{degree}]"))
    return query.GetMol()


def draw_placements(
    scaffold: Scaffold,
    sizes: Sequence[int],
    vocabulary: Vocabulary,
    generators: Sequence[np.random.Generator],
) -> list[Placement]:
    """One placement for each sample.

    Args:
        scaffold: What must be in the molecule.
        sizes: Heavy atoms of each molecule, more than the scaffold has.
        vocabulary: Atom types of the model.
        generators: Source of each template.

    Raises:
        DataError: A scaffold that this model cannot write, or too small a size.
    """
    if min(sizes) <= len(scaffold):
        raise DataError(
            f"scaffold: expected molecules of more than its {len(scaffold)} heavy atoms, got {min(sizes)}"
        )
    if max(sizes) > vocabulary.max_atoms:
        raise DataError(
            f"scaffold: this model writes at most {vocabulary.max_atoms} heavy atoms, got {max(sizes)}"
        )
    found = []
    for size, generator in zip(sizes, generators, strict=True):
        placement = None
        for _ in range(_TRIES):
            template = _grow(scaffold, size, generator)
            placement = None if template is None else _place(scaffold, template, vocabulary)
            if placement is not None:
                break
        if placement is None:
            raise DataError(
                f"scaffold: no molecule of {size} heavy atoms with {scaffold.smiles!r} on which this model's atoms "
                f"({' '.join(vocabulary.elements)}) could stand"
            )
        found.append(placement)
    return found


def _grow(scaffold: Scaffold, size: int, generator: np.random.Generator) -> Chem.Mol | None:
    """The scaffold with carbons, each bonded to a random atom that has a hydrogen left."""
    mol = Chem.RWMol(scaffold.mol)
    free = [
        a.GetTotalNumHs() if is_open else 0 for a, is_open in zip(mol.GetAtoms(), scaffold.open, strict=True)
    ]
    for _ in range(size - len(scaffold)):
        roots = [index for index, hydrogens in enumerate(free) if hydrogens > 0]
        if not roots:
            return None
        root = int(generator.choice(roots))
        atom = mol.GetAtomWithIdx(root)
        if atom.GetNumExplicitHs():
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
        mol.AddBond(root, mol.AddAtom(Chem.Atom(6)), Chem.BondType.SINGLE)
        free[root] -= 1
        free.append(3)
    grown = mol.GetMol()
    with rdBase.BlockLogs():
        return grown if Chem.SanitizeMol(grown, catchErrors=True) == Chem.SANITIZE_NONE else None


def _place(scaffold: Scaffold, template: Chem.Mol, vocabulary: Vocabulary) -> Placement | None:
    try:
        found = featurise([Chem.MolToSmiles(template)], vocabulary=vocabulary, workers=1)
    except DataError:
        return None
    graph, mol = (
        found.graphs,
        Chem.MolFromSmiles(found.smiles[0]),
    )  # its atoms stand in the order of the graph
    matches = scaffold.matches(mol)
    if not matches:
        return None
    place = np.asarray(matches[0])
    order = np.zeros((mol.GetNumAtoms(),) * 2, dtype=np.int64)
    first, second = graph.bond_index.astype(np.int64)
    order[np.minimum(first, second), np.maximum(first, second)] = graph.bond_order
    ascending = np.argsort(place)
    positions = place[ascending]
    table = np.asarray(vocabulary.type_table)
    return Placement(
        atoms=mol.GetNumAtoms(),
        positions=positions,
        types=table[graph.element[positions], graph.charge[positions]].astype(np.int64),
        order=order[np.ix_(positions, positions)],
        open=np.asarray(scaffold.open)[ascending],
    )
