"""NIfTI comes back bit for bit, whatever its orientation, type and scale; what was made is marked as made."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom")

from sciLDM.domains.medical.nifti import mark_of, read_nifti, stem, to_image, write_nifti
from sciLDM.domains.medical.volume import from_array
from sciLDM.errors import DataError
from tests.medical.phantoms import affines, save

SHAPE = (5, 7, 9)


def raw(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", list(affines()))
def test_unchanged_volume_is_the_same_file(name: str, dtype: type, ending: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 250, SHAPE).astype(dtype)
    if dtype is np.int32:
        values = values * 10_000_019  # more digits than float32 holds
    path = save(tmp_path / f"in{ending}", values, affines()[name], descrip=b"as it was", sform_code=4, qform_code=2,
                intent_code=1, cal_max=77, toffset=1.5, xyzt_units=10)  # fmt: skip
    assert raw(write_nifti(read_nifti(path), tmp_path / f"out{ending}")) == raw(path)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, 3.0), (2.44140625e-4, 0.0), (1.7, -1024.0)])
@pytest.mark.parametrize("name", ["oblique", "sagittal"])
def test_scaled_integers_come_back(name: str, slope: float, intercept: float, tmp_path: Path) -> None:
    stored = np.random.default_rng(2).integers(-32000, 32000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(stored, affines()[name])
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, tmp_path / "in.nii")
    # nibabel writes what it is given as it is when the slope is set; so the file holds `stored`.
    volume = read_nifti(tmp_path / "in.nii")
    assert np.allclose(volume.on_disk(), np.float32(slope) * stored.astype(float) + np.float32(intercept))
    assert raw(write_nifti(volume, tmp_path / "out.nii")) == raw(tmp_path / "in.nii")


@pytest.mark.parametrize("name", list(affines()))
def test_values_lie_where_they_lay(name: str, tmp_path: Path) -> None:
    """A bright voxel keeps its millimetres, and RAS+ axes grow right, forwards, upwards."""
    data = np.zeros(SHAPE, dtype=np.float32)
    data[3, 1, 6] = 1.0
    affine = affines()[name]
    volume = read_nifti(save(tmp_path / "in.nii.gz", data, affine))
    place = np.argwhere(volume.data == 1)[0]
    assert np.allclose(
        volume.affine @ [*place, 1], nib.load(tmp_path / "in.nii.gz").affine @ [3, 1, 6, 1], atol=1e-4
    )
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    back = to_image(volume, dtype="float32")
    assert np.array_equal(back.get_fdata(), data)
    assert np.array_equal(back.affine, nib.load(tmp_path / "in.nii.gz").affine)


def test_trailing_axis_and_nifti2_and_big_endian(tmp_path: Path) -> None:
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(*SHAPE, 1)
    save(tmp_path / "four.nii", data, affines()["flipped"])
    two = nib.Nifti2Image(data[..., 0], affines()["oblique"])
    nib.save(two, tmp_path / "two.nii")
    big = nib.Nifti1Image(data[..., 0], np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii")
    for name in ("four", "two", "big"):
        volume = read_nifti(tmp_path / f"{name}.nii")
        assert volume.data.ndim == 3
        assert raw(write_nifti(volume, tmp_path / f"{name}-out.nii")) == raw(tmp_path / f"{name}.nii")


def test_pair_of_files_becomes_one(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Pair(data, affines()["oblique"]), tmp_path / "pair.hdr")
    image = nib.load(write_nifti(read_nifti(tmp_path / "pair.hdr"), tmp_path / "one.nii.gz"))
    assert np.array_equal(image.get_fdata(dtype=np.float32), data)
    assert np.array_equal(image.affine, nib.load(tmp_path / "pair.hdr").affine)


def test_changed_values_are_rounded_to_the_input_type(tmp_path: Path) -> None:
    volume = read_nifti(save(tmp_path / "in.nii", np.full(SHAPE, 7, np.int16)))
    changed = volume.with_data(np.full(SHAPE, 3.6, np.float32))
    assert to_image(changed).get_data_dtype() == np.int16
    assert np.unique(to_image(changed).get_fdata()) == 4
    assert np.allclose(to_image(changed, dtype="float32").get_fdata(), 3.6)
    too_much = volume.with_data(np.full(SHAPE, 1e6, np.float32))
    assert to_image(too_much).get_fdata().max() == 32767  # cut off, never wrapped round
    with pytest.raises(DataError, match="NaN cannot be stored as int16"):
        to_image(volume.with_data(np.full(SHAPE, np.nan, np.float32)))


def test_synthetic_mark_in_header_and_extension(tmp_path: Path) -> None:
    volume = from_array(np.zeros(SHAPE, np.float32), affines()["oblique"])
    path = write_nifti(volume, tmp_path / "made.nii.gz", mark={"Model": "abc123", "Seed": 3})
    image = nib.load(path)
    assert image.header["descrip"].item().decode() == "SYNTHETIC sciLDM abc123"
    assert mark_of(image) == {"SyntheticData": True, "Model": "abc123", "Seed": 3}
    assert mark_of(nib.load(write_nifti(volume, tmp_path / "plain.nii"))) is None
    assert np.allclose(image.affine, affines()["oblique"], atol=1e-5)
    again = write_nifti(read_nifti(path), tmp_path / "again.nii.gz")
    assert mark_of(nib.load(again)) == mark_of(image)  # a mark is not lost by reading and writing
    assert path.read_bytes() == write_nifti(volume, path, mark={"Model": "abc123", "Seed": 3}).read_bytes()


def test_volume_without_header_says_scanner_and_millimetres(tmp_path: Path) -> None:
    image = to_image(from_array(np.zeros(SHAPE, np.int16), affines()["coronal"], dtype=np.int16))
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.header.get_qform(), affines()["coronal"], atol=1e-4)


def test_stem() -> None:
    assert [stem(n) for n in ("a.nii.gz", "a.b.nii", "A.NII.GZ", "x.mgz", "y")] == ["a", "a.b", "A", "x", "y"]
