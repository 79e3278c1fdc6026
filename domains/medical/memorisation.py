r"""Whether a model recites its training volumes: the nearest of them, beside what is near for volumes it never saw.

    ratio_i = min_{t, s} d(sample_i, shift_s(train_t)) / median_j min_{t, s} d(held-out_j, shift_s(train_t))

`d` is the root mean square difference, of intensities or of latents, least over small shifts and left-right mirroring:
a copy that moved by a voxel is a copy. Ratios of about 1 are those of new patients; far below 1 are copies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import numpy as np

from sciLDM.errors import DataError, ShapeMismatch

__all__ = ["COPY", "Memorisation", "memorisation", "nearest"]

COPY = 0.5
"""Half as far from a training volume as a typical new patient is: called a copy."""


@final
@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training volume.

    Attributes:
        ratios: One for each sample; see the module.
        index: Its nearest training volume.
        held_out: Ratios of the held-out volumes: their median is 1.
        floor: Ratios of the training volumes to each other, each left out in turn.
    """

    ratios: np.ndarray
    index: np.ndarray
    held_out: np.ndarray
    floor: np.ndarray

    @property
    def copies(self) -> float:
        """Share of samples with a ratio below `COPY`."""
        return float((self.ratios < COPY).mean())

    def rows(self) -> list[dict[str, Any]]:
        """For `Evaluation.rows`; the floor is the same score of real training volumes."""
        note = "median distance to the nearest training volume over that of test volumes; far below 1: copies"
        return [
            {
                "metric": "nearest training volume",
                "value": float(np.median(self.ratios)),
                "floor": float(np.median(self.floor)),
                "note": note,
                "samples": len(self.ratios),
            },
            {
                "metric": "copies of training volumes",
                "value": self.copies,
                "floor": float((self.floor < COPY).mean()),
                "note": f"share at less than {COPY} of the distance of a typical test volume",
                "samples": len(self.ratios),
            },
        ]


def memorisation(
    samples: np.ndarray, train: np.ndarray, held_out: np.ndarray, *, shift: int = 1, mirror: bool = True
) -> Memorisation:
    """Compare samples with training volumes.

    Args:
        samples: `[sample, *grid]`, intensities on a coarse grid, or latents `[sample, channel, *grid]`.
        train: Of the same kind.
        held_out: Of the same kind.
        shift: Cells along each of the last three axes by which copies may have moved.
        mirror: Whether they may be mirrored left to right (the first of the last three axes).

    Raises:
        DataError: Fewer than two training volumes, or no held-out or sampled ones.
    """
    if len(train) < 2 or not len(held_out) or not len(samples):
        raise DataError(
            f"memorisation: expected samples, held-out and at least two training volumes, got {len(samples)}, "
            f"{len(held_out)} and {len(train)}"
        )
    near, index = _nearest(samples, train, shift, mirror)
    own, _ = _nearest(held_out, train, shift, mirror)
    among, _ = _nearest(train, train, shift, mirror, leave_out=True)
    unit = max(float(np.median(own)), 1e-12)
    return Memorisation(near / unit, index, own / unit, among / unit)


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square distance of each of `a` to the nearest of `b`, as they lie."""
    return _nearest(a, b, 0, False)[0]


def _nearest(
    a: np.ndarray, b: np.ndarray, shift: int, mirror: bool, *, leave_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    if a.shape[1:] != b.shape[1:]:
        raise ShapeMismatch(f"volumes to compare differ in shape: {a.shape[1:]} and {b.shape[1:]}")
    flat = b.reshape(len(b), -1).astype(np.float64)
    square = (flat**2).sum(axis=1)
    best, index = np.full(len(a), np.inf), np.zeros(len(a), dtype=np.int64)
    for moved in _moved(a, shift, mirror):
        rows = moved.reshape(len(a), -1).astype(np.float64)
        # The product finds the nearest; its distance is then computed without cancellation.
        guess = square - 2 * rows @ flat.T
        if leave_out:
            np.fill_diagonal(guess, np.inf)
        at = guess.argmin(axis=1)
        found = np.sqrt(((rows - flat[at]) ** 2).mean(axis=1))
        closer = found < best
        best, index = np.where(closer, found, best), np.where(closer, at, index)
    return best, index


def _moved(a: np.ndarray, shift: int, mirror: bool) -> Iterator[np.ndarray]:
    """`a` under all small shifts, edges repeated, and mirrored."""
    lead = [(0, 0)] * (a.ndim - 3)
    padded = np.pad(a, [*lead, *[(shift, shift)] * 3], mode="edge")
    for offset in product(range(2 * shift + 1), repeat=3):
        cut = tuple(slice(o, o + n) for o, n in zip(offset, a.shape[-3:], strict=True))
        part = padded[(..., *cut)]
        yield part
        if mirror:
            yield part[..., ::-1, :, :]
