"""MOSES: 30,000 molecules against a random and a scaffold test set.

Definitions are those of the paper; where its text and the benchmark's code differ, the code counts, since it made the
published numbers (ring limit of the filters, root within IntDiv2). Reference statistics are the benchmark's own.
Invalid samples are left out of all metrics but validity.

    SNN    mean Tanimoto similarity to the nearest test molecule (Morgan, radius 2, 1024 bits)
    Frag   cosine of BRICS fragment counts;  Scaf: of Murcko scaffolds with two rings or more
    IntDiv 1 - mean_ij T_ij;  IntDiv2: 1 - mean_i sqrt(mean_j T_ij^2)
    W1     Wasserstein-1 distance of logP, SA, QED and weight to the random test set

Source: Polykovskiy et al., Front. Pharmacol. 11, 565644 (2020).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, final

import numpy as np
from jaxtyping import UInt64

from sciLDM.domain import Progress
from sciLDM.domains.molecules import sources
from sciLDM.domains.molecules._descriptors import PROPERTIES, profile, property_distances
from sciLDM.domains.molecules.bench import Context, Metric, MoleculeBenchmark
from sciLDM.domains.molecules.bench_filters import MosesFilters
from sciLDM.domains.molecules.bench_published import MOSES, Published
from sciLDM.domains.molecules.bench_reference import MosesReference, moses_reference
from sciLDM.domains.molecules.fcd import chemnet_version, fcd_statistics, frechet_chemnet_distance
from sciLDM.domains.molecules.neighbours import morgan_words, tanimoto_blocks
from sciLDM.domains.molecules.scaffolds import cosine_similarity

__all__ = ["MosesBenchmark", "internal_diversities", "moses_metrics"]

_SETS = {"Test": "the random test set", "TestSF": "the scaffold test set"}
_METRICS = (
    *(Metric(f"FCD/{k}", f"Frechet ChemNet distance to {v}; lower is better") for k, v in _SETS.items()),
    *(Metric(f"SNN/{k}", f"similarity to the nearest molecule of {v}") for k, v in _SETS.items()),
    *(Metric(f"Frag/{k}", f"cosine of BRICS fragment counts with {v}") for k, v in _SETS.items()),
    *(Metric(f"Scaf/{k}", f"cosine of scaffold counts with {v}") for k, v in _SETS.items()),
    Metric("IntDiv", "internal diversity, p = 1"),
    Metric("IntDiv2", "internal diversity, p = 2"),
    Metric(
        "Filters", "share without MCF and PAINS substructures, charges, other elements, rings of 8 or more"
    ),
    *(Metric(f"W1 {p}", "Wasserstein-1 to the random test set; lower is better") for p in PROPERTIES),
)


@final
class MosesBenchmark(MoleculeBenchmark):
    """MOSES, both test sets."""

    name = "moses"
    samples = 30_000
    unique_at: ClassVar[Sequence[int | None]] = (1_000, 10_000)
    metrics = _METRICS
    tables: ClassVar[Mapping[str, Sequence[str]]] = {
        "MOSES, the set by itself": (
            "valid raw", "valid", "unique@1k", "unique@10k", "novel", "Filters", "IntDiv", "IntDiv2",
        ),
        "MOSES, against the random test set (Test)": ("FCD/Test", "SNN/Test", "Frag/Test", "Scaf/Test"),
        "MOSES, against the scaffold test set (TestSF)": ("FCD/TestSF", "SNN/TestSF", "Frag/TestSF", "Scaf/TestSF"),
    }  # fmt: skip
    published: ClassVar[Sequence[Published]] = MOSES
    _references: Sequence[MosesReference] = ()
    _filters: MosesFilters | None = None

    def reference(self) -> tuple[list[str], list[str]]:
        chemnet_version()
        self._filters = MosesFilters.load()
        cache = self.context.cache
        self._references = [moses_reference(split, cache=cache) for split in ("test", "test_scaffolds")]
        # As the files spell them, like the benchmark's code: RDKit has respelled some 3 of 5,000 since.
        return sources.moses("train")["smiles"].tolist(), list(self._references[0].index.smiles)

    def measure(self, valid: list[str], progress: Progress) -> dict[str, float]:
        self.prepare()
        assert self._filters is not None
        return moses_metrics(valid, self._references, self._filters, self.context, progress)


def moses_metrics(
    valid: Sequence[str],
    references: Sequence[MosesReference],
    filters: MosesFilters,
    context: Context,
    progress: Progress,
) -> dict[str, float]:
    """All metrics beside validity, uniqueness and novelty.

    Args:
        valid: Canonical SMILES.
        references: Test sets; the Wasserstein distances are to the first.
        filters: Rules.
        context: How to compute.
        progress: `progress(what, done, total)`.
    """
    jobs = context.workers
    statistics = fcd_statistics(list(valid), device=context.device, progress=partial(progress, "FCD"))
    words, _ = morgan_words(valid, n_bits=1024, n_jobs=jobs, progress=partial(progress, "fingerprints"))
    own = profile(valid, jobs, partial(progress, "descriptors"))
    found: dict[str, float] = {}
    for reference in references:
        name = reference.name
        found[f"FCD/{name}"] = frechet_chemnet_distance(statistics, reference.fcd).value
        found[f"SNN/{name}"] = float(reference.index.search(words)[1].mean())
        found[f"Frag/{name}"] = cosine_similarity(own.fragments, reference.fragments)
        found[f"Scaf/{name}"] = cosine_similarity(own.scaffolds, reference.scaffolds)
        progress(f"nearest molecules of {name}", 1, 1)
    found["IntDiv"], found["IntDiv2"] = internal_diversities(words)
    found["Filters"] = float(filters.passes(valid, n_jobs=jobs, progress=partial(progress, "filters")).mean())
    distances = property_distances(own.properties, references[0].properties)
    return found | {f"W1 {name}": value for name, value in distances.items()}


def internal_diversities(
    words: UInt64[np.ndarray, "molecules words"], *, block: int = 1024
) -> tuple[float, float]:
    """IntDiv and IntDiv2 of packed fingerprints, in one pass over all pairs.

    Args:
        words: As `morgan_words` gives them.
        block: Molecules compared with all others at once; does not change the result beyond rounding.
    """
    first, second = [], []
    for _, tanimoto in tanimoto_blocks(words, block):
        first.append(tanimoto.mean(axis=1, dtype=np.float64))
        second.append(np.sqrt(np.square(tanimoto, out=tanimoto).mean(axis=1, dtype=np.float64)))
    return float(1.0 - np.concatenate(first).mean()), float(1.0 - np.concatenate(second).mean())
