"""A volume as the adapter holds it: RAS axes, physical values, and everything needed to write it back as it came."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from sciLDM.errors import DataError, ShapeMismatch

__all__ = ["Stored", "Volume", "crop", "from_array"]


@final
@dataclass(frozen=True)
class Stored:
    """How a volume lay in its file.

    Attributes:
        header: The NIfTI header with its raw scale factors; None when the volume came from elsewhere.
        extensions: NIfTI header extensions.
        dtype: Type of the numbers on disk.
        slope: Physical value is `slope * stored + intercept`.
        intercept: See `slope`.
        shape: Shape on disk, trailing axes of length 1 included.
        affine: Voxel index on disk to millimetres (RAS+).
        details: What a DICOM series says of itself: modality, study and patient identifiers, slice identifiers.
    """

    header: nib.Nifti1Header | None
    extensions: tuple[Any, ...]
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    shape: tuple[int, ...]
    affine: np.ndarray
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def orientation(self) -> np.ndarray:
        """From the axes on disk to the nearest RAS+ axes, as `nibabel.orientations` writes it."""
        return io_orientation(self.affine)


@final
@dataclass(frozen=True)
class Volume:
    """Physical values on RAS+ axes: index 0 grows to the right, 1 to the front, 2 upwards (nearly, if oblique).

    Attributes:
        data: Values, float32, or float64 where float32 would lose digits.
        stored: How it lay in its file.
        name: File name, for messages and for naming what is derived from it.
    """

    data: np.ndarray
    stored: Stored
    name: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the RAS+ axes."""
        x, y, z = self.data.shape
        return x, y, z

    @property
    def affine(self) -> np.ndarray:
        """RAS+ voxel index to millimetres."""
        return self.stored.affine @ inv_ornt_aff(self.stored.orientation, self.stored.shape[:3])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along the RAS+ axes."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return x, y, z

    def with_data(self, data: np.ndarray) -> "Volume":
        """The same place with other values.

        Raises:
            ShapeMismatch: Values on another grid.
        """
        if data.shape != self.shape:
            raise ShapeMismatch(f"{self.name or 'volume'}: expected values {self.shape}, got {data.shape}")
        return replace(self, data=data)

    def on_disk(self, data: np.ndarray | None = None) -> np.ndarray:
        """Values on the axes of the file: the inverse of the reorientation, and trailing axes of length 1."""
        values = self.data if data is None else data
        there = nib.orientations.ornt_transform(
            io_orientation(np.eye(4)), self.stored.orientation
        )  # what RAS+ axes are called on disk
        return apply_orientation(values, there).reshape(self.stored.shape)


def from_array(
    data: np.ndarray,
    affine: np.ndarray,
    *,
    name: str = "",
    dtype: np.dtype[Any] | type | str = np.float32,
    details: dict[str, Any] | None = None,
) -> Volume:
    """A volume that comes from no NIfTI file.

    Args:
        data: Values on the axes that `affine` describes.
        affine: Voxel index to millimetres (RAS+).
        name: For messages and output names.
        dtype: Type to write when the input's type is asked for.
        details: Kept in `Stored.details`.

    Raises:
        DataError: Not three axes, or an affine that maps different voxels to one place.
    """
    affine = np.asarray(affine, dtype=np.float64)
    check_affine(affine, name)
    if data.ndim != 3:
        raise DataError(f"{name or 'array'}: expected three axes, got shape {data.shape}")
    stored = Stored(None, (), np.dtype(dtype), 1.0, 0.0, data.shape, affine, details or {})
    return Volume(reorient(data, stored), stored, name)


def crop(volume: Volume, start: Sequence[int], size: Sequence[int]) -> Volume:
    """A box of a volume, in the same place of the patient; on RAS+ axes, without the file's header.

    Args:
        volume: What to cut from.
        start: First voxel along the RAS+ axes.
        size: Voxels along them.

    Raises:
        ShapeMismatch: The box is not wholly inside.
    """
    ends = [s + n for s, n in zip(start, size, strict=True)]
    if min(start) < 0 or min(size) < 1 or any(e > n for e, n in zip(ends, volume.shape, strict=True)):
        raise ShapeMismatch(f"a box of {tuple(size)} from {tuple(start)} is not inside {volume.shape} voxels")
    part = volume.data[tuple(slice(s, e) for s, e in zip(start, ends, strict=True))]
    affine = volume.affine.copy()
    affine[:3, 3] = (affine @ [*start, 1.0])[:3]
    return from_array(
        part, affine, name=volume.name, dtype=volume.stored.dtype, details=volume.stored.details
    )


def reorient(data: np.ndarray, stored: Stored) -> np.ndarray:
    """From the axes on disk to RAS+; a copy, contiguous in memory."""
    return np.ascontiguousarray(apply_orientation(data.reshape(stored.shape[:3]), stored.orientation))


def check_affine(affine: np.ndarray, name: str) -> None:
    """Raises `DataError` for an affine that cannot be inverted."""
    good = affine.shape == (4, 4) and np.isfinite(affine).all()
    if not good or abs(np.linalg.det(affine[:3, :3])) < 1e-9 or np.isnan(io_orientation(affine)).any():
        raise DataError(
            f"{name or 'volume'}: its affine is not invertible, so its voxels have no place in the patient; expected "
            f"four rows with three independent directions, got {np.round(affine, 4).tolist()}; repair the header"
        )
