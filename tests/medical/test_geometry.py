"""Where volumes lie on the grid: nothing is lost or moved, patches cover all, operators follow the file's axes."""

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pydicom")

from sciLDM.domains.medical.geometry import OnGrid, Placement, centred, check_grid, patches, task_grid
from sciLDM.domains.medical.volume import crop, from_array
from sciLDM.errors import DataError, ShapeMismatch
from sciLDM.operators import Identity, ThickSlice, dot_test
from tests.medical.phantoms import affines

sizes = st.tuples(*[st.integers(2, 30)] * 3)


@given(shape=sizes)
def test_put_and_cut_are_inverse(shape: tuple[int, int, int]) -> None:
    data = np.random.default_rng(0).normal(size=shape)
    place = centred(shape, (32, 32, 32))
    grid = place.put(data)
    assert np.array_equal(place.cut(torch.from_numpy(grid)).numpy(), data)
    # The edge is repeated: every value on the grid is one of the volume's.
    assert set(np.unique(grid)) == set(np.unique(data))
    assert np.isnan(place.put(data, fill=np.nan)).sum() == grid.size - data.size


@given(shape=st.tuples(*[st.integers(2, 70)] * 3), overlap=st.floats(0, 0.8))
def test_patches_cover_the_volume(shape: tuple[int, int, int], overlap: float) -> None:
    grid = (16, 24, 32)
    seen = np.zeros(shape, dtype=bool)
    for place in patches(shape, grid, overlap=overlap):
        seen[place.taken] = True
        assert place.put(np.zeros(shape)).shape == grid
    assert seen.all()


def test_patches_overlap_and_small_volumes_are_centred() -> None:
    starts = sorted({p.start[0] for p in patches((50, 8, 8), (16, 16, 16), overlap=0.5)})
    assert starts[0] == 0
    assert starts[-1] == 34
    assert max(np.diff(starts)) <= 8
    assert patches((8, 8, 8), (16, 16, 16)) == [centred((8, 8, 8), (16, 16, 16))]


@given(shape=st.tuples(*[st.integers(2, 300)] * 3))
def test_task_grid_holds_the_volume(shape: tuple[int, int, int]) -> None:
    grid, model, factor = task_grid(shape, (32, 48, 16), (4, 4, 2)), (32, 48, 16), (4, 4, 2)
    assert all(g >= max(n, m) for g, n, m in zip(grid, shape, model, strict=True))
    assert all(g % f == 0 for g, f in zip(grid, factor, strict=True))
    assert all(g == m for g, n, m in zip(grid, shape, model, strict=True) if n <= m)


@pytest.mark.parametrize("name", list(affines()))
def test_operator_for_the_file_sees_the_files_array(name: str) -> None:
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    volume = from_array(data, affines()[name])
    place = centred(volume.shape, (12, 12, 12))
    field = torch.from_numpy(place.put(volume.data))[None, None]
    operator = OnGrid(place, volume.stored.orientation, Identity((1, 5, 6, 7)))
    assert np.array_equal(operator(field)[0, 0].numpy(), data)
    assert dot_test(operator) < 1e-5
    thick = ThickSlice((1, 5, 6, 7), axis=2, spacing=1.0, thickness=2.0)
    wrapped = OnGrid(place, volume.stored.orientation, thick)
    assert torch.allclose(wrapped(field), thick(torch.from_numpy(data)[None, None]))
    assert dot_test(wrapped) < 1e-5
    assert wrapped.family == thick.family
    with pytest.raises(ShapeMismatch, match="build it for this volume"):
        OnGrid(place, volume.stored.orientation, Identity((1, 5, 6, 8)))


@pytest.mark.parametrize("name", list(affines()))
def test_ras_and_back(name: str) -> None:
    data = np.random.default_rng(0).normal(size=(5, 6, 7))
    volume = from_array(data, affines()[name])
    assert np.array_equal(volume.on_disk(), data)
    closest = nib.as_closest_canonical(nib.Nifti1Image(data, affines()[name]))
    assert np.array_equal(volume.data, closest.get_fdata())
    assert np.allclose(volume.affine, closest.affine)
    assert np.allclose(volume.spacing, nib.affines.voxel_sizes(closest.affine))


@pytest.mark.parametrize("name", list(affines()))
def test_crop_stays_in_place(name: str) -> None:
    volume = from_array(np.random.default_rng(0).normal(size=(7, 8, 9)), affines()[name])
    part = crop(volume, (1, 2, 3), (2, 3, 4))
    assert part.data[1, 2, 3] == volume.data[2, 4, 6]
    assert np.allclose(part.affine @ [1, 2, 3, 1], volume.affine @ [2, 4, 6, 1])
    with pytest.raises(ShapeMismatch, match="not inside"):
        crop(volume, (6, 0, 0), (5, 2, 2))


def test_refusals() -> None:
    with pytest.raises(ShapeMismatch, match="does not fit"):
        centred((33, 8, 8), (32, 32, 32))
    with pytest.raises(DataError, match="not invertible"):
        from_array(np.zeros((4, 4, 4)), np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(DataError, match="multiples"):
        check_grid([30, 32, 32], (4, 4, 4))
    with pytest.raises(ShapeMismatch):
        Placement((8, 8, 8), (0, 0, 0), (0, 0, 0), (8, 8, 8)).put(np.zeros((4, 8, 8)))
