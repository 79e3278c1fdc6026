"""Published benchmarks as protocols: how many samples, which test set, which metrics, and what others have scored.

A benchmark scores samples and, in the same way, equally many training molecules: the floor. A number without its floor
says little (the FCD of 10,000 real ZINC molecules against others is 0.2, not 0), nor does one without its sample size.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from rdkit import Chem, rdBase

from sciLDM.data.cards import cache_root
from sciLDM.domain import Evaluation, Progress
from sciLDM.domains.molecules._evaluation import package_versions
from sciLDM.domains.molecules._parallel import CHUNK, parallel_map
from sciLDM.domains.molecules.bench_published import Published
from sciLDM.domains.molecules.metrics import novelty, uniqueness
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import DataError

__all__ = ["Context", "Metric", "MoleculeBenchmark"]


@final
@dataclass(frozen=True)
class Metric:
    """One number of a benchmark: its name in the table, and whose definition it is."""

    name: str
    protocol: str


@final
@dataclass(frozen=True)
class Context:
    """How scores are computed; changes none of them beyond rounding.

    Attributes:
        workers: Processes for the chemistry; None takes every core.
        device: Where ChemNet runs.
        cache: Folder for reference statistics and floors; the per-user cache when None.
    """

    workers: int | None = 1
    device: str = "cpu"
    cache: Path | None = None

    @property
    def folder(self) -> Path:
        """The cache folder."""
        return self.cache or cache_root() / "bench"


class MoleculeBenchmark(ABC):
    """A protocol on known data. Write `reference` and `measure`.

    Args:
        context: How scores are computed.
        run: Folder with the training and test molecules of the scored model, for protocols that use its own.
        source: `source` of its codec's state, which names the split of shipped weights.

    Attributes:
        name: As on the command line.
        samples: Of the protocol.
        metrics: Beside validity, uniqueness and novelty.
        tables: Columns of each printed table, by title.
        published: What others have scored.
    """

    name: ClassVar[str]
    samples: ClassVar[int]
    unique_at: ClassVar[Sequence[int | None]]
    metrics: ClassVar[Sequence[Metric]]
    tables: ClassVar[Mapping[str, Sequence[str]]]
    published: ClassVar[Sequence[Published]]
    notes: Sequence[str] = ()

    def __init__(
        self,
        context: Context = Context(),
        *,
        run: Path | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self.context, self.run, self.source = context, run, source
        self._train: list[str] = []
        self._test: list[str] = []

    @abstractmethod
    def reference(self) -> tuple[list[str], list[str]]:
        """Training and test molecules, canonical SMILES.

        Raises:
            DataError: They are not at hand; the message says how to get them.
        """

    @abstractmethod
    def measure(self, valid: list[str], progress: Progress) -> dict[str, float]:
        """`metrics` by name, of valid canonical SMILES."""

    def prepare(self) -> None:
        """Find all data, so that what is missing is said before anything is sampled.

        Raises:
            DataError: Something is not at hand; the message says how to get it.
        """
        if not self._train:
            self._train, self._test = self.reference()

    def score(self, samples: MoleculeSamples, progress: Progress) -> Evaluation:
        """Rows `metric, value, floor, samples, note`.

        Args:
            samples: With the flags `valid_raw` (before any correction) and `changed`; see `read_generated` for others'.
            progress: `progress(what, done, total)`.

        Raises:
            DataError: Data of the benchmark are not at hand, or fewer than two samples are valid.
        """
        self.prepare()
        canonical = _canonical(
            [s if isinstance(s, str) else None for s in samples.table["smiles"]], self.context
        )
        valid = [s for s in canonical if s]
        if len(valid) < 2:
            raise DataError(f"expected samples, got {len(valid)} valid of {len(canonical)}")
        found = self.measure(valid, progress)
        floor, floors = self._floor(len(canonical), progress)
        rows = [
            *_validity(samples, canonical),
            *(_unique(valid, floor, k) for k in self.unique_at),
            self._novelty(valid),
            *(
                _row(m.name, found.get(m.name, math.nan), floors.get(m.name), len(valid), m.protocol)
                for m in self.metrics
            ),
        ]
        protocol = {
            "benchmark": self.name,
            "samples": len(canonical),
            "valid": len(valid),
            "floor": f"{len(floor):,} training molecules, drawn at random",
            "train": len(self._train),
            "test": len(self._test),
            **package_versions(),
        }
        return Evaluation(rows, protocol, [*self.notes, *self._remarks(len(canonical), valid, floor)])

    def _novelty(self, valid: list[str]) -> dict[str, Any]:
        # The training molecules' own novelty is 0 by definition; what new real molecules have is the test set's.
        known = set(self._train)
        note = "share of distinct valid samples not in train; floor: the same of the test molecules"
        return _row("novel", novelty(valid, known), novelty(self._test, known), len(set(valid)), note)

    def _floor(self, count: int, progress: Progress) -> tuple[list[str], dict[str, float]]:
        """Training molecules, as many as there are samples, and their metrics, remembered."""
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(self._train), size=min(count, len(self._train)), replace=False)
        floor = _canonical([self._train[i] for i in chosen], self.context)
        entries = [s for s in floor if s]
        key = [entries, len(self._test), self._test[:100], [m.name for m in self.metrics], package_versions()]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
        path = self.context.folder / f"floor-{self.name}-{digest}.json"
        try:
            return entries, _numbers(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            pass
        found = self.measure(entries, lambda what, done, total: progress(f"floor: {what}", done, total))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({k: None if v != v else v for k, v in found.items()}), encoding="utf-8")
        partial.replace(path)
        return entries, found

    def _remarks(self, count: int, valid: list[str], floor: list[str]) -> list[str]:
        lines = []
        if count < self.samples:
            lines.append(
                f"{count:,} samples, the protocol has {self.samples:,}: FCD and NSPDK are biased upwards, compare with "
                "the floor alone"
            )
        if len(floor) < count:
            lines.append(f"the floor has {len(floor):,} molecules, all of train")
        marks = [any(mark in s for mark in "@/\\") for s in (" ".join(valid), " ".join(floor))]
        if marks == [False, True]:
            lines.append(
                "no sample carries stereo but train does: novelty is too high, and FCD and NSPDK pay for it"
            )
        return lines


def _numbers(stored: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in stored.items()}


def _row(name: str, value: float, floor: float | None, count: int, note: str) -> dict[str, Any]:
    return {"metric": name, "value": value, "floor": floor, "samples": count, "note": note}


def _validity(samples: MoleculeSamples, canonical: Sequence[str | None]) -> list[dict[str, Any]]:
    table, count = samples.table, len(canonical)
    rows = [
        _row(
            "valid raw", _share(table["valid_raw"]), 1.0, count,
            "RDKit sanitises the plain argmax graph, before any correction; pieces allowed (GDSS: w/o correction)",
        ),
        _row(
            "valid", sum(s is not None for s in canonical) / count, 1.0, count,
            "RDKit parses and sanitises the returned SMILES",
        ),
    ]  # fmt: skip
    if "changed" in table:
        note = "share of samples that the valence constraint changed; lower is better"
        rows.append(_row("changed", _share(table["changed"]), 0.0, count, note))
    return rows


def _share(flags: Any) -> float:
    return float(np.mean(np.asarray(flags, dtype=bool)))


def _unique(valid: list[str], floor: list[str], first: int | None) -> dict[str, Any]:
    name = "unique" if first is None else f"unique@{first // 1000}k"
    note = "distinct / valid" if first is None else f"distinct / valid among the first {first:,} valid"
    part, base = valid[:first], floor[:first]
    return _row(name, uniqueness(part), uniqueness(base), len(part), note)


def _canonical(smiles: Sequence[str | None], context: Context) -> list[str | None]:
    chunks = [(smiles[i : i + CHUNK],) for i in range(0, len(smiles), CHUNK)]
    found = parallel_map(_canonical_chunk, chunks, workers=context.workers, progress=None)
    return [s for part in found for s in part]


def _canonical_chunk(smiles: Sequence[str | None]) -> list[str | None]:
    """Runs in worker processes."""
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(s) if s else None for s in smiles]
        return [Chem.MolToSmiles(m) if m is not None and m.GetNumAtoms() else None for m in mols]
