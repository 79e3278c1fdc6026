"""A prepared set of volumes: scaled, split by patient, placed on the model's grid, with their labels."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch

from sciLDM.autoencoders.grid import GridFields, GridSettings
from sciLDM.domain import Corpus, Progress
from sciLDM.domains.medical.codec import voxels_per_cell
from sciLDM.domains.medical.gather import Gathered, gather, notes
from sciLDM.domains.medical.geometry import Placement, check_grid, patches
from sciLDM.domains.medical.intensity import IntensitySettings, Modality
from sciLDM.domains.medical.labels import (
    LABEL_MAP,
    POSITION,
    SHAPE,
    SPACING,
    columns_of,
    map_of,
)
from sciLDM.domains.medical.sources import Entry
from sciLDM.errors import ConfigError, DataError

__all__ = ["DataSettings", "MedicalCorpus"]

_FRAMES = 512
"""Shapes and spacings kept with the weights, to draw from when a user leaves them open."""
_COARSE = 2
"""Training volumes are kept for evaluation at this fraction of their resolution."""
_KEPT = 400


@dataclass(frozen=True)
class DataSettings:
    """How volumes are chosen, cut and split."""

    pattern: str | None = None
    """File names to take, as a shell pattern such as "*_T1w.nii*"; all when null."""
    labels: str | None = None
    """Folder of segmentations, or "beside"; null for none (a data card's own are found)."""
    label_map: bool = False
    """Make the segmentation a condition."""
    overlap: float = 0.25
    """Least overlap of patches, as a share of the grid, where a volume is larger than the grid."""
    mirror: bool = False
    """Also train on left-right mirrored volumes."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test patients."""
    salt: int = 0
    """Another number gives another split."""
    max_volumes: int | None = None
    """Use only this many volumes, the first by name; all when null."""

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ConfigError(
                "fractions: expected shares of training, validation and test patients, all above 0, that sum to 1, "
                f"got {list(self.fractions)}"
            )
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap must be in [0, 1), got {self.overlap}")
        if self.max_volumes is not None and self.max_volumes < 3:
            raise ConfigError(f"max_volumes must be at least 3, got {self.max_volumes}")


@dataclass(frozen=True)
class _Sample:
    volume: int
    place: Placement
    mirrored: bool = False


@final
class MedicalCorpus(Corpus):
    """Volumes of one data set.

    Args:
        entries: What to read.
        name: Of the source, for the card.
        modality: What the volumes are.
        grid: Voxels of the model's grid along the RAS+ axes.
        conditions: Columns of the table.
        autoencoder: Kept in the state.
        intensity: How values are scaled.
        settings: How volumes are chosen, cut and split.

    `read` must be called once before use; the constructor touches no file.

    Raises:
        DataError: Nothing usable, fewer than three patients, or an unknown condition.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        name: str,
        modality: Modality,
        grid: Sequence[int],
        conditions: Sequence[str],
        autoencoder: GridSettings,
        intensity: IntensitySettings,
        settings: DataSettings,
    ) -> None:
        self._entries = list(entries)[: settings.max_volumes]
        self._name, self._modality, self._conditions = name, modality, tuple(conditions)
        self._autoencoder, self._intensity, self.settings = autoencoder, intensity, settings
        self._factor = voxels_per_cell(autoencoder)
        self._grid = check_grid(grid, self._factor)

    def read(self, cache: Path, progress: Progress, *, dropout: float) -> "MedicalCorpus":
        """Read and split; returns itself."""
        found = gather(
            self._entries,
            modality=self._modality,
            intensity=self._intensity,
            cache=cache,
            progress=progress,
        )
        self.found = found
        self._volumes = split_patients(
            [e.patient for e in found.entries], self.settings.fractions, self.settings.salt
        )
        rows = [e.columns for e in found.entries]
        self._columns = columns_of(rows, self._volumes["train"], self._conditions)
        self._encoded = {c.name: c.encode([row.get(c.name) for row in rows]) for c in self._columns}
        self._classes = self._count_classes(found)
        self._samples = {split: self._cut(split) for split in self._volumes}
        self.sizes = {split: len(samples) for split, samples in self._samples.items()}
        self._patched = any(not _whole(s, found) for samples in self._samples.values() for s in samples)
        self.fingerprint = self._hash()
        self.notes = (*notes(found, len(self._entries)), *self._patch_notes())
        self.state = self._describe(dropout)
        return self

    def fields(self, split: str, indices: np.ndarray) -> GridFields:
        """Network units on the grid; the edge of a smaller volume is repeated, with weight 0."""
        values, weights = [], []
        for k in np.asarray(indices).reshape(-1):
            sample = self._samples[split][int(k)]
            u = self._put(self.found.volumes[sample.volume], sample)
            weight = np.zeros(self._grid, dtype=np.float32)
            weight[sample.place.inside] = 1.0
            values.append(u.astype(np.float32))
            weights.append(weight)
        return GridFields(
            torch.from_numpy(np.stack(values)[:, None]), torch.from_numpy(np.stack(weights)[:, None])
        )

    def labels(self, split: str) -> Mapping[str, np.ndarray]:
        samples = self._samples[split]
        frames = [self._frame(s) for s in samples]
        labels = {
            SPACING: np.log([f["spacing"] for f in frames]).astype(np.float32).reshape(-1, 3),
            SHAPE: (np.array([f["shape"] for f in frames]) / self._grid).astype(np.float32).reshape(-1, 3),
        }
        if self._patched:
            labels[POSITION] = np.array([f["position"] for f in frames], dtype=np.float32).reshape(-1, 6)
        chosen = np.array([s.volume for s in samples], dtype=np.int64)
        labels |= {name: values[chosen] for name, values in self._encoded.items()}
        if self._classes:
            labels[LABEL_MAP] = np.stack([self._map(s) for s in samples])
        return labels

    def write_reference(self, folder: Path) -> None:
        """`cases.csv` (which volume is in which split), `rejected.csv`, and small copies to look for memorised ones."""
        folder.mkdir(parents=True, exist_ok=True)
        split = {v: name for name, volumes in self._volumes.items() for v in volumes}
        table = self.found.table.assign(split=[split[k] for k in range(len(self.found.table))])
        table.to_csv(folder / "cases.csv", index=False)
        self.found.rejected.to_csv(folder / "rejected.csv", index=False)
        small = {}
        for name in ("train", "test"):
            # Whoever looks for copies mirrors on his own; a volume's mirror image beside it would pass for one.
            own = [s for s in self._samples[name] if not s.mirrored]
            small[name] = np.stack([self._small(s) for s in _spread(own, _KEPT)])
        np.savez(folder / "volumes.npz", coarse=np.array(_COARSE), **small)

    def names(self, split: str) -> list[str]:
        """File names of the volumes of a split, in order of the split's volumes."""
        return [self.found.entries[k].name for k in self._volumes[split]]

    def files(self, split: str) -> list[Entry]:
        """The volumes of a split."""
        return [self.found.entries[k] for k in self._volumes[split]]

    def _cut(self, split: str) -> list[_Sample]:
        samples = []
        for k in self._volumes[split]:
            for place in patches(self.found.volumes[k].shape, self._grid, overlap=self.settings.overlap):
                samples.append(_Sample(int(k), place))
        if self.settings.mirror and split == "train":
            samples += [_Sample(s.volume, s.place, mirrored=True) for s in samples]
        return samples

    def _put(self, data: np.ndarray, sample: _Sample) -> np.ndarray:
        # Mirrored before cutting, so that a box keeps its place in the patient's frame.
        return sample.place.put(data[::-1] if sample.mirrored else data)

    def _frame(self, sample: _Sample) -> dict[str, list[float]]:
        whole = np.array(self.found.volumes[sample.volume].shape, dtype=np.float64)
        place = sample.place
        centre = (np.array(place.start) + np.array(place.size) / 2) / whole
        position = [*(2 * centre - 1), *np.log(whole / np.array(place.size))]
        return {
            "spacing": self.found.spacings[sample.volume].tolist(),
            "shape": list(place.size),
            "position": [round(float(p), 6) for p in position],
        }

    def _map(self, sample: _Sample) -> np.ndarray:
        label = self.found.labels[sample.volume]
        if not label.size:
            coarse = [n // f for n, f in zip(self._grid, self._factor, strict=True)]
            return np.full((self._classes, *coarse), np.nan, dtype=np.float32)
        turned = label[::-1] if sample.mirrored else label
        return map_of(sample.place.put(turned), self._classes, self._factor)

    def _small(self, sample: _Sample) -> np.ndarray:
        u = self._put(self.found.volumes[sample.volume], sample).astype(np.float32)
        return coarsen(u, _COARSE).astype(np.float16)

    def _count_classes(self, found: Gathered) -> int:
        if not self.settings.label_map:
            return 0
        largest = max((int(label.max()) for label in found.labels if label.size), default=0)
        if largest == 0:
            raise DataError(
                "label_map: no volume has a segmentation with a class above 0; set `settings.labels`, or leave "
                "`label_map` out"
            )
        return largest + 1

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for volume in self.found.volumes:
            digest.update(repr(volume.shape).encode() + volume.tobytes())
        for values in self._encoded.values():
            digest.update(values.tobytes())
        if self._classes:
            for label in self.found.labels:
                digest.update(label.tobytes())
        options = [asdict(self.settings), list(self._grid), self.found.spacings.round(6).tolist()]
        digest.update(json.dumps(options).encode())
        return digest.hexdigest()

    def _patch_notes(self) -> list[str]:
        if not self._patched:
            return []
        large = sum(any(n > g for n, g in zip(v.shape, self._grid, strict=True)) for v in self.found.volumes)
        return [
            f"{large} of {len(self.found.volumes)} volumes are larger than the grid {list(self._grid)} and were cut "
            f"into patches ({sum(self.sizes.values())} samples)"
        ]

    def _describe(self, dropout: float) -> dict[str, Any]:
        """The state, as plain JSON."""
        table, train = self.found.table, self._volumes["train"]
        frames = [self._frame(s) for s in _spread(self._samples["train"], _FRAMES)]
        state = {
            "modality": self._modality,
            "grid": list(self._grid),
            "autoencoder": asdict(self._autoencoder),
            "intensity": asdict(self._intensity),
            "columns": [asdict(c) for c in self._columns],
            "classes": self._classes,
            "patches": self._patched,
            "dropout": dropout,
            "frames": frames,
            "scale": [float(table["low"].iloc[train].median()), float(table["high"].iloc[train].median())],
            "source": {
                "name": self._name,
                "fingerprint": self.fingerprint,
                "volumes": len(table),
                "patients": int(table["patient"].nunique()),
                "skipped": len(self.found.rejected),
                "clipped": float(table["clipped"].mean()),
                "salt": self.settings.salt,
                "fractions": list(self.settings.fractions),
            },
        }
        return json.loads(json.dumps(state))


def split_patients(
    patients: Sequence[str], fractions: tuple[float, float, float], salt: int
) -> dict[str, np.ndarray]:
    """Volumes of each split: patients are ranked by a hash of their name and cut at the fractions, at least one each.

    Raises:
        DataError: Fewer than three patients.
    """
    names = sorted(set(patients), key=lambda p: hashlib.sha256(f"{salt}/{p}".encode()).digest())
    if len(names) < 3:
        raise DataError(
            f"expected volumes of at least three patients, for training, validation and test, got {len(names)} "
            f"({', '.join(names)}); is each volume's patient named (column `patient`, or sub-... in its path)?"
        )
    held = [max(1, round(f * len(names))) for f in fractions[1:]]
    first = max(1, len(names) - sum(held))
    parts = {
        "train": set(names[:first]),
        "validation": set(names[first : first + held[0]]),
        "test": set(names[first + held[0] :]),
    }
    return {
        split: np.array([k for k, p in enumerate(patients) if p in who], dtype=np.int64)
        for split, who in parts.items()
    }


def coarsen(u: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks of `factor` voxels along the last three axes; what does not fill a block is left out."""
    kept = [n // factor * factor for n in u.shape[-3:]]
    u = u[..., : kept[0], : kept[1], : kept[2]]
    split = [size for n in kept for size in (n // factor, factor)]
    return u.reshape(*u.shape[:-3], *split).mean(axis=(-5, -3, -1))


def _spread(samples: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly spread."""
    if len(samples) <= count:
        return list(samples)
    return [samples[k] for k in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def _whole(sample: _Sample, found: Gathered) -> bool:
    return sample.place.size == found.volumes[sample.volume].shape


def cases(folder: Path) -> pd.DataFrame | None:
    """`cases.csv` of a reference folder."""
    path = folder / "cases.csv"
    return pd.read_csv(path) if path.is_file() else None
