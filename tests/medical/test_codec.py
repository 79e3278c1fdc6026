"""The contract with the core; units in and out; observations as tasks."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip("pydicom")

from sciLDM.domains.medical import MedicalCodec, damaged, keep_slices, measured, thick_slices
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.guidance.posterior import DecodeEncodeSolver
from sciLDM.model import LatentDiffusion
from sciLDM.operators import Fourier, GaussianNoise, Identity, ParallelBeam, ThickSlice, dot_test
from sciLDM.posterior.hooks import HasRegions, HasTarget, OperatorSpec, ReadsObservations, WritesPosterior
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource
from tests.medical.model import tiny_model
from tests.medical.phantoms import affines, blob, body, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return tiny_model(tmp_path_factory)


@pytest.fixture(scope="module")
def codec(model: LatentDiffusion) -> MedicalCodec:
    assert isinstance(model.codec, MedicalCodec)
    return model.codec


def image(
    shape: tuple[int, int, int] = (10, 12, 14), name: str = "oblique", scale: float = 500.0
) -> nib.Nifti1Image:
    return nib.Nifti1Image(blob(shape, np.random.default_rng(3), scale=scale), affines()[name])


def test_hooks(codec: MedicalCodec) -> None:
    assert isinstance(codec, ReadsObservations)
    assert isinstance(codec, WritesPosterior)
    assert isinstance(codec, HasRegions)
    assert isinstance(codec, HasTarget)


def test_units_are_inverse_inside_and_edges_repeat_outside(codec: MedicalCodec) -> None:
    task = codec.task([keep_slices(image()), keep_slices(image((8, 8, 8), scale=9.0))], None)
    x = torch.randn(2, 1, 16, 16, 16) * 100
    fields = codec.from_units(x, task.context)
    back = codec.to_units(fields.values, task.context)
    for k, place in enumerate(task.native.places):
        assert torch.allclose(place.cut(back[k]), place.cut(x[k]), rtol=1e-4, atol=1e-3)
        first = place.at[2]
        assert torch.allclose(fields.values[k, ..., 0], fields.values[k, ..., first])
    high = task.context["high"]
    assert float(high[0] / high[1]) == pytest.approx(500 / 9, rel=0.2)


def test_gaps_are_what_was_lost(codec: MedicalCodec) -> None:
    picture = image()
    data = picture.get_fdata()
    mask = np.zeros(data.shape, dtype=np.uint8)
    mask[2:5, 3:6, 4:8] = 1
    by_mask = codec.task(damaged(picture, mask), None)
    data[mask > 0] = np.nan
    by_nan = codec.task(nib.Nifti1Image(data, picture.affine), None)
    assert torch.equal(by_mask.observation.present, by_nan.observation.present)
    assert int(by_nan.observation.present.sum()) == data.size - mask.sum()
    assert by_nan.observation.noise is None
    operator = by_nan.observation.operator
    assert isinstance(operator, Identity)
    assert operator.family == "Mask"
    seen = by_nan.observation.values[by_nan.observation.present]
    assert np.allclose(np.sort(seen.numpy()), np.sort(data[np.isfinite(data)]))


def test_kept_slices(codec: MedicalCodec) -> None:
    task = codec.task(keep_slices(image(name="coronal"), axis=1, every=4, first=1), None, noise_std=2.0)
    [place] = task.native.places
    there = place.cut(task.observation.present[0, 0])
    ras = nib.as_closest_canonical(image(name="coronal")).shape
    assert there.shape == ras
    assert there.any(dim=2).any(dim=0).nonzero().flatten().tolist() == list(range(1, ras[1], 4))
    assert isinstance(task.observation.noise, GaussianNoise)


@pytest.mark.parametrize("name", ["axial", "coronal", "flipped", "oblique"])
def test_thick_slices_in_millimetres(name: str, codec: MedicalCodec) -> None:
    """A thick scan of a thin volume is exactly what the task's operator makes of that volume, in the right place."""
    thin = image((10, 12, 14), name)
    sizes = nib.affines.voxel_sizes(thin.affine)
    thick = ThickSlice((1, 10, 12, 14), axis=3, spacing=1.0, thickness=2.0)
    low = thick(torch.from_numpy(thin.get_fdata(dtype=np.float32))[None, None])[0, 0].numpy()
    affine = thin.affine @ np.diag([1, 1, 2.0, 1])
    affine[:3, 3] = (thin.affine @ [0, 0, 0.5, 1])[:3]
    scan = thick_slices(nib.Nifti1Image(low, affine), spacing=float(sizes[2]), axis=2)
    assert np.allclose(scan.volume.stored.affine, thin.affine, atol=1e-4)
    assert scan.volume.stored.shape == thin.shape
    task = codec.task(scan, None, noise_std=1.0)
    truth = nib.as_closest_canonical(thin).get_fdata(dtype=np.float32)
    field = torch.from_numpy(task.native.places[0].put(truth))[None, None]
    assert torch.allclose(task.observation.operator(field), task.observation.values, rtol=1e-3, atol=1e-2)
    assert task.observation.operator.family == "ThickSlice"


def test_thick_slices_with_a_gap(codec: MedicalCodec) -> None:
    low = nib.Nifti1Image(blob((6, 6, 3), np.random.default_rng(0)), np.diag([1, 1, 5.0, 1]))
    scan = thick_slices(low, thickness=3.0)
    assert scan.volume.stored.shape == (6, 6, 13)  # 3 slices of 3 mm and 2 gaps of 2 mm
    assert isinstance(scan.operator, ThickSlice)
    centres = [(scan.volume.stored.affine @ [0, 0, float(c) - 0.5, 1])[2] for c in scan.operator.centres]
    assert centres == pytest.approx([0, 5, 10])


def test_projections_in_hounsfield_units(tmp_path: Path, codec: MedicalCodec) -> None:
    hu = body((10, 12, 6), np.random.default_rng(0)).astype(np.float32)
    reference = nib.Nifti1Image(hu, affines()["flipped"])
    projector = ParallelBeam((1, 10, 12, 6), [0.0, 45.0, 90.0], spacing=1.0, axes=(1, 2))
    mu = 0.02 * (1 + torch.from_numpy(hu) / 1000)
    sinogram = projector(mu[None, None])[0]
    scan = measured(sinogram, projector, like=reference, mu_water=0.02, window=(-1000.0, 1000.0))
    task = codec.task(scan, None, noise_std=0.01)
    truth = nib.as_closest_canonical(reference).get_fdata(dtype=np.float32)
    field = torch.from_numpy(task.native.places[0].put(truth))[None, None]
    assert torch.allclose(task.observation.operator(field), task.observation.values, atol=1e-4)
    assert dot_test(task.observation.operator) < 1e-4
    with pytest.raises(ShapeMismatch, match="acts on"):
        codec.task(reference, ParallelBeam((1, 10, 12, 7), [0.0], axes=(1, 2)))


def test_scale_of_k_space_comes_from_least_squares(codec: MedicalCodec) -> None:
    picture = image((12, 12, 12), "axial", scale=7000.0)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:, 3:9] = True
    fourier = Fourier((1, 12, 12, 12), mask)
    values = fourier(torch.from_numpy(picture.get_fdata(dtype=np.float32))[None, None])[0]
    task = codec.task(measured(values, fourier, like=picture), None, noise_std=1.0)
    known = np.percentile(picture.get_fdata(), 99.5)
    assert float(task.context["high"]) == pytest.approx(known, rel=0.1)
    told = codec.task(measured(values, fourier, like=picture, window=(0.0, 9000.0)), None, noise_std=1.0)
    assert [float(told.context[k]) for k in ("low", "high")] == [0, 9000]


def test_several_cases(codec: MedicalCodec) -> None:
    mixed = codec.task([keep_slices(image((10, 12, 14))), keep_slices(image((8, 16, 9), "flipped"))], None)
    assert mixed.observation.values.shape == (2, 1, 16, 16, 16)
    assert mixed.request.cond["shape"].shape == (2, 3)
    low = nib.Nifti1Image(blob((6, 6, 3), np.random.default_rng(0)), np.diag([1, 1, 4.0, 1]))
    assert len(codec.task([thick_slices(low), thick_slices(low)], None).observation.values) == 2
    with pytest.raises(ShapeMismatch, match="cannot be mixed"):
        codec.task([thick_slices(low), keep_slices(image())], None)
    other = nib.Nifti1Image(blob((6, 6, 4), np.random.default_rng(0)), np.diag([1, 1, 4.0, 1]))
    with pytest.raises(ShapeMismatch, match="share one operator"):
        codec.task([thick_slices(low), thick_slices(other)], None)
    with pytest.raises(DataError, match="empty list"):
        codec.task([], None)


def test_large_volume_gets_a_larger_grid(codec: MedicalCodec) -> None:
    task = codec.task(keep_slices(image((10, 35, 12), "axial")), None)
    assert task.observation.operator.in_shape == (1, 16, 48, 16)
    assert task.request.shape == (4, 12, 4)


@pytest.mark.parametrize("observed", ["gaps", "thick"])
def test_reconstruction_does_not_depend_on_the_batch(observed: str, model: LatentDiffusion) -> None:
    low = nib.Nifti1Image(blob((10, 10, 5), np.random.default_rng(0)), np.diag([1, 1, 2.0, 1]))
    what: Any = keep_slices(image()) if observed == "gaps" else thick_slices(low)
    options: dict[str, Any] = {
        "noise_std": 20.0,
        "samples": 3,
        "steps": 2,
        "seed": 4,
        "solver": DecodeEncodeSolver(),
    }
    one, two, again = (model.reconstruct(what, batch_size=b, **options) for b in (3, 1, 3))
    assert np.allclose(one.draws, two.draws, atol=1e-4 * np.abs(one.draws).max())
    assert np.array_equal(one.draws, again.draws)


def test_notes_of_an_unlike_input(codec: MedicalCodec) -> None:
    usual = codec.task(
        keep_slices(nib.Nifti1Image(blob((8, 8, 8), np.random.default_rng(0)), np.diag([1, 1, 2.0, 1]))), None
    )
    assert usual.native.notes == ((),)
    coarse = codec.task(
        keep_slices(nib.Nifti1Image(blob((8, 8, 20), np.random.default_rng(0)), np.diag([3.0, 3, 3, 1]))),
        None,
    )
    assert any("3 x 3 x 3 mm lie outside" in line for line in coarse.native.notes[0])
    assert any("more than the grid" in line for line in coarse.native.notes[0])


def test_regions_follow_from_the_posterior(codec: MedicalCodec) -> None:
    share = torch.tensor([0.0, 0.05, 0.3, 0.9, float("nan")]).reshape(1, 1, 5, 1, 1)
    hu = torch.tensor([40.0, -1000.0, 40.0, -1000.0, 40.0]).reshape(1, 1, 5, 1, 1)
    posterior = Posterior(hu, hu, hu[:, None], torch.ones(1), share)
    assert codec.calibration_regions(posterior).flatten().tolist() == [0, 0, 1, 2, 0]
    ct = MedicalCodec({**codec.state, "modality": "ct"})
    assert ct.calibration_regions(posterior).flatten().tolist() == [3, 0, 4, 2, 3]


def test_plan(codec: MedicalCodec, model: LatentDiffusion) -> None:
    asked = codec.plan(3, {"shape": [9, 10, 11], "spacing": [1, 1, 2]}, NoiseSource(0), range(3))
    assert torch.allclose(asked.cond["shape"] * 16, torch.tensor([9.0, 10.0, 11.0]).expand(3, 3))
    samples = model.sample(2, cond={"shape": [9, 10, 11], "spacing": [1.0, 1.0, 2.0]}, steps=2)
    assert [s.shape for s in samples] == [(9, 10, 11)] * 2
    assert np.allclose(nib.affines.voxel_sizes(samples[0].affine), [1, 1, 2])
    free = codec.plan(50, {}, NoiseSource(0), range(50))
    drawn = {tuple(row) for row in np.rint(free.cond["shape"].numpy() * 16).astype(int).tolist()}
    assert drawn <= {tuple(f["shape"]) for f in codec.state["frames"]}
    assert len(drawn) > 2
    for wrong in (
        {"shape": [20, 8, 8]},
        {"shape": [8, 8]},
        {"spacing": [0, 1, 1]},
        {"age": 4},
        {"labels": "x"},
    ):
        with pytest.raises(ConfigError):
            codec.plan(2, wrong, NoiseSource(0), range(2))


def test_command_line(tmp_path: Path, codec: MedicalCodec) -> None:
    path = save(tmp_path / "a.nii.gz", blob((10, 12, 14), np.random.default_rng(0)), np.diag([1, 1, 2.0, 1]))
    mask = save(
        tmp_path / "m.nii.gz",
        (np.arange(1680).reshape(10, 12, 14) < 300).astype(np.uint8),
        np.diag([1, 1, 2.0, 1]),
    )

    def read(text: str, place: Path = path) -> Any:
        return codec.task(*codec.read_observation(place, OperatorSpec.parse(text)), noise_std=1.0).observation

    assert int(read(f"mask:file={mask}").present.sum()) == 1380
    assert int(read("slices:axis=z,every=7").present.sum()) == 2 * 120
    assert read("thick:spacing=1").operator.family == "ThickSlice"
    projector = ParallelBeam((1, 10, 12, 14), [0.0, 30.0], spacing=1.0, axes=(1, 2))
    np.savez(
        tmp_path / "views.npz", values=np.zeros(projector.out_shape, np.float32), angles=np.array([0.0, 30.0])
    )
    assert read(f"views:like={path},mu_water=0.02", tmp_path / "views.npz").operator.family == "ParallelBeam"
    np.savez(tmp_path / "k.npz", values=np.ones((1, 10, 168), np.complex64), mask=np.ones((12, 14), bool))
    assert read(f"kspace:like={path}", tmp_path / "k.npz").operator.family == "Fourier"
    for text in ("nothing", "thick:factor=4", "mask", "slices:axis=0.5", "thick:profile=round"):
        with pytest.raises(ConfigError):
            codec.read_observation(path, OperatorSpec.parse(text))
    with pytest.raises(DataError, match="nothing is missing"):
        codec.task(*codec.read_observation(path, None))
    with pytest.raises(DataError, match=r"expected an \.npz"):
        codec.read_observation(path, OperatorSpec.parse(f"views:like={path}"))
