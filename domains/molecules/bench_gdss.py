"""The protocol of GDSS on QM9 and ZINC250k: 10,000 graphs, validity without correction, NSPDK and FCD.

Molecules that a correction has touched count as invalid in `valid raw`, and are used (whole) in all other metrics.
Where GDSS lowers bond orders and keeps the largest piece, our decoder's valence constraint returns one connected
molecule; samples of others are scored as they are. Sets are compared with the held-out test molecules.

Two departures, printed with every result: the test molecules are those of our own split (by hash of the canonical
SMILES), since the published indices belong to files that no package brings; and raw validity is RDKit's full
sanitisation with the charges that the model itself gave, where GDSS assigns +1 to an over-valent N, O or S first.

Sources: Jo, Lee & Hwang, ICML 2022, arXiv:2202.02514. NSPDK: Costa & De Raedt, ICML 2010. FCD: Preuer et al., J. Chem.
Inf. Model. 58, 1736 (2018).
"""

import gzip
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from rdkit import Chem, rdBase

from sciLDM.data.cards import cache_root, locate
from sciLDM.domain import Progress
from sciLDM.domains.molecules._descriptors import profile
from sciLDM.domains.molecules.bench import Context, Metric, MoleculeBenchmark
from sciLDM.domains.molecules.bench_published import QM9, ZINC250K, Published
from sciLDM.domains.molecules.fcd import chemnet_version, fcd_statistics, frechet_chemnet_distance
from sciLDM.domains.molecules.graphs import write_npz
from sciLDM.domains.molecules.nspdk import NspdkMean, nspdk_mean, nspdk_mmd
from sciLDM.domains.molecules.reference import Reference, find_reference
from sciLDM.domains.molecules.scaffolds import cosine_similarity, scaffold_counts
from sciLDM.errors import DataError

__all__ = ["Qm9Benchmark", "Zinc250kBenchmark"]

_METRICS = (
    Metric(
        "NSPDK", "squared MMD (complexity 4, biased estimate) against the test molecules; lower is better"
    ),
    Metric("FCD", "Frechet ChemNet distance to the test molecules, duplicates kept; lower is better"),
    Metric("Scaf", "cosine of Murcko scaffold counts (2 rings or more) with the test molecules'"),
)
_TABLES = {"GDSS protocol": ("valid raw", "valid", "unique", "novel", "NSPDK", "FCD", "Scaf")}
_SPLIT = (
    "test molecules are those of our own split, not the published indices; published FCD on other splits differs by "
    "curation alone (0.11 or 0.20 for the same QM9 samples)"
)


class _Gdss(MoleculeBenchmark):
    """Shared by both data sets."""

    samples = 10_000
    unique_at: ClassVar[Sequence[int | None]] = (None,)
    metrics = _METRICS
    tables: ClassVar[Mapping[str, Sequence[str]]] = _TABLES

    def split(self) -> Reference:
        """Training and test molecules of the scored model."""
        chemnet_version()  # absent weights are said now
        return _own_split(self.name, self.run, self.source)

    def measure(self, valid: list[str], progress: Progress) -> dict[str, float]:
        self.prepare()
        jobs, device = self.context.workers, self.context.device
        mean = nspdk_mean(valid, n_jobs=jobs, progress=partial(progress, "NSPDK"))
        statistics = fcd_statistics(
            self._test,
            cache_dir=_fcd_cache(self.context),
            device=device,
            progress=partial(progress, "FCD of test"),
        )
        fcd = frechet_chemnet_distance(valid, statistics, device=device, progress=partial(progress, "FCD"))
        scaffolds = profile(valid, jobs, partial(progress, "scaffolds"), properties=False).scaffolds
        return {
            "NSPDK": nspdk_mmd(mean, self._nspdk_of_test(progress)),
            "FCD": fcd.value,
            "Scaf": cosine_similarity(scaffolds, scaffold_counts(self._test)),
        }

    def _nspdk_of_test(self, progress: Progress) -> NspdkMean:
        digest = hashlib.sha256("\n".join(sorted(self._test)).encode()).hexdigest()[:24]
        path = self.context.folder / f"nspdk-{digest}.npz"
        try:
            # Opened here: NumPy leaves a damaged file open.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return NspdkMean(stored["keys"], stored["values"], int(stored["count"]))
        except Exception:  # absent, or damaged in one of many ways: it is computed again
            pass
        found = nspdk_mean(
            self._test, n_jobs=self.context.workers, progress=partial(progress, "NSPDK of test")
        )
        write_npz(path, {"keys": found.keys, "values": found.values, "count": np.asarray(found.count)})
        return found


@final
class Qm9Benchmark(_Gdss):
    """QM9 without hydrogens."""

    name = "qm9"
    published: ClassVar[Sequence[Published]] = QM9

    notes = (_SPLIT, "QM9 lists nearly all molecules of its kind: novelty is an audit here, no merit")

    def reference(self) -> tuple[list[str], list[str]]:
        found = self.split()
        return found.train, found.test


@final
class Zinc250kBenchmark(_Gdss):
    """ZINC250k with charges and stereo.

    With the published test molecules in `$SCILDM_DATA/molecules/zinc250k_test.smi.gz` (one SMILES a line; the 24,887
    lines of `valid_idx_zinc250k.json`) samples are compared with those, else with the run's own test split.
    """

    name = "zinc250k"
    published: ClassVar[Sequence[Published]] = ZINC250K

    def __init__(
        self,
        context: Context = Context(),  # noqa: B008 - frozen
        *,
        run: Path | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(context, run=run, source=source)
        self._official = _official_test()
        if self._official is None:
            self.notes = (
                f"{_SPLIT}; the published ones are taken from molecules/zinc250k_test.smi.gz if it is there",
            )

    def reference(self) -> tuple[list[str], list[str]]:
        found = self.split()
        test = found.test if self._official is None else _read_smiles(self._official)
        return found.train, test


def _own_split(name: str, run: Path | None, source: Mapping[str, Any] | None) -> Reference:
    """The run's own molecules when it was trained on this data set, else the default split."""
    if source is None or source.get("name") != name:
        run, source = None, {"name": name, "fingerprint": "default-split", "salt": 0, "max_molecules": None}
    elif source.get("max_molecules") and run is None:
        raise DataError(f"{name}: the model saw a part of the data, and its run folder is not at hand")
    if run is None:
        locate(name)  # says what is missing, and how to get it
    found = find_reference(run, source)
    if found is None:
        raise DataError(
            f"{name}: its training molecules are not at hand; give the run folder made by `scildm fit`"
        )
    return found


def _official_test() -> Path | None:
    roots = [Path(named) for named in [os.environ.get("SCILDM_DATA")] if named] + [cache_root()]
    paths = (root / "molecules" / "zinc250k_test.smi.gz" for root in roots)
    return next((path for path in paths if path.is_file()), None)


def _read_smiles(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream, rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(s) for s in stream.read().split()]
    return [Chem.MolToSmiles(m) for m in mols if m is not None]


def _fcd_cache(context: Context) -> Path:
    return context.cache or context.folder.parent / "fcd"
