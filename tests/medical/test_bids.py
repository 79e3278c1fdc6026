"""BIDS names and folders: what is found, what derived volumes are called, what stands beside them."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

from sciLDM.domains.medical.bids import derivative_path, patient_of, write_description
from sciLDM.domains.medical.sources import find_entries
from sciLDM.errors import DataError
from tests.medical.phantoms import blob, save


@pytest.mark.parametrize(
    ("source", "desc", "modality", "expected"),
    [
        ("sub-01_T1w.nii.gz", "recon", "mr", "sub-01/anat/sub-01_desc-recon_T1w.nii.gz"),
        ("sub-01_ses-2_acq-a_T2w.nii.gz", "std", "mr", "sub-01/ses-2/anat/sub-01_ses-2_acq-a_desc-std_T2w.nii.gz"),
        ("sub-01_desc-preproc_T1w.nii.gz", "lower", "mr", "sub-01/anat/sub-01_desc-lower_T1w.nii.gz"),
        ("STS_001_CT.nii.gz", "sample-003", "ct", "sub-STS001CT/ct/sub-STS001CT_desc-sample-003_ct.nii.gz"),
        ("hippocampus_001.nii", "upper", "mr", "sub-hippocampus001/anat/sub-hippocampus001_desc-upper_MR.nii.gz"),
        ("", "recon", "other", "sub-unnamed/anat/sub-unnamed_desc-recon_image.nii.gz"),
    ],
)  # fmt: skip
def test_names_of_derivatives(source: str, desc: str, modality: str, expected: str) -> None:
    assert derivative_path(Path("d"), source, desc, modality=modality) == Path("d") / expected


def test_patients() -> None:
    names = [
        "sub-07/ses-1/anat/sub-07_ses-1_T1w.nii.gz",
        "sub-07/anat/x.nii.gz",
        "case/scan_1.nii.gz",
        "subject.nii",
    ]
    assert [patient_of(Path(n)) for n in names] == ["sub-07", "sub-07", "scan_1", "subject"]


def dataset(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in (1, 2, 3):
        for ses in ("a", "b"):
            place = root / f"sub-{k:02d}" / f"ses-{ses}" / "anat"
            save(place / f"sub-{k:02d}_ses-{ses}_T1w.nii.gz", blob((8, 8, 8), rng))
    save(
        root / "derivatives" / "x" / "sub-01" / "anat" / "sub-01_desc-recon_T1w.nii.gz", blob((8, 8, 8), rng)
    )
    rows = ["participant_id\tage\tsex", "sub-01\t31\tF", "sub-02\tn/a\tM"]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def test_root_with_participants(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    for data in (root, root / "participants.tsv"):
        entries = find_entries(str(data))
        assert len(entries) == 6
        assert sorted({e.patient for e in entries}) == ["sub-01", "sub-02", "sub-03"]
        first, second, third = (next(e for e in entries if e.patient == f"sub-0{k}") for k in (1, 2, 3))
        assert first.columns == {"age": 31, "sex": "F"}
        assert np.isnan(second.columns["age"])
        assert third.columns == {}


def test_several_kinds_ask_for_a_pattern(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    save(root / "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz", blob((8, 8, 8), np.random.default_rng(0)))
    with pytest.raises(DataError, match=r"several kinds of image \(T1w, T2w\)"):
        find_entries(str(root))
    assert len(find_entries(str(root), pattern="*_T2w.nii*")) == 1


def test_description_is_written_once(tmp_path: Path) -> None:
    path = write_description(tmp_path, name="mine", generated_by={"Name": "sciLDM"}, source="doi:1")
    write_description(tmp_path, name="other", generated_by={"Name": "x"})
    content = json.loads(path.read_text())
    assert content["Name"] == "mine"
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"] == [{"Name": "sciLDM"}]
    assert content["SourceDatasets"] == [{"URL": "doi:1"}]
