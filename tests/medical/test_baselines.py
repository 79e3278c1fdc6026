"""Interpolation against polynomials, projections against a disk, total variation against a constant."""

import numpy as np
import pytest

pytest.importorskip("nibabel")

from sciLDM.domains.medical.baselines import (
    along_axis,
    fill_gaps,
    gradient_fill,
    tune_volumes,
    tv_volume,
)
from sciLDM.domains.medical.study_scores import image_score
from sciLDM.domains.medical.study_tasks import Case, task_named
from sciLDM.domains.medical.volume import from_array
from sciLDM.errors import DataError


def smooth(shape: tuple[int, int, int] = (14, 14, 24)) -> np.ndarray:
    """Level at its faces, where slices are held rather than interpolated."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return (12.5 * (1 + np.cos(np.pi * x)) * (1 + np.cos(np.pi * y)) * (1 + np.cos(np.pi * z))).astype(
        np.float32
    )


def case(data: np.ndarray, spacing: float = 1.0) -> Case:
    volume = from_array(data, np.diag([spacing, spacing, spacing, 1.0]), name="x")
    return Case.of(volume, (float(data.min()), float(data.max())), 0)


def test_interpolation_is_exact_for_its_polynomials() -> None:
    z = np.arange(13.0)
    at = np.arange(0, 13, 4)
    for kind, curve in (("linear", 2 * z - 3), ("cubic", 0.01 * z**3 - 0.2 * z**2 + z)):
        field = np.broadcast_to(curve, (2, 3, 13)).astype(np.float32)
        assert np.allclose(along_axis(field[..., at], at, 13, 2, kind), field, atol=1e-4)
        assert np.allclose(along_axis(field.T[at], at, 13, 0, kind), field.T, atol=1e-4)
    stairs = along_axis(np.array([[1.0, 2.0]]), [0.5, 4.5], 6, 1, "nearest")
    assert stairs.tolist() == [[1, 1, 1, 2, 2, 2]]
    held = along_axis(np.array([[1.0, 2.0]]), [2.0, 3.0], 6, 1, "linear")
    assert held.tolist() == [[1, 1, 1, 2, 2, 2]], "beyond the outermost slices nothing is made up"


def test_gaps_in_a_plane_are_filled_exactly() -> None:
    x, y, z = np.meshgrid(*[np.arange(10.0)] * 3, indexing="ij")
    plane = (3 + 2 * x - y + 0.5 * z).astype(np.float32)
    data = plane.copy()
    data[3:7, 3:7, 3:7] = np.nan
    for kind in ("linear", "cubic"):
        assert np.allclose(fill_gaps(data, kind), plane, atol=1e-2)
    near = fill_gaps(data, "nearest")
    assert np.isfinite(near).all()
    assert np.array_equal(near[~np.isnan(data)], plane[~np.isnan(data)])
    assert np.allclose(gradient_fill(data), plane, atol=0.1)
    assert np.array_equal(fill_gaps(plane, "cubic"), plane)
    with pytest.raises(DataError, match="no voxel is known"):
        fill_gaps(np.full((3, 3, 3), np.nan), "nearest")


@pytest.mark.parametrize("name", ["slices", "thick", "hole"])
def test_cubic_beats_linear_beats_nearest_on_a_smooth_field(name: str) -> None:
    task, data = task_named(name), smooth()
    observed = task.observe(case(data), 1e-4, 0)
    methods = task.classical(observed)
    psnr = {k: image_score(data, methods[k](), 100.0, observed.scored).psnr for k in methods}
    assert psnr["cubic"] > psnr["linear"] + 0.5
    assert psnr["linear"] > psnr["nearest"] + 0.5
    assert psnr["zero-filled"] <= psnr["nearest"] + 1e-6


def test_projections_of_a_disk() -> None:
    x, y = np.meshgrid(*[np.linspace(-1, 1, 24)] * 2, indexing="ij")
    disk = np.where(x**2 + y**2 < 0.5, 50.0, -1000.0).astype(np.float32)
    data = np.repeat(disk[..., None], 4, axis=2)
    truth = Case.of(from_array(data, np.diag([2, 2, 5, 1.0]), name="ct"), (-1000.0, 1000.0), 0)
    psnr = {}
    for name in ("views4", "views32"):
        task = task_named(name)
        observed = task.observe(truth, 1e-4, 0)
        methods = task.classical(observed)
        psnr[name] = {k: image_score(data, methods[k](), 2000.0).psnr for k in methods}
    assert psnr["views32"]["FBP"] > psnr["views4"]["FBP"] + 1
    assert psnr["views32"]["SIRT"] > 25
    assert psnr["views4"]["SIRT"] > psnr["views4"]["zero-filled"]


def test_total_variation_is_tuned_and_units_do_not_matter() -> None:
    x = np.meshgrid(*[np.linspace(-1, 1, 10)] * 3, indexing="ij")[0]
    steps = np.where(x > 0, 1.0, 0.0).astype(np.float32)
    task = task_named("hole")
    found = {}
    for unit in (1.0, 1000.0):
        observed = task.observe(case(unit * steps), 0.05, 0)
        tuned = tune_volumes([observed.observation], [unit * steps], [unit], iterations=60)
        image = tv_volume(observed.observation, tuned.weight, unit, iterations=60)
        found[unit] = (tuned.weight, image / unit)
        assert tuned.errors[tuned.weight] == min(tuned.errors.values())
    assert found[1.0][0] == found[1000.0][0]
    assert np.allclose(found[1.0][1], found[1000.0][1], atol=1e-3)
    noisy = image_score(steps, task.classical(observed)["nearest"]() / 1000.0, 1.0)
    assert image_score(steps, found[1.0][1], 1.0).psnr > noisy.psnr + 3
