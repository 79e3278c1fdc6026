"""Generated volumes: images with a table of what they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import nibabel as nib
import numpy as np
import pandas as pd

from sciLDM import __version__
from sciLDM.domains.medical.bids import write_json
from sciLDM.domains.medical.nifti import read_nifti, to_image, write_nifti
from sciLDM.domains.medical.volume import Volume, from_array
from sciLDM.errors import DataError

__all__ = ["VolumeSamples", "read_samples"]


@final
@dataclass(frozen=True)
class VolumeSamples:
    """Synthetic volumes on RAS+ axes, centred on the origin.

    Attributes:
        volumes: Values in the data's units (for MR on the scale of a typical training volume).
        table: One row a volume: `file`, size, spacing in mm, range of values, and what was asked for.
        scale: What -1 and 1 of the network stand for.
    """

    volumes: Sequence[Volume]
    table: pd.DataFrame
    scale: tuple[float, float] = (-1.0, 1.0)

    @staticmethod
    def build(
        fields: np.ndarray,
        shapes: np.ndarray,
        spacings: np.ndarray,
        scale: tuple[float, float],
        requested: dict[str, Sequence[Any]],
    ) -> "VolumeSamples":
        """From values on the model's grid.

        Args:
            fields: `[sample, x, y, z]` in the data's units.
            shapes: Voxels of each sample, `[sample, 3]`; the middle of the grid is kept.
            spacings: `[sample, 3]` in mm.
            scale: What -1 and 1 of the network stand for.
            requested: Condition values, one for each sample.
        """
        volumes, rows = [], []
        for k, (values, shape, spacing) in enumerate(zip(fields, shapes, spacings, strict=True)):
            start = [(g - n) // 2 for g, n in zip(values.shape, shape, strict=True)]
            part = values[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = -(np.array(part.shape) - 1) / 2 * spacing
            name = f"sample-{k + 1:04d}.nii.gz"
            volumes.append(from_array(part.astype(np.float32), affine, name=name))
            x, y, z = part.shape
            row = {"file": name, "x": x, "y": y, "z": z}
            row |= {f"spacing_{a}": round(float(s), 4) for a, s in zip("xyz", spacing, strict=True)}
            row |= {"low": float(part.min()), "mean": float(part.mean()), "high": float(part.max())}
            rows.append(row | {f"requested_{name}": values[k] for name, values in requested.items()})
        return VolumeSamples(volumes, pd.DataFrame(rows), scale)

    def __len__(self) -> int:
        return len(self.volumes)

    def __iter__(self) -> Iterator[nib.Nifti1Image]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, k: int) -> nib.Nifti1Image:
        mark = {"GeneratedBy": f"sciLDM {__version__}"}
        return to_image(self.volumes[k], dtype="float32", mark=mark)

    def marked(self, key: str) -> "VolumeSamples":
        """With the faint watermark of a secret key in every volume, for `scildm verify FILE --key KEY`."""
        from sciLDM.domains.medical.watermark import mark_volume

        return replace(self, volumes=[mark_volume(v, key).volume for v in self.volumes])

    def write(self, path: str | Path) -> Path:
        """Write volumes with their table, or one volume alone.

        Args:
            path: `NAME.csv` for the table, with the volumes in the folder `NAME` beside it (no ending means the same),
                or `NAME.nii.gz` for a single volume.

        Returns:
            The table, or the one volume.

        Raises:
            DataError: Several volumes for one `.nii.gz`; another ending; a folder `NAME` that holds other files, or a
                file of that name.
        """
        path = Path(path)
        mark = {"GeneratedBy": f"sciLDM {__version__}"}
        if path.name.endswith((".nii", ".nii.gz")):
            if len(self) != 1:
                raise DataError(
                    f"{path}: {len(self)} volumes do not fit in one file; give a name that ends in .csv"
                )
            return write_nifti(self.volumes[0], path, dtype="float32", mark=mark)
        if path.suffix not in (".csv", ""):
            raise DataError(f"{path}: expected a name that ends in .csv, or in .nii.gz for a single volume")
        folder = _folder_for(path)
        table = self.table.copy()
        table["file"] = [f"{folder.name}/{v.name}" for v in self.volumes]
        for volume in self.volumes:
            write_nifti(volume, folder / volume.name, dtype="float32", mark=mark)
            side = {"SyntheticData": True, "GeneratedBy": [{"Name": "sciLDM", "Version": __version__}]}
            write_json(folder / volume.name.replace(".nii.gz", ".json"), side)
        write_json(folder / "scale.json", {"low": self.scale[0], "high": self.scale[1]})
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path.with_suffix(".csv"), index=False)
        return path.with_suffix(".csv")


def _folder_for(path: Path) -> Path:
    """The folder of volumes beside a table; nothing foreign is mixed with them."""
    folder = path.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise DataError(
            f"{path}: its volumes go into the folder {folder}, which is a file; choose another name"
        )
    known = ("sample-", "scale.json")
    other = [f.name for f in folder.iterdir() if not f.name.startswith(known)] if folder.is_dir() else []
    if other:
        raise DataError(
            f"{path}: its volumes go into the folder {folder}, which holds other files ({sorted(other)[0]}, ...); "
            "choose another name"
        )
    return folder


def read_samples(path: Path) -> VolumeSamples:
    """What `VolumeSamples.write` wrote."""
    import json

    try:
        table = pd.read_csv(path)
        volumes = [read_nifti(path.parent / name) for name in table["file"]]
        scale = json.loads((path.with_suffix("") / "scale.json").read_text(encoding="utf-8"))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of sampled volumes ({error})") from error
    table["file"] = [v.name for v in volumes]
    return VolumeSamples(volumes, table, (scale["low"], scale["high"]))
