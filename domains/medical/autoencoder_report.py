r"""What the autoencoder keeps and what it loses: accuracy by group, bias, faint lesions, seams between tiles.

    retention(s) = <D(E(x + s)) - D(E(x)), s> / <s, s>,        s a sphere of faint contrast

is 1 when a lesion that was inserted comes through whole, 0 when it vanishes. What the autoencoder does not keep, no
reconstruction can show unless it was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sciLDM.autoencoders.grid import GridAutoencoder, GridFields
from sciLDM.autoencoders.grid_tiles import tiled_decode, tiled_encode
from sciLDM.domain import Progress
from sciLDM.domains.medical.bids import write_json
from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.geometry import Placement, centred
from sciLDM.domains.medical.scan import read_volume
from sciLDM.domains.medical.sources import Entry, read_entry
from sciLDM.domains.medical.study import crop
from sciLDM.domains.medical.study_scores import image_score
from sciLDM.domains.medical.volume import Volume
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.calibration_statistics import bootstrap
from sciLDM.rng import NoiseSource

__all__ = ["AutoencoderReport", "Rebuilds", "autoencoder_report", "retention", "seam", "sphere"]

RADII = (1.5, 2.5, 4.0)
"""Of the spheres, in voxels of the smallest spacing."""
CONTRASTS = (0.02, 0.05, 0.1)
"""Of the spheres, as shares of the intensity range."""


@runtime_checkable
class Rebuilds(Protocol):
    """What the report needs of `sciLDM.model.LatentDiffusion`."""

    codec: Any
    autoencoder: Any


@final
@dataclass(frozen=True)
class AutoencoderReport:
    """What the autoencoder does to held-out volumes.

    Attributes:
        cases: One row a volume: `volume`, `psnr`, `ssim`, `bias` (mean error over the range), `slope` of rebuilt on
            true values, and the columns of its entry.
        groups: `group`, `volumes`, and `psnr`, `ssim`, `bias` with 95 % intervals `<metric>_lower` and `_upper`.
        retention: `radius` (voxels), `contrast` (share of the range), `retention` with `lower` and `upper`.
        seam: Largest difference between whole and tiled, as a share of the range; None where tiles are not known.
    """

    cases: pd.DataFrame
    groups: tuple[dict[str, Any], ...]
    retention: tuple[dict[str, Any], ...]
    seam: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "cases": self.cases.to_dict("records"),
            "groups": list(self.groups),
            "retention": list(self.retention),
            "seam": self.seam,
        }

    def save(self, path: str | Path) -> Path:
        """Write JSON."""
        return write_json(Path(path), self.to_dict())


def autoencoder_report(
    model: Rebuilds,
    volumes: Sequence[Any],
    *,
    by: str | None = None,
    radii: Sequence[float] = RADII,
    contrasts: Sequence[float] = CONTRASTS,
    places: int = 4,
    tile: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> AutoencoderReport:
    """Examine an autoencoder on held-out volumes.

    Args:
        model: A medical model.
        volumes: Paths, `Volume`s, or entries (`corpus.files("test")`), whose table columns are kept. What is larger
            than the grid is cut to it.
        by: Column of the entries that makes groups; one group when None.
        radii: Of the spheres, in voxels of the smallest spacing.
        contrasts: Of the spheres, as shares of the intensity range.
        places: Spheres of each kind in every volume, one at a time.
        tile: Voxels of a tile for the seam test.
        seed: Of the places.
        progress: Told how far it is.

    Raises:
        DataError: No volumes, or no such column.
        ConfigError: Not a medical model.
    """
    codec = model.codec
    if not isinstance(codec, MedicalCodec):
        raise ConfigError(f"expected a medical model, its codec is {type(codec).__name__}")
    if not volumes:
        raise DataError("the autoencoder report has no volumes")
    rows, kept, last = [], [], None
    for k, one in enumerate(volumes):
        volume = crop(read_entry(one) if isinstance(one, Entry) else read_volume(one), codec.grid)
        columns = dict(one.columns) if isinstance(one, Entry) else {}
        last = _Rebuild.of(model, codec, volume)
        rows.append({"volume": volume.name, **_scores(last), **columns})
        for radius in radii:
            for contrast in contrasts:
                found = _kept(model, volume, last, radius, contrast, places, seed + k)
                kept += [{"radius": radius, "contrast": contrast, "retention": r} for r in found]
        if progress is not None:
            progress("examining the autoencoder", k + 1, len(volumes))
    cases = pd.DataFrame(rows)
    if by is not None and by not in cases.columns:
        raise DataError(f"no column {by!r} to group by; there are {', '.join(cases.columns)}")
    assert last is not None
    gap = (
        seam(model.autoencoder, last.fields, tile) if isinstance(model.autoencoder, GridAutoencoder) else None
    )
    return AutoencoderReport(cases, _groups(cases, by), _curve(kept), gap)


def retention(
    model: Rebuilds, volume: Volume, radius: float, contrast: float, *, places: int = 4, seed: int = 0
) -> list[float]:
    """Share of an inserted sphere's contrast that survives encoding and decoding, one number a place.

    Args:
        model: A medical model.
        volume: No larger than the grid.
        radius: In voxels of the smallest spacing.
        contrast: Share of the intensity range.
        places: How many; each is tried alone, in tissue (above the median) and away from the faces where that can be.
        seed: Of the places.
    """
    return _kept(model, volume, _Rebuild.of(model, model.codec, volume), radius, contrast, places, seed)


def _kept(
    model: Rebuilds, volume: Volume, plain: "_Rebuild", radius: float, contrast: float, places: int, seed: int
) -> list[float]:
    found = []
    for centre in _centres(volume.data, radius, places, seed):
        s = contrast * plain.range * sphere(volume, centre, radius)
        other = _Rebuild.of(model, model.codec, volume.with_data(volume.data + s), (plain.low, plain.high))
        found.append(float(((other.rebuilt - plain.rebuilt) * s).sum() / (s**2).sum()))
    return found


def sphere(volume: Volume, centre: Sequence[float | int], radius: float) -> np.ndarray:
    """1 inside, 0 outside, with an edge one voxel wide; round in millimetres."""
    spacing = np.array(volume.spacing)
    unit = float(spacing.min())
    axes = np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij")
    square = sum(((a - c) * h / unit) ** 2 for a, c, h in zip(axes, centre, spacing, strict=True))
    return np.clip(radius + 0.5 - np.sqrt(np.asarray(square)), 0.0, 1.0).astype(np.float32)


@torch.no_grad()
def seam(autoencoder: GridAutoencoder, fields: GridFields, tile: int) -> float:
    """Largest difference between coding whole and coding in tiles, as a share of the range of 2."""
    shape = tuple(fields.values.shape[2:])
    z = autoencoder.bottleneck.code(autoencoder.encode(fields).mean)
    tiled = autoencoder.bottleneck.code(tiled_encode(autoencoder, fields, tile=tile).mean)
    whole, parts = autoencoder.decode_to(z, shape), tiled_decode(autoencoder, tiled, shape=shape, tile=tile)
    return float((whole - parts).abs().max()) / 2


@dataclass(frozen=True)
class _Rebuild:
    """A volume through the autoencoder."""

    truth: np.ndarray
    rebuilt: np.ndarray
    low: float
    high: float
    fields: Any

    @property
    def range(self) -> float:
        return self.high - self.low

    @staticmethod
    @torch.no_grad()
    def of(
        model: Rebuilds, codec: MedicalCodec, volume: Volume, scale: tuple[float, float] | None = None
    ) -> "_Rebuild":
        if scale is None:
            own = codec.intensity.scale(volume.data, codec.modality)
            scale = (own.low, own.high)
        place = centred(volume.shape, codec.grid)
        context = _context(place, scale)
        x = torch.from_numpy(np.ascontiguousarray(place.put(volume.data.astype(np.float32))))[None, None]
        fields = codec.from_units(x, context)
        z, mask = model.autoencoder.code(fields)
        back = codec.to_units(model.autoencoder.decode(z, mask), context)
        return _Rebuild(volume.data, place.cut(back)[0, 0].numpy(), *scale, fields)


def _context(place: Placement, scale: tuple[float, float]) -> dict[str, Tensor]:
    return {
        "low": torch.tensor([scale[0]]),
        "high": torch.tensor([scale[1]]),
        "at": torch.tensor([place.at]).float(),
        "size": torch.tensor([place.size]).float(),
    }


def _scores(one: _Rebuild) -> dict[str, float]:
    score = image_score(one.truth, one.rebuilt, one.range)
    x, y = one.truth.astype(np.float64).ravel(), one.rebuilt.astype(np.float64).ravel()
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else float("nan")
    return {"psnr": score.psnr, "ssim": score.ssim, "bias": float((y - x).mean()) / one.range, "slope": slope}


def _centres(data: np.ndarray, radius: float, count: int, seed: int) -> list[tuple[int, ...]]:
    margin = [min(int(np.ceil(radius)) + 1, (n - 1) // 2) for n in data.shape]
    inner = np.zeros(data.shape, dtype=bool)
    inner[tuple(slice(m, n - m) for m, n in zip(margin, data.shape, strict=True))] = True
    tissue = inner & (data > np.median(data))
    where = np.argwhere(tissue if tissue.any() else inner)
    u = NoiseSource(seed).uniform([0], (count,), f"sphere/{radius}")[0].numpy()
    return [tuple(int(i) for i in where[int(share * len(where))]) for share in u]


def _groups(cases: pd.DataFrame, by: str | None) -> tuple[dict[str, Any], ...]:
    parts = [("all", cases)] if by is None else list(cases.groupby(by, dropna=False))
    rows = []
    for group, part in parts:
        row: dict[str, Any] = {"group": str(group), "volumes": len(part)}
        for name in ("psnr", "ssim", "bias"):
            row |= _interval(part[name].to_numpy(float), name)
        rows.append(row)
    return tuple(rows)


def _curve(kept: Sequence[Mapping[str, float]]) -> tuple[dict[str, Any], ...]:
    if not kept:
        return ()
    table, rows = pd.DataFrame(list(kept)), []
    pairs = table[["radius", "contrast"]].drop_duplicates().sort_values(["radius", "contrast"])
    for radius, contrast in pairs.to_numpy().tolist():
        part = table[(table["radius"] == radius) & (table["contrast"] == contrast)]
        found = _interval(part["retention"].to_numpy(float), "retention")
        rows.append(
            {
                "radius": radius,
                "contrast": contrast,
                "retention": found["retention"],
                "lower": found["retention_lower"],
                "upper": found["retention_upper"],
            }
        )
    return tuple(rows)


def _interval(values: np.ndarray, name: str) -> dict[str, float]:
    found = bootstrap(values, np.ones(len(values)), NoiseSource(0))
    return {name: found.value, f"{name}_lower": found.lower, f"{name}_upper": found.upper}
