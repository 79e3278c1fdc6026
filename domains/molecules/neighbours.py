"""Nearest training molecule by Tanimoto similarity of Morgan fingerprints.

    T(a, b) = |a & b| / |a | b|  over the bits of two fingerprints,   T(a, b) <= min(|a|, |b|) / max(|a|, |b|)

Fingerprints are packed into 64-bit words and sorted by their number of bits; a block of the index is skipped
for a query whenever that bound cannot reach the best similarity found so far. Results are exact. Ties go to
the molecule that comes first in the training list, so they do not depend on the block size.

Sources: Rogers & Hahn, "Extended-connectivity fingerprints", J. Chem. Inf. Model. 50, 742 (2010); Swamidass &
Baldi, "Bounds and algorithms for fast exact searches of chemical fingerprints", J. Chem. Inf. Model. 47, 302
(2007).
"""

import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, UInt64
from numpy import ndarray
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdFingerprintGenerator

from sciLDM.domains.molecules._parallel import CHUNK, Progress, parallel_map
from sciLDM.domains.molecules.graphs import write_npz
from sciLDM.errors import ArtefactError, ConfigError, DataError

__all__ = ["FingerprintIndex", "morgan_words", "nearest", "tanimoto_blocks"]

_FORMAT = 1


def morgan_words(
    smiles: Sequence[str | None],
    *,
    radius: int = 2,
    n_bits: int = 2048,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
) -> tuple[UInt64[ndarray, "molecules words"], Bool[ndarray, " molecules"]]:
    """Morgan bit fingerprints packed into 64-bit words, and which entries are valid (an invalid row is zero).

    Args:
        smiles: SMILES strings; `None`, `""` and unreadable strings are invalid. Stereo is ignored.
        radius: in bonds.
        n_bits: length of the fingerprint, a multiple of 64.
        n_jobs: worker processes; `None` takes every core, 1 stays in this process.
        progress: called with (molecules done, molecules in all).

    Raises:
        ConfigError: `n_bits` is not a positive multiple of 64, or `radius` is negative.
    """
    if n_bits < 64 or n_bits % 64 or radius < 0:
        raise ConfigError(f"Expected radius >= 0 and n_bits a multiple of 64, got {radius} and {n_bits}.")
    chunks = [(smiles[i : i + CHUNK], radius, n_bits) for i in range(0, len(smiles), CHUNK)]
    parts = list(parallel_map(_pack_chunk, chunks, workers=n_jobs, progress=progress))
    if not parts:
        return np.zeros((0, n_bits // 64), dtype=np.uint64), np.zeros(0, dtype=bool)
    return np.concatenate([words for words, _ in parts]), np.concatenate([valid for _, valid in parts])


def tanimoto_blocks(
    words: UInt64[ndarray, "molecules words"], size: int = 1024
) -> Iterator[tuple[int, Float32[ndarray, "block molecules"]]]:
    """Similarities of all fingerprints to all, some rows at a time: the first row's number, and the rows."""
    # Counts of common bits are integers below 2**24, hence exact in single precision.
    bits = np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32)
    count = bits.sum(axis=1)
    for start in range(0, len(bits), size):
        part = slice(start, start + size)
        common = bits[part] @ bits.T
        yield start, common / np.maximum(count[part, None] + count[None, :] - common, 1.0)


def _pack_chunk(smiles: Sequence[str | None], radius: int, n_bits: int) -> tuple[ndarray, ndarray]:
    """`morgan_words` of a chunk. Runs in worker processes."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
    words = np.zeros((len(smiles), n_bits // 64), dtype=np.uint64)
    valid = np.zeros(len(smiles), dtype=bool)
    with rdBase.BlockLogs():
        for i, text in enumerate(smiles):
            mol = Chem.MolFromSmiles(text) if text else None
            if mol is not None:
                packed = DataStructs.BitVectToBinaryText(generator.GetFingerprint(mol))
                words[i] = np.frombuffer(packed, dtype=np.uint64)
                valid[i] = True
    return words, valid


@final
class FingerprintIndex:
    """Searchable fingerprints of a list of molecules.

    Build with `FingerprintIndex.build` or `FingerprintIndex.load`. Memory: `n_bits / 8` bytes a molecule
    (26 MB for 100,000 at 2048 bits) plus the SMILES.

    Attributes:
        smiles: the valid molecules of the list, in its order.
        radius: radius of the fingerprints, in bonds.
        n_bits: their length.
    """

    def __init__(
        self, smiles: Sequence[str], words: UInt64[ndarray, "molecules words"], *, radius: int, n_bits: int
    ) -> None:
        if len(smiles) == 0 or words.shape != (len(smiles), n_bits // 64):
            raise DataError(
                f"Expected one or more molecules with {n_bits // 64} words each, got {len(smiles)} molecules "
                f"and words of shape {words.shape}; use FingerprintIndex.build."
            )
        self.smiles = tuple(smiles)
        self.radius = radius
        self.n_bits = n_bits
        bits = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
        self._order = np.argsort(bits, kind="stable")
        self._bits = bits[self._order]
        # One row a word: the inner loop then runs along memory and skips the words a query leaves empty.
        self._words = np.ascontiguousarray(words[self._order].T)

    def __len__(self) -> int:
        return len(self.smiles)

    @classmethod
    def build(
        cls,
        smiles: Sequence[str | None],
        *,
        radius: int = 2,
        n_bits: int = 2048,
        n_jobs: int | None = 1,
        progress: Progress | None = None,
    ) -> "FingerprintIndex":
        """Index of the valid molecules of a list; see `morgan_words` for the arguments.

        Raises:
            DataError: no valid molecule.
        """
        entries = list(smiles)
        words, valid = morgan_words(entries, radius=radius, n_bits=n_bits, n_jobs=n_jobs, progress=progress)
        kept = [s for s, ok in zip(entries, valid, strict=True) if ok and s]
        return cls(kept, words[valid], radius=radius, n_bits=n_bits)

    def search(
        self, words: UInt64[ndarray, "queries words"], *, block_size: int = 8192
    ) -> tuple[ndarray, ndarray]:
        """Nearest molecule of each query fingerprint.

        Args:
            words: packed queries of the same radius and length.
            block_size: molecules compared at once; does not change the result.

        Returns:
            `(position in smiles, Tanimoto similarity)` of each query.

        Raises:
            ConfigError: queries of another length, or `block_size` below one.
        """
        if words.ndim != 2 or words.shape[1] != len(self._words) or block_size < 1:
            raise ConfigError(
                f"Expected queries [n, {len(self._words)}] of {self.n_bits} bits and block_size >= 1, "
                f"got {words.shape} and {block_size}; use morgan_words as the index does."
            )
        starts = np.arange(0, len(self), block_size)
        low = self._bits[starts]
        high = self._bits[np.minimum(starts + block_size, len(self)) - 1]
        position = np.empty(len(words), dtype=np.int64)
        similarity = np.empty(len(words))
        for i, query in enumerate(words):
            position[i], similarity[i] = self._search_one(query, starts, low, high, block_size)
        return position, similarity

    def _search_one(
        self, query: ndarray, starts: ndarray, low: ndarray, high: ndarray, block_size: int
    ) -> tuple[int, float]:
        size = int(np.bitwise_count(query).sum())
        # Best possible similarity in a block whose molecules have between `low` and `high` bits.
        closest = np.clip(size, low, high)
        bound = np.minimum(size, closest) / np.maximum(np.maximum(size, closest), 1)
        used = np.flatnonzero(query)
        best, where = -1.0, -1
        for block in np.argsort(-bound, kind="stable"):
            if bound[block] < best:
                break
            part = slice(starts[block], starts[block] + block_size)
            common = np.zeros(len(self._bits[part]), dtype=np.uint16)
            for word in used:
                common += np.bitwise_count(self._words[word, part] & query[word])
            union = self._bits[part] + size - common
            tanimoto = common / np.maximum(union, 1)
            top = tanimoto.max()
            if top >= best:
                first = int(self._order[part][tanimoto == top].min())
                where = first if top > best else min(where, first)
                best = float(top)
        return where, best

    def nearest(self, smiles: Sequence[str | None], *, block_size: int = 8192) -> pd.DataFrame:
        """See the function `nearest`."""
        words, valid = morgan_words(list(smiles), radius=self.radius, n_bits=self.n_bits)
        names: list[str | None] = [None] * len(valid)
        similarity = np.full(len(valid), np.nan)
        position, similarity[valid] = self.search(words[valid], block_size=block_size)
        for row, hit in zip(np.flatnonzero(valid), position, strict=True):
            names[row] = self.smiles[hit]
        return pd.DataFrame(
            {"nearest_train_smiles": pd.Series(names, dtype=object), "similarity": similarity}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one npz file (no pickle inside), atomically."""
        original = np.empty_like(self._words.T)
        original[self._order] = self._words.T
        text = np.frombuffer("\n".join(self.smiles).encode(), dtype=np.uint8)
        header = np.array([_FORMAT, self.radius, self.n_bits], dtype=np.int64)
        write_npz(Path(path), {"header": header, "words": original, "smiles": text})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FingerprintIndex":
        """Read a file written by `save`.

        Raises:
            ArtefactError: the file is absent, damaged, or of another format.
        """
        try:
            # Opened here: NumPy leaves a damaged file open.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
                version, radius, n_bits = (int(x) for x in stored["header"])
                words, text = stored["words"], stored["smiles"].tobytes().decode()
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ArtefactError(
                f"Expected a fingerprint index at {path}, got {error}; build it again."
            ) from error
        if version != _FORMAT:
            raise ArtefactError(f"Expected index format {_FORMAT} at {path}, got {version}; build it again.")
        return cls(text.split("\n"), words, radius=radius, n_bits=n_bits)


def nearest(
    smiles: Sequence[str | None],
    train: Sequence[str | None] | FingerprintIndex,
    *,
    radius: int = 2,
    n_bits: int = 2048,
    block_size: int = 8192,
) -> pd.DataFrame:
    """Nearest training molecule of each molecule: a table to audit memorisation with.

    Args:
        smiles: molecules to look up; an invalid one gets `None` and NaN.
        train: training SMILES, or an index of them (then `radius` and `n_bits` are the index's).
        radius: radius of the Morgan fingerprint, in bonds.
        n_bits: its length.
        block_size: molecules compared at once.

    Returns:
        One row for each of `smiles`: `nearest_train_smiles` and `similarity` (Tanimoto, in [0, 1]).

    Raises:
        DataError: no valid training molecule.
    """
    index = (
        train
        if isinstance(train, FingerprintIndex)
        else FingerprintIndex.build(train, radius=radius, n_bits=n_bits)
    )
    return index.nearest(smiles, block_size=block_size)
