"""SMILES to graphs, in parallel, with a reason for every molecule left out.

Steps for each molecule: parse and sanitise; refuse what the graph cannot hold; fold hydrogens into their
atoms; write the canonical SMILES and number the atoms in the order it names them (neighbouring tokens are
then mostly bonded, and symmetric atoms become distinguishable); Kekulise; re-express stereo marks relative to
neighbours in ascending order. The graph is a function of the canonical SMILES alone.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import rdkit
from rdkit import Chem

from sciLDM.domains.molecules._featurised import Featurised
from sciLDM.domains.molecules._parallel import CHUNK, Progress, parallel_map
from sciLDM.domains.molecules._perceive import Options, Packed, perceive_chunk
from sciLDM.domains.molecules.graphs import GraphTable
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import ConfigError, DataError

__all__ = ["FEATURISER_VERSION", "Featurised", "featurise", "featurise_cached"]

FEATURISER_VERSION = 1
"""Part of every cache key: raise it when the same SMILES would give another graph."""


def featurise(
    smiles: Iterable[str | float | None],
    *,
    workers: int | None = None,
    vocabulary: Vocabulary | None = None,
    max_atoms: int | None = None,
    largest_fragment: bool = False,
    order: Literal["canonical", "random"] = "canonical",
    generator: np.random.Generator | None = None,
    progress: Progress | None = None,
) -> Featurised:
    """Turn SMILES into graphs.

    Args:
        smiles: one molecule each; a missing value (``None``, NaN) is rejected as empty.
        workers: processes; ``None`` takes every core, 1 stays in this process.
        vocabulary: refuse atoms outside it; ``None`` learns one from the molecules.
        max_atoms: refuse larger molecules (heavy atoms); ``None`` takes the vocabulary's limit, if one is
            given.
        largest_fragment: keep the largest part of a salt or mixture instead of refusing it.
        order: number the atoms along the canonical SMILES or along a random one.
        generator: source of the random traversals; required by ``order="random"``, unused otherwise.
        progress: told how far the work has come.

    Raises:
        ConfigError: ``order="random"`` without a generator.
        DataError: no molecule could be kept; the message counts the reasons.
    """
    if order not in ("canonical", "random"):
        raise ConfigError(f"expected order 'canonical' or 'random', got {order!r}")
    if order == "random" and generator is None:
        raise ConfigError("order='random' needs a generator: pass generator=numpy.random.default_rng(seed)")
    if isinstance(smiles, str):
        raise DataError("expected a list of SMILES, got one string; wrap it in a list")
    smiles = list(smiles)
    if max_atoms is None and vocabulary is not None:
        max_atoms = vocabulary.max_atoms
    seeds = None
    if order == "random" and generator is not None:
        seeds = generator.integers(1, 2**31 - 1, size=len(smiles)).tolist()
    options = Options(max_atoms, largest_fragment)
    chunks = [
        (range(start, min(start + CHUNK, len(smiles))), smiles[start : start + CHUNK],
         None if seeds is None else seeds[start : start + CHUNK], options)
        for start in range(0, len(smiles), CHUNK)
    ]  # fmt: skip
    packed = list(parallel_map(perceive_chunk, chunks, workers=workers, progress=progress))
    return _assemble(smiles, packed, vocabulary)


def featurise_cached(
    smiles: Iterable[str | float | None],
    cache_dir: str | os.PathLike[str],
    *,
    workers: int | None = None,
    vocabulary: Vocabulary | None = None,
    max_atoms: int | None = None,
    largest_fragment: bool = False,
    progress: Progress | None = None,
) -> Featurised:
    """:func:`featurise` in canonical order, remembered in ``cache_dir``.

    The file's name is a hash of the strings, the options, RDKit's version and the featuriser's. It is written
    whole or not at all, and a damaged one is rebuilt with a warning.
    """
    smiles = list(smiles)
    path = Path(cache_dir) / f"graphs-{_cache_key(smiles, vocabulary, max_atoms, largest_fragment)}.npz"
    if path.exists():
        try:
            stored = Featurised.load(path)
        except DataError as error:
            warnings.warn(f"the cached graphs are damaged and will be built again: {error}", stacklevel=2)
        else:
            if progress is not None:
                progress(len(smiles), len(smiles))
            return stored
    result = featurise(
        smiles,
        workers=workers,
        vocabulary=vocabulary,
        max_atoms=max_atoms,
        largest_fragment=largest_fragment,
        progress=progress,
    )
    result.save(path)
    return result


def _assemble(
    given: Sequence[str | float | None], packed: Sequence[Packed], vocabulary: Vocabulary | None
) -> Featurised:
    """Join the chunks; learn the vocabulary, or apply it."""
    rejected = [entry for chunk in packed for entry in chunk.rejected]
    kept = np.asarray([row for chunk in packed for row in chunk.rows], dtype=np.int64)
    if len(kept) == 0:
        raise DataError(_nothing_usable(rejected))
    smiles = [text for chunk in packed for text in chunk.smiles]
    atoms = np.concatenate([chunk.atoms for chunk in packed])
    bonds = np.concatenate([chunk.bonds for chunk in packed])
    atom_offset = np.cumsum([0] + [count for chunk in packed for count in chunk.atom_counts], dtype=np.int64)
    bond_offset = np.cumsum([0] + [count for chunk in packed for count in chunk.bond_counts], dtype=np.int64)
    largest = int(np.diff(atom_offset).max())
    if vocabulary is None:
        starts = np.repeat(atom_offset[:-1], np.diff(bond_offset))
        valences = atoms[:, 2].astype(np.int64)
        for end in (0, 1):
            np.add.at(valences, starts + bonds[:, end], bonds[:, 2])
        vocabulary = Vocabulary.from_atoms(atoms[:, 0], atoms[:, 1], valences, max_atoms=largest)
    element, known_element = _lookup(atoms[:, 0], vocabulary.atomic_numbers())
    charge, known_charge = _lookup(atoms[:, 1], vocabulary.charges)
    known = known_element & known_charge & (np.asarray(vocabulary.type_table)[element, charge] >= 0)
    graphs = GraphTable(
        atom_offset=atom_offset,
        bond_offset=bond_offset,
        element=element,
        charge=charge,
        hydrogens=atoms[:, 2].astype(np.uint8),
        chirality=atoms[:, 3].astype(np.uint8),
        in_ring=atoms[:, 4].astype(bool),
        bond_index=np.ascontiguousarray(bonds[:, :2].T).astype(np.uint8 if largest <= 256 else np.uint16),
        bond_order=bonds[:, 2].astype(np.uint8),
        bond_stereo=bonds[:, 3].astype(np.uint8),
    )
    foreign = np.flatnonzero(~known)
    owner = np.searchsorted(atom_offset, foreign, side="right") - 1
    for molecule, first in zip(*np.unique(owner, return_index=True), strict=True):
        row = int(kept[molecule])
        rejected.append(
            (row, str(given[row]), _foreign_atom(*atoms[foreign[first], :2].tolist(), vocabulary))
        )
    inside = np.setdiff1d(np.arange(len(kept)), owner)
    if len(inside) == 0:
        raise DataError(_nothing_usable(rejected))
    kept = kept[inside]
    return Featurised(
        graphs if len(inside) == len(graphs) else graphs.select(inside),
        vocabulary,
        kept,
        [smiles[k] for k in inside],
        pd.DataFrame(sorted(rejected), columns=["row", "smiles", "reason"]),
        pd.DataFrame(
            [entry for chunk in packed for entry in chunk.changed if entry[0] in set(kept.tolist())],
            columns=["row", "smiles", "change"],
        ),
    )


def _lookup(values: np.ndarray, known: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Index of each value in ``known``, and whether it is in it at all."""
    order = np.argsort(known)
    position = np.minimum(np.searchsorted(np.asarray(known)[order], values), len(known) - 1)
    index = order[position]
    return index.astype(np.uint8), np.asarray(known)[index] == values


def _foreign_atom(atomic_number: int, charge: int, vocabulary: Vocabulary) -> str:
    symbol = Chem.GetPeriodicTable().GetElementSymbol(atomic_number)
    if symbol not in vocabulary.elements:
        return f"element {symbol} is not in the vocabulary ({' '.join(vocabulary.elements)})"
    seen = " ".join(str(value) for element, value in vocabulary.types if element == symbol)
    return f"charge {charge} on {symbol} is not in the vocabulary (seen: {seen})"


def _nothing_usable(rejected: Sequence[tuple[int, str, str]]) -> str:
    if not rejected:
        return "expected at least one SMILES, got an empty list"
    reasons = Counter(reason.split(":")[0] for _, _, reason in rejected).most_common(5)
    counted = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    return f"none of the {len(rejected)} SMILES can be used ({counted}); do they stand in another column?"


def _cache_key(
    smiles: Sequence[str | float | None],
    vocabulary: Vocabulary | None,
    max_atoms: int | None,
    largest_fragment: bool,
) -> str:
    options = {
        "featuriser": FEATURISER_VERSION,
        "rdkit": rdkit.__version__,  # another version may write other canonical SMILES
        "vocabulary": None if vocabulary is None else vocabulary.to_dict(),
        "max_atoms": max_atoms,
        "largest_fragment": largest_fragment,
    }
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for text in smiles:
        encoded = repr(text).encode()  # repr keeps None, nan and "None" apart
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]
