"""A prepared molecular data set: graphs, labels, splits, and what the codec needs of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from torch_geometric.data import Batch

from sciLDM.domain import Corpus, Progress
from sciLDM.domains.molecules import sources
from sciLDM.domains.molecules._textfiles import near_names
from sciLDM.domains.molecules.codec import ATOMS, AutoencoderSettings, Property
from sciLDM.domains.molecules.completion import LabelTable
from sciLDM.domains.molecules.descriptors import DESCRIPTORS, describe
from sciLDM.domains.molecules.featurise import Featurised, featurise_cached
from sciLDM.domains.molecules.reference import Reference
from sciLDM.domains.molecules.sizes import SizePrior
from sciLDM.domains.molecules.splits import split_by_smiles
from sciLDM.errors import ConfigError, DataError

__all__ = ["KNOWN_SOURCES", "DataSettings", "MoleculeCorpus"]

KNOWN_SOURCES = ("qm9", "moses", "zinc250k")
"""Data sets that `data:` may name instead of a file."""

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MOST_COUNTED = 32
"""Whole numbers up to this one are counts."""


@dataclass(frozen=True)
class DataSettings:
    """How a table of molecules is read and split."""

    smiles_column: str | None = None
    """Column holding SMILES; guessed when null."""
    largest_fragment: bool = False
    """Keep the largest part of a salt or mixture instead of rejecting it."""
    max_molecules: int | None = None
    """Use only this many molecules, drawn at random; all when null."""
    max_atoms: int | None = None
    """Reject molecules of more heavy atoms; none when null. Memory and time grow with the square of the largest."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test molecules."""
    salt: int = 0
    """Another number gives another split."""
    complete: bool = True
    """Draw the properties that a request leaves open as they go with those asked for. The labels (not the molecules) of
    2,048 training molecules then travel with the weights."""
    workers: int | None = None
    """Processes for featurising; one per core when null."""

    def __post_init__(self) -> None:
        if self.max_molecules is not None and self.max_molecules < 3:
            raise ConfigError(f"max_molecules must be at least 3, got {self.max_molecules}")
        if self.max_atoms is not None and self.max_atoms < 1:
            raise ConfigError(f"max_atoms must be at least 1, got {self.max_atoms}")
        if len(self.fractions) != 3 or min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ConfigError(
                "fractions: expected shares of training, validation and test molecules, all above 0, that sum to 1, "
                f"got {list(self.fractions)}"
            )


@final
class MoleculeCorpus(Corpus):
    """Molecules of one table, merged by canonical SMILES and split by its hash.

    Args:
        table: Column `smiles` and numeric columns.
        name: Of the source, for the card.
        conditions: Columns or RDKit descriptors to condition on.
        cache: Folder for featurised graphs.
        autoencoder: Autoencoder settings, kept in the state.
        label_dropout: Share of training samples whose label is dropped, per property.
        settings: How the table is read and split.
        progress: Told how far the work has come.

    Raises:
        DataError: Nothing usable, an unknown condition, or one without any value.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        name: str,
        conditions: Sequence[str],
        cache: Path,
        autoencoder: AutoencoderSettings,
        label_dropout: float,
        settings: DataSettings,
        progress: Progress,
    ) -> None:
        limit, workers = settings.max_molecules, settings.workers
        read_notes = tuple(table.attrs.get("notes", ()))
        if limit is not None and len(table) > limit:
            table = table.sample(limit, random_state=settings.salt).reset_index(drop=True)
        graphs = featurise_cached(
            table["smiles"].tolist(),
            cache,
            workers=workers,
            max_atoms=settings.max_atoms,
            largest_fragment=settings.largest_fragment,
            progress=lambda done, total: progress("featurising molecules", done, total),
        )
        self.rejected, self.changed = graphs.rejected, graphs.changed
        self.smiles, rows = _merge(graphs.smiles)
        self._graphs, self._rows = graphs, rows
        columns = table.iloc[graphs.kept].reset_index(drop=True)
        labels = self._resolve(columns, rows, list(conditions), read_notes, cache, workers, progress)
        self._labels, descriptor = labels
        split = split_by_smiles(self.smiles, fractions=settings.fractions, salt=settings.salt)
        self._split = {"train": split.train, "validation": split.validation, "test": split.test}
        self.sizes = {k: len(v) for k, v in self._split.items()}
        self._atoms = graphs.graphs.sizes()[rows]
        key = json.dumps([self.smiles, list(settings.fractions), settings.salt]).encode()
        self.fingerprint = hashlib.sha256(
            key + b"".join(v.tobytes() for v in self._labels.values())
        ).hexdigest()
        train = self._split["train"]
        properties = [_property(c, self._labels[c][train], descriptor[c]) for c in conditions]
        self.notes = (*read_notes, *_notes(graphs, len(table), self._atoms))
        known = {c: self._labels[c][train] for c in conditions}
        prior = SizePrior.fit(self._atoms[train], known)
        joint = LabelTable.of(self._atoms[train], known) if settings.complete else None
        self.state = {
            "vocabulary": graphs.vocabulary.to_dict(),
            "properties": [asdict(p) for p in properties],
            "sizes": prior.to_dict(),
            "completion": None if joint is None else joint.to_dict(),
            "autoencoder": asdict(autoencoder),
            "dropout": label_dropout,
            "source": {
                "name": name,
                "fingerprint": self.fingerprint,
                "max_molecules": limit,
                "salt": settings.salt,
                "fractions": list(settings.fractions),
            },
        }

    @staticmethod
    def load_source(name: str) -> pd.DataFrame:
        """Table of a known data set."""
        return {"qm9": sources.qm9, "zinc250k": sources.zinc250k, "moses": lambda: sources.moses("train")}[
            name
        ]()

    @staticmethod
    def known_splits(
        name: str, *, salt: int, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    ) -> dict[str, list[str]]:
        """Canonical SMILES per split of a known data set, without featurising labels."""
        from sciLDM.data.cards import cache_root

        graphs = featurise_cached(
            MoleculeCorpus.load_source(name)["smiles"].tolist(), cache_root() / "graphs"
        )
        smiles, _ = _merge(graphs.smiles)
        split = split_by_smiles(smiles, fractions=fractions, salt=salt)
        return {"train": [smiles[i] for i in split.train], "test": [smiles[i] for i in split.test]}

    def fields(self, split: str, indices: np.ndarray) -> Batch:
        return self._graphs.graphs.to_batch(self._rows[self._split[split][indices]])

    def labels(self, split: str) -> Mapping[str, np.ndarray]:
        chosen = self._split[split]
        labels = {name: values[chosen].astype(np.float32) for name, values in self._labels.items()}
        return {ATOMS: self._atoms[chosen].astype(np.int64), **labels}

    def write_reference(self, folder: Path) -> None:
        Reference.write(folder, *[[self.smiles[i] for i in self._split[s]] for s in ("train", "test")])
        self.rejected.to_csv(folder / "rejected.csv", index=False)
        if len(self.changed):
            self.changed.to_csv(folder / "changed.csv", index=False)

    def _resolve(
        self,
        columns: pd.DataFrame,
        rows: np.ndarray,
        names: list[str],
        notes: Sequence[str],
        cache: Path,
        workers: int | None,
        progress: Progress,
    ) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
        """Labels of the merged molecules: the table's own column first, else an RDKit descriptor."""
        unknown = [n for n in names if n not in columns.columns and n not in DESCRIPTORS]
        if unknown:
            present = [str(c) for c in columns.columns if c != "smiles"]
            # A column that is there and was left out in reading: say why, rather than that it does not exist.
            reasons = [note for n in unknown for note in notes if repr(n) in note]
            hints = [hint for n in unknown if (hint := near_names(n, [*present, *DESCRIPTORS]))]
            raise DataError(
                f"cannot condition on {', '.join(map(repr, unknown))}: "
                + ("; ".join(reasons) + "; " if reasons else "".join(hints))
                + f"expected a numeric column of the table ({', '.join(present) or 'it has none'}) "
                f"or an RDKit descriptor ({', '.join(DESCRIPTORS)})"
            )
        wanted = [n for n in names if n in DESCRIPTORS]
        computed = _described(self.smiles, wanted, cache, workers, progress) if wanted else pd.DataFrame()
        group = pd.Series(self._group(rows, len(columns)))
        labels: dict[str, np.ndarray] = {}
        for name in names:
            if name in columns.columns:
                labels[name] = columns[name].groupby(group).mean().to_numpy(dtype=np.float64)
            else:
                labels[name] = computed[name].to_numpy(dtype=np.float64)
            if not np.isfinite(labels[name]).any():
                raise DataError(
                    f"column {name!r} has no value for any usable molecule; leave it out of `conditions`"
                )
        return labels, {name: name in DESCRIPTORS for name in names}

    def _group(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Merged molecule of every featurised one."""
        index = {s: k for k, s in enumerate(self.smiles)}
        return np.fromiter((index[s] for s in self._graphs.smiles), dtype=np.int64, count=count)


def _notes(graphs: Featurised, rows: int, atoms: np.ndarray) -> list[str]:
    """What was left out or merged, and what will be slow."""
    notes = []
    if len(graphs.rejected):
        reasons = graphs.rejected["reason"].str.split(":").str[0].value_counts()
        counted = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.head(4).items())
        notes.append(
            f"{len(graphs.rejected):,} of {rows:,} rows rejected ({counted}); see reference/rejected.csv"
        )
    if len(graphs.changed):
        notes.append(f"{len(graphs.changed):,} molecules kept in altered form; see reference/changed.csv")
    if copies := len(graphs.smiles) - len(atoms):
        notes.append(f"{copies:,} rows are copies of another molecule; their values were averaged")
    usual, largest = int(np.quantile(atoms, 0.99, method="lower")), int(atoms.max())
    if largest > 2 * usual + 20:
        notes.append(
            f"the largest molecule has {largest} heavy atoms, 99 % have at most {usual}; memory and time grow with the "
            f"square of the largest: consider domain.init_args.settings.max_atoms={usual}"
        )
    return notes


def _merge(smiles: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct SMILES in order of first appearance, and where each first stands."""
    first: dict[str, int] = {}
    for row, text in enumerate(smiles):
        first.setdefault(text, row)
    return list(first), np.fromiter(first.values(), dtype=np.int64, count=len(first))


def _property(name: str, values: np.ndarray, descriptor: bool) -> Property:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        raise DataError(f"column {name!r} has no value in the training split; leave it out of `conditions`")
    std = float(known.std())
    if std < 1e-8 * max(1.0, abs(float(known.mean()))):
        raise DataError(
            f"column {name!r} is constant ({known[0]:g}): nothing to learn; leave it out of `conditions`"
        )
    whole = bool((known == known.round()).all()) and known.min() >= 0 and known.max() <= _MOST_COUNTED
    return Property(
        name,
        descriptor,
        float(known.mean()),
        std,
        [float(q) for q in np.quantile(known, _QUANTILES)],
        counts=int(known.max()) if whole else 0,
    )


def _described(
    smiles: list[str], names: list[str], cache: Path, workers: int | None, progress: Progress
) -> pd.DataFrame:
    """Descriptors of all molecules, cached beside the graphs."""
    from sciLDM.domains.molecules.graphs import write_npz

    key = hashlib.sha256(json.dumps([smiles, sorted(names)]).encode()).hexdigest()[:24]
    path = cache / f"descriptors-{key}.npz"
    if path.exists():
        try:
            # Opened here: NumPy leaves a damaged archive open.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return pd.DataFrame({n: stored[n] for n in names})
        except Exception:  # zip, zlib, header and key errors: whatever is wrong, it is computed again
            path.unlink(missing_ok=True)
    table = describe(
        smiles,
        names,
        workers=workers,
        progress=lambda done, total: progress("computing descriptors", done, total),
    )
    write_npz(path, {n: table[n].to_numpy() for n in names})
    return table
