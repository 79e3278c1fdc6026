"""The watermark: found after cropping and scaling, no more false alarms than stated, fainter than the noise."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

from sciLDM.cli import main
from sciLDM.domains.medical import write_series
from sciLDM.domains.medical.nifti import read_nifti, write_nifti
from sciLDM.domains.medical.samples import VolumeSamples
from sciLDM.domains.medical.volume import Volume, from_array
from sciLDM.domains.medical.watermark import mark_volume, noise_of, verify_volume
from sciLDM.domains.medical.watermark_marks import read_marks, verify_file
from sciLDM.errors import ConfigError, DataError

KEY = "a secret of ours"


def scan(seed: int = 0, shape: tuple[int, int, int] = (24, 28, 20), noise: float = 5.0) -> Volume:
    """A bright body with an edge in a background of zeros, with noise."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = x**2 + y**2 < 0.7
    data = np.where(body, 200 + 50 * np.cos(3 * z) + noise * rng.standard_normal(shape), 0.0)
    return from_array(data.astype(np.float32), np.diag([1, 1, 2, 1.0]), name="scan.nii.gz")


def test_noise_is_measured() -> None:
    rng = np.random.default_rng(0)
    assert noise_of(7 * rng.standard_normal((20, 20, 20))) == pytest.approx(7, rel=0.15)
    assert noise_of(scan().data) == pytest.approx(5, rel=0.3)
    with pytest.raises(DataError, match="constant"):
        noise_of(np.ones((8, 8, 8)))


def test_false_positives_come_at_the_stated_rate() -> None:
    """One unmarked volume, edges and constant background included, and many keys."""
    volume = scan(shape=(16, 16, 12))
    p = np.array([verify_volume(volume, f"key {k}").p_value for k in range(300)])
    for level in (0.05, 0.2, 0.5):
        share = (p < level).mean()
        assert abs(share - level) < 4 * (level * (1 - level) / len(p)) ** 0.5, (level, share)


def test_found_after_crop_scaling_and_rounding() -> None:
    volume = scan()
    marked = mark_volume(volume, KEY)
    assert marked.amplitude <= 0.25 * marked.noise
    assert np.abs(marked.volume.data - volume.data).max() <= marked.amplitude * 1.001
    whole = verify_volume(marked.volume, KEY)
    assert whole.found
    assert whole.shift == (0, 0, 0)
    data = marked.volume.data[3:20, 2:27, 4:]
    for changed in (data, 4 * data - 1000, np.rint(data), data + np.linspace(0, 90, data.shape[2])):
        found = verify_volume(from_array(changed.astype(np.float32), np.eye(4)), KEY)
        assert found.found, found
        assert found.shift == (3, 2, 4)
    assert verify_volume(marked.volume, "another key").p_value > 1e-4
    assert verify_volume(volume, KEY).p_value > 1e-4


def test_stronger_is_surer_and_limits_hold() -> None:
    z = [verify_volume(mark_volume(scan(), KEY, strength=s).volume, KEY).z for s in (0.05, 0.1, 0.25)]
    assert z == sorted(z)
    for strength in (0.0, 0.3):
        with pytest.raises(ConfigError, match="strength"):
            mark_volume(scan(), KEY, strength=strength)
    with pytest.raises(ConfigError, match="empty"):
        mark_volume(scan(), "")


def test_nothing_is_found_in_nothing() -> None:
    assert verify_volume(from_array(np.zeros((8, 8, 8), np.float32), np.eye(4)), KEY).p_value == 1.0


def test_marks_of_written_samples(tmp_path: Path) -> None:
    fields = np.stack([scan(k, (16, 16, 16)).data for k in range(2)])
    shapes, spacings = np.full((2, 3), 16), np.ones((2, 3))
    samples = VolumeSamples.build(fields, shapes, spacings, (0.0, 250.0), {}).marked(KEY)
    samples.write(tmp_path / "s.csv")
    path = tmp_path / "s" / "sample-0002.nii.gz"
    found = verify_file(path, KEY)
    assert found.synthetic
    assert set(found.marks) == {"NIfTI descrip", "NIfTI extension", "side-car sample-0002.json"}
    assert found.watermark is not None
    assert found.watermark.found
    # The header can be stripped; the pattern stays.
    plain = write_nifti(read_nifti(path), tmp_path / "plain.nii.gz")
    image = from_array(read_nifti(plain).data, np.eye(4))
    bare = write_nifti(image, tmp_path / "bare.nii.gz")
    assert read_marks(bare) == {}
    assert verify_file(bare, KEY).synthetic
    assert not verify_file(bare).synthetic


def test_marks_of_dicom(tmp_path: Path) -> None:
    write_series(scan(shape=(12, 12, 6)), tmp_path / "series", modality="MR", description="a sample")
    marks = read_marks(tmp_path / "series")
    assert "YES; a sample" in marks["DICOM SyntheticData"]
    one = verify_file(next(iter((tmp_path / "series").glob("*.dcm"))), KEY)
    assert one.marks == marks
    assert one.watermark is not None


def test_files_that_are_no_volumes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        verify_file(tmp_path / "absent.nii")
    with pytest.raises(DataError, match="holds no image"):
        verify_file(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="expected a NIfTI file"):
        verify_file(tmp_path / "x.txt")
    (tmp_path / "x.nii").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        verify_file(tmp_path / "x.nii")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marked = write_nifti(mark_volume(scan(), KEY).volume, tmp_path / "marked.nii.gz")
    assert main(["verify", str(marked), "--key", KEY]) == 0
    assert "watermark found" in capsys.readouterr().out
    assert main(["verify", str(marked)]) == 1
    assert "no synthetic mark" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "absent.nii")]) == 2
    assert main(["verify", str(marked), "--key", ""]) == 2
