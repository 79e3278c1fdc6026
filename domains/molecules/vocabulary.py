"""Which atoms a data set uses: elements, charges, and how many bonds each kind of atom was ever seen to make.

The valence caps are *observed*, not tabulated, so a data set with unusual elements needs no hand-written
table. The total valence of an atom is v = sum of its bond orders in the Kekule form + its hydrogens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from jaxtyping import Int
from rdkit import Chem

from sciLDM.errors import DataError

__all__ = ["Vocabulary"]


@final
@dataclass(frozen=True)
class Vocabulary:
    """The atoms of a data set.

    Args:
        elements: symbols, by atomic number; ``GraphTable.element`` indexes them.
        charges: formal charges, ascending; ``GraphTable.charge`` indexes them.
        max_valence: (symbol, charge) -> largest total valence observed; a pair that is absent was never seen.
        max_atoms: heavy atoms of the largest molecule.
    """

    elements: tuple[str, ...]
    charges: tuple[int, ...]
    max_valence: dict[tuple[str, int], int] = field(hash=False)
    max_atoms: int

    @staticmethod
    def from_atoms(
        atomic_numbers: Int[np.ndarray, " atoms"],
        charges: Int[np.ndarray, " atoms"],
        valences: Int[np.ndarray, " atoms"],
        *,
        max_atoms: int,
    ) -> "Vocabulary":
        """Learn from one entry per atom of the training data.

        Raises:
            DataError: no atoms.
        """
        if len(atomic_numbers) == 0:
            raise DataError("expected at least one molecule to learn a vocabulary from, got none")
        keys, inverse = np.unique(
            np.stack([atomic_numbers, charges]).astype(np.int64), axis=1, return_inverse=True
        )
        largest = np.zeros(keys.shape[1], dtype=np.int64)
        np.maximum.at(largest, inverse.reshape(-1), valences)
        table = Chem.GetPeriodicTable()
        symbol = {int(z): table.GetElementSymbol(int(z)) for z in np.unique(keys[0])}
        caps = {(symbol[int(z)], int(q)): int(v) for z, q, v in zip(*keys, largest, strict=True)}
        charge_values = tuple(int(q) for q in np.unique(keys[1]))
        return Vocabulary(tuple(symbol.values()), charge_values, caps, int(max_atoms))

    @staticmethod
    def from_molecules(molecules: Iterable[Chem.Mol]) -> "Vocabulary":
        """Learn from RDKit molecules (hydrogen atoms are counted as hydrogens, not as atoms).

        Raises:
            DataError: no molecules, or none with a heavy atom.
        """
        rows: list[tuple[int, int, int]] = []
        max_atoms = 0
        for molecule in molecules:
            kekule = Chem.RemoveHs(molecule)
            Chem.Kekulize(kekule, clearAromaticFlags=True)
            heavy = [atom for atom in kekule.GetAtoms() if atom.GetAtomicNum() > 1]
            max_atoms = max(max_atoms, len(heavy))
            for atom in heavy:
                bonds = sum(
                    bond.GetBondTypeAsDouble()
                    for bond in atom.GetBonds()
                    if bond.GetOtherAtom(atom).GetAtomicNum() > 1
                )
                valence = int(bonds) + atom.GetTotalNumHs(includeNeighbors=True)
                rows.append((atom.GetAtomicNum(), atom.GetFormalCharge(), valence))
        columns = np.asarray(rows, dtype=np.int64).reshape(-1, 3).T
        return Vocabulary.from_atoms(*columns, max_atoms=max_atoms)

    @property
    def types(self) -> tuple[tuple[str, int], ...]:
        """The atom types: every (symbol, charge) observed, by element, then charge."""
        return tuple(
            (symbol, charge)
            for symbol in self.elements
            for charge in self.charges
            if (symbol, charge) in self.max_valence
        )

    @property
    def type_table(self) -> tuple[tuple[int, ...], ...]:
        """Atom type by ``[element index][charge index]``; -1 for a pair never observed."""
        index = {pair: position for position, pair in enumerate(self.types)}
        return tuple(tuple(index.get((s, q), -1) for q in self.charges) for s in self.elements)

    @property
    def caps(self) -> tuple[int, ...]:
        """Largest total valence of each atom type."""
        return tuple(self.max_valence[pair] for pair in self.types)

    def atomic_numbers(self) -> tuple[int, ...]:
        """Atomic number of each element."""
        table = Chem.GetPeriodicTable()
        return tuple(table.GetAtomicNumber(symbol) for symbol in self.elements)

    def to_dict(self) -> dict[str, Any]:
        """Lists, strings and numbers only, for YAML or JSON."""
        return {
            "elements": list(self.elements),
            "charges": list(self.charges),
            "max_valence": [
                [symbol, charge, valence] for (symbol, charge), valence in sorted(self.max_valence.items())
            ],
            "max_atoms": self.max_atoms,
        }

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Vocabulary":
        """Inverse of :meth:`to_dict`.

        Raises:
            DataError: a field is missing or of the wrong kind.
        """
        try:
            caps: Sequence[tuple[str, int, int]] = stored["max_valence"]
            return Vocabulary(
                elements=tuple(str(symbol) for symbol in stored["elements"]),
                charges=tuple(int(charge) for charge in stored["charges"]),
                max_valence={(str(symbol), int(charge)): int(valence) for symbol, charge, valence in caps},
                max_atoms=int(stored["max_atoms"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "expected a vocabulary with elements, charges, max_valence and max_atoms, "
                f"got {sorted(stored) if isinstance(stored, Mapping) else stored!r} ({error})"
            ) from error
