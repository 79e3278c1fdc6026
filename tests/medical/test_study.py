"""Studies: everybody gets the same values, scores are those of a known error, factors come from other volumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nibabel")

from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.result import Reconstruction
from sciLDM.domains.medical.scan import Scan
from sciLDM.domains.medical.study import StudySettings, crop, reconstruction_study
from sciLDM.domains.medical.study_result import OURS, Study, read_study
from sciLDM.domains.medical.study_scores import chi_square, image_score
from sciLDM.domains.medical.study_tasks import Case, task_named
from sciLDM.domains.medical.supervised import SupervisedSettings
from sciLDM.domains.medical.volume import Volume, from_array
from sciLDM.errors import ConfigError, DataError
from sciLDM.guidance.posterior import DecodeEncodeSolver
from tests.medical.model import tiny_model
from tests.medical.phantoms import blob

SHAPE = (12, 12, 12)
SIGMA = 3.0


def volumes(count: int, seed: int = 0) -> list[Volume]:
    rng = np.random.default_rng(seed)
    return [
        from_array(blob(SHAPE, rng, scale=100.0), np.diag([1, 1, 2, 1.0]), name=f"v{seed}{k}.nii.gz")
        for k in range(count)
    ]


class Oracle:
    """Knows the truth up to white noise of known size, and says half of its size: calibration must double it."""

    def __init__(self, codec: Any, known: list[Volume]) -> None:
        self.codec = codec
        self.known = {v.name: v.data for v in known}
        self.calls: list[dict[str, Any]] = []
        self.card: dict[str, Any] = {}

    def reconstruct(self, observed: Scan, operator: Any = None, **options: Any) -> Reconstruction:
        self.calls.append({"scan": observed, **options})
        rng = np.random.default_rng(options["seed"])
        truth = self.known[observed.volume.name]
        mean = truth + SIGMA * rng.standard_normal(truth.shape)
        draws = mean + SIGMA / 2 * rng.standard_normal((options["samples"], *truth.shape))
        arrays = {
            "recon": mean,
            "std": np.full(truth.shape, SIGMA / 2),
            "nullspace": np.full(truth.shape, 0.7),
        }
        arrays |= {"lower": mean - SIGMA, "upper": mean + SIGMA}
        single = {k: v.astype(np.float32) for k, v in arrays.items()}
        return Reconstruction(observed.volume, single, draws.astype(np.float32), 1.0, False, "mr")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> MedicalCodec:
    found = tiny_model(tmp_path_factory).codec
    assert isinstance(found, MedicalCodec)
    return found


@pytest.fixture(scope="module")
def oracle(codec: MedicalCodec) -> Oracle:
    return Oracle(codec, [*volumes(3, 1), *volumes(4, 2)])


@pytest.fixture(scope="module")
def study(oracle: Oracle) -> Study:
    settings = StudySettings(
        samples=4,
        validation=3,
        test=4,
        tuning=1,
        tv_iterations=20,
        supervised=SupervisedSettings(max_steps=2, widths=(4, 8), batch_size=1),
    )
    splits = {"train": volumes(2), "validation": volumes(3, 1), "test": volumes(4, 2)}
    return reconstruction_study(oracle, splits, ("slices", "hole"), settings=settings)


def row(study: Study, task: str, method: str) -> dict[str, Any]:
    return next(r for r in study.rows if (r["task"], r["method"]) == (task, method))


def test_every_method_has_a_row(study: Study) -> None:
    shared = ["nearest", "linear", "cubic", "zero-filled", "TV", "supervised U-Net", OURS]
    assert [r["method"] for r in study.rows if r["task"] == "slices"] == shared
    assert {r["method"] for r in study.rows if r["task"] == "hole"} == {*shared, "biharmonic"}
    assert all(r["volumes"] == 4 for r in study.rows)


def test_scores_are_those_of_the_known_error(study: Study) -> None:
    ours = row(study, "slices", OURS)
    ranges = study.cases.query("method == @OURS and task == 'slices'")["range"]
    expected = float((20 * np.log10(ranges / SIGMA)).mean())
    assert ours["psnr"] == pytest.approx(expected, abs=0.3)
    # Half the true spread: 90 % intervals hold P(|N| < 1.645 / 2) = 59 %.
    assert ours["coverage_raw"] == pytest.approx(0.589, abs=0.03)
    assert ours["coverage"] == pytest.approx(0.9, abs=0.03)
    assert ours["coverage_family"] == pytest.approx(0.9, abs=0.03)
    cubic = row(study, "slices", "cubic")
    assert cubic["psnr_ahead"] == pytest.approx(ours["psnr"] - cubic["psnr"])
    assert cubic["lower"] <= cubic["psnr_ahead"] <= cubic["upper"]


def test_factors_double_the_spread(study: Study) -> None:
    assert list(study.conformal.families) == ["Mask"]
    assert study.conformal.factor("Mask", region=2) == pytest.approx(2.0, rel=0.05)


def test_noise_level_and_volumes_are_the_same_for_all(oracle: Oracle, study: Study) -> None:
    names = {c["scan"].volume.name for c in oracle.calls}
    assert names == set(oracle.known)
    tested = study.cases.groupby(["task", "method"])["volume"].agg(tuple)
    assert len(set(tested)) == 1
    assert all(c["noise_std"] > 0 for c in oracle.calls)


def test_written_and_read(study: Study, tmp_path: Path) -> None:
    again = read_study(study.save(tmp_path / "study"))
    assert [r["method"] for r in again.rows] == [r["method"] for r in study.rows]
    assert row(again, "hole", OURS)["psnr"] == pytest.approx(row(study, "hole", OURS)["psnr"])
    assert np.array_equal(again.examples["hole"]["recon"], study.examples["hole"]["recon"])
    assert again.conformal.state() == study.conformal.state()
    with pytest.raises(DataError, match="expected a study"):
        read_study(tmp_path)


@pytest.mark.parametrize("name", ["slices", "thick", "hole", "views8"])
def test_truth_fits_its_own_observation(name: str) -> None:
    """The stated noise is the one that was added: chi-square of the truth is 1 to within its own scatter."""
    data = volumes(1)[0].data if name != "views8" else 10 * volumes(1)[0].data - 1000
    volume = from_array(data, np.diag([2, 2, 3, 1.0]), name="x")
    case = Case.of(volume, (float(data.min()), float(data.max())), 7)
    observed = task_named(name).observe(case, 0.02, 3)
    count = int(observed.observation.present.sum())
    assert chi_square(observed.observation, case.volume.data) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    again = task_named(name).observe(case, 0.02, 3)
    assert torch.equal(observed.observation.values.nan_to_num(), again.observation.values.nan_to_num())


@pytest.mark.parametrize("name", ["slices", "thick", "hole"])
def test_the_model_is_given_what_classical_methods_get(name: str, codec: MedicalCodec) -> None:
    case = Case.of(volumes(1)[0], (0.0, 100.0), 1)
    observed = task_named(name).observe(case, 0.01, 0)
    task = codec.task(observed.scan, None, noise_std=observed.noise_std)
    place = task.native.places[0]
    x = torch.from_numpy(place.put(case.volume.data))[None, None]
    given = task.observation.operator(x)
    own = observed.observation.operator(torch.from_numpy(case.volume.data)[None, None])
    if name == "thick":
        assert torch.allclose(given, own, atol=1e-3)
        assert torch.equal(task.observation.values, observed.observation.values)
    else:
        assert torch.equal(given[..., *place.inside], own)
        values = task.observation.values[..., *place.inside]
        assert torch.equal(values.nan_to_num(), observed.observation.values.nan_to_num())
        assert torch.equal(values.isnan(), torch.from_numpy(observed.scored)[None, None])


def test_slices_are_compared_where_they_were_lost() -> None:
    case = Case.of(volumes(1)[0], (0.0, 100.0), 1)
    observed = task_named("slices").observe(case, 0.01, 0)
    assert observed.scored.mean() == 0.75
    assert not (observed.scored & (observed.seen > 0)).any()
    hole = task_named("hole").observe(case, 0.01, 0)
    assert hole.scored.sum() == 6**3  # at most half of each axis


def test_image_score() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((9, 9, 9))
    assert image_score(truth, truth, 1.0).psnr == np.inf
    error = image_score(truth, truth + 0.1, 1.0)
    assert (error.psnr, error.mae) == (pytest.approx(20.0), pytest.approx(0.1))
    part = truth > 0.5
    spoilt = np.where(part, truth + 0.01, 5.0)
    assert image_score(truth, spoilt, 1.0, part).psnr == pytest.approx(40.0)
    with pytest.raises(DataError, match="not finite"):
        image_score(truth, np.full_like(truth, np.nan), 1.0)


def test_crop_keeps_the_place_in_the_patient() -> None:
    data = np.arange(10 * 8 * 6, dtype=np.float32).reshape(10, 8, 6)
    volume = from_array(data, np.array([[2.0, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]]))
    part = crop(volume, (4, 8, 16))
    assert np.array_equal(part.data, data[3:7])
    assert np.allclose(part.affine @ [0, 0, 0, 1], volume.affine @ [3, 0, 0, 1])
    assert crop(volume, (10, 8, 6)) is volume


def test_a_real_model_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The untrained model: numbers mean nothing, but all parts fit together, for thick slices as for gaps."""
    model = tiny_model(tmp_path_factory)
    settings = StudySettings(
        samples=2, steps=1, validation=1, test=1, tuning=1, tv_iterations=5, supervised=None,
        solver=DecodeEncodeSolver(),
    )  # fmt: skip
    splits = {"validation": volumes(1, 1), "test": volumes(1, 2)}
    found = reconstruction_study(model, splits, ("thick",), settings=settings)
    assert np.isfinite(row(found, "thick", OURS)["psnr"])
    assert list(found.conformal.families) == ["ThickSlice"]


def test_a_stopped_study_goes_on_where_it_was(codec: MedicalCodec, tmp_path: Path) -> None:
    """What is kept is taken as it is; what depends on a changed setting is made anew; numbers are those of one go."""
    splits = {"train": volumes(2), "validation": volumes(2, 1), "test": volumes(2, 2)}
    net = SupervisedSettings(max_steps=1, widths=(4, 8), batch_size=1)
    settings = StudySettings(
        samples=2, validation=2, test=2, tuning=1, tv_iterations=5, supervised=net
    )  # fmt: skip
    model = Oracle(codec, [*splits["validation"], *splits["test"]])
    with pytest.raises(ConfigError, match="hash of its weights"):
        reconstruction_study(model, splits, ["hole"], settings=settings, keep=tmp_path)
    model.card = {"files": {"model.safetensors": {"sha256": "1"}}}
    first = reconstruction_study(model, splits, ["hole"], settings=settings, keep=tmp_path)
    assert len(model.calls) == 4
    again = reconstruction_study(model, splits, ["hole"], settings=settings, keep=tmp_path)
    assert len(model.calls) == 4
    assert again.to_dict() == first.to_dict()
    fresh = reconstruction_study(model, splits, ["hole"], settings=settings)
    assert [r["psnr"] for r in fresh.rows] == pytest.approx([r["psnr"] for r in first.rows])
    model.calls.clear()
    model.card = {"files": {"model.safetensors": {"sha256": "2"}}}
    kept = len(list(tmp_path.iterdir()))
    reconstruction_study(model, splits, ["hole"], settings=settings, keep=tmp_path)
    assert len(model.calls) == 4  # the other weights' reconstructions are of no use
    assert len(list(tmp_path.iterdir())) == kept + 4  # baselines are


def test_mistakes(oracle: Oracle) -> None:
    with pytest.raises(ConfigError, match="views8"):
        task_named("blur")
    with pytest.raises(DataError, match="validation split has no volumes"):
        reconstruction_study(oracle, {"train": volumes(1), "test": volumes(1)})
    with pytest.raises(ConfigError, match="noise between"):
        StudySettings(noise=0.0)
