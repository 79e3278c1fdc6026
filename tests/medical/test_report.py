"""Report sections: what the run holds is shown, rows where we lose included; pictures lie as they are expected."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nibabel")
pytest.importorskip("matplotlib")

from sciLDM.domains.medical.audit import audit
from sciLDM.domains.medical.bids import write_json
from sciLDM.domains.medical.pictures import _plane, middle_of, orthogonal_slices
from sciLDM.domains.medical.report import sections
from sciLDM.domains.medical.study_result import OURS, Study
from sciLDM.errors import DataError
from sciLDM.evaluate.hooks import Material
from sciLDM.model import LatentDiffusion
from sciLDM.posterior.conformal import Conformal
from tests.medical.model import tiny_model
from tests.medical.test_audit import cases


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return tiny_model(tmp_path_factory)


def study() -> Study:
    """Ours loses against cubic interpolation."""
    records: list[Mapping[str, Any]] = []
    for method, psnr in (("cubic", 31.5), (OURS, 29.0)):
        for k in range(3):
            own = {"coverage": 0.9, "coverage_raw": 0.6} if method == OURS else {}
            records.append(
                {"task": "hole", "method": method, "volume": f"v{k}", "psnr": psnr + k, "ssim": 0.9, "mae": 0.1,
                 "crps": 0.1, "chi2": 1.0, "seconds": 2.0, **own}
            )  # fmt: skip
    rng = np.random.default_rng(0)
    truth = rng.random((8, 9, 10)).astype(np.float32)
    images = {"truth": truth, "input": truth, "recon": truth + 0.1, "std": np.full_like(truth, 0.1)}
    images["scored"] = np.zeros(truth.shape, dtype=bool)
    images["scored"][2, 3, 4] = True
    protocol = {
        "noise": 0.01, "samples": 16, "volumes": {"test": 3}, "data_range": "percentiles", "ssim": "3-D",
        "tasks": {"hole": {"compared": "inside the hole"}},
    }  # fmt: skip
    return Study(tuple(records), protocol, Conformal(), {"hole": images})


def test_sections(model: LatentDiffusion, tmp_path: Path) -> None:
    study().save(tmp_path / "study")
    found = audit(cases(30, bad=3.0), ["scanner"], permutations=100)
    write_json(tmp_path / "audit.json", {"hole": found.to_dict()})
    curve = [
        {"radius": r, "contrast": 0.05, "retention": 0.9, "lower": 0.8, "upper": 1.0} for r in (1.5, 2.5)
    ]
    groups = [{"group": "all", "volumes": 3, "psnr": 33.0, "ssim": 0.9, "bias": 0.0}]
    write_json(tmp_path / "autoencoder.json", {"groups": groups, "retention": curve, "seam": 1e-7})
    samples = model.sample(3, steps=1).write(tmp_path / "samples.csv")
    material = Material(tmp_path, samples, None, {}, model.codec, model.reference)
    made = sections(material)
    html = {s.title: s.html for s in made}
    assert list(html) == [
        "Key figures", "Samples", "Reconstruction of held-out volumes", "Autoencoder", "Groups of patients", "Volumes",
    ]  # fmt: skip
    assert "best other: 32.5 dB" in html["Key figures"]
    table = html["Reconstruction of held-out volumes"]
    assert all(text in table for text in ("cubic", OURS, "-2.5", "percentiles", "<svg"))
    assert "1.0e-07" in html["Autoencoder"]
    assert "train" in html["Volumes"]
    assert "script" not in "".join(html.values())


def test_an_empty_run_has_no_sections(model: LatentDiffusion, tmp_path: Path) -> None:
    assert sections(Material(tmp_path, None, None, {}, model.codec, None)) == []


def test_planes_lie_as_expected() -> None:
    """Up is front or head, right is right: a bright voxel at the front, right, top corner."""
    image = np.zeros((4, 5, 6))
    image[3, 4, 5] = 1.0
    for row in range(3):
        plane = _plane(image, row, (3, 4, 5))
        assert plane[0, -1] == 1.0
        assert plane.sum() == 1.0
    assert _plane(image, 0, (3, 4, 5)).shape == (5, 4)


def test_slices_go_through_what_was_lost() -> None:
    scored = np.zeros((9, 9, 9), dtype=bool)
    scored[1:3, 5:8, 2] = True
    at = middle_of(scored, scored.shape)
    assert scored[at]
    lost = np.ones((9, 9, 9), dtype=bool)
    lost[:, :, ::4] = False  # the middle slice was recorded
    assert lost[middle_of(lost, lost.shape)]
    assert middle_of(None, (4, 6, 8)) == (2, 3, 4)


def test_pictures_are_reproducible_and_refuse_mixed_shapes() -> None:
    images = {"truth": np.random.default_rng(0).random((6, 7, 8)), "error": np.zeros((6, 7, 8))}
    assert orthogonal_slices(images, "a test") == orthogonal_slices(images, "a test")
    with pytest.raises(DataError, match="one shape"):
        orthogonal_slices({"a": np.zeros((2, 2, 2)), "b": np.zeros((3, 2, 2))}, "a test")
