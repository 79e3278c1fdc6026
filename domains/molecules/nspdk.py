"""Neighbourhood subgraph pairwise distance kernel (NSPDK) and the maximum mean discrepancy built on it.

A molecule is a graph with atom labels (element symbol) and bond labels (`int` of the bond order, so an
aromatic bond is 1: the convention of the GDSS protocol). For a radius `r` and a distance `d`, each ordered
pair of atoms `(v, u)` at topological distance `d` gives one feature, the unordered pair of the neighbourhoods
`N_r(v), N_r(u)`, and one "half" feature, `N_r(u)` alone. Counts are scaled to unit length within each `(r,
d)`, then over the whole vector:

    phi(G) = normalise( concat over (r, d) of normalise( counts_{r,d}(G) ) ),   k(G, G') = <phi(G), phi(G')>.

A neighbourhood is represented by the sequence of label multisets (label, degree) met at distance 0, 1, ..., r
from its root, bonds lying half-way between their atoms. The kernel is linear, so the squared discrepancy
needs no kernel matrix:

    MMD^2 = mean k(R, R) + mean k(G, G) - 2 mean k(R, G) = || mean phi(R) - mean phi(G) ||^2,   O(n).

Source: Costa & De Raedt, "Fast neighborhood subgraph pairwise distance kernel", ICML 2010. Half features,
degree-aware labels and the two normalisations follow the behaviour of EDeN (`vectorize(complexity=4,
discrete=True)`), whose features are folded into 2**16 buckets; here they are 64-bit, hence practically free
of collisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from rdkit import Chem, rdBase

from sciLDM.domains.molecules._parallel import CHUNK, Progress, parallel_map
from sciLDM.errors import ConfigError, DataError

__all__ = ["NspdkMean", "nspdk_features", "nspdk_mean", "nspdk_mmd"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MERGE_AT = 1 << 20


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 finaliser (Steele et al. 2014): a bijection of 64-bit words that scatters close inputs."""
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _chain(state: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Order-sensitive combination of two arrays of hashes."""
    return _mix(_mix(state) ^ (values * np.uint64(3)))


@final
@dataclass(frozen=True, slots=True, eq=False)  # arrays have no truth value
class NspdkMean:
    """Mean feature vector of a set of molecules, sparse.

    Attributes:
        keys: sorted 64-bit feature hashes.
        values: mean value of each feature.
        count: number of molecules averaged.
    """

    keys: np.ndarray
    values: np.ndarray
    count: int


def _neighbourhoods(mol: Chem.Mol, distance: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes `[atom, radius + 1]` of every rooted neighbourhood; each atom's eccentricity, capped."""
    # Unsigned sums wrap around, which is harmless: a sum of scattered hashes is a hash of the multiset.
    atoms = _mix(np.array([a.GetAtomicNum() * 64 + a.GetDegree() for a in mol.GetAtoms()], dtype=np.uint64))
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), int(b.GetBondTypeAsDouble())) for b in mol.GetBonds()]
    ends = np.array(bonds, dtype=np.int64).reshape(-1, 3)
    bond_labels = _mix(_mix(ends[:, 2].astype(np.uint64)))
    near_end = np.minimum(distance[:, ends[:, 0]], distance[:, ends[:, 1]])

    def shell(level: np.ndarray, labels: np.ndarray, at: int) -> np.ndarray:
        return ((level == at) * labels).sum(axis=1, dtype=np.uint64)

    hashes = np.empty((len(atoms), radius + 1), dtype=np.uint64)
    hashes[:, 0] = _mix(atoms)
    for r in range(1, radius + 1):
        crossed = _chain(hashes[:, r - 1], shell(near_end, bond_labels, r - 1))
        hashes[:, r] = _chain(crossed, shell(distance, atoms, r))
    reached = np.where(distance <= radius, distance, 0)
    return hashes, reached.max(axis=1)


def nspdk_features(mol: Chem.Mol, *, radius: int = 4, distance: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Sparse unit vector `phi(mol)`.

    Args:
        mol: a molecule with at least one atom; hydrogens as given (implicit ones are not nodes).
        radius: largest neighbourhood radius, in bonds.
        distance: largest distance between the two roots, in bonds.

    Returns:
        `(keys, values)`: feature hashes (sorted) and their values, whose squares sum to one.

    Raises:
        DataError: the molecule has no atoms.
    """
    if mol.GetNumAtoms() == 0:
        raise DataError("NSPDK needs at least one atom, got an empty molecule; remove it from the set.")
    topological = Chem.GetDistanceMatrix(mol).astype(np.int64)
    hashes, eccentricity = _neighbourhoods(mol, topological, radius)
    v, u = np.nonzero(topological <= distance)
    apart = topological[v, u]
    keys, groups = [], []
    for r in range(radius + 1):
        # A neighbourhood of radius r exists only where some atom lies at distance r from the root.
        keep = (eccentricity[v] >= r) & (eccentricity[u] >= r)
        if not keep.any():
            break
        here, there, group = hashes[v[keep], r], hashes[u[keep], r], apart[keep] * (radius + 1) + r
        tag = _mix(group.astype(np.uint64))
        pair = _chain(_chain(np.minimum(here, there), np.maximum(here, there)), tag)
        half = _chain(~there, tag)
        keys += [pair, half]
        groups += [group, group]
    unique, first, counts = np.unique(np.concatenate(keys), return_index=True, return_counts=True)
    group = np.concatenate(groups)[first]
    squared = np.bincount(group, weights=counts.astype(np.float64) ** 2)
    # Every non-empty (r, d) block has unit length, so the whole vector has length sqrt(number of blocks).
    return unique, counts / np.sqrt(squared[group] * np.count_nonzero(squared))


def _sum_by_key(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    keys, inverse = np.unique(np.concatenate([k for k, _ in parts]), return_inverse=True)
    return keys, np.bincount(inverse, weights=np.concatenate([x for _, x in parts]), minlength=len(keys))


def _chunk_sum(
    smiles: Sequence[str | None], radius: int, distance: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Sum of `phi` over the valid molecules of a chunk, and their number. Runs in worker processes."""
    features = [(np.empty(0, np.uint64), np.empty(0))]
    with rdBase.BlockLogs():  # an unreadable SMILES is an expected input here
        for text in smiles:
            mol = Chem.MolFromSmiles(text) if text else None
            if mol is not None and mol.GetNumAtoms() > 0:
                features.append(nspdk_features(mol, radius=radius, distance=distance))
    keys, values = _sum_by_key(features)
    return keys, values, len(features) - 1


def nspdk_mean(
    smiles: Sequence[str | None],
    *,
    radius: int = 4,
    distance: int = 4,
    chunk_size: int = CHUNK,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
) -> NspdkMean:
    """Mean of `phi` over the molecules of a list; invalid entries (`None`, `""`, unreadable) are skipped.

    Args:
        smiles: SMILES strings.
        radius: largest neighbourhood radius, in bonds (EDeN's `complexity`).
        distance: largest distance between the two roots, in bonds (EDeN's `complexity`).
        chunk_size: molecules summed at once; does not change the result beyond rounding.
        n_jobs: worker processes; `None` takes every core, 1 stays in this process.
        progress: called with (molecules done, molecules in all) after each chunk.

    Raises:
        ConfigError: `radius`, `distance` or `chunk_size` out of range.
        DataError: no valid molecule.
    """
    if radius < 0 or distance < 0 or chunk_size < 1:
        raise ConfigError(
            f"Expected radius, distance >= 0 and chunk_size >= 1, got {radius}, {distance}, {chunk_size}."
        )
    chunks = [(smiles[i : i + chunk_size], radius, distance) for i in range(0, len(smiles), chunk_size)]
    total = (np.empty(0, np.uint64), np.empty(0))
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for keys, values, molecules in parallel_map(_chunk_sum, chunks, workers=n_jobs, progress=progress):
        pending.append((keys, values))
        count += molecules
        # Merging only when the new part outgrows the old keeps the cost of all merges n log n.
        if sum(len(k) for k, _ in pending) > max(len(total[0]), _MERGE_AT):
            total, pending = _sum_by_key([total, *pending]), []
    if count == 0:
        raise DataError("NSPDK needs at least one valid molecule, got none; check the SMILES column.")
    keys, values = _sum_by_key([total, *pending])
    return NspdkMean(keys=keys, values=values / count, count=count)


def nspdk_mmd(
    generated: NspdkMean | Sequence[str | None],
    reference: NspdkMean | Sequence[str | None],
    *,
    radius: int = 4,
    distance: int = 4,
) -> float:
    """Squared MMD under NSPDK, the biased (V-statistic) estimate that the GDSS protocol reports.

    The estimate carries a bias of about `(1 - mean k) (1/n + 1/m)`: compare sets of equal size only.

    Args:
        generated: SMILES, or their mean from `nspdk_mean`.
        reference: as `generated`; pass a mean to score several sets against one reference.
        radius: used for inputs given as SMILES.
        distance: used for inputs given as SMILES.

    Raises:
        DataError: a set without a valid molecule.
    """
    g, r = (
        s if isinstance(s, NspdkMean) else nspdk_mean(s, radius=radius, distance=distance)
        for s in (generated, reference)
    )
    _, difference = _sum_by_key([(g.keys, g.values), (r.keys, -r.values)])
    return float(difference @ difference)
