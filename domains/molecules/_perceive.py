"""One SMILES to plain arrays: what `featurise` runs in its worker processes. Imports RDKit and NumPy only."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from rdkit import Chem, rdBase

__all__ = ["Options", "Packed", "implied_hydrogens", "perceive_chunk"]

_CHIRALITY = {Chem.CHI_UNSPECIFIED: 0, Chem.CHI_TETRAHEDRAL_CW: 1, Chem.CHI_TETRAHEDRAL_CCW: 2}
_ORDER = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3}
_STEREO = {
    Chem.BondStereo.STEREOZ: 1,
    Chem.BondStereo.STEREOCIS: 1,
    Chem.BondStereo.STEREOE: 2,
    Chem.BondStereo.STEREOTRANS: 2,
}


class _Rejected(Exception):
    """Carries the reason why a molecule cannot be represented."""


@final
@dataclass(frozen=True)
class Options:
    """What a worker needs to know."""

    max_atoms: int | None
    largest_fragment: bool


@final
@dataclass(frozen=True)
class Packed:
    """A chunk of molecules: one row per atom, one per bond; cheap to send between processes."""

    rows: list[int]
    smiles: list[str]
    atom_counts: list[int]
    bond_counts: list[int]
    atoms: np.ndarray  # int16 [atoms, 5]: atomic number, charge, hydrogens, chirality, in_ring
    bonds: np.ndarray  # uint16 [bonds, 4]: i, j, order, stereo
    rejected: list[tuple[int, str, str]]
    changed: list[tuple[int, str, str]]


@functools.cache
def implied_hydrogens(atomic_number: int, charge: int, bond_sum: int) -> int:
    """Hydrogens RDKit's valence model adds to a non-aromatic atom, given the sum of its bond orders."""
    probe = Chem.RWMol()
    atom = Chem.Atom(atomic_number)
    atom.SetFormalCharge(charge)
    probe.AddAtom(atom)
    for _ in range(bond_sum):
        probe.AddBond(0, probe.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
    probe.UpdatePropertyCache(strict=False)
    return probe.GetAtomWithIdx(0).GetTotalNumHs()


def perceive_chunk(
    rows: Sequence[int], smiles: Sequence[str | float | None], seeds: Sequence[int] | None, options: Options
) -> Packed:
    """Perceive some molecules; ``seeds`` asks for a random traversal each, otherwise the canonical one."""
    packed = Packed([], [], [], [], np.zeros((0, 5), np.int16), np.zeros((0, 4), np.uint16), [], [])
    atoms: list[tuple[int, ...]] = []
    bonds: list[tuple[int, ...]] = []
    with rdBase.BlockLogs():  # no line on the terminal for each bad SMILES: the reasons are in the table
        for position, (row, text) in enumerate(zip(rows, smiles, strict=True)):
            try:
                canonical, molecule, note = _canonicalise(text, options)
                if seeds is not None:
                    random = Chem.MolToRandomSmilesVect(molecule, 1, randomSeed=int(seeds[position]))[0]
                    molecule = Chem.MolFromSmiles(random)
                atom_rows, bond_rows = _graph(molecule)
            except _Rejected as reason:
                packed.rejected.append((row, str(text), str(reason)))
                continue
            packed.rows.append(row)
            packed.smiles.append(canonical)
            packed.atom_counts.append(len(atom_rows))
            packed.bond_counts.append(len(bond_rows))
            atoms += atom_rows
            bonds += bond_rows
            if note:
                packed.changed.append((row, str(text), note))
    return Packed(
        packed.rows,
        packed.smiles,
        packed.atom_counts,
        packed.bond_counts,
        np.asarray(atoms, dtype=np.int16).reshape(-1, 5),
        np.asarray(bonds, dtype=np.uint16).reshape(-1, 4),
        packed.rejected,
        packed.changed,
    )


def _canonicalise(text: object, options: Options) -> tuple[str, Chem.Mol, str]:
    """Canonical SMILES, the molecule with its atoms in that order, and what was changed on the way."""
    if not isinstance(text, str) or not text.strip():
        raise _Rejected("empty")
    text, note = text.strip(), ""
    molecule = Chem.MolFromSmiles(text)
    if molecule is None:
        raise _Rejected(_why_unparsable(text))
    fragments = Chem.GetMolFrags(molecule)
    if len(fragments) > 1:
        if not options.largest_fragment:
            raise _Rejected(f"salt or mixture: {len(fragments)} fragments")
        molecule = _largest_fragment(molecule)
        note = f"kept the largest of {len(fragments)} fragments"
    _check(molecule, options)
    canonical = Chem.MolToSmiles(molecule)
    # Parsing the canonical string puts the atoms in its traversal order, and makes the Kekule form, hence
    # the whole graph, a function of that string alone, whatever the order of atoms and bonds in the input.
    if canonical != text:
        molecule = Chem.MolFromSmiles(canonical)
        if molecule is None:
            raise _Rejected("its canonical SMILES cannot be parsed")
    if not note and len(re.findall("@+", canonical)) < len(re.findall("@+", text)):
        note = "dropped a chirality mark that is no tetrahedral stereocentre (symmetric atom or allene axis)"
    return canonical, molecule, note


def _why_unparsable(text: str) -> str:
    """RDKit's own explanation of a failed parse, in a few words."""
    raw = Chem.MolFromSmiles(text, sanitize=False)
    if raw is None:
        return "unparsable: not SMILES"
    problems = Chem.DetectChemistryProblems(raw)
    return "unparsable: " + (problems[0].Message().splitlines()[0] if problems else "RDKit refuses it")


def _largest_fragment(molecule: Chem.Mol) -> Chem.Mol:
    """The fragment with most heavy atoms; ties go to the heavier, then to the alphabet."""
    fragments = Chem.GetMolFrags(molecule, asMols=True)

    def rank(fragment: Chem.Mol) -> tuple[int, float, str]:
        mass = sum(atom.GetMass() for atom in fragment.GetAtoms())
        return -fragment.GetNumHeavyAtoms(), -mass, Chem.MolToSmiles(fragment)

    return min(fragments, key=rank)


def _check(molecule: Chem.Mol, options: Options) -> None:
    """Raise for what the graph cannot hold."""
    heavy = molecule.GetNumHeavyAtoms()
    if heavy == 0:
        raise _Rejected("no heavy atom")
    if options.max_atoms is not None and heavy > options.max_atoms:
        raise _Rejected(f"too large: {heavy} heavy atoms, at most {options.max_atoms}")
    for atom in molecule.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise _Rejected("wildcard atom (*)")
        if atom.GetIsotope():
            raise _Rejected(f"isotope: {atom.GetIsotope()}{atom.GetSymbol()}")
        if atom.GetNumRadicalElectrons():
            raise _Rejected(f"radical on {atom.GetSymbol()}")
        if atom.GetChiralTag() not in _CHIRALITY:
            raise _Rejected(f"unsupported stereochemistry: {atom.GetChiralTag()!s}")
        if atom.GetAtomicNum() == 1 and (atom.GetFormalCharge() or atom.GetDegree() != 1):
            raise _Rejected("hydrogen that is an ion or a bridge")


def _graph(molecule: Chem.Mol) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Rows of atoms and bonds, hydrogens folded into their neighbours."""
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    heavy = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomicNum() > 1]
    local = {index: position for position, index in enumerate(heavy)}
    bonds: list[tuple[int, ...]] = []
    bond_sum = [0] * len(heavy)
    for bond in molecule.GetBonds():
        kind = _ORDER.get(bond.GetBondType())
        if kind is None:
            raise _Rejected(f"unsupported bond: {bond.GetBondType()!s}")
        begin, end = local.get(bond.GetBeginAtomIdx()), local.get(bond.GetEndAtomIdx())
        if begin is None or end is None:
            continue
        bond_sum[begin] += kind
        bond_sum[end] += kind
        stereo = _bond_stereo(bond, local) if bond.GetStereo() in _STEREO else 0
        bonds.append((min(begin, end), max(begin, end), kind, stereo))
    atoms: list[tuple[int, ...]] = []
    for index, total in zip(heavy, bond_sum, strict=True):
        atom = molecule.GetAtomWithIdx(index)
        number, charge = atom.GetAtomicNum(), atom.GetFormalCharge()
        hydrogens = atom.GetTotalNumHs(includeNeighbors=True)
        if hydrogens != implied_hydrogens(number, charge, total):
            kind = f"{atom.GetSymbol()} (charge {charge})"
            raise _Rejected(f"{hydrogens} hydrogens on {kind} do not follow from its bonds")
        atoms.append((number, charge, hydrogens, _chirality(atom, local), int(atom.IsInRing())))
    return atoms, sorted(bonds)


def _chirality(atom: Chem.Atom, local: dict[int, int]) -> int:
    """RDKit's tag speaks of neighbours in its own bond order, ours in ascending order."""
    tag = _CHIRALITY[atom.GetChiralTag()]
    if tag == 0:
        return 0
    neighbours = [local.get(bond.GetOtherAtomIdx(atom.GetIdx()), -1) for bond in atom.GetBonds()]
    swaps = sum(a > b for position, a in enumerate(neighbours) for b in neighbours[position + 1 :])
    return tag if swaps % 2 == 0 else 3 - tag


def _bond_stereo(bond: Chem.Bond, local: dict[int, int]) -> int:
    """Cis or trans between lowest-index neighbours: each change of reference flips the label."""
    stereo = _STEREO[bond.GetStereo()]
    first, second = bond.GetStereoAtoms()
    for end, other, reference in (
        (bond.GetBeginAtom(), bond.GetEndAtomIdx(), first),
        (bond.GetEndAtom(), bond.GetBeginAtomIdx(), second),
    ):
        neighbours = [atom.GetIdx() for atom in end.GetNeighbors() if atom.GetIdx() != other]
        lowest = min(neighbours, key=lambda index: local.get(index, len(local)))
        if lowest != reference:
            stereo = 3 - stereo
    return stereo
