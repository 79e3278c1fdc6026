"""A written series opens in pydicom, reads back equal, and says what it is; a damaged one is refused."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom

from sciLDM.domains.medical.dicom import find_series, read_series
from sciLDM.domains.medical.dicom_out import write_series
from sciLDM.domains.medical.volume import from_array
from sciLDM.errors import DataError
from tests.medical.phantoms import affines, blob, body

SHAPE = (6, 8, 5)


def right_angled() -> list[str]:
    return list(affines())


@pytest.mark.parametrize("name", right_angled())
def test_whole_hounsfield_units_come_back_exactly(name: str, tmp_path: Path) -> None:
    volume = from_array(body(SHAPE, np.random.default_rng(0)), affines()[name])
    written = write_series(volume, tmp_path / "out", modality="CT")
    again = read_series(tmp_path / "out")
    assert written.quantisation == 0
    assert len(written.files) == volume.stored.shape[2]
    assert np.array_equal(again.data, volume.data)
    assert np.allclose(again.affine, volume.affine, atol=1e-6)
    assert again.stored.details["Modality"] == "CT"


def test_other_values_are_rounded_as_stated(tmp_path: Path) -> None:
    values = blob(SHAPE, np.random.default_rng(1)) - 300.37
    volume = from_array(values, affines()["oblique"])
    written = write_series(volume, tmp_path / "out", modality="MR")
    error = np.abs(read_series(tmp_path / "out").data - volume.data).max()
    step = (values.max() - values.min()) / 65534
    assert 0 < written.quantisation <= 0.51 * step
    assert error == pytest.approx(written.quantisation, rel=1e-3)
    head = pydicom.dcmread(written.files[0])
    assert f"{written.quantisation:.3g}" in head.DerivationDescription


def test_header_says_derived_and_synthetic(tmp_path: Path) -> None:
    written = write_series(
        from_array(body(SHAPE, np.random.default_rng(0)), np.eye(4)), tmp_path / "out", modality="CT"
    )
    heads = [pydicom.dcmread(path) for path in written.files]
    first = heads[0]
    assert list(first.ImageType) == ["DERIVED", "SECONDARY"]
    assert first[0x0008001C].value == "YES"
    assert first.SyntheticData == "YES"
    assert first.BurnedInAnnotation == "NO"
    assert first.PatientIdentityRemoved == "YES"
    assert first.RescaleType == "HU"
    assert first.ContributingEquipmentSequence[0].Manufacturer == "sciLDM"
    assert first.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
    assert len({h.SOPInstanceUID for h in heads}) == len(heads)
    assert {h.SeriesInstanceUID for h in heads} == {written.series}
    assert [h.InstanceNumber for h in heads] == list(range(1, len(heads) + 1))
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID


def test_new_identifiers_depend_on_the_values_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two = from_array(body(SHAPE, rng), np.eye(4)), from_array(body(SHAPE, rng), np.eye(4))
    series = [write_series(v, tmp_path / str(k)).series for k, v in enumerate((one, one, two))]
    assert series[0] == series[1] != series[2]
    same = [(tmp_path / str(k) / "IM00001.dcm").read_bytes() for k in (0, 1)]
    assert same[0] == same[1]


@pytest.mark.parametrize("patient", ["removed", "kept"])
def test_patient_and_source(patient: str, tmp_path: Path) -> None:
    source = write_series(
        from_array(body(SHAPE, np.random.default_rng(0)), np.eye(4)), tmp_path / "in", modality="CT"
    )
    for path in source.files:
        head = pydicom.dcmread(path)
        head.PatientName, head.PatientID, head.PatientComments = "Doe^Jane", "4711", "free text"
        head.add_new(0x00091001, "LO", "private")
        head.save_as(path)
    volume = read_series(tmp_path / "in")
    made = write_series(volume, tmp_path / "out", patient=patient)  # type: ignore[arg-type]
    head = pydicom.dcmread(made.files[0])
    assert head.Modality == "CT"
    assert (str(head.PatientID) == "4711") == (patient == "kept")
    assert ("PatientIdentityRemoved" in head) == (patient == "removed")
    assert "PatientComments" not in head
    assert (0x0009, 0x1001) not in head
    referred = [item.ReferencedSOPInstanceUID for item in head.SourceImageSequence]
    assert set(referred) == {pydicom.dcmread(p).SOPInstanceUID for p in source.files}
    assert made.series != source.series


def test_order_of_files_does_not_matter(tmp_path: Path) -> None:
    volume = from_array(body(SHAPE, np.random.default_rng(0)), affines()["oblique"])
    files = write_series(volume, tmp_path / "out").files
    assert np.array_equal(read_series(files[::-1]).data, volume.data)
    names = find_series(tmp_path)
    assert [len(v) for v in names.values()] == [len(files)]


def test_missing_slice_is_named(tmp_path: Path) -> None:
    files = write_series(from_array(body(SHAPE, np.random.default_rng(0)), np.eye(4)), tmp_path / "out").files
    files[2].unlink()
    with pytest.raises(DataError, match=r"2\.000 mm after slice 2, usually 1\.000 mm"):
        read_series(tmp_path / "out")


def test_refusals(tmp_path: Path) -> None:
    volume = from_array(body(SHAPE, np.random.default_rng(0)), np.eye(4))
    files = write_series(volume, tmp_path / "a").files
    with pytest.raises(DataError, match="expected an empty folder"):
        write_series(volume, tmp_path / "a")
    with pytest.raises(DataError, match="no NaN"):
        write_series(volume.with_data(np.full(volume.shape, np.nan)), tmp_path / "b")
    with pytest.raises(DataError, match="single slice"):
        read_series(files[:1])
    other = write_series(from_array(body(SHAPE, np.random.default_rng(1)), np.eye(4)), tmp_path / "c").files
    with pytest.raises(DataError, match="expected one DICOM series, found 2"):
        read_series(tmp_path)
    with pytest.raises(DataError, match="differ in SeriesInstanceUID"):
        read_series([*files[:2], *other[2:]])
    (tmp_path / "a" / "IM00001.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(DataError):
        read_series(files)
