"""How generated volumes compare with real ones: intensities, and whether training volumes were copied."""

from pathlib import Path
from typing import Any

import numpy as np

from sciLDM.domain import Evaluation, Progress
from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.corpus import coarsen
from sciLDM.domains.medical.samples import VolumeSamples
from sciLDM.errors import DataError

__all__ = ["evaluate_samples"]

_BINS = np.linspace(-1.0, 2.0, 65)


def evaluate_samples(
    samples: VolumeSamples, codec: MedicalCodec, reference: Path | None, progress: Progress
) -> Evaluation:
    """Distance of intensity histograms, and distance to the nearest training volume.

    Raises:
        DataError: The run folder has no reference volumes.
    """
    path = None if reference is None else reference / "volumes.npz"
    if path is None or not path.is_file():
        raise DataError("evaluation needs the reference volumes: evaluate a run folder made by `scildm fit`")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        train, test = stored["train"].astype(np.float32), stored["test"].astype(np.float32)
        factor = int(stored["coarse"])
    generated = np.stack([coarsen(codec.on_grid(v.data, samples.scale), factor) for v in samples.volumes])
    progress("comparing volumes", len(generated), len(generated))
    floor = histogram_distance(test, train)
    near, own = nearest(generated, train), nearest(test, train)
    ratio = float(np.median(near) / max(np.median(own), 1e-12))
    note: dict[str, Any] = {"samples": len(samples)}
    rows = [
        {
            "metric": "intensity distance",
            "value": histogram_distance(generated, test),
            "floor": floor,
            "note": "Wasserstein-1 distance of voxel values, network units; floor: test against training",
            **note,
        },
        {
            "metric": "nearest training volume",
            "value": ratio,
            "floor": 1.0,
            "note": "median distance to the nearest training volume over that of test volumes; far below 1: copies",
            **note,
        },
    ]
    failures = [] if len(samples) >= 16 else [f"only {len(samples)} samples: medians are rough"]
    return Evaluation(rows, {"samples": len(samples), "train": len(train), "test": len(test)}, failures)


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of the values of two sets, from histograms."""
    width = _BINS[1] - _BINS[0]
    clipped = [np.clip(v, _BINS[0], _BINS[-1]) for v in (a, b)]
    shares = [np.histogram(v, _BINS)[0] / v.size for v in clipped]
    return float(np.abs(np.cumsum(shares[0] - shares[1])).sum() * width)


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square distance of each of `a` to the nearest of `b`."""
    flat = b.reshape(len(b), -1).astype(np.float64)
    found = []
    for row in a.reshape(len(a), -1).astype(np.float64):
        found.append(np.sqrt(((flat - row) ** 2).mean(axis=1).min()))
    return np.array(found)
