"""NIfTI in and out; what is not changed comes back bit for bit: affine, q/s-form codes, pixdim, units, type, values."""

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension, Nifti1Extensions

from sciLDM.domains.medical.volume import Stored, Volume, check_affine, reorient
from sciLDM.errors import DataError

__all__ = ["SUFFIXES", "from_image", "mark_of", "read_nifti", "stem", "to_image", "write_nifti"]

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mgz", ".mgh")
"""File names that are taken for volumes."""

_COMMENT = 6  # NIfTI extension code of plain text


def stem(path: Path | str) -> str:
    """File name without `.nii`, `.nii.gz` and the like."""
    name = Path(path).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def read_nifti(path: Path | str) -> Volume:
    """Read one volume.

    Raises:
        DataError: No volume, unreadable or damaged, four axes, a single slice, colours or complex numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.spatialimages.SpatialImage):
            raise DataError(f"{path}: expected a volume, got {type(image).__name__}")
        return from_image(image, name=path.name)
    except DataError:
        raise
    except (ImageFileError, OSError, EOFError, ValueError, nib.spatialimages.HeaderDataError) as error:
        raise DataError(f"{path}: cannot be read as a volume ({_short(error)})") from error


def from_image(image: nib.spatialimages.SpatialImage, *, name: str = "") -> Volume:
    """A nibabel image as a `Volume`; see `read_nifti`."""
    _check_shape(tuple(image.shape), name)
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.names:
        raise DataError(f"{name or 'image'}: expected whole or real numbers, got {dtype}; convert it first")
    affine = image.affine if image.affine is not None else np.eye(4)
    check_affine(affine, name)
    slope, intercept = _scale(image)
    plain = (slope, intercept) == (1.0, 0.0)
    raw = np.asanyarray(image.dataobj.get_unscaled() if nib.is_proxy(image.dataobj) else image.dataobj)
    exact = plain and (dtype.itemsize <= 2 or dtype == np.float32)
    values = raw.astype(np.float32 if exact else np.float64)
    values = values if plain else slope * values + intercept
    header, extensions = _raw_header(image)
    stored = Stored(header, extensions, dtype, slope, intercept, tuple(image.shape), affine)
    return Volume(reorient(values, stored), stored, name)


def to_image(
    volume: Volume,
    *,
    dtype: Literal["input", "float32"] = "input",
    mark: Mapping[str, Any] | None = None,
) -> nib.Nifti1Image | nib.Nifti2Image:
    """A volume in the patient's own geometry.

    Args:
        volume: Values on RAS+ axes.
        dtype: `input` writes the type, slope and intercept of the file it came from (values are rounded to them),
            `float32` keeps values that are no multiples of the slope.
        mark: Says that the values are synthetic: goes into `descrip` and, as JSON, into a header extension.

    Raises:
        DataError: Values that are not finite cannot be stored as whole numbers.
    """
    return _image_class(volume.stored).from_bytes(_encode(volume, dtype, mark))


def write_nifti(
    volume: Volume,
    path: Path | str,
    *,
    dtype: Literal["input", "float32"] = "input",
    mark: Mapping[str, Any] | None = None,
) -> Path:
    """Write `.nii` or `.nii.gz`; the same values give the same bytes. See `to_image`."""
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path}: expected a name that ends in .nii or .nii.gz")
    content = _encode(volume, dtype, mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content)
    return partial.replace(path)


def mark_of(image: nib.Nifti1Image) -> dict[str, Any] | None:
    """The synthetic mark in a NIfTI header extension, or None."""
    for extension in image.header.extensions:
        if extension.get_code() == _COMMENT:
            try:
                content = json.loads(_text(extension))
            except ValueError:
                continue
            if isinstance(content, dict) and content.get("SyntheticData") is True:
                return content
    return None


def _text(extension: Any) -> str:
    content = extension.get_content()
    raw = content if isinstance(content, bytes) else str(content).encode()
    return raw.decode("utf-8", "replace").rstrip("\0")


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    name = name or "image"
    if len(shape) > 3 and any(n != 1 for n in shape[3:]):
        raise DataError(
            f"{name}: expected one volume, got {len(shape)} axes {shape}; split the series first "
            "(nibabel.funcs.four_to_three) and give each volume its own file"
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise DataError(f"{name}: expected a volume, got a single slice of shape {shape}")


def _scale(image: nib.spatialimages.SpatialImage) -> tuple[float, float]:
    slope = getattr(image.dataobj, "slope", 1.0) if nib.is_proxy(image.dataobj) else 1.0
    intercept = getattr(image.dataobj, "inter", 0.0) if nib.is_proxy(image.dataobj) else 0.0
    return float(1.0 if slope is None else slope), float(0.0 if intercept is None else intercept)


def _raw_header(
    image: nib.spatialimages.SpatialImage,
) -> tuple[nib.Nifti1Header | None, tuple[Any, ...]]:
    """The header as it is on disk: nibabel forgets the scale factors once it has applied them."""
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return None, ()
    raw = header.copy()
    holder = (image.file_map or {}).get("header") or (image.file_map or {}).get("image")
    if nib.is_proxy(image.dataobj) and holder is not None and (holder.filename or holder.fileobj):
        with holder.get_prepare_fileobj("rb") as stream:
            raw = type(header).from_fileobj(stream, check=False)
    extensions = tuple(header.extensions)
    raw.extensions = Nifti1Extensions()
    return raw, extensions


def _image_class(stored: Stored) -> type[nib.Nifti1Image] | type[nib.Nifti2Image]:
    two = isinstance(stored.header, nib.Nifti2Header) or max(stored.shape) > 32767
    return nib.Nifti2Image if two else nib.Nifti1Image


def _encode(volume: Volume, dtype: str, mark: Mapping[str, Any] | None) -> bytes:
    """A single-file NIfTI image as bytes, header first."""
    stored = volume.stored if volume.stored.header is not None else _with_header(volume.stored)
    assert stored.header is not None
    header = stored.header.copy()
    values = volume.on_disk()
    if dtype == "float32":
        raw = values.astype(np.float32)
        header.set_data_dtype(np.float32)
        header["scl_slope"], header["scl_inter"], header["cal_min"], header["cal_max"] = 1.0, 0.0, 0.0, 0.0
    else:
        raw = _quantise(values, stored, volume.name)
    raw = raw.astype(header.get_data_dtype())  # in the header's byte order
    extensions = Nifti1Extensions(list(stored.extensions))
    if mark is not None:
        header["descrip"] = f"SYNTHETIC sciLDM {mark.get('Model', '')}".strip().encode("ascii", "replace")[
            :79
        ]
        content = json.dumps({"SyntheticData": True, **mark}, sort_keys=True, default=float)
        extensions.append(Nifti1Extension(_COMMENT, content.encode()))
    return _assemble(header, extensions, raw)


def _assemble(header: nib.Nifti1Header, extensions: Nifti1Extensions, raw: np.ndarray) -> bytes:
    size = header.sizeof_hdr + 4 + (extensions.get_sizeondisk() if extensions else 0)
    kept = int(header["vox_offset"]) if bytes(header["magic"].item()) == header.single_magic else 0
    header["magic"] = header.single_magic  # a pair of files becomes one
    header["vox_offset"] = max(size, kept)
    buffer = io.BytesIO()
    buffer.write(header.binaryblock)
    buffer.write(b"\x01\0\0\0" if extensions else b"\0\0\0\0")
    if extensions:
        extensions.write_to(buffer, header.endianness != nib.volumeutils.native_code)
    buffer.write(b"\0" * (int(header["vox_offset"]) - buffer.tell()))
    buffer.write(raw.tobytes(order="F"))
    return buffer.getvalue()


def _quantise(values: np.ndarray, stored: Stored, name: str) -> np.ndarray:
    """Physical values as the file's own numbers."""
    if (stored.slope, stored.intercept) != (1.0, 0.0):
        values = (values.astype(np.float64) - stored.intercept) / stored.slope
    if stored.dtype.kind == "f":
        return values.astype(stored.dtype.newbyteorder("="))
    if not np.isfinite(values).all():
        raise DataError(f"{name or 'volume'}: NaN cannot be stored as {stored.dtype}; write it as float32")
    limits = np.iinfo(stored.dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(stored.dtype.newbyteorder("="))


def _with_header(stored: Stored) -> Stored:
    """A fresh header for a volume that came from no NIfTI file: both forms say "scanner", units are mm."""
    image = _image_class(stored)(np.zeros(stored.shape, dtype=np.uint8), stored.affine)
    image.set_sform(stored.affine, 1)
    image.set_qform(stored.affine, 1)
    header = image.header
    header.set_xyzt_units("mm")
    header.set_data_dtype(stored.dtype)
    header["scl_slope"], header["scl_inter"] = stored.slope, stored.intercept
    return replace(stored, header=header)


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
