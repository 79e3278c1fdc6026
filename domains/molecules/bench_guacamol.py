r"""GuacaMol's distribution-learning scores against the molecules that a model was trained on.

10,000 samples: validity, uniqueness, novelty; `KL`, the mean of `exp(-D)` over the Kullback-Leibler divergences of nine
descriptors and of each molecule's similarity to its nearest neighbour in its own set; and `FCD score`, `exp(-FCD / 5)`.
Both compare with 10,000 training molecules. Continuous distributions are Gaussian kernel estimates on 1,000 points,
counts are histograms of ten bins of the training molecules' range; stereo is left out, as there.

The published rows are of ChEMBL as GuacaMol filters it. A model of other data has the same scores against its own
training molecules; those do not compare with these rows.

Source: Brown, Fiscato, Segler & Vaucher, J. Chem. Inf. Model. 59, 1096 (2019), doi:10.1021/acs.jcim.8b00839.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from rdkit import Chem, rdBase
from rdkit.ML.Descriptors.MoleculeDescriptors import MolecularDescriptorCalculator
from scipy.stats import entropy, gaussian_kde

from sciLDM.domain import Progress
from sciLDM.domains.molecules._parallel import CHUNK, parallel_map
from sciLDM.domains.molecules.bench import Metric, MoleculeBenchmark
from sciLDM.domains.molecules.bench_published import GUACAMOL, Published
from sciLDM.domains.molecules.fcd import chemnet_version, fcd_statistics, frechet_chemnet_distance
from sciLDM.domains.molecules.neighbours import morgan_words, tanimoto_blocks
from sciLDM.domains.molecules.reference import find_reference
from sciLDM.errors import DataError

__all__ = ["GuacamolBenchmark", "divergences", "nearest_similarities"]

_CONTINUOUS = ("BertzCT", "MolLogP", "MolWt", "TPSA")
_COUNTS = ("NumHAcceptors", "NumHDonors", "NumRotatableBonds", "NumAliphaticRings", "NumAromaticRings")
_POINTS, _BINS, _TINY = 1000, 10, 1e-10
_BITS = 4096


@final
class GuacamolBenchmark(MoleculeBenchmark):
    """GuacaMol's distribution learning, for any training set."""

    name = "guacamol"
    samples = 10_000
    unique_at: ClassVar[Sequence[int | None]] = (10_000,)
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("KL", "mean of exp(-KL) over nine descriptors and nearest similarity; higher is better"),
        Metric("FCD score", "exp(-FCD / 5) to 10,000 training molecules; higher is better"),
    )
    tables: ClassVar[Mapping[str, Sequence[str]]] = {
        "GuacaMol": ("valid raw", "valid", "unique@10k", "novel", "KL", "FCD score")
    }
    published: ClassVar[Sequence[Published]] = GUACAMOL
    notes = (
        "compared with the model's own training molecules; the published rows are of GuacaMol's ChEMBL set and compare "
        "with a model that was trained on it alone",
    )

    def reference(self) -> tuple[list[str], list[str]]:
        chemnet_version()  # absent weights are said now
        nothing = self.run is None and self.source is None
        found = None if nothing else find_reference(self.run, self.source or {})
        if found is None:
            raise DataError(
                "guacamol: expected a model whose training molecules are at hand (a run folder, or shipped weights "
                "with their data set), got none; this benchmark compares samples with what the model was trained on"
            )
        return found.train, found.test

    def measure(self, valid: list[str], progress: Progress) -> dict[str, float]:
        self.prepare()
        jobs, device = self.context.workers, self.context.device
        chosen = np.random.default_rng(42).permutation(len(self._train))[: self.samples]
        known = [self._train[i] for i in chosen]
        found = divergences(valid, known, workers=jobs, progress=progress)
        statistics = fcd_statistics(
            known,
            cache_dir=self.context.cache or self.context.folder.parent / "fcd",
            device=device,
            progress=partial(progress, "FCD of train"),
        )
        fcd = frechet_chemnet_distance(valid, statistics, device=device, progress=partial(progress, "FCD"))
        return {
            "KL": float(np.mean(np.exp(-np.array(list(found.values()))))),
            "FCD score": float(np.exp(-fcd.value / 5)),
        }


def divergences(
    generated: Sequence[str], training: Sequence[str], *, workers: int | None, progress: Progress
) -> dict[str, float]:
    """Kullback-Leibler divergence of samples from training molecules in nats, by descriptor.

    Args:
        generated: Valid SMILES.
        training: Likewise.
        workers: Processes; None takes every core.
        progress: `progress(what, done, total)`.
    """
    sets = [_flat(smiles, workers) for smiles in (training, generated)]
    first, second = (
        _descriptors(s, workers, partial(progress, f"descriptors of {what}"))
        for s, what in zip(sets, ("training molecules", "samples"), strict=True)
    )
    split = len(_CONTINUOUS)
    found = {
        name: _continuous(first[:, k], second[:, k]) if k < split else _counted(first[:, k], second[:, k])
        for k, name in enumerate((*_CONTINUOUS, *_COUNTS))
    }
    nearest = [nearest_similarities(s, workers=workers) for s in sets]
    return {**found, "nearest similarity": _continuous(*nearest)}


def nearest_similarities(smiles: Sequence[str], *, workers: int | None = 1) -> Float[ndarray, " molecule"]:
    """Tanimoto similarity of each molecule to the nearest other one (Morgan bits, radius 2, 4,096 of them)."""
    words, _ = morgan_words(smiles, radius=2, n_bits=_BITS, n_jobs=workers)
    best = np.zeros(len(words))
    for start, similarity in tanimoto_blocks(words):
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = 0.0
        best[start + rows] = similarity.max(axis=1)
    return best


def _continuous(training: ndarray, generated: ndarray) -> float:
    both = np.concatenate([training, generated])
    points = np.linspace(both.min(), both.max(), _POINTS)
    try:
        densities = [gaussian_kde(values)(points) + _TINY for values in (training, generated)]
    except np.linalg.LinAlgError:  # all values are equal: no density
        return 0.0 if np.ptp(both) == 0 else float("inf")
    return float(entropy(*densities))


def _counted(training: ndarray, generated: ndarray) -> float:
    shares, edges = np.histogram(training, bins=_BINS, density=True)
    others, _ = np.histogram(generated, bins=edges, density=True)
    return float(entropy(shares + _TINY, np.nan_to_num(others) + _TINY))


def _flat(smiles: Sequence[str], workers: int | None) -> list[str]:
    """Distinct molecules without stereo, in order."""
    chunks = [(smiles[i : i + CHUNK],) for i in range(0, len(smiles), CHUNK)]
    parts = parallel_map(_flat_chunk, chunks, workers=workers, progress=None)
    return list(dict.fromkeys(text for part in parts for text in part))


def _flat_chunk(smiles: Sequence[str]) -> list[str]:
    """Runs in worker processes."""
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(text) for text in smiles]
        return [Chem.MolToSmiles(mol, isomericSmiles=False) for mol in mols if mol is not None]


def _descriptors(
    smiles: Sequence[str], workers: int | None, progress: Any
) -> Float[ndarray, "molecule descriptor"]:
    chunks = [(smiles[i : i + CHUNK],) for i in range(0, len(smiles), CHUNK)]
    return np.concatenate(list(parallel_map(_descriptors_chunk, chunks, workers=workers, progress=progress)))


def _descriptors_chunk(smiles: Sequence[str]) -> ndarray:
    """Runs in worker processes."""
    calculator = MolecularDescriptorCalculator((*_CONTINUOUS, *_COUNTS))
    with rdBase.BlockLogs():
        found = np.array(
            [calculator.CalcDescriptors(Chem.MolFromSmiles(text)) for text in smiles], dtype=float
        )
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
