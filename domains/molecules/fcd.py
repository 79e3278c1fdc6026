"""Frechet ChemNet distance (FCD).

Both sets are passed through ChemNet, a network trained to predict bioactivities from SMILES, and the 512
activations of its last hidden layer are modelled as Gaussian. The score is the squared 2-Wasserstein distance
between the Gaussians:

    FCD = |mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^{1/2}).

The eigenvalues of `S_1 S_2` are the squared singular values of `S_1^{1/2} S_2^{1/2}`, so the last trace is
their nuclear norm. Taking singular values of the factors keeps half the digits that a square root of the
product throws away, and needs no `sqrtm`, which fails on singular covariances (sets of fewer than 513
molecules).

Source: Preuer et al., "Frechet ChemNet Distance", J. Chem. Inf. Model. 58, 1736 (2018). Weights and
tokeniser: the `fcd` package (1.2 or later), loaded on first use.
"""

import hashlib
import os
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from sciLDM.data.cards import cards_root
from sciLDM.domains.molecules._parallel import Progress
from sciLDM.domains.molecules.graphs import write_npz
from sciLDM.errors import ConfigError, DataError, MissingExtra, ShapeMismatch

__all__ = [
    "MIN_MOLECULES",
    "FcdResult",
    "FcdStatistics",
    "chemnet_activations",
    "chemnet_version",
    "fcd_statistics",
    "frechet_chemnet_distance",
    "frechet_distance",
]

MIN_MOLECULES = 5_000
"""Below this the finite-sample bias dominates: real ZINC250k molecules score 1.5 at 1,000, 0.2 at 10,000."""

_PAD_LENGTH = 350  # the length ChemNet was trained with; other lengths shift the activations


@final
@dataclass(frozen=True, slots=True, eq=False)  # arrays have no truth value
class FcdStatistics:
    """Gaussian model of one set: mean `[512]`, covariance `[512, 512]`, size and hash of the set."""

    mean: ndarray
    covariance: ndarray
    count: int
    digest: str = ""


@final
@dataclass(frozen=True, slots=True)
class FcdResult:
    """An FCD with the sizes of the sets it compares and the caveats that apply to it."""

    value: float
    generated_count: int
    reference_count: int
    notes: tuple[str, ...] = field(default=())


def frechet_distance(
    mean_1: Float[ndarray, " d"],
    covariance_1: Float[ndarray, "d d"],
    mean_2: Float[ndarray, " d"],
    covariance_2: Float[ndarray, "d d"],
) -> float:
    """Squared 2-Wasserstein distance between two Gaussians (module docstring), in squared units of the mean.

    Args:
        mean_1: mean of the first Gaussian.
        covariance_1: its symmetric positive semi-definite covariance; may be singular.
        mean_2: mean of the second.
        covariance_2: covariance of the second.

    Raises:
        ShapeMismatch: the dimensions differ.
        DataError: a mean or covariance is not finite.
    """
    arrays = [np.asarray(a, dtype=np.float64) for a in (mean_1, covariance_1, mean_2, covariance_2)]
    m1, s1, m2, s2 = arrays
    if m1.ndim != 1 or m2.shape != m1.shape or s1.shape != s2.shape or s1.shape != (len(m1), len(m1)):
        raise ShapeMismatch(
            "Expected two means [d] and two covariances [d, d], got "
            f"{m1.shape}, {s1.shape}, {m2.shape}, {s2.shape}; compute both with the same features."
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise DataError(
            "Expected finite means and covariances, got NaN or inf; a covariance needs two or more samples."
        )
    cross = np.linalg.svd(_factor(s1).T @ _factor(s2), compute_uv=False).sum()
    distance = float((m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2.0 * cross)
    return max(distance, 0.0)  # rounding can leave -1e-12 for identical sets


def _factor(covariance: ndarray) -> ndarray:
    """`B` with `B B^T = covariance`; eigenvalues below zero are rounding errors."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(np.clip(values, 0.0, None))


@lru_cache(maxsize=1)
def _chemnet() -> tuple[torch.nn.Module, Any, str]:
    """ChemNet, the package's dataset class and its version. Warnings of its loader are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import fcd
            from fcd.utils import SmilesDataset
        except ImportError as error:
            raise MissingExtra(
                "The FCD needs the `fcd` package (>= 1.2), which is not installed: pip install 'fcd>=1.2'"
            ) from error
        return fcd.load_ref_model().float().eval(), SmilesDataset, fcd.__version__


def chemnet_version() -> str:
    """Version of the `fcd` package whose ChemNet is used.

    Raises:
        MissingExtra: the `fcd` package is not installed.
    """
    return _chemnet()[2]


def chemnet_activations(
    smiles: Sequence[str],
    *,
    batch_size: int = 128,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Float[ndarray, "molecules 512"]:
    """ChemNet's last hidden layer, in single precision.

    ChemNet reads characters: give canonical, aromatic, isomeric SMILES as RDKit writes them, charges
    included. A kekulised or non-canonical spelling of the same molecule has other activations. A SMILES of
    350 characters or more lengthens the padding of all, which shifts them too (as in the `fcd` package).

    Args:
        smiles: canonical SMILES.
        batch_size: molecules in one forward pass; bounds memory, does not change the result beyond rounding.
        device: a torch device; the model returns to the CPU afterwards.
        progress: called with (molecules done, molecules in all) after each batch.

    Raises:
        DataError: no molecule, or an entry that is not a non-empty string.
        MissingExtra: the `fcd` package is not installed.
    """
    entries = list(smiles)
    if not entries or not all(isinstance(s, str) and s for s in entries):
        raise DataError(
            "Expected non-empty SMILES strings, got none or an invalid entry; drop None and '' first."
        )
    model, dataset_class, _ = _chemnet()
    # One padding for the whole call (as `fcd` does), so that the result does not depend on the batches.
    pad_length = max(_PAD_LENGTH, max(map(len, entries)) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dataset_class(entries, pad_len=pad_length)
    parts = []
    model.to(device)
    try:
        with torch.inference_mode():
            for start in range(0, len(entries), batch_size):
                stop = min(start + batch_size, len(entries))
                one_hot = np.stack([dataset[i] for i in range(start, stop)]).astype(np.float32)
                inputs = torch.from_numpy(one_hot).transpose(1, 2).to(device)
                parts.append(model(inputs).cpu().numpy())
                if progress is not None:
                    progress(stop, len(entries))
    finally:
        model.to("cpu")
    return np.concatenate(parts)


def fcd_statistics(
    smiles: Sequence[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FcdStatistics:
    """Mean and covariance of the activations of a set, from the cache when the same set was seen before.

    The cache file is named by the SHA-256 of the sorted SMILES: it survives reordering and never serves
    another set. Those of QM9's test split and floor sample are shipped beside its data card.

    Args:
        smiles: canonical SMILES, two or more.
        cache_dir: folder for `fcd-<version>-<hash>.npz`; created if absent. `None` caches nothing.
        batch_size: see `chemnet_activations`.
        device: see `chemnet_activations`.
        progress: see `chemnet_activations`; not called when the cache answers.

    Raises:
        DataError: fewer than two molecules.
        MissingExtra: the `fcd` package is not installed.
    """
    entries = sorted(s for s in smiles if s)
    if len(entries) < 2:
        raise DataError(f"The FCD needs two or more valid molecules in each set, got {len(entries)}.")
    digest = hashlib.sha256("\n".join(entries).encode()).hexdigest()
    name = f"fcd-{chemnet_version()}-{digest}.npz"
    path = None if cache_dir is None else Path(cache_dir) / name
    # Reference sets of known data sets come with the package: a first evaluation need not spend minutes on them.
    for known in (*([] if path is None else [path]), *sorted(cards_root().glob(f"*/{name}"))):
        cached = _read(known, digest, len(entries))
        if cached is not None:
            return cached
    activations = chemnet_activations(entries, batch_size=batch_size, device=device, progress=progress)
    mean, covariance = _moments(activations)
    statistics = FcdStatistics(mean, covariance, len(entries), digest)
    if path is not None:
        stored = {"mean": mean, "covariance": covariance}
        write_npz(path, {**stored, "count": np.asarray(len(entries)), "digest": np.asarray(digest)})
    return statistics


def _moments(activations: ndarray, block: int = 8192) -> tuple[ndarray, ndarray]:
    """Mean and unbiased covariance in double precision, in blocks, so that a large set is not copied."""
    mean = activations.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(activations), block):
        centred = activations[start : start + block].astype(np.float64) - mean
        scatter += centred.T @ centred
    return mean, scatter / (len(activations) - 1)


def _read(path: Path, digest: str, count: int) -> FcdStatistics | None:
    """Cached statistics, or `None` when the file is absent, damaged or foreign and must be written."""
    try:
        # Opened here: NumPy leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            mean, covariance = stored["mean"], stored["covariance"]
            if str(stored["digest"]) != digest or int(stored["count"]) != count:
                return None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if mean.shape != (512,) or covariance.shape != (512, 512) or not np.isfinite(covariance).all():
        return None
    return FcdStatistics(mean, covariance, count, digest)


def frechet_chemnet_distance(
    generated: Sequence[str] | FcdStatistics,
    reference: Sequence[str] | FcdStatistics,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FcdResult:
    """FCD between two sets of canonical SMILES (duplicates kept, as in the GDSS and MOSES protocols).

    Args:
        generated: valid canonical SMILES, or their statistics.
        reference: as `generated`; its statistics are cached in `cache_dir`.
        cache_dir: see `fcd_statistics`.
        batch_size: see `chemnet_activations`.
        device: see `chemnet_activations`.
        progress: see `chemnet_activations`; called for each set in turn.

    Raises:
        ConfigError: `batch_size` below one.
        DataError: a set with fewer than two molecules.
        MissingExtra: the `fcd` package is not installed.
    """
    if batch_size < 1:
        raise ConfigError(f"Expected batch_size >= 1, got {batch_size}.")

    def statistics(
        entry: Sequence[str] | FcdStatistics, cache: str | os.PathLike[str] | None
    ) -> FcdStatistics:
        if isinstance(entry, FcdStatistics):
            return entry
        return fcd_statistics(entry, cache_dir=cache, batch_size=batch_size, device=device, progress=progress)

    g, r = statistics(generated, None), statistics(reference, cache_dir)
    notes = tuple(
        f"FCD of {count:,} {name} molecules: below {MIN_MOLECULES:,} the finite-sample bias dominates; "
        "compare with the floor row only."
        for name, count in (("generated", g.count), ("reference", r.count))
        if count < MIN_MOLECULES
    )
    value = frechet_distance(g.mean, g.covariance, r.mean, r.covariance)
    return FcdResult(value, g.count, r.count, notes)
