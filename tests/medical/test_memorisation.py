"""Copies are seen even when shifted or mirrored, new volumes are not called copies; similarity against scikit-image."""

import numpy as np
import pytest
import torch

pytest.importorskip("nibabel")

from sciLDM.domains.medical.evaluation import ms_ssim, pair_similarity
from sciLDM.domains.medical.memorisation import memorisation, nearest
from sciLDM.errors import DataError, ShapeMismatch


def fresh(count: int, seed: int, *, channels: tuple[int, ...] = ()) -> np.ndarray:
    """Smooth random volumes."""
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 1, 12, 12, 12))).float()
    smooth = torch.nn.functional.avg_pool3d(noise, 5, stride=1, padding=2, count_include_pad=False)
    return smooth[:, 0].numpy().reshape(count, *channels, 12, 12, 12)


def test_new_volumes_are_no_copies() -> None:
    found = memorisation(fresh(8, 2), fresh(20, 0), fresh(8, 1))
    assert np.median(found.ratios) == pytest.approx(1.0, abs=0.1)
    assert np.median(found.held_out) == pytest.approx(1.0)
    assert np.median(found.floor) == pytest.approx(1.0, abs=0.1)
    assert found.copies == 0.0


@pytest.mark.parametrize("how", ["same", "noisy", "shifted", "mirrored"])
def test_copies_are_found(how: str) -> None:
    train = fresh(20, 0)
    copied = {
        "same": train[3:6],
        "noisy": train[3:6] + 0.02 * np.random.default_rng(5).standard_normal((3, 12, 12, 12)),
        "shifted": np.pad(train[3:6], ((0, 0), (1, 0), (0, 0), (0, 1)), mode="edge")[:, :12, :, 1:],
        "mirrored": train[3:6, ::-1],
    }[how]
    found = memorisation(copied, train, fresh(8, 1))
    assert found.copies == 1.0
    assert found.index.tolist() == [3, 4, 5]
    if how in ("shifted", "mirrored"):
        assert memorisation(copied, train, fresh(8, 1), shift=0, mirror=False).copies == 0.0


def test_rows_name_the_floor() -> None:
    value, share = memorisation(fresh(4, 2), fresh(9, 0), fresh(4, 1)).rows()
    assert value["floor"] > 0
    assert (share["value"], share["floor"]) == (0.0, 0.0)


def test_latents_have_channels() -> None:
    train = fresh(9, 0, channels=(1,))
    assert memorisation(train[:2], train, fresh(4, 1, channels=(1,))).copies == 1.0


def test_nearest_is_exact() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 4, 4, 4)), rng.standard_normal((7, 4, 4, 4))
    slow = np.sqrt(((a[:, None] - b[None]) ** 2).mean(axis=(2, 3, 4))).min(axis=1)
    assert np.allclose(nearest(a, b), slow, rtol=1e-12)
    assert nearest(b, b).max() == 0


def test_similarity_of_pairs() -> None:
    volumes = fresh(6, 0)
    x = torch.from_numpy(volumes)[:, None]
    assert torch.allclose(ms_ssim(x, x), torch.ones(6))
    assert pair_similarity(np.repeat(volumes[:1], 4, axis=0)) == pytest.approx(1.0)
    apart = pair_similarity(volumes)
    blend = 0.8 * volumes.mean(axis=0) + 0.2 * volumes
    assert apart < pair_similarity(blend) < 1
    assert np.isnan(pair_similarity(volumes[:1]))
    assert 0 <= pair_similarity(volumes, pairs=3) < 1


def test_similarity_is_skimages_at_one_scale() -> None:
    from skimage.metrics import structural_similarity

    a, b = fresh(1, 0)[0, :8, :8, :8], fresh(1, 0)[0, :8, :8, 1:9]
    ours = ms_ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None], data_range=2.0)
    _, field = structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        data_range=2.0,
        win_size=7,
        use_sample_covariance=False,
        full=True,
    )
    assert float(ours) == pytest.approx(field[3:-3, 3:-3, 3:-3].mean(), abs=1e-5)


def test_mistakes() -> None:
    with pytest.raises(DataError, match="at least two training"):
        memorisation(fresh(1, 0), fresh(1, 1), fresh(1, 2))
    with pytest.raises(ShapeMismatch, match="differ in shape"):
        nearest(fresh(1, 0), fresh(1, 0)[..., :6])
