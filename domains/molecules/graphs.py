"""Many molecules in a dozen flat arrays.

A :class:`GraphTable` keeps the heavy-atom graphs of a data set packed end to end, as a sparse matrix keeps
its rows: molecule ``k`` owns the atoms ``atom_offset[k]:atom_offset[k + 1]`` and the bonds
``bond_offset[k]:bond_offset[k + 1]``. A million drug-like molecules take about 0.2 GB in memory, are saved as
one file, and become a training batch by a few array gathers, with no Python loop over molecules.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Bool, Int64, UInt, UInt8

from sciLDM.errors import DataError

if TYPE_CHECKING:
    from torch_geometric.data import Batch

__all__ = ["CHIRALITIES", "STEREOS", "GraphTable", "ragged_gather"]

CHIRALITIES = ("none", "clockwise", "counter-clockwise")
"""Meaning of ``GraphTable.chirality``, seen from the first of the neighbours in ascending order."""

STEREOS = ("none", "cis", "trans")
"""Meaning of ``GraphTable.bond_stereo``, between the lowest-index neighbours of the two ends."""

_ATOM_FIELDS = ("element", "charge", "hydrogens", "chirality", "in_ring")
_BOND_FIELDS = ("bond_order", "bond_stereo")


def ragged_gather(
    offset: Int64[np.ndarray, " rows_plus_one"], rows: Int64[np.ndarray, " chosen"]
) -> tuple[Int64[np.ndarray, " items"], Int64[np.ndarray, " chosen_plus_one"]]:
    """Positions of the items of some rows of a ragged array, and the offsets of the gathered rows."""
    counts = offset[rows + 1] - offset[rows]
    gathered = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=gathered[1:])
    positions = np.arange(gathered[-1]) + np.repeat(offset[rows] - gathered[:-1], counts)
    return positions, gathered


@final
@dataclass(frozen=True, eq=False)
class GraphTable:
    """Packed molecular graphs, kekulised, without hydrogen atoms.

    Args:
        atom_offset: first atom of each molecule, and the number of atoms at the end.
        bond_offset: first bond of each molecule, and the number of bonds at the end.
        element: index into ``Vocabulary.elements``.
        charge: index into ``Vocabulary.charges``.
        hydrogens: hydrogens bound to the atom.
        chirality: tetrahedral parity with the neighbours in ascending order: 0 none, 1 clockwise, 2
            counter-clockwise.
        in_ring: whether the atom lies in a ring.
        bond_index: the two ends, counted within the molecule, ``i < j``, sorted by ``(i, j)``.
        bond_order: 1, 2 or 3 (Kekule form).
        bond_stereo: 0 none, 1 cis (Z-like), 2 trans (E-like), between the lowest-index other neighbours of
            the two ends; an end whose only other neighbour is a hydrogen takes that hydrogen.
    """

    atom_offset: Int64[np.ndarray, " molecules_plus_one"]
    bond_offset: Int64[np.ndarray, " molecules_plus_one"]
    element: UInt8[np.ndarray, " atoms"]
    charge: UInt8[np.ndarray, " atoms"]
    hydrogens: UInt8[np.ndarray, " atoms"]
    chirality: UInt8[np.ndarray, " atoms"]
    in_ring: Bool[np.ndarray, " atoms"]
    bond_index: UInt[np.ndarray, "2 bonds"]
    bond_order: UInt8[np.ndarray, " bonds"]
    bond_stereo: UInt8[np.ndarray, " bonds"]

    def __post_init__(self) -> None:
        assert len(self.atom_offset) == len(self.bond_offset), "one offset per molecule, and the total"
        assert all(len(getattr(self, name)) == self.atom_offset[-1] for name in _ATOM_FIELDS)
        assert all(len(getattr(self, name)) == self.bond_offset[-1] for name in _BOND_FIELDS)
        assert self.bond_index.shape == (2, self.bond_offset[-1])

    def __len__(self) -> int:
        return len(self.atom_offset) - 1

    def sizes(self) -> Int64[np.ndarray, " molecules"]:
        """Heavy atoms of each molecule."""
        return np.diff(self.atom_offset)

    def select(self, indices: Sequence[int] | np.ndarray) -> "GraphTable":
        """The chosen molecules, in the order given (repeats allowed); a boolean mask works too.

        Raises:
            IndexError: an index beyond the table.
        """
        rows = self._rows(indices)
        atoms, atom_offset = ragged_gather(self.atom_offset, rows)
        bonds, bond_offset = ragged_gather(self.bond_offset, rows)
        return GraphTable(
            atom_offset=atom_offset,
            bond_offset=bond_offset,
            bond_index=self.bond_index[:, bonds],
            **{name: getattr(self, name)[atoms] for name in _ATOM_FIELDS},
            **{name: getattr(self, name)[bonds] for name in _BOND_FIELDS},
        )

    def to_batch(self, indices: Sequence[int] | np.ndarray) -> "Batch":
        """The chosen molecules as one disjoint graph.

        Returns:
            ``x`` int64 ``[atoms, 5]`` (element, charge, hydrogens, chirality, in_ring), ``edge_index`` int64
            ``[2, 2 bonds]`` with both directions, ``edge_attr`` int64 ``[2 bonds, 2]`` (order, stereo),
            ``batch``, ``ptr``.

        Raises:
            IndexError: an index beyond the table.
        """
        import torch  # here, so that the worker processes of `featurise` need not load torch
        from torch_geometric.data import Batch

        part = self.select(indices)
        sizes, bond_counts = part.sizes(), np.diff(part.bond_offset)
        x = np.stack([getattr(part, name) for name in _ATOM_FIELDS], axis=1).astype(np.int64)
        ends = part.bond_index.astype(np.int64) + np.repeat(part.atom_offset[:-1], bond_counts)
        # Bond b gives edges 2b (i -> j) and 2b + 1 (j -> i), so that each molecule's edges stay together.
        edge_index = np.stack([ends, ends[::-1]], axis=2).reshape(2, -1)
        edge_attr = np.stack([part.bond_order, part.bond_stereo], axis=1).astype(np.int64).repeat(2, axis=0)
        batch = Batch(
            x=torch.from_numpy(x),
            edge_index=torch.from_numpy(edge_index),
            edge_attr=torch.from_numpy(edge_attr),
            batch=torch.from_numpy(np.repeat(np.arange(len(part)), sizes)),
            ptr=torch.from_numpy(part.atom_offset),
        )
        # What `Batch.from_data_list` would have recorded: lets `batch[k]` and `to_data_list()` work.
        edge_offset, nothing = (
            torch.from_numpy(2 * part.bond_offset),
            torch.zeros(len(part), dtype=torch.int64),
        )
        batch._num_graphs = len(part)
        batch._slice_dict = {"x": batch.ptr, "edge_index": edge_offset, "edge_attr": edge_offset}
        batch._inc_dict = {"x": nothing, "edge_index": batch.ptr[:-1], "edge_attr": nothing}
        return batch

    @staticmethod
    def concatenate(tables: Sequence["GraphTable"]) -> "GraphTable":
        """Several tables of the same vocabulary, end to end."""
        assert tables, "at least one table"
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(table, name) for table in tables])
            for name in (*_ATOM_FIELDS, *_BOND_FIELDS)
        }
        for name in ("atom_offset", "bond_offset"):
            counts = np.concatenate([np.diff(getattr(table, name)) for table in tables])
            joined[name] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        joined["bond_index"] = np.concatenate([table.bond_index for table in tables], axis=1)
        return GraphTable(**joined)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one compressed ``.npz``; the file appears whole or not at all."""
        write_npz(Path(path), {field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "GraphTable":
        """Read what :meth:`save` wrote.

        Raises:
            DataError: absent, damaged, or not a table of molecules.
        """
        try:
            # Opened here: NumPy leaves a damaged archive open.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return GraphTable(**{field.name: stored[field.name] for field in fields(GraphTable)})
        except FileNotFoundError as error:
            raise DataError(f"expected a table of molecules at {path}; there is no such file") from error
        except Exception as error:  # zip, zlib, header and key errors: all mean the same to the user
            raise DataError(
                f"{path} is not a readable table of molecules ({error}); featurise again"
            ) from error

    def _rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        rows = np.asarray(indices)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"expected indices in [0, {len(self)}), got [{rows.min()}, {rows.max()}]")
        return rows


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` beside its target, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
