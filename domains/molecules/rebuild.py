"""Graphs back to RDKit molecules: the inverse of `featurise`.

Hydrogens are not stored bonds: RDKit's valence model adds them, and `featurise` refuses the few molecules
whose hydrogens that model would not give back. Stereo marks are read with neighbours in ascending order, as
`GraphTable` defines them.
"""

from collections.abc import Sequence

from rdkit import Chem, rdBase

from sciLDM.domains.molecules.graphs import GraphTable
from sciLDM.domains.molecules.vocabulary import Vocabulary

__all__ = ["graph_mol", "graph_smiles", "to_mol"]

_BOND = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
_STEREO = {1: Chem.BondStereo.STEREOCIS, 2: Chem.BondStereo.STEREOTRANS}
_CHIRALITY = {0: Chem.CHI_UNSPECIFIED, 1: Chem.CHI_TETRAHEDRAL_CW, 2: Chem.CHI_TETRAHEDRAL_CCW}


def to_mol(
    element_symbols: Sequence[str],
    charges: Sequence[int],
    bonds: Sequence[tuple[int, int, int, int]],
    chirality: Sequence[int],
) -> Chem.Mol:
    """Build a sanitised molecule from atoms and Kekule bonds.

    Stereo marks that mean nothing (a chirality on a symmetric atom, a geometry in a small ring) are dropped,
    as RDKit does when it reads SMILES.

    Args:
        element_symbols: one per heavy atom.
        charges: formal charge of each atom.
        bonds: ``(i, j, order, stereo)`` with order 1, 2 or 3 and stereo 0 none, 1 cis, 2 trans between the
            lowest-index other neighbours of ``i`` and ``j``.
        chirality: for each atom 0 none, 1 clockwise, 2 counter-clockwise, with its neighbours in ascending
            order.

    Returns:
        The molecule, its heavy atoms in the order given. A hydrogen atom is appended where the geometry of a
        double bond is defined by it alone (imines, C=N-H), as in RDKit's own reading of ``[H]/N=C/C``.

    Raises:
        ValueError: RDKit refuses the graph (valence, Kekule form, repeated bond, self-loop).
    """
    # Sorted bonds make RDKit's neighbour order ascending, so that its chiral tags are ours.
    ordered = sorted((*sorted((int(i), int(j))), int(order), int(stereo)) for i, j, order, stereo in bonds)
    molecule = Chem.RWMol()
    try:
        with rdBase.BlockLogs():  # the reason goes into the exception, not to the terminal
            for symbol, charge, tag in zip(element_symbols, charges, chirality, strict=True):
                atom = Chem.Atom(symbol)
                atom.SetFormalCharge(int(charge))
                atom.SetChiralTag(_CHIRALITY[int(tag)])
                molecule.AddAtom(atom)
            for i, j, order, _ in ordered:
                molecule.AddBond(i, j, _BOND[order])
            molecule.UpdatePropertyCache(strict=True)  # counts hydrogens, which a geometry may refer to
            for i, j, order, stereo in ordered:
                if order == 2 and stereo:
                    _set_geometry(molecule, i, j, stereo)
            Chem.SanitizeMol(molecule)
    except (KeyError, RuntimeError, ValueError) as error:  # RDKit raises ValueError and RuntimeError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"RDKit refuses the graph: {reason}") from error
    Chem.SetDoubleBondNeighborDirections(molecule)
    Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    return molecule.GetMol()


def graph_mol(table: GraphTable, vocabulary: Vocabulary, index: int) -> Chem.Mol:
    """One molecule of a table.

    Raises:
        ValueError: RDKit refuses it.
    """
    atoms = slice(table.atom_offset[index], table.atom_offset[index + 1])
    bonds = slice(table.bond_offset[index], table.bond_offset[index + 1])
    return to_mol(
        [vocabulary.elements[k] for k in table.element[atoms]],
        [vocabulary.charges[k] for k in table.charge[atoms]],
        list(
            zip(
                *table.bond_index[:, bonds].tolist(),
                table.bond_order[bonds].tolist(),
                table.bond_stereo[bonds].tolist(),
                strict=True,
            )
        ),
        table.chirality[atoms].tolist(),
    )


def graph_smiles(table: GraphTable, vocabulary: Vocabulary, index: int) -> str:
    """Canonical isomeric SMILES of one molecule of a table.

    Raises:
        ValueError: RDKit refuses it.
    """
    return Chem.MolToSmiles(graph_mol(table, vocabulary, index))


def _set_geometry(molecule: Chem.RWMol, i: int, j: int, stereo: int) -> None:
    """Mark the double bond i=j. An end whose one other neighbour is a hydrogen takes it as its reference."""
    references: list[int] = []
    for end, other in ((i, j), (j, i)):
        atom = molecule.GetAtomWithIdx(end)
        neighbours = [neighbour.GetIdx() for neighbour in atom.GetNeighbors() if neighbour.GetIdx() != other]
        if not neighbours and atom.GetTotalNumHs() == 1:
            neighbours = [molecule.AddAtom(Chem.Atom(1))]
            molecule.AddBond(end, neighbours[0], Chem.BondType.SINGLE)
        if not neighbours:
            return
        references.append(min(neighbours))
    bond = molecule.GetBondBetweenAtoms(i, j)
    bond.SetStereoAtoms(*(references if bond.GetBeginAtomIdx() == i else references[::-1]))
    bond.SetStereo(_STEREO[stereo])
