"""What a user observed of a volume: damaged, with missing or thick slices, projections, k-space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from sciLDM.domains.medical.dicom import is_dicom, read_series
from sciLDM.domains.medical.hounsfield import Hounsfield
from sciLDM.domains.medical.nifti import from_image, read_nifti
from sciLDM.domains.medical.volume import Stored, Volume, from_array
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.operators import LinearOperator, Operator, ThickSlice

__all__ = ["Scan", "damaged", "keep_slices", "measured", "read_volume", "thick_slices"]

Image = str | Path | Volume | nib.spatialimages.SpatialImage


@final
@dataclass(frozen=True)
class Scan:
    """One observation.

    Attributes:
        volume: Where the result lies: geometry, type and name of the output. Its values count only without `values`:
            they are then what was observed, NaN where damaged.
        values: What `operator` observed, `[*observation]`; NaN where missing.
        operator: Acts on `(1, *shape on disk)` of the volume, in its units.
        window: Known intensity scale (low, high); None to estimate it from what was observed.
    """

    volume: Volume
    values: Tensor | None = None
    operator: Operator | None = None
    window: tuple[float, float] | None = None


def read_volume(image: Image) -> Volume:
    """A NIfTI path, a DICOM folder or file, a nibabel image, or a `Volume` as it is."""
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        if path.is_dir():
            return read_series(path)
        if path.is_file() and is_dicom(path):
            raise DataError(f"{path}: a single DICOM slice; give the folder of its series")
        return read_nifti(path)
    if isinstance(image, nib.spatialimages.SpatialImage):
        return from_image(image, name=Path(image.get_filename() or "").name)
    raise DataError(f"expected a path, a nibabel image or a Volume, got {type(image).__name__}")


def damaged(image: Image, mask: Image | np.ndarray | None = None) -> Scan:
    """A volume with damaged regions.

    Args:
        image: Values; NaN where damaged.
        mask: Not 0 where damaged: an image of the same shape and place, or an array on the axes of the file.

    Raises:
        DataError: A mask elsewhere in the patient, or nothing left undamaged.
        ShapeMismatch: A mask of another shape.
    """
    volume = read_volume(image)
    data = volume.data.copy()
    if mask is not None:
        if isinstance(mask, np.ndarray):
            array = mask.reshape(volume.stored.shape)
            spoilt = from_array(array.reshape(volume.stored.shape[:3]), volume.stored.affine).data != 0
        else:
            other = read_volume(mask)
            if other.shape != volume.shape:
                raise ShapeMismatch(f"mask: expected {volume.shape} voxels, got {other.shape}")
            if not np.allclose(other.affine, volume.affine, atol=1e-2):
                raise DataError(
                    f"mask {other.name} lies elsewhere than {volume.name or 'the volume'}: their affines differ; "
                    "resample it to the volume first"
                )
            spoilt = other.data != 0
        data[spoilt] = np.nan
    if np.isnan(data).all():
        raise DataError(f"{volume.name or 'volume'}: nothing is left undamaged")
    return Scan(volume.with_data(data))


def keep_slices(image: Image, *, axis: int = 2, every: int = 4, first: int = 0) -> Scan:
    """A volume of which only every `every`-th slice was recorded.

    Args:
        image: The volume; slices in between are ignored whatever they hold.
        axis: RAS+ axis across the slices: 0 left-right, 1 back-front, 2 feet-head.
        every: Distance of recorded slices.
        first: The first of them.
    """
    volume = read_volume(image)
    if axis not in (0, 1, 2) or every < 1 or not 0 <= first < volume.shape[axis]:
        raise ConfigError(
            f"keep_slices: expected axis 0 to 2, every >= 1 and a slice first, got {axis, every, first}"
        )
    data = np.full_like(volume.data, np.nan)
    chosen = [slice(None)] * 3
    chosen[axis] = slice(first, None, every)
    data[tuple(chosen)] = volume.data[tuple(chosen)]
    return Scan(volume.with_data(data))


def thick_slices(
    image: Image,
    *,
    spacing: float | None = None,
    thickness: float | None = None,
    axis: int | None = None,
    profile: Literal["box", "gauss"] = "box",
) -> Scan:
    """A volume of thick slices, to be reconstructed on thin ones.

    Slices are `thickness` thick and as far apart as the header says; what is left over is a gap. The thin grid begins
    where the first slice begins, so that outer edges coincide.

    Args:
        image: The low-resolution volume.
        spacing: Distance of the thin slices in mm; the smallest spacing within the slices when None.
        thickness: Of a slice in mm; their distance when None (no gap).
        axis: Across the slices, on the axes of the file; the one of largest spacing when None.
        profile: Sensitivity across a slice.

    Raises:
        ConfigError: Thin slices that are not thinner.
    """
    volume = read_volume(image)
    stored = volume.stored
    if np.isnan(volume.data).all():
        raise DataError(f"{volume.name or 'volume'}: no value is known")
    sizes = np.sqrt((stored.affine[:3, :3] ** 2).sum(axis=0))
    across = int(np.argmax(sizes)) if axis is None else int(axis)
    if across not in (0, 1, 2):
        raise ConfigError(f"thick_slices: axis is 0, 1 or 2, got {axis}")
    distance = float(sizes[across])
    fine = float(np.delete(sizes, across).min()) if spacing is None else float(spacing)
    thick = distance if thickness is None else float(thickness)
    if not 0 < fine < distance or not 0 < thick <= distance * (1 + 1e-6):
        raise ConfigError(
            f"thick_slices: slices are {distance:g} mm apart along axis {across}; expected a smaller spacing and at "
            f"most that thickness, got spacing={fine:g} and thickness={thick:g} mm"
        )
    gap = max(distance - thick, 0.0)
    low = volume.on_disk().reshape(stored.shape[:3])
    count = low.shape[across]
    # Rounded up: the last slice must lie wholly inside.
    thin = int(np.ceil((count * thick + (count - 1) * gap) / fine - 1e-6))
    target = _refined(stored, across, fine, thin, thick)
    shape = target.stored.shape[:3]
    operator = ThickSlice(
        (1, *shape), axis=1 + across, spacing=fine, thickness=thick, gap=gap, profile=profile
    )
    values = torch.from_numpy(np.ascontiguousarray(low, dtype=np.float32))[None]
    return Scan(replace(target, name=volume.name), values, operator)


def measured(
    values: Tensor | np.ndarray,
    operator: Operator,
    *,
    like: Image | None = None,
    affine: np.ndarray | None = None,
    mu_water: float | None = None,
    window: tuple[float, float] | None = None,
    name: str = "measured",
) -> Scan:
    """Raw measurements: a sinogram, k-space samples.

    Args:
        values: What the operator observes of one volume, NaN where missing. Complex values become two real ones.
        operator: Acts on `(1, *shape)` of the array to be reconstructed.
        like: A volume whose geometry the result has (its values are not used).
        affine: Voxel index to millimetres (RAS+), where there is no such volume.
        mu_water: Attenuation of water in 1/mm: the operator then acts on attenuation and `values` are line integrals
            `-log(counts / photons)`, while the result is in HU.
        window: Known intensity scale (low, high), for MR.
        name: For naming the output.

    Raises:
        ShapeMismatch: Values, operator and geometry do not belong together.
        ConfigError: Neither or both of `like` and `affine`.
    """
    if (like is None) == (affine is None):
        raise ConfigError("measured: give either like= (a volume in the same place) or affine=")
    shape = operator.in_shape[1:]
    if len(shape) != 3 or operator.in_shape[0] != 1:
        raise ShapeMismatch(f"measured: expected an operator on (1, x, y, z), it acts on {operator.in_shape}")
    if like is not None:
        given = read_volume(like)
        if given.stored.shape[:3] != shape:
            raise ShapeMismatch(
                f"measured: the operator acts on {shape}, {given.name} has {given.stored.shape}"
            )
        volume = given.with_data(np.full_like(given.data, np.nan))
        volume = replace(volume, name=given.name or name)
    else:
        assert affine is not None
        volume = from_array(np.full(shape, np.nan, dtype=np.float32), affine, name=name)
    y = torch.as_tensor(np.asarray(values))
    y = (torch.view_as_real(y) if y.is_complex() else y).float()
    if tuple(y.shape) != operator.out_shape:
        raise ShapeMismatch(
            f"measured: {type(operator).__name__} gives {operator.out_shape}, got {tuple(y.shape)}"
        )
    if mu_water is not None:
        if not isinstance(operator, LinearOperator):
            raise ConfigError("measured: mu_water needs a linear projector")
        operator = Hounsfield(operator, mu_water=mu_water)
        y = operator.from_line_integrals(y[None])[0]
    return Scan(volume, y, operator, window)


def as_scans(observed: Any) -> tuple[list[Scan], bool]:
    """What `FieldCodec.task` was given, and whether it was a single one."""
    single = not isinstance(observed, Sequence) or isinstance(observed, str)
    items = [observed] if single else list(observed)
    if not items:
        raise DataError("observed: expected at least one volume, got an empty list")
    return [item if isinstance(item, Scan) else damaged(item) for item in items], single


def _refined(stored: Stored, axis: int, fine: float, count: int, thickness: float) -> Volume:
    """The same place with thinner slices along one axis; all values unknown."""
    affine = stored.affine.copy()
    unit = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    affine[:3, axis] = unit * fine
    affine[:3, 3] += unit * (fine - thickness) / 2
    shape = list(stored.shape)
    shape[axis] = count
    header = None
    if stored.header is not None:
        header = stored.header.copy()
        codes = int(header["sform_code"]), int(header["qform_code"])
        header.set_data_shape(shape)
        zooms = list(header.get_zooms())
        zooms[axis] = fine
        header.set_zooms(zooms)
        header.set_sform(affine, code=codes[0] or (1 if codes == (0, 0) else 0))
        header.set_qform(affine, code=codes[1])
    made = replace(stored, header=header, shape=tuple(shape), affine=affine)
    blank = from_array(np.full(shape[:3], np.nan, dtype=np.float32), affine)
    return Volume(blank.data, made)
