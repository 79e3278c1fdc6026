"""Reference statistics of the MOSES test sets: those with which the published numbers were computed.

They lie in the wheel of the benchmark as pickled arrays and counters, and are read once by an unpickler that knows
those and nothing else; a plain archive in the per-user cache serves from then on.
"""

import io
import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pandas as pd

from sciLDM.data.cards import cache_root, locate
from sciLDM.domains.molecules import sources
from sciLDM.domains.molecules._descriptors import PROPERTIES, profile
from sciLDM.domains.molecules.fcd import FcdStatistics, fcd_statistics
from sciLDM.domains.molecules.graphs import write_npz
from sciLDM.domains.molecules.neighbours import FingerprintIndex
from sciLDM.errors import DataError

__all__ = ["MosesReference", "moses_reference", "read_statistics"]

_VALUES = ("logP", "SA", "QED", "weight")  # in the order of PROPERTIES
_FORMAT = 1


@final
@dataclass(frozen=True, eq=False)
class MosesReference:
    """One test set, as the metrics need it.

    Attributes:
        name: `Test` or `TestSF`.
        fcd: Mean and covariance of ChemNet's activations.
        index: Fingerprints (Morgan, radius 2, 1024 bits).
        fragments: Counts of BRICS fragments.
        scaffolds: Counts of Murcko scaffolds of two rings or more.
        properties: A row for each molecule, columns as `PROPERTIES`.
    """

    name: str
    fcd: FcdStatistics
    index: FingerprintIndex
    fragments: Mapping[str, int]
    scaffolds: Mapping[str, int]
    properties: pd.DataFrame

    @staticmethod
    def of(name: str, smiles: Sequence[str], *, workers: int | None = 1) -> "MosesReference":
        """The same of any molecules (canonical SMILES), for test sets of one's own; takes minutes for 10,000."""
        own = profile(smiles, workers, None)
        index = FingerprintIndex.build(smiles, n_bits=1024, n_jobs=workers)
        return MosesReference(
            name, fcd_statistics(smiles), index, own.fragments, own.scaffolds, own.properties
        )


def moses_reference(split: Literal["test", "test_scaffolds"], *, cache: Path | None = None) -> MosesReference:
    """Statistics of a MOSES test set.

    Args:
        split: Which.
        cache: Folder for the archive; the per-user cache when None.

    Raises:
        DataError: The files are absent (the message says how to get them), damaged, or not the ones of the card.
    """
    path = (cache or cache_root() / "bench") / f"moses-{split}-{_FORMAT}.npz"
    stored = _cached(path)
    if stored is None:
        source = next(p for p in locate("moses_metrics", verify=True) if p.name == f"{split}_stats.npz")
        stored = _flat(read_statistics(source))
        write_npz(path, stored)
    smiles = sources.moses(split)["smiles"].tolist()
    if len(smiles) != len(stored["words"]):
        raise DataError(
            f"MOSES {split}: expected statistics of {len(smiles):,} molecules, got {len(stored['words']):,}; "
            f"delete {path} and fetch the wheel again"
        )
    return MosesReference(
        name="Test" if split == "test" else "TestSF",
        fcd=FcdStatistics(stored["mean"], stored["covariance"], len(smiles)),
        index=FingerprintIndex(smiles, stored["words"], radius=2, n_bits=1024),
        fragments=_counts(stored, "fragments"),
        scaffolds=_counts(stored, "scaffolds"),
        properties=pd.DataFrame(stored["properties"], columns=list(PROPERTIES)),
    )


def read_statistics(path: Path) -> dict[str, Any]:
    """The pickled dictionary of a `*_stats.npz`: arrays, numbers, text and counters; anything else is refused.

    Raises:
        DataError: Not such a file, or one that holds other objects.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("stats.npy") as stream:
            content = io.BytesIO(stream.read())
        np.lib.format.read_magic(content)
        np.lib.format.read_array_header_1_0(content)
        found = _Careful(content).load()
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: expected statistics of the MOSES package, got {error}") from error
    return found.item()


@final
class _Careful(pickle.Unpickler):
    """An unpickler of data alone: a pickle may name any function, and these names call nothing of the user's."""

    def find_class(self, module: str, name: str) -> Any:
        modern = module.replace("numpy.core", "numpy._core")
        if (module, name) == ("collections", "Counter"):
            return Counter
        if (module, name) == ("_codecs", "encode"):  # how Python 2 protocols write bytes
            return _bytes
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if modern == "numpy._core.multiarray" and name in ("_reconstruct", "scalar"):
            return getattr(import_module(modern), name)
        raise pickle.UnpicklingError(f"an object of {module}.{name}, which is no plain data")


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _flat(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Plain arrays of a package's dictionary."""
    bits = np.packbits(found["SNN"]["fps"].astype(np.uint8), axis=1, bitorder="little")
    arrays = {
        "mean": np.asarray(found["FCD"]["mu"], dtype=np.float64),
        "covariance": np.asarray(found["FCD"]["sigma"], dtype=np.float64),
        "words": np.ascontiguousarray(bits).view(np.uint64),
        "properties": np.stack([np.asarray(found[name]["values"], dtype=np.float64) for name in _VALUES], 1),
    }
    for name, counts in (("fragments", found["Frag"]["frag"]), ("scaffolds", found["Scaf"]["scaf"])):
        known = {key: count for key, count in counts.items() if key}
        arrays[f"{name}_names"] = np.frombuffer("\n".join(known).encode(), dtype=np.uint8)
        arrays[f"{name}_counts"] = np.fromiter(known.values(), dtype=np.int64, count=len(known))
    return arrays


def _counts(stored: Mapping[str, np.ndarray], name: str) -> dict[str, int]:
    names = stored[f"{name}_names"].tobytes().decode().split("\n")
    return dict(zip(names, stored[f"{name}_counts"].tolist(), strict=True))


def _cached(path: Path) -> dict[str, np.ndarray] | None:
    try:
        # Opened here: NumPy leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
