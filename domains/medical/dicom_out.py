r"""Write a derived DICOM series that nobody can mistake for an acquired one.

Values are stored as 16-bit integers, `value = slope * stored + intercept`. Whole numbers that fit (HU) are stored with
slope 1 and come back exactly; anything else is rounded with `slope = range / 65534`, an error of at most `slope / 2`,
which `write_series` returns and the series states in its DerivationDescription.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from sciLDM.domains.medical.dicom import LPS_TO_RAS, PATIENT, STUDY
from sciLDM.domains.medical.volume import Volume
from sciLDM.errors import DataError

__all__ = ["Written", "write_series"]

_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}


@final
@dataclass(frozen=True)
class Written:
    """A written series.

    Attributes:
        files: One a slice, from the first to the last.
        series: Its new SeriesInstanceUID.
        quantisation: Largest rounding error, in the units of the values; 0 when they come back exactly.
    """

    files: tuple[Path, ...]
    series: str
    quantisation: float


def write_series(
    volume: Volume,
    folder: Path | str,
    *,
    modality: Literal["CT", "MR", "PT", "OT"] | None = None,
    description: str = "sciLDM reconstruction",
    patient: Literal["removed", "kept"] = "removed",
    software: str = "sciLDM",
) -> Written:
    """Write one slice a file, with new identifiers that depend on the values alone.

    ImageType is DERIVED\\SECONDARY, SyntheticData YES, BurnedInAnnotation NO; ContributingEquipmentSequence and
    DerivationDescription say what made it, SourceImageSequence refers to the slices of a DICOM source. Free text and
    private tags of the source are never copied.

    Args:
        volume: Finite values on RAS+ axes.
        folder: Made when absent; must hold no file of another series.
        modality: That of the source when None, else OT.
        description: What the series shows.
        patient: `kept` copies name, identifier, birth date, sex and study of a DICOM source, so that a viewer files
            the series beside it; `removed` says so in PatientIdentityRemoved.
        software: Name and version for the equipment entry.

    Raises:
        DataError: Values that are not finite, axes that are not at right angles, or a folder already in use.
    """
    folder = Path(folder)
    if not np.isfinite(volume.data).all():
        raise DataError(f"{volume.name or 'volume'}: DICOM has no NaN; fill missing values before writing")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: expected an empty folder for a new series")
    modality = modality or _modality(volume)
    values = volume.on_disk().reshape(volume.stored.shape[:3])
    raw, slope, intercept, error = _sixteen_bits(values)
    source = str(volume.stored.details.get("SeriesInstanceUID", ""))
    text = "/".join([description, patient, modality, source, repr(volume.stored.affine.tolist())])
    key = hashlib.sha256(raw.tobytes() + text.encode()).hexdigest()
    uid = lambda *part: str(generate_uid(entropy_srcs=[key, *map(str, part)]))  # noqa: E731
    common = _common(volume, modality, description, patient, software, error, uid)
    common.RescaleSlope, common.RescaleIntercept = _decimal(slope), _decimal(intercept)
    common.RescaleType = "HU" if modality == "CT" else "US"
    common.PixelRepresentation = int(raw.dtype.kind == "i")
    geometry = _geometry(volume, common)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(raw.shape[2]):
        path = folder / f"IM{k + 1:05d}.dcm"
        _slice(common, raw[:, :, k], k, geometry, uid).save_as(path, enforce_file_format=True)
        files.append(path)
    return Written(tuple(files), str(common.SeriesInstanceUID), error)


def _modality(volume: Volume) -> Literal["CT", "MR", "PT", "OT"]:
    found = volume.stored.details.get("Modality", "")
    return found if found in _CLASSES else "OT"


def _sixteen_bits(values: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    """Stored numbers, slope, intercept and largest rounding error."""
    low, high = float(values.min()), float(values.max())
    if bool((values == np.rint(values)).all()) and low >= -32768 and high <= 32767:
        return values.astype(np.int16), 1.0, 0.0, 0.0
    # DICOM writes numbers in 16 characters: what is stored must follow the slope as written.
    slope = float(_decimal(max((high - low) / 65534, 1e-12)))
    intercept = float(_decimal(low))
    raw = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), 0, 65535).astype(np.uint16)
    return raw, slope, intercept, float(np.abs(raw * slope + intercept - values).max())


def _decimal(value: float) -> str:
    """A number in at most 16 characters, as value representation DS asks."""
    for digits in range(14, 0, -1):
        if len(text := f"{value:.{digits}g}") <= 16:
            return text
    raise AssertionError(value)


def _common(
    volume: Volume, modality: str, description: str, patient: str, software: str, error: float, uid: Any
) -> Dataset:
    """What all slices share."""
    details = volume.stored.details
    made = Dataset()
    made.SOPClassUID = _CLASSES[modality]
    made.Modality = modality
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.SyntheticData = "YES"
    made.BurnedInAnnotation = "NO"
    made.Manufacturer = "sciLDM"
    made.SoftwareVersions = software[:64]
    made.SeriesDescription = description[:64]
    rounding = f"values rounded by at most {error:.3g}" if error else "values stored exactly"
    made.DerivationDescription = f"{description}; {software}; {rounding}"[:1024]
    equipment = Dataset()
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109103", "DCM"
    purpose.CodeMeaning = "Modifying Equipment"
    equipment.PurposeOfReferenceCodeSequence = Items([purpose])
    equipment.Manufacturer, equipment.SoftwareVersions = "sciLDM", software[:64]
    equipment.ContributionDescription = "Samples or statistics of a generative model; not an acquired image"
    made.ContributingEquipmentSequence = Items([equipment])
    kept = patient == "kept"
    for tag in PATIENT:
        setattr(made, tag, details.get(tag, "") if kept else "")
    for tag in STUDY:
        setattr(made, tag, details.get(tag, "") if kept else "")
    made.StudyInstanceUID = (kept and details.get("StudyInstanceUID")) or uid("study")
    made.FrameOfReferenceUID = (kept and details.get("FrameOfReferenceUID")) or uid("frame")
    if not kept:
        made.PatientIdentityRemoved = "YES"
        made.DeidentificationMethod = "No patient attribute of the source was copied"
    made.SeriesInstanceUID, made.SeriesNumber = uid("series"), 9000
    if instances := details.get("instances"):
        made.SourceImageSequence = Items([_reference(*pair) for pair in instances if all(pair)])
    made.ReferringPhysicianName = made.PositionReferenceIndicator = ""
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit = 15
    _class_tags(made, modality)
    return made


def _reference(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _class_tags(made: Dataset, modality: str) -> None:
    """Attributes that a modality's information object must have, empty where we do not know them."""
    if modality == "CT":
        made.KVP = made.AcquisitionNumber = ""
    elif modality == "MR":
        made.ScanningSequence, made.SequenceVariant, made.ScanOptions = "RM", "NONE", ""
        made.MRAcquisitionType = made.EchoTime = made.EchoTrainLength = made.RepetitionTime = ""
    elif modality == "OT":
        made.ConversionType = "WSD"


def _geometry(volume: Volume, common: Dataset) -> np.ndarray:
    """The affine in LPS; sets direction and spacing."""
    affine = LPS_TO_RAS @ volume.stored.affine
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    directions = affine[:3, :3] / spacing
    if np.abs(directions[:, 0] @ directions[:, 1]) > 1e-4:
        raise DataError(
            f"{volume.name or 'volume'}: the axes within a slice are not at right angles, which DICOM cannot say; "
            "resample it first"
        )
    common.ImageOrientationPatient = [_decimal(float(c)) for c in (*directions[:, 0], *directions[:, 1])]
    common.PixelSpacing = [_decimal(float(spacing[1])), _decimal(float(spacing[0]))]
    normal = np.cross(directions[:, 0], directions[:, 1])
    gap = abs(float(normal @ affine[:3, 2]))
    common.SliceThickness = common.SpacingBetweenSlices = _decimal(gap)
    return affine


def _slice(common: Dataset, pixels: np.ndarray, k: int, affine: np.ndarray, uid: Any) -> Dataset:
    dataset = Dataset()
    dataset.update(common)
    dataset.SOPInstanceUID, dataset.InstanceNumber = uid("instance", k), k + 1
    position = affine[:3, 3] + k * affine[:3, 2]
    dataset.ImagePositionPatient = [_decimal(float(p)) for p in position]
    dataset.SliceLocation = _decimal(float(position[2]))
    dataset.Rows, dataset.Columns = pixels.shape[1], pixels.shape[0]
    dataset.add_new(
        0x7FE00010, "OW", np.ascontiguousarray(pixels.T).astype("<" + pixels.dtype.str[1:]).tobytes()
    )
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        dataset.SOPInstanceUID,
    )
    dataset.file_meta = meta
    return dataset
