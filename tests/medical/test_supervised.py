"""The supervised competitor: starts as its first guess, and learns what the guess misses."""

import numpy as np
import pytest
import torch

pytest.importorskip("nibabel")

from sciLDM.domains.medical.intensity import IntensitySettings
from sciLDM.domains.medical.study_scores import image_score
from sciLDM.domains.medical.study_tasks import Case, task_named
from sciLDM.domains.medical.supervised import ResidualUNet, Supervised, SupervisedSettings, train_supervised
from sciLDM.domains.medical.volume import from_array
from sciLDM.errors import ConfigError, DataError

OPTIONS = {"noise": 0.01, "modality": "mr", "intensity": IntensitySettings()}


def case(k: int, *, scale: float = 100.0, size: int = 12) -> Case:
    """Stripes across the slices, finer than their distance: interpolation misses them, though they never change."""
    z = np.arange(size)
    data = np.ones((size, size, 1)) * (1 + np.cos(np.pi * z / 2)) / 2 * scale
    data = (data + 0.02 * scale * np.random.default_rng(k).standard_normal(data.shape)).astype(np.float32)
    return Case.of(from_array(data, np.eye(4), name=f"c{k}"), (0.0, scale), k)


def train(steps: int, seed: int = 0) -> Supervised:
    settings = SupervisedSettings(max_steps=steps, widths=(8, 16), batch_size=2)
    return train_supervised(
        task_named("slices"), [case(0), case(1)], noise=0.01, modality="mr", intensity=IntensitySettings(),
        settings=settings, seed=seed,
    )  # fmt: skip


def test_a_new_network_is_its_guess() -> None:
    guess, seen = torch.randn(2, 1, 8, 8, 8), torch.ones(2, 1, 8, 8, 8)
    assert torch.equal(ResidualUNet((4, 8))(guess, seen), guess)


def test_it_learns_what_interpolation_misses() -> None:
    task = task_named("slices")
    # Another volume, of another scale: the scale is estimated from what was observed.
    observed = task.observe(case(9, scale=7.0), 0.01, 0)
    truth = observed.case.volume.data
    trained = train(60)
    learned = image_score(truth, trained.reconstruct(observed), 7.0, observed.scored).psnr
    guessed = image_score(truth, task.guess(observed), 7.0, observed.scored).psnr
    assert learned > guessed + 6
    assert trained.steps == 60


def test_same_seed_same_network() -> None:
    a, b, c = train(2), train(2), train(2, seed=1)
    same = [torch.equal(p, q) for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.net.stem.weight, c.net.stem.weight)


def test_volumes_larger_than_those_of_training() -> None:
    observed = task_named("slices").observe(case(3, size=18), 0.01, 0)
    assert train(1).reconstruct(observed).shape == (18, 18, 18)


def test_mistakes() -> None:
    with pytest.raises(DataError, match="no volumes"):
        train_supervised(task_named("hole"), [], **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="minutes"):
        SupervisedSettings(minutes=0.0)
