"""Read DICOM series: one volume a series, slices sorted along their normal, geometry from LPS to RAS."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from sciLDM.domains.medical.volume import Stored, Volume, reorient
from sciLDM.errors import DataError

__all__ = ["find_series", "is_dicom", "read_series"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

PATIENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
)  # fmt: skip
STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "FrameOfReferenceUID")


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM preamble."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def find_series(folder: Path) -> dict[str, list[Path]]:
    """Files of each series below a folder, by SeriesInstanceUID; what holds no image is left out."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix.lower() not in ("", ".dcm", ".ima", ".img") and not path.name.startswith("IM"):
            continue
        if not is_dicom(path):
            continue
        try:
            head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "Rows"])
        except (InvalidDicomError, OSError, EOFError, ValueError):
            found[f"unreadable {path}"].append(path)
            continue
        if "Rows" in head:
            found[str(head.get("SeriesInstanceUID", path.parent))].append(path)
    return dict(found)


def read_series(files: Sequence[Path] | Path, *, name: str = "") -> Volume:
    """One series as a volume of physical values (HU for CT).

    Args:
        files: The files of a series, in any order, or a folder that holds one series.
        name: For messages; the folder's name when empty.

    Raises:
        DataError: Unreadable files, several series, slices that differ in size or direction, uneven gaps (a missing
            slice is named), or fewer than two slices.
    """
    if isinstance(files, Path):
        series = find_series(files)
        if len(series) != 1:
            raise DataError(
                f"{files}: expected one DICOM series, found {len(series)}; give each series its own folder"
            )
        name, files = name or files.name, next(iter(series.values()))
    name = name or Path(files[0]).parent.name
    slices = [_read(path) for path in files]
    _check_alike(slices, name)
    normal = np.cross(*_directions(slices[0]))
    place = [float(normal @ np.asarray(s.ImagePositionPatient, dtype=np.float64)) for s in slices]
    order = np.argsort(place, kind="stable")
    slices, positions = [slices[k] for k in order], np.sort(place)
    gap = _gap(positions, name)
    values = np.stack([_values(s) for s in slices], axis=-1)
    affine = _affine(slices, gap)
    slopes = {(float(s.get("RescaleSlope", 1)), float(s.get("RescaleIntercept", 0))) for s in slices}
    slope, intercept = next(iter(slopes)) if len(slopes) == 1 else (1.0, 0.0)
    integer = slope == 1 and intercept == int(intercept)
    exact = values.astype(np.float32) if integer and np.abs(values).max() < 2**24 else values
    dtype = np.dtype(np.int16) if integer and np.abs(values).max() < 2**15 else np.dtype(np.float32)
    stored = Stored(None, (), dtype, 1.0, 0.0, values.shape, affine, _details(slices))
    return Volume(reorient(exact, stored), stored, name)


def _read(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as DICOM ({error})") from error
    if int(dataset.get("NumberOfFrames", 1)) > 1:
        raise DataError(
            f"{path}: enhanced multi-frame DICOM is not read; convert it (dcm2niix writes NIfTI) first"
        )
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
        if tag not in dataset:
            raise DataError(f"{path}: expected {tag}, which places a slice in the patient; it is absent")
    return dataset


def _check_alike(slices: Sequence[Dataset], name: str) -> None:
    if len(slices) < 2:
        raise DataError(f"{name}: expected a volume, got a single slice")
    first = slices[0]
    for tag in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "SeriesInstanceUID"):
        want = np.asarray(first.get(tag, 0)) if tag != "SeriesInstanceUID" else None
        for s in slices[1:]:
            got = s.get(tag, 0)
            same = got == first.get(tag) if want is None else np.allclose(np.asarray(got), want, atol=1e-4)
            if not same:
                raise DataError(
                    f"{name}: slices differ in {tag} ({first.get(tag)} and {got}); give one series at a time"
                )


def _gap(positions: np.ndarray, name: str) -> float:
    steps = np.diff(positions)
    usual = float(np.median(steps))
    if usual <= 1e-6:
        raise DataError(
            f"{name}: several slices lie at one place; is it a time series? give one time at a time"
        )
    if (odd := np.abs(steps - usual) > max(0.01 * usual, 1e-3)).any():
        k = int(np.argmax(odd))
        raise DataError(
            f"{name}: gaps between slices differ: {steps[k]:.3f} mm after slice {k + 1}, usually {usual:.3f} mm; "
            "is a slice missing? Fill it with NaN in a NIfTI copy to have it reconstructed"
        )
    return float((positions[-1] - positions[0]) / (len(positions) - 1))


def _values(dataset: Dataset) -> np.ndarray:
    """`[column, row]`: the first axis runs along a row of the picture."""
    try:
        pixels = dataset.pixel_array
    except (AttributeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{dataset.filename}: its pixels cannot be decoded ({error}); install a decoder for its transfer syntax "
            "(pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg)"
        ) from error
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return pixels.T.astype(np.float64) * slope + intercept


def _directions(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    cosines = np.asarray(dataset.ImageOrientationPatient, dtype=np.float64)
    return cosines[:3], cosines[3:]


def _affine(slices: Sequence[Dataset], gap: float) -> np.ndarray:
    """DICOM PS3.3 C.7.6.2.1.1, in RAS+ millimetres; slices may be sheared (gantry tilt)."""
    along_row, along_column = _directions(slices[0])
    between_rows, between_columns = (float(s) for s in slices[0].PixelSpacing)
    first, last = (np.asarray(s.ImagePositionPatient, dtype=np.float64) for s in (slices[0], slices[-1]))
    step = (last - first) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * between_columns, along_column * between_rows
    affine[:3, 2] = step if np.linalg.norm(step) > 0.5 * gap else np.cross(along_row, along_column) * gap
    affine[:3, 3] = first
    return LPS_TO_RAS @ affine


def _details(slices: Sequence[Dataset]) -> dict[str, Any]:
    first = slices[0]
    kept = {tag: str(first.get(tag)) for tag in (*PATIENT, *STUDY) if first.get(tag) not in (None, "")}
    return {
        **kept,
        "Modality": str(first.get("Modality", "")),
        "SeriesInstanceUID": str(first.get("SeriesInstanceUID", "")),
        "instances": [(str(s.get("SOPClassUID", "")), str(s.get("SOPInstanceUID", ""))) for s in slices],
    }
