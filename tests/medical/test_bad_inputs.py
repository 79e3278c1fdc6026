"""What users really have: each bad file gets a clear error, and in a folder a reported skip."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pydicom")

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.medical import (
    DataSettings,
    Medical,
    damaged,
    keep_slices,
    measured,
    read_nifti,
    read_volume,
    thick_slices,
)
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.operators import Identity
from tests.medical.phantoms import blob, body, folder, save

AUTOENCODER = GridSettings(channels=4, widths=(8, 16), blocks=(1, 1))


def bad_files(place: Path) -> dict[str, str]:
    """Bad files, and what is said of each."""
    rng = np.random.default_rng(0)
    good = blob((10, 10, 10), rng)
    save(place / "four.nii.gz", np.stack([good] * 3, axis=-1))
    save(place / "slice.nii.gz", good[:, :, :1])
    holes = good.copy()
    holes[:2] = np.nan
    save(place / "holes.nii.gz", holes)
    infinite = good.copy()
    infinite[0, 0, 0] = np.inf
    save(place / "infinite.nii.gz", infinite)
    save(place / "constant.nii.gz", np.full((10, 10, 10), 7, np.int16))
    save(place / "ct.nii.gz", np.where(rng.random((10, 10, 10)) < 0.5, -1000, 40).astype(np.int16))
    (place / "text.nii.gz").write_bytes(b"this is no volume")
    (place / "empty.nii").write_bytes(b"")
    whole = save(place / "cut.nii", good)
    whole.write_bytes(whole.read_bytes()[:1000])
    colours = np.zeros((10, 10, 10), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), place / "colour.nii")
    nib.save(nib.Nifti1Image(good.astype(np.complex64), np.eye(4)), place / "complex.nii")
    return {
        "four.nii.gz": r"expected one volume, got 4 axes \(10, 10, 10, 3\)",
        "slice.nii.gz": "single slice",
        "holes.nii.gz": "20.0% of its voxels are NaN",
        "infinite.nii.gz": "infinite",
        "constant.nii.gz": "constant volume: all values are 7",
        "ct.nii.gz": "wrong modality",
        "text.nii.gz": "cannot be read as a volume",
        "empty.nii": "cannot be read as a volume",
        "cut.nii": "cannot be read as a volume",
        "colour.nii": "expected whole or real numbers",
        "complex.nii": "expected whole or real numbers",
    }


def test_bad_files_in_a_folder_are_skipped_and_reported(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    expected = bad_files(place)
    made = Medical(str(place), grid=(16, 16, 16), autoencoder=AUTOENCODER).prepare(
        tmp_path / "cache", lambda *_: None
    )
    assert sum(made.sizes.values()) == 8
    assert any(f"{len(expected)} of {8 + len(expected)} volumes skipped" in note for note in made.notes)
    made.write_reference(tmp_path / "reference")
    rejected = pd.read_csv(tmp_path / "reference" / "rejected.csv").set_index("name")["reason"]
    assert sorted(rejected.index) == sorted(expected)
    for name, reason in expected.items():
        assert pd.Series([rejected[name]]).str.contains(reason).all(), (name, rejected[name])


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    bad_files(tmp_path / "in")
    with pytest.raises(DataError, match="none of 11 volumes can be used"):
        Medical(str(tmp_path / "in"), grid=(16, 16, 16)).prepare(tmp_path / "cache", lambda *_: None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "which does not exist"),
        ("empty", "found no volumes"),
        ("table.csv", "expected a column of paths"),
    ],
)
def test_no_data(data: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=message):
        Medical(str(tmp_path / data)).prepare(tmp_path / "cache", lambda *_: None)


def test_grid_and_options(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    with pytest.raises(DataError, match=r"three multiples of \(4, 4, 4\)"):
        Medical(str(place), grid=(30, 32, 32)).prepare(tmp_path / "cache", lambda *_: None)
    with pytest.raises(ConfigError, match="must differ"):
        Medical(str(place), conditions=["age", "age"])
    with pytest.raises(DataError, match="no segmentation named like"):
        Medical(str(place), settings=DataSettings(labels="beside")).prepare(tmp_path / "c", lambda *_: None)


def test_mixed_spacings_are_reported(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    save(place / "other.nii.gz", blob((10, 10, 10), np.random.default_rng(0)), np.diag([1, 1, 5.0, 1]))
    made = Medical(str(place), grid=(16, 16, 16), autoencoder=AUTOENCODER).prepare(
        tmp_path / "c", lambda *_: None
    )
    assert any("spacings are mixed" in n and "2 to 5 mm" in n for n in made.notes)


def test_observations(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", blob((10, 10, 10), np.random.default_rng(0)))
    with pytest.raises(DataError, match="no such file"):
        read_nifti(tmp_path / "b.nii")
    with pytest.raises(DataError, match="no such file"):
        read_volume(str(tmp_path / "b.nii"))
    with pytest.raises(ShapeMismatch, match=r"mask: expected \(10, 10, 10\)"):
        damaged(path, save(tmp_path / "m.nii", np.ones((10, 10, 9), np.uint8)))
    with pytest.raises(DataError, match="affines differ"):
        damaged(path, save(tmp_path / "n.nii", np.ones((10, 10, 10), np.uint8), np.diag([1, 1, 2.0, 1])))
    with pytest.raises(DataError, match="nothing is left"):
        damaged(path, np.ones((10, 10, 10)))
    with pytest.raises(ConfigError, match="keep_slices"):
        keep_slices(path, axis=3)
    with pytest.raises(ConfigError, match="expected a smaller spacing"):
        thick_slices(path)  # isotropic
    with pytest.raises(ConfigError, match="either like="):
        measured(np.zeros((1, 4, 4, 4)), Identity((1, 4, 4, 4)))
    with pytest.raises(ShapeMismatch, match="the operator acts on"):
        measured(np.zeros((1, 4, 4, 4)), Identity((1, 4, 4, 4)), like=path)
    with pytest.raises(ShapeMismatch, match="Identity gives"):
        measured(np.zeros((1, 4, 4, 5)), Identity((1, 4, 4, 4)), affine=np.eye(4))


def test_wrong_modality_of_an_observation(tmp_path: Path) -> None:
    from sciLDM.domains.medical import MedicalCodec

    made = Medical(str(folder(tmp_path / "in")), grid=(16, 16, 16), autoencoder=AUTOENCODER)
    codec = made.codec(made.prepare(tmp_path / "cache", lambda *_: None).state)
    assert isinstance(codec, MedicalCodec)
    ct = body((10, 10, 10), np.random.default_rng(0))
    with pytest.raises(DataError, match="look like CT"):
        codec.task(keep_slices(nib.Nifti1Image(ct, np.eye(4))), None)
    whole = nib.Nifti1Image(blob((10, 10, 10), np.random.default_rng(0)), np.eye(4))
    with pytest.raises(DataError, match="nothing is missing"):
        codec.task(whole, None)
