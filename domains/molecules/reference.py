"""The molecules that samples are compared with: a run's own training and test split.

A run folder holds them as text. Shipped weights do not: the split is a function of each SMILES alone
(`splits.split_by_smiles`), so it is rebuilt from the data set's package and cached per user.
"""

import gzip
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

from sciLDM.data.cards import cache_root
from sciLDM.domains.molecules.neighbours import FingerprintIndex
from sciLDM.errors import DataError, SciLDMError

__all__ = ["Reference", "find_reference"]


@final
class Reference:
    """Training and test molecules of a run, as canonical SMILES in `<folder>/{train,test}.smi.gz`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def write(folder: Path, train: Sequence[str], test: Sequence[str]) -> "Reference":
        """Write both lists, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, smiles in (("train", train), ("test", test)):
            partial = folder / f"{name}.smi.gz.partial"
            with gzip.open(partial, "wt", encoding="utf-8", compresslevel=6) as stream:
                stream.writelines(f"{s}\n" for s in smiles)
            partial.replace(folder / f"{name}.smi.gz")
        return Reference(folder)

    @cached_property
    def train(self) -> list[str]:
        """Canonical SMILES of the training split."""
        return self._read("train")

    @cached_property
    def test(self) -> list[str]:
        """Canonical SMILES of the held-out split."""
        return self._read("test")

    @cached_property
    def index(self) -> FingerprintIndex:
        """Fingerprints of the training split, built once and kept beside it."""
        path = self.folder / "train_fingerprints.npz"
        if path.exists():
            try:
                return FingerprintIndex.load(path)
            except SciLDMError:
                warnings.warn(f"{path} is damaged and is built again", stacklevel=2)
        index = FingerprintIndex.build(self.train, n_jobs=None)
        index.save(path)
        return index

    def _read(self, name: str) -> list[str]:
        path = self.folder / f"{name}.smi.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8") as stream:
                return stream.read().split()
        except (OSError, EOFError) as error:
            raise DataError(
                f"cannot read the reference molecules {path} ({error}); run `scildm fit` again"
            ) from error


def find_reference(folder: Path | None, source: Mapping[str, Any]) -> Reference | None:
    """The reference of a run folder, or of a known data set; None (with a warning) when there is neither.

    Args:
        folder: A run's reference folder.
        source: As in the codec's state: `name`, `fingerprint`, `max_molecules`, `salt`, `fractions`.
    """
    if folder is not None and (folder / "train.smi.gz").exists():
        return Reference(folder)
    from sciLDM.domains.molecules.corpus import KNOWN_SOURCES, MoleculeCorpus

    if source["name"] not in KNOWN_SOURCES or source.get("max_molecules"):
        warnings.warn(
            "the training molecules are not at hand: no nearest neighbours, no novelty", stacklevel=2
        )
        return None
    cached = cache_root() / "reference" / f"{source['name']}-{source['fingerprint'][:16]}"
    if not (cached / "train.smi.gz").exists():
        try:
            fractions = tuple(source.get("fractions", (0.8, 0.1, 0.1)))
            splits = MoleculeCorpus.known_splits(source["name"], salt=source["salt"], fractions=fractions)
        except DataError as error:
            warnings.warn(
                f"the training molecules are not at hand ({error}): no nearest neighbours", stacklevel=2
            )
            return None
        Reference.write(cached, splits["train"], splits["test"])
    return Reference(cached)
