"""What users get: images in the patient's own geometry, named, described and marked; tables of samples; scores."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pydicom")

from sciLDM.domains.medical import (
    Reconstruction,
    VolumeSamples,
    keep_slices,
    read_series,
    thick_slices,
    write_series,
)
from sciLDM.domains.medical.evaluation import evaluate_samples, histogram_distance, nearest
from sciLDM.domains.medical.nifti import from_image, mark_of
from sciLDM.domains.medical.samples import read_samples
from sciLDM.errors import DataError
from sciLDM.guidance.posterior import DecodeEncodeSolver
from sciLDM.model import LatentDiffusion
from tests.medical.model import tiny_model
from tests.medical.phantoms import affines, blob, save

OPTIONS = {"noise_std": 20.0, "samples": 3, "steps": 2, "seed": 4, "solver": DecodeEncodeSolver()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return tiny_model(tmp_path_factory)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = np.rint(blob((10, 12, 14), np.random.default_rng(0))).astype(np.int16)
    return save(
        tmp_path_factory.mktemp("source") / "sub-01_T1w.nii.gz", data, affines()["coronal"], sform_code=4
    )


@pytest.fixture(scope="module")
def result(model: LatentDiffusion, source: Path) -> Reconstruction:
    found = model.reconstruct(keep_slices(source, every=3), **OPTIONS)
    assert isinstance(found, Reconstruction)
    return found


def test_images_lie_in_the_patients_geometry(result: Reconstruction, source: Path) -> None:
    given = nib.load(source)
    images = [result.mean, result.std, result.lower, result.upper, result.null_space, *result.samples]
    assert len(result.samples) == 3
    for image in images:
        assert image.shape == given.shape
        assert np.array_equal(image.affine, given.affine)
        assert int(image.header["sform_code"]) == 4
        assert mark_of(image) is not None
    mean, lower, upper = (i.get_fdata() for i in images[:1] + images[2:4])
    assert (lower <= upper).all()
    assert (images[1].get_fdata() >= 0).all()
    assert ((mean >= lower - 1e-3) | (mean <= upper + 1e-3)).all()


def test_deliver_puts_each_voxel_where_it_was_measured(model: LatentDiffusion, source: Path) -> None:
    """A posterior that is the truth itself is delivered as the input's own array."""
    import torch

    from sciLDM.posterior.result import Posterior

    task = model.codec.task(keep_slices(source, every=3), None)  # type: ignore[attr-defined]
    truth = from_image(nib.load(source)).data
    x = torch.from_numpy(task.native.places[0].put(truth))[None, None]
    posterior = Posterior(
        x, torch.ones_like(x), x[:, None].expand(1, 2, *x.shape[1:]), torch.ones(1), torch.zeros_like(x)
    )
    found = model.codec.deliver(posterior, task)  # type: ignore[attr-defined]
    assert np.array_equal(found.mean.get_fdata(), nib.load(source).get_fdata())
    assert np.array_equal(found.samples[1].get_fdata(), nib.load(source).get_fdata())


def test_saved_folder(result: Reconstruction, source: Path, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "out", samples=2)
    root = tmp_path / "out" / "sub-01" / "anat"
    names = ["recon", "std", "lower", "upper", "nullspace", "sample-001", "sample-002"]
    assert [p.name for p in paths] == [f"sub-01_desc-{n}_T1w.nii.gz" for n in names]
    assert sorted(p.name for p in root.glob("*.nii.gz")) == sorted(p.name for p in paths)
    types = [nib.load(p).get_data_dtype() for p in paths]
    assert types == [np.int16, *[np.float32] * 4, np.int16, np.int16]
    assert np.allclose(nib.load(paths[0]).get_fdata(), np.rint(result.mean.get_fdata()))
    side = json.loads((root / "sub-01_desc-std_T1w.json").read_text())
    assert side["SyntheticData"] is True
    assert side["Sources"] == ["sub-01_T1w.nii.gz"]
    assert side["Operator"] == "Mask"
    assert side["NoiseStd"] == 20
    assert side["ChiSquare"] == pytest.approx(result.chi2)
    assert side["Sampling"]["seed"] == 4
    low, high = side["IntensityScale"]
    assert (low, high) == pytest.approx(
        np.percentile(nib.load(source).get_fdata(), [0, 99.5]), rel=0.2, abs=20
    )
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    header = nib.load(paths[0]).header
    assert header["descrip"].item().startswith(b"SYNTHETIC sciLDM")


def test_same_seed_same_bytes(
    model: LatentDiffusion, result: Reconstruction, source: Path, tmp_path: Path
) -> None:
    again = model.reconstruct(keep_slices(source, every=3), **OPTIONS)
    for place, found in (("a", result), ("b", again)):
        found.save(tmp_path / place)
    for path in sorted((tmp_path / "a").rglob("*.nii.gz")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_thin_slices_of_a_thick_scan(model: LatentDiffusion, tmp_path: Path) -> None:
    low = save(tmp_path / "low.nii.gz", blob((10, 12, 4), np.random.default_rng(0)), np.diag([1, 1, 3.0, 1]))
    found = model.reconstruct(thick_slices(low), **OPTIONS)
    assert found.mean.shape == (10, 12, 12)
    assert np.allclose(nib.affines.voxel_sizes(found.mean.affine), 1)
    assert found.mean.header.get_zooms() == (1, 1, 1)
    assert (found.mean.affine @ [0, 0, 1, 1])[2] == pytest.approx(0)  # the middle of the first thick slice
    model.codec.write_posterior(found, tmp_path / "out")  # type: ignore[attr-defined]
    assert (tmp_path / "out" / "sub-low" / "anat" / "sub-low_desc-recon_MR.nii.gz").is_file()


def test_from_dicom_to_dicom(model: LatentDiffusion, source: Path, tmp_path: Path) -> None:
    write_series(from_image(nib.load(source)), tmp_path / "in", modality="MR")
    found = model.reconstruct(keep_slices(tmp_path / "in", every=3), **OPTIONS)
    mean = found.volume.with_data(np.rint(found.arrays["recon"]))
    written = write_series(mean, tmp_path / "out")
    again = read_series(tmp_path / "out")
    assert written.quantisation == 0
    assert np.array_equal(again.data, mean.data)
    assert np.allclose(again.affine, from_image(nib.load(source)).affine, atol=1e-5)


def test_samples_are_written_and_read(model: LatentDiffusion, tmp_path: Path) -> None:
    samples = model.sample(3, steps=2)
    assert isinstance(samples, VolumeSamples)
    path = samples.write(tmp_path / "samples.csv")
    table = pd.read_csv(path)
    assert table[["x", "y", "z"]].to_numpy().tolist() == [list(v.shape) for v in samples.volumes]
    again = read_samples(path)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(samples.volumes, again.volumes, strict=True))
    assert again.scale == samples.scale
    image = nib.load(tmp_path / "samples" / "sample-0001.nii.gz")
    assert mark_of(image) is not None
    assert json.loads((tmp_path / "samples" / "sample-0001.json").read_text())["SyntheticData"] is True
    assert samples.write(tmp_path / "more") == tmp_path / "more.csv"
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "patient.nii.gz").touch()
    with pytest.raises(DataError, match=r"other files \(patient"):
        samples.write(tmp_path / "scans.csv")
    with pytest.raises(DataError, match=r"ends in \.csv"):
        samples.write(tmp_path / "samples.npz")
    with pytest.raises(DataError, match="do not fit in one file"):
        samples.write(tmp_path / "one.nii.gz")
    assert nib.load(model.sample(1, steps=2).write(tmp_path / "one.nii.gz")).shape == samples.volumes[0].shape


def test_scores(model: LatentDiffusion, tmp_path: Path) -> None:
    samples = model.sample(4, steps=2)
    result = evaluate_samples(samples, model.codec, model.reference, lambda *_: None)  # type: ignore[arg-type]
    scores = {row["metric"]: row for row in result.rows}
    assert all(np.isfinite(row["value"]) for row in result.rows)
    with np.load(model.reference / "volumes.npz") as stored:  # type: ignore[operator]
        train, test = stored["train"].astype(np.float32), stored["test"].astype(np.float32)
    assert histogram_distance(train, train) == 0
    assert histogram_distance(train, train + 0.25) == pytest.approx(0.25, abs=0.05)
    assert nearest(train, train).max() == 0
    assert scores["intensity distance"]["floor"] == pytest.approx(histogram_distance(test, train))
    with pytest.raises(DataError, match="reference volumes"):
        evaluate_samples(samples, model.codec, tmp_path, lambda *_: None)  # type: ignore[arg-type]
