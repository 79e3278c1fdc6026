"""Whether a file says that it is synthetic: NIfTI header and extension, JSON side-car, DICOM tags, keyed watermark."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import nibabel as nib
import pydicom
from nibabel.filebasedimages import ImageFileError

from sciLDM.domains.medical.dicom import find_series, is_dicom
from sciLDM.domains.medical.nifti import SUFFIXES, mark_of, stem
from sciLDM.domains.medical.scan import read_volume
from sciLDM.domains.medical.watermark import Verification, verify_volume
from sciLDM.errors import DataError

__all__ = ["FileVerification", "read_marks", "verify_file"]


@final
@dataclass(frozen=True)
class FileVerification:
    """What a file says of itself, and what a key finds in it.

    Attributes:
        marks: Where it is called synthetic, and in which words; empty when nowhere.
        watermark: None without a key.
    """

    marks: Mapping[str, str]
    watermark: Verification | None = None

    @property
    def synthetic(self) -> bool:
        """Whether anything says so."""
        return bool(self.marks) or (self.watermark is not None and self.watermark.found)

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{place}: {text}" for place, text in self.marks.items()]
        said = said or ["no synthetic mark in header, side-car or tags"]
        if self.watermark is not None:
            w = self.watermark
            said.append(
                f"watermark {'found' if w.found else 'not found'}: p = {w.p_value:.3g} (z = {w.z:.1f}, "
                f"shift {w.shift[0]}, {w.shift[1]}, {w.shift[2]})"
            )
        return said


def verify_file(path: str | Path, key: str | None = None) -> FileVerification:
    """Read the marks of a NIfTI file, a DICOM file or the folder of a series; look for a key's watermark.

    Raises:
        DataError: Nothing there that is a volume.
    """
    path = Path(path)
    marks = read_marks(path)
    if key is None:
        return FileVerification(marks)
    # The pattern runs through the volume: one slice of a series is read with its folder.
    place = path.parent if path.is_file() and is_dicom(path) else path
    return FileVerification(marks, verify_volume(read_volume(place), key))


def read_marks(path: Path) -> dict[str, str]:
    """Where a file is called synthetic; empty when nowhere.

    Raises:
        DataError: No such file, or no volume.
    """
    if path.is_dir():
        files = [f for series in find_series(path).values() for f in series]
        if not files:
            raise DataError(
                f"{path}: expected a NIfTI file or the folder of a DICOM series, it holds no image"
            )
        return _tags(files[0])
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if is_dicom(path):
        return _tags(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: expected a NIfTI file ({', '.join(SUFFIXES[:2])}) or DICOM")
    return _header(path) | _sidecar(path)


def _header(path: Path) -> dict[str, str]:
    try:
        image: Any = nib.load(path)
        described = bytes(image.header["descrip"].item()).decode("latin-1").rstrip("\0")
        content = mark_of(image)
    except (ImageFileError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({error})") from error
    found = {"NIfTI descrip": described} if described.upper().startswith("SYNTHETIC") else {}
    return found if content is None else found | {"NIfTI extension": json.dumps(content, sort_keys=True)}


def _sidecar(path: Path) -> dict[str, str]:
    beside = path.with_name(f"{stem(path)}.json")
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("SyntheticData") is not True:
        return {}
    by = content.get("GeneratedBy")
    return {f"side-car {beside.name}": f"SyntheticData: true, GeneratedBy: {json.dumps(by)}"}


def _tags(path: Path) -> dict[str, str]:
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as DICOM ({error})") from error
    if str(dataset.get("SyntheticData", "")).upper() != "YES":
        return {}
    text = str(dataset.get("DerivationDescription", "") or dataset.get("SeriesDescription", ""))
    return {"DICOM SyntheticData": f"YES; {text}"}
