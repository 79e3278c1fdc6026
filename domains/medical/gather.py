"""Read and check all volumes of a data set once; what cannot be used is listed with its reason, never fatal alone."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd

from sciLDM.domain import Progress
from sciLDM.domains.medical.intensity import IntensitySettings, Modality, check_modality
from sciLDM.domains.medical.sources import Entry, read_entry
from sciLDM.errors import DataError

__all__ = ["Gathered", "gather"]

_SMALL_BYTES = 512 * 2**20
"""Up to here volumes are kept as float32, beyond as float16."""


@final
@dataclass(frozen=True)
class Gathered:
    """Usable volumes.

    Attributes:
        entries: One for each volume.
        volumes: Network units on RAS+ axes.
        labels: Class numbers on the same axes; empty arrays where there is no segmentation.
        table: `name`, `patient`, `low`, `high`, `clipped`, and spacing `x`, `y`, `z` in mm.
        rejected: `name` and `reason`.
    """

    entries: tuple[Entry, ...]
    volumes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    table: pd.DataFrame
    rejected: pd.DataFrame

    @property
    def spacings(self) -> np.ndarray:
        """`[volume, 3]` in mm."""
        return self.table[["x", "y", "z"]].to_numpy(dtype=np.float64)


def gather(
    entries: Sequence[Entry],
    *,
    modality: Modality,
    intensity: IntensitySettings,
    cache: Path,
    progress: Progress,
) -> Gathered:
    """Read every volume, scale it, and keep the result under `cache`.

    Raises:
        DataError: No volume can be used; the first reasons are listed.
    """
    path = cache / f"volumes-{_key(entries, modality, intensity)}.npz"
    stored = _load(path, entries)
    if stored is not None:
        return stored
    rows, rejected, kept, volumes, labels = [], [], [], [], []
    for done, entry in enumerate(entries):
        progress("reading volumes", done, len(entries))
        try:
            u, row, label = _read(entry, modality, intensity)
        except DataError as error:
            rejected.append({"name": entry.name, "reason": str(error).removeprefix(f"{entry.files[0]}: ")})
            continue
        kept.append(done)
        rows.append(row)
        volumes.append(u)
        labels.append(label)
    progress("reading volumes", len(entries), len(entries))
    if not kept:
        shown = "; ".join(f"{r['name']}: {r['reason']}" for r in rejected[:3])
        raise DataError(f"none of {len(entries)} volumes can be used: {shown}")
    dtype = np.float32 if sum(v.nbytes for v in volumes) <= _SMALL_BYTES else np.float16
    volumes = [v.astype(dtype) for v in volumes]
    table, left = pd.DataFrame(rows), pd.DataFrame(rejected, columns=["name", "reason"])
    _store(path, kept, volumes, labels, table, left)
    return Gathered(tuple(entries[k] for k in kept), tuple(volumes), tuple(labels), table, left)


def _read(
    entry: Entry, modality: Modality, intensity: IntensitySettings
) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    volume = read_entry(entry)
    values = volume.data
    if np.isnan(values).any():
        raise DataError(
            f"{np.isnan(values).mean():.1%} of its voxels are NaN; training needs whole volumes "
            "(damaged ones can be reconstructed later)"
        )
    if not np.isfinite(values).all():
        raise DataError("holds infinite values")
    if values.min() == values.max():
        raise DataError(f"constant volume: all values are {values.flat[0]:g}")
    check_modality(values, modality, volume.stored.details.get("Modality", ""))
    scale = intensity.scale(values, modality)
    if (clipped := scale.clipped(values)) > 0.5:
        raise DataError(
            f"{clipped:.0%} of its voxels lie outside the window {scale.low:g} to {scale.high:g}; right modality?"
        )
    x, y, z = volume.spacing
    row = {"name": entry.name, "patient": entry.patient, "low": scale.low, "high": scale.high}
    row |= {"clipped": clipped, "x": x, "y": y, "z": z}
    return scale.encode(values), row, _label(entry, volume.shape)


def _label(entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    if entry.label is None:
        return np.zeros((0, 0, 0), dtype=np.uint8)
    from sciLDM.domains.medical.nifti import read_nifti

    label = read_nifti(entry.label).data
    if label.shape != shape:
        raise DataError(f"its segmentation {entry.label.name} has shape {label.shape}, the volume {shape}")
    if label.min() < 0 or label.max() > 255 or (label != np.rint(label)).any():
        raise DataError(f"its segmentation {entry.label.name} holds other values than classes from 0 to 255")
    return label.astype(np.uint8)


def notes(found: Gathered, total: int) -> list[str]:
    """What the user must know of the data."""
    lines = []
    if len(found.rejected):
        short = Counter(reason.split(":")[0].split("(")[0].strip() for reason in found.rejected["reason"])
        counted = "; ".join(f"{n} x {reason}" for reason, n in short.most_common(4))
        lines.append(
            f"{len(found.rejected)} of {total} volumes skipped ({counted}); see reference/rejected.csv"
        )
    clipped = found.table["clipped"].to_numpy(dtype=np.float64)
    if clipped.max() > 0:
        lines.append(
            f"{clipped.mean():.3%} of voxels lie outside the intensity window and were clipped for training "
            f"(at most {clipped.max():.2%} of a volume)"
        )
    low, high = found.spacings.min(axis=0), found.spacings.max(axis=0)
    if (high > 1.01 * low).any():
        spans = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True))
        lines.append(f"spacings are mixed ({spans} mm along x, y, z); the networks are told each volume's")
    return lines


def _key(entries: Sequence[Entry], modality: str, intensity: IntensitySettings) -> str:
    """Changes with any file's name, size or time of change, and with how values are scaled."""
    files = [f for e in entries for f in (*e.files, *([e.label] if e.label else []))]
    stats = [(str(f.resolve()), *_stat(f)) for f in files]
    content = json.dumps([1, stats, modality, asdict(intensity), [e.patient for e in entries]])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _stat(path: Path) -> tuple[int, ...]:
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else ()


def _store(path: Path, kept: list[int], volumes: Any, labels: Any, table: Any, rejected: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = json.dumps(
        {"kept": kept, "table": table.to_dict("list"), "rejected": rejected.to_dict("list")}, default=float
    )
    arrays = {f"v{k}": v for k, v in enumerate(volumes)} | {f"l{k}": v for k, v in enumerate(labels)}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, meta=np.frombuffer(meta.encode(), dtype=np.uint8), **arrays)
    partial.replace(path)


def _load(path: Path, entries: Sequence[Entry]) -> Gathered | None:
    if not path.exists():
        return None
    try:
        # Opened here: NumPy leaves a damaged archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            meta = json.loads(found["meta"].tobytes().decode())
            count = len(meta["kept"])
            return Gathered(
                tuple(entries[k] for k in meta["kept"]),
                tuple(found[f"v{k}"] for k in range(count)),
                tuple(found[f"l{k}"] for k in range(count)),
                pd.DataFrame(meta["table"]),
                pd.DataFrame(meta["rejected"], columns=["name", "reason"]),
            )
    except Exception:  # zip, zlib, header and key errors: whatever is wrong, it is read again
        path.unlink(missing_ok=True)
        return None
