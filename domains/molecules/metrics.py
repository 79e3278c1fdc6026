"""How good a set of generated molecules is: metrics of the GDSS and MOSES protocols, each beside its floor.

Sets are lists of canonical isomeric SMILES as RDKit writes them; `None` and `""` mark invalid molecules. A
number alone says little: FCD and MMD are biased upwards at small samples, and novelty is low on exhaustively
enumerated sets such as QM9. `evaluate_set` therefore prints, next to every value, the same metric of an
equally large random sample of the training set.

Sources: GDSS protocol: Jo, Lee & Hwang, ICML 2022. MOSES: Polykovskiy et al., Front. Pharmacol. 11, 565644
(2020).
"""

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import numpy as np
from rdkit import Chem, rdBase

from sciLDM.domains.molecules._descriptors import (
    PROPERTIES,
    fragment_counts,
    fragment_similarity,
    molecule_properties,
    profile,
    property_distances,
)
from sciLDM.domains.molecules._evaluation import Evaluation, MetricRow, package_versions
from sciLDM.domains.molecules._parallel import CHUNK, Progress, parallel_map
from sciLDM.domains.molecules.fcd import chemnet_version, fcd_statistics, frechet_chemnet_distance
from sciLDM.domains.molecules.neighbours import FingerprintIndex, morgan_words, tanimoto_blocks
from sciLDM.domains.molecules.nspdk import nspdk_mean, nspdk_mmd
from sciLDM.domains.molecules.scaffolds import cosine_similarity, scaffold_novelty
from sciLDM.errors import ConfigError, DataError

__all__ = [
    "PROPERTIES",
    "Evaluation",
    "MetricRow",
    "copy_rate",
    "evaluate_set",
    "fragment_counts",
    "fragment_similarity",
    "internal_diversity",
    "molecule_properties",
    "novelty",
    "property_distances",
    "snn",
    "uniqueness",
]


def uniqueness(valid: Iterable[str | None]) -> float:
    """Distinct molecules over molecules, invalid entries left out; NaN for an empty set."""
    entries = [s for s in valid if s]
    return len(set(entries)) / len(entries) if entries else math.nan


def copy_rate(test: Iterable[str | None], train: Collection[str | None]) -> float:
    """Share of the distinct molecules of `test` that occur in `train`; NaN for an empty set."""
    distinct = {s for s in test if s}
    known = train if isinstance(train, (set, frozenset)) else set(train)
    return len(distinct & known) / len(distinct) if distinct else math.nan


def novelty(valid_unique: Iterable[str | None], train: Collection[str | None]) -> float:
    """Share of the distinct generated molecules not in `train`; compare `1 - copy_rate(test, train)`."""
    return 1.0 - copy_rate(valid_unique, train)


def internal_diversity(
    smiles: Sequence[str | None], *, p: Literal[1, 2] = 1, chunk_size: int = 1024
) -> float:
    """`1 - mean_i (mean_j T_ij^p)^(1/p)` over all ordered pairs, `i = j` included.

    `T` is the Tanimoto similarity of 1024-bit Morgan fingerprints of radius 2. This is the formula of the
    MOSES code, which made the published numbers; the paper takes the root after both means (the same for
    `p = 1`).

    Args:
        smiles: molecules; invalid ones are left out.
        p: 1 (IntDiv) or 2 (IntDiv2).
        chunk_size: molecules compared with all others at once; does not change the result beyond rounding.

    Returns:
        A number in [0, 1]; NaN for an empty set.

    Raises:
        ConfigError: `p` or `chunk_size` out of range.
    """
    words, valid = morgan_words(smiles, n_bits=1024)
    return _diversity(words[valid], p, chunk_size)


def _diversity(words: np.ndarray, p: int, chunk_size: int = 1024) -> float:
    if p not in (1, 2) or chunk_size < 1:
        raise ConfigError(f"Expected p = 1 or 2 and chunk_size >= 1, got {p} and {chunk_size}.")
    if len(words) == 0:
        return math.nan
    means = [
        (tanimoto**p).mean(axis=1, dtype=np.float64) ** (1.0 / p)
        for _, tanimoto in tanimoto_blocks(words, chunk_size)
    ]
    return float(1.0 - np.concatenate(means).mean())


def snn(generated: Sequence[str | None], reference: Sequence[str | None] | FingerprintIndex) -> float:
    """Mean Tanimoto similarity of each molecule to its nearest reference (MOSES: Morgan r2, 1024 bits).

    Args:
        generated: molecules; invalid ones are left out.
        reference: molecules, or an index of them (whose radius and length are then used).

    Returns:
        A number in [0, 1]; NaN without a valid generated molecule.

    Raises:
        DataError: no valid reference.
    """
    index = (
        reference
        if isinstance(reference, FingerprintIndex)
        else FingerprintIndex.build(reference, n_bits=1024)
    )
    words, valid = morgan_words(generated, radius=index.radius, n_bits=index.n_bits)
    return float(index.search(words[valid])[1].mean()) if valid.any() else math.nan


def _canonical_chunk(smiles: Sequence[str | None]) -> list[str | None]:
    """Canonical isomeric SMILES, `None` where invalid. Runs in worker processes."""
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(s) if s else None for s in smiles]
        return [Chem.MolToSmiles(m) if m is not None and m.GetNumAtoms() else None for m in mols]


def _canonical(
    smiles: Sequence[str | None], n_jobs: int | None, progress: Progress | None
) -> list[str | None]:
    chunks = [(smiles[i : i + CHUNK],) for i in range(0, len(smiles), CHUNK)]
    return [
        s for part in parallel_map(_canonical_chunk, chunks, workers=n_jobs, progress=progress) for s in part
    ]


def _reference(name: str, smiles: Iterable[str | None], rng: np.random.Generator) -> list[str]:
    """Entries of a reference set, spot-checked: against another spelling every novelty would be 1."""
    entries = [s for s in smiles if s]
    if len(entries) < 2:
        raise DataError(f"Expected two or more SMILES in `{name}`, got {len(entries)}.")
    sample = [entries[i] for i in rng.choice(len(entries), size=min(200, len(entries)), replace=False)]
    differing = [s for s, c in zip(sample, _canonical_chunk(sample), strict=True) if s != c]
    if len(differing) > 0.05 * len(sample):  # RDKit's own spelling is not stable for a few symmetric cages
        raise DataError(
            f"Expected canonical SMILES in `{name}`, got {differing[0]!r} and others; "
            "use Chem.MolToSmiles(Chem.MolFromSmiles(s)) on each."
        )
    return entries


def _sample(entries: list[str], size: int, rng: np.random.Generator) -> list[str]:
    return [entries[i] for i in rng.choice(len(entries), size=min(size, len(entries)), replace=False)]


def evaluate_set(
    generated: Sequence[str | None],
    *,
    train: Iterable[str | None],
    test: Iterable[str | None],
    raw_valid: Sequence[bool] | None = None,
    changed: Sequence[bool] | None = None,
    train_scaffolds: Collection[str] | None = None,
    with_fcd: bool = True,
    fcd_cache: str | os.PathLike[str] | None = None,
    reference_limit: int | None = None,
    seed: int = 0,
    n_jobs: int | None = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Every metric of this module on one generated set, with floors, sample sizes and the protocol of each.

    Args:
        generated: SMILES; `None` and `""` are invalid molecules and count against validity.
        train: canonical SMILES of the training set.
        test: canonical SMILES of the held-out set that the distribution metrics compare with.
        raw_valid: for each generated molecule, whether it was valid before any correction.
        changed: for each generated molecule, whether the valence constraint changed it.
        train_scaffolds: scaffolds of the training set (`scaffold_counts`); adds the row `scaffold_novelty`.
        with_fcd: `False` leaves out the FCD, which takes minutes on a CPU.
        fcd_cache: folder in which FCD statistics of the test set and of the floor sample are kept.
        reference_limit: largest number of test molecules to use (a random subset); `None` uses all.
        seed: of the floor sample and of the subset.
        n_jobs: worker processes; `None` takes every core.
        progress: called with (stage, molecules done, molecules in all).

    Raises:
        ConfigError: `raw_valid` or `changed` of another length than `generated`.
        DataError: `generated` is empty, or a reference set is too small or not canonical.
        MissingExtra: `with_fcd` without the `fcd` package.
    """
    _check_inputs(generated, raw_valid, changed, with_fcd)
    rng = np.random.default_rng(seed)
    train, test = _reference("train", train, rng), _reference("test", test, rng)
    run = _Run(n_jobs, progress, fcd_cache)
    canonical = _canonical(generated, n_jobs, run.stage("canonical SMILES"))
    valid = [s for s in canonical if s]
    rows = _validity_rows(canonical, raw_valid, changed)
    notes: list[str] = []
    if len(valid) < 2:
        notes.append(f"Only {len(valid)} valid molecules: nothing else can be computed.")
        return Evaluation(tuple(rows), tuple(notes), package_versions())
    if reference_limit is not None and len(test) > reference_limit:
        notes.append(
            f"{reference_limit:,} of {len(test):,} test molecules (seed {seed}); published numbers use all."
        )
    known = set(train)
    held_out_copies = copy_rate(test, known)
    test = _sample(test, reference_limit, rng) if reference_limit is not None else test
    floor = _sample(train, len(valid), rng)
    if len(floor) < len(valid):
        notes.append(
            f"The floor has {len(floor):,} molecules, all of train, against {len(valid):,} generated."
        )
    if not any(_has_stereo(s) for s in valid) and any(_has_stereo(s) for s in train):
        notes.append("No sample carries stereo but train does: novelty is too high; strip stereo from train.")
    rows += [
        MetricRow(
            "uniqueness", uniqueness(valid), uniqueness(floor), len(valid), "GDSS, MOSES: distinct / valid"
        ),
        MetricRow(
            "novelty",
            novelty(valid, known),
            1.0 - held_out_copies,
            len(set(valid)),
            "share of distinct valid samples not in train; floor: the same of the test set",
        ),
    ]
    rows += run.descriptors(valid, floor, test, train_scaffolds)
    rows += run.fingerprints(valid, floor, test)
    rows += run.nspdk(valid, floor, test)
    if with_fcd:
        fcd_rows, fcd_notes = run.fcd(valid, floor, test)
        rows, notes = rows + fcd_rows, notes + fcd_notes
    return Evaluation(tuple(rows), tuple(notes), package_versions())


def _check_inputs(
    generated: Sequence[str | None],
    raw_valid: Sequence[bool] | None,
    changed: Sequence[bool] | None,
    with_fcd: bool,
) -> None:
    """Refuse what cannot be scored before anything slow starts."""
    for name, flags in (("raw_valid", raw_valid), ("changed", changed)):
        if flags is not None and len(flags) != len(generated):
            raise ConfigError(
                f"Expected one `{name}` for each of {len(generated)} molecules, got {len(flags)}."
            )
    if len(generated) == 0:
        raise DataError("Expected generated molecules, got an empty list.")
    if with_fcd:
        chemnet_version()


def _has_stereo(smiles: str) -> bool:
    return any(mark in smiles for mark in "@/\\")


def _validity_rows(
    canonical: Sequence[str | None], raw_valid: Sequence[bool] | None, changed: Sequence[bool] | None
) -> list[MetricRow]:
    n, valid = len(canonical), [s for s in canonical if s]
    rows = [MetricRow("validity", len(valid) / n, 1.0, n, "RDKit parses and sanitises the returned SMILES")]
    if raw_valid is not None:
        raw = float(np.mean(np.asarray(raw_valid, dtype=bool)))
        rows.append(
            MetricRow("validity_raw", raw, 1.0, n, "GDSS: validity without correction (plain argmax)")
        )
    if changed is not None:
        share = float(np.mean(np.asarray(changed, dtype=bool)))
        rows.append(
            MetricRow("changed", share, 0.0, n, "share that the valence constraint changed; lower is better")
        )
    if valid:
        whole = sum("." not in s for s in valid) / len(valid)
        rows.append(
            MetricRow("connected", whole, math.nan, len(valid), "share of valid samples in one piece")
        )
    return rows


@final
@dataclass(frozen=True)
class _Run:
    """The metrics against the test set; each method gives rows with value and floor."""

    n_jobs: int | None
    progress: Callable[[str, int, int], None] | None
    fcd_cache: str | os.PathLike[str] | None

    def stage(self, name: str) -> Progress | None:
        return None if self.progress is None else partial(self.progress, name)

    def descriptors(
        self, valid: list[str], floor: list[str], test: list[str], train_scaffolds: Collection[str] | None
    ) -> list[MetricRow]:
        g, f, t = (
            profile(s, self.n_jobs, self.stage(f"descriptors of {name}"))
            for name, s in (("samples", valid), ("floor", floor), ("test", test))
        )
        n = len(valid)
        rows = []
        for name, what, a, b, c in (
            ("frag", "BRICS fragment counts", g.fragments, f.fragments, t.fragments),
            ("scaf", "Murcko scaffold counts, 2 or more rings", g.scaffolds, f.scaffolds, t.scaffolds),
        ):
            value, base = cosine_similarity(a, c), cosine_similarity(b, c)
            rows.append(
                MetricRow(f"{name}/test", value, base, n, f"MOSES: cosine of {what}; higher is better")
            )
        if train_scaffolds is not None:
            known = set(train_scaffolds)
            value, base = scaffold_novelty(g.scaffolds, known), scaffold_novelty(t.scaffolds, known)
            protocol = "distinct scaffolds not in train; floor: the same of the test set"
            rows.append(MetricRow("scaffold_novelty", value, base, n, protocol))
        values = property_distances(g.properties, t.properties)
        bases = property_distances(f.properties, t.properties)
        for name in PROPERTIES:
            protocol = "MOSES: Wasserstein-1; lower is better"
            rows.append(MetricRow(f"W1 {name}/test", values[name], bases[name], n, protocol))
        return rows

    def fingerprints(self, valid: list[str], floor: list[str], test: list[str]) -> list[MetricRow]:
        index = FingerprintIndex.build(
            test, n_bits=1024, n_jobs=self.n_jobs, progress=self.stage("fingerprints")
        )
        words = [morgan_words(s, n_bits=1024, n_jobs=self.n_jobs)[0] for s in (valid, floor)]
        near, base = (float(index.search(w)[1].mean()) for w in words)
        protocol = "MOSES: Tanimoto to the nearest test molecule, Morgan r2 1024"
        rows = [MetricRow("snn/test", near, base, len(valid), protocol)]
        for name, p in (("intdiv", 1), ("intdiv2", 2)):
            value, base = (_diversity(w, p) for w in words)
            rows.append(MetricRow(name, value, base, len(valid), f"MOSES: internal diversity, p = {p}"))
        return rows

    def nspdk(self, valid: list[str], floor: list[str], test: list[str]) -> list[MetricRow]:
        g, f, t = (
            nspdk_mean(s, n_jobs=self.n_jobs, progress=self.stage("NSPDK")) for s in (valid, floor, test)
        )
        protocol = "GDSS: NSPDK MMD (complexity 4) of valid samples against the test split; lower is better"
        return [MetricRow("nspdk/test", nspdk_mmd(g, t), nspdk_mmd(f, t), g.count, protocol)]

    def fcd(self, valid: list[str], floor: list[str], test: list[str]) -> tuple[list[MetricRow], list[str]]:
        reference = fcd_statistics(test, cache_dir=self.fcd_cache, progress=self.stage("FCD of test"))
        base = fcd_statistics(floor, cache_dir=self.fcd_cache, progress=self.stage("FCD of floor"))
        result = frechet_chemnet_distance(valid, reference, progress=self.stage("FCD of samples"))
        protocol = (
            "GDSS, MOSES: FCD of valid samples, duplicates kept, against the held-out test split; canonical "
            f"aromatic SMILES; {len(valid):,} samples, {len(test):,} references; lower is better"
        )
        row = MetricRow(
            "fcd/test", result.value, frechet_chemnet_distance(base, reference).value, len(valid), protocol
        )
        return [row], list(result.notes)
