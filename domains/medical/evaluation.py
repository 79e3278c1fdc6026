"""How generated volumes compare with real ones: intensities, variety, and whether training volumes were copied."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from sciLDM.domain import Evaluation, Progress
from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.corpus import coarsen
from sciLDM.domains.medical.memorisation import memorisation, nearest
from sciLDM.domains.medical.samples import VolumeSamples
from sciLDM.errors import DataError
from sciLDM.rng import NoiseSource

__all__ = ["evaluate_samples", "histogram_distance", "ms_ssim", "nearest", "pair_similarity"]

_BINS = np.linspace(-1.0, 2.0, 65)
_PAIRS = 100
_RANGE = 2.0  # network units: -1 to 1 is the intensity window
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_FEW = 16


def evaluate_samples(
    samples: VolumeSamples, codec: MedicalCodec, reference: Path | None, progress: Progress
) -> Evaluation:
    """Intensity histograms, similarity of pairs, nearest training volume; the floor is real volumes' own score.

    Volumes are compared in network units at half their resolution, as the run folder keeps them.

    Raises:
        DataError: The run folder has no reference volumes.
    """
    path = None if reference is None else reference / "volumes.npz"
    if path is None or not path.is_file():
        raise DataError("evaluation needs the reference volumes: evaluate a run folder made by `scildm fit`")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        train, test = stored["train"].astype(np.float32), stored["test"].astype(np.float32)
        factor = int(stored["coarse"])
    made = []
    for k, volume in enumerate(samples.volumes):
        made.append(coarsen(codec.on_grid(volume.data, samples.scale), factor))
        progress("comparing volumes", k + 1, len(samples))
    generated = np.stack(made)
    count: dict[str, Any] = {"samples": len(samples)}
    rows: list[dict[str, Any]] = [
        {
            "metric": "intensity distance",
            "value": histogram_distance(generated, test),
            "floor": histogram_distance(test, train),
            "note": "Wasserstein-1 distance of voxel values, network units; floor: test against training",
            **count,
        },
        {
            "metric": "MS-SSIM of pairs",
            "value": pair_similarity(generated),
            "floor": pair_similarity(train),
            "note": "mean over pairs of volumes, 3-D, 7^3 windows; above real pairs: too little variety",
            **count,
        },
        *memorisation(generated, train, test).rows(),
    ]
    failures = [] if len(samples) >= _FEW else [f"only {len(samples)} samples: medians are rough"]
    if len(test) < _FEW:
        failures.append(f"only {len(test)} test volumes: floors are rough")
    protocol = {"samples": len(samples), "train": len(train), "test": len(test), "coarsened by": factor}
    return Evaluation(rows, protocol, failures)


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of the values of two sets, from histograms."""
    width = _BINS[1] - _BINS[0]
    clipped = [np.clip(v, _BINS[0], _BINS[-1]) for v in (a, b)]
    shares = [np.histogram(v, _BINS)[0] / v.size for v in clipped]
    return float(np.abs(np.cumsum(shares[0] - shares[1])).sum() * width)


def pair_similarity(volumes: np.ndarray, *, pairs: int = _PAIRS, seed: int = 0) -> float:
    """Mean MS-SSIM over pairs of volumes `[volume, x, y, z]`, all of them or `pairs` drawn at random.

    NaN for fewer than two volumes.
    """
    every = list(combinations(range(len(volumes)), 2))
    if not every:
        return float("nan")
    if len(every) > pairs:
        order = NoiseSource(seed).uniform([0], (len(every),), "pairs")[0].argsort()[:pairs]
        every = [every[k] for k in order.tolist()]
    x = torch.from_numpy(np.ascontiguousarray(volumes, dtype=np.float32))[:, None]
    found = [ms_ssim(x[i : i + 1], x[j : j + 1]) for i, j in every]
    return float(torch.cat(found).mean())


def ms_ssim(a: Tensor, b: Tensor, *, data_range: float = _RANGE) -> Tensor:
    """Multi-scale structural similarity of volumes `[batch, 1, x, y, z]` (Wang et al. 2003, eq. 7), one a row.

    Windows are means over 7^3 voxels. As many of the five scales are used as keep four windows along each axis (one
    scale at least), their weights divided by their sum.
    """
    smallest = min(a.shape[2:])
    window = min(7, smallest)
    scales = 1
    while scales < len(_WEIGHTS) and smallest // 2**scales >= window + 3:
        scales += 1
    weights = torch.tensor(_WEIGHTS[:scales])
    weights = weights / weights.sum()
    value = torch.ones(len(a))
    for k in range(scales):
        full, contrast = _similarity(a, b, window, data_range)
        value = value * (full if k == scales - 1 else contrast).clamp(min=0.0) ** weights[k]
        a, b = avg_pool3d(a, 2), avg_pool3d(b, 2)
    return value


def _similarity(a: Tensor, b: Tensor, window: int, data_range: float) -> tuple[Tensor, Tensor]:
    """SSIM, and its contrast-structure part alone."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean = lambda x: avg_pool3d(x, window, stride=1)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb = (mean(a * a) - ma * ma).clamp(min=0.0), (mean(b * b) - mb * mb).clamp(min=0.0)
    contrast = (2 * (mean(a * b) - ma * mb) + c2) / (va + vb + c2)
    light = (2 * ma * mb + c1) / (ma * ma + mb * mb + c1)
    return (light * contrast).flatten(1).mean(dim=1), contrast.flatten(1).mean(dim=1)
